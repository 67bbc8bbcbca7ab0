"""Sphinx's configuration: ``make docs`` builds these pages into build/docs."""

from __future__ import annotations

import re
from importlib.metadata import version as version_of

from docutils import nodes
from flask_uwsgi_websocket.settings import KEYS
from pallets_sphinx_themes import ProjectLink
from sphinx.application import Sphinx

REPOSITORY = "https://github.com/zeekay/flask-uwsgi-websocket"

project = "Flask-uWSGI-WebSocket"
copyright = "Zach Kelling and the Flask-uWSGI-WebSocket contributors"
version = release = version_of("Flask-uWSGI-WebSocket")

extensions = ["myst_parser", "pallets_sphinx_themes", "sphinx.ext.autodoc"]
root_doc = "index"

# Links to headings, as on GitHub.
myst_heading_anchors = 3
myst_ref_domains = ["std", "py"]

# As the code has them: members in the order of the source, defaults as written. Types
# are told in words, as those of decorators are for type checkers only.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"

# Every reference leads somewhere, but for those into other projects, whose lists of
# names Sphinx would have to download.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(blinker|flask|werkzeug)\..*")]

html_theme = "flask"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_js_files = ["tables.js"]
html_logo = html_favicon = "_static/logo.svg"
html_title = f"Flask-uWSGI-WebSocket {version}"
html_theme_options = {"index_sidebar_logo": False}
html_context = {
    "project_links": [
        ProjectLink("PyPI", "https://pypi.org/project/Flask-uWSGI-WebSocket/"),
        ProjectLink("Source code", REPOSITORY),
    ]
}
html_sidebars = {
    "index": ["project.html", "localtoc.html", "searchbox.html"],
    "**": ["localtoc.html", "relations.html", "searchbox.html"],
}
html_show_sourcelink = False


def link_to_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let links to files outside of this directory lead to the repository."""
    source[0] = re.sub(r"\]\(\.\./", f"]({REPOSITORY}/blob/HEAD/", source[0])


def link_to_settings(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let the name of a setting lead to its entry in the page of all settings."""
    page = app.builder.get_relative_uri(docname, "configuration")
    for name in list(doctree.findall(nodes.literal)):
        is_setting = name.astext() in KEYS.values()
        if is_setting and not isinstance(name.parent, nodes.title | nodes.reference):
            link = nodes.reference(refuri=f"{page}#{nodes.make_id(name.astext())}")
            name.replace_self(link)
            link += name


def setup(app: Sphinx) -> None:
    app.connect("source-read", link_to_repository)
    app.connect("doctree-resolved", link_to_settings)
