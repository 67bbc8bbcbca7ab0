"""The documentation says what is so: its names, its tables, and every block of code in it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import flask_uwsgi_websocket
from flask_uwsgi_websocket.settings import Settings, resolve

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_api_reference_has_every_public_name_once() -> None:
    documented = re.findall(r"^\.\. auto\w+:: (?:[\w.]+\.)?(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    documented.remove("signals")  # these two are modules, of which the introductions are shown
    documented.remove("exceptions")
    documented.remove("Settings")  # public by its fields, which are keywords and options
    assert sorted(documented) == sorted(flask_uwsgi_websocket.__all__)


def test_the_configuration_has_every_setting_with_its_default() -> None:
    page = (DOCS / "configuration.md").read_text()
    rows = re.findall(r"^\| `(WEBSOCKET_\w+)` \| `(\w+)` \| `(.+?)` \|", page, re.MULTILINE)
    assert {name: eval(default) for _, name, default in rows} == {f.name: f.default for f in fields(Settings)}
    for key, name, default in rows:
        assert key == ("WEBSOCKET_ALLOWED_ORIGINS" if name == "origins" else f"WEBSOCKET_{name.upper()}")
        assert resolve({key: eval(default)}) == Settings()
