"""The printed configuration equals the files in ``deploy``, with the names and directories of the app."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import flask_uwsgi_websocket
from flask_uwsgi_websocket.cli import deployment
from flask_uwsgi_websocket.cli.deployment import FILES, configuration

MODES = ["threads", "gevent", "asyncio"]

#: The app in the files.
CHAT = Path("/srv/chat")
LOAD = [("module", "app:app")]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual environment and the uWSGI in the files."""
    monkeypatch.setattr(sys, "prefix", f"{CHAT}/venv")
    monkeypatch.setattr(deployment, "find_uwsgi", lambda: f"{CHAT}/venv/bin/uwsgi")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", FILES)
def test_for_the_app_of_the_files_the_output_is_the_files(kind: str, mode: str) -> None:
    path = Path(flask_uwsgi_websocket.__file__).parent / "cli" / "deploy" / FILES[kind].format(mode=mode)
    assert configuration(kind, mode, LOAD, CHAT, None) == path.read_text()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", FILES)
def test_for_another_app_the_output_has_no_name_of_the_files_app(
    kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", "/opt/env")
    monkeypatch.setattr(deployment, "find_uwsgi", lambda: "/opt/env/bin/uwsgi")
    text = configuration(kind, mode, [("module", "web:create_app()")], Path("/opt/Forum"), "example.org")
    assert "chat" not in text.lower()
    assert "app:app" not in text


def test_each_option_that_loads_the_app_has_its_line() -> None:
    options = [("env", "FLASK_APP=web:create_app('%d')"), ("module", "x.wsgi:load_app()")]
    lines = configuration("ini", "gevent", options, CHAT, None).splitlines()
    index = lines.index("chdir = /srv/chat")
    assert lines[index + 1 : index + 3] == ["env = FLASK_APP=web:create_app('%%d')", "module = x.wsgi:load_app()"]


def test_without_a_virtual_environment_the_configuration_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    text = configuration("ini", "gevent", LOAD, CHAT, None)
    assert "virtualenv" not in text
    assert "\nchdir = /srv/chat\n" in text


@pytest.mark.parametrize(
    ("directory", "name"),
    [("/srv/chat", "chat"), ("/srv/My.Forum-2", "myforum-2"), ("/srv/.2nd_forum", "nd_forum"), ("/", "app")],
)
def test_the_service_has_the_name_of_the_directory_with_the_characters_that_a_user_name_allows(
    directory: str, name: str
) -> None:
    assert f"\nUser={name}\n" in configuration("systemd", "gevent", LOAD, Path(directory), None)


@pytest.mark.parametrize("directory", ["/srv/a b", "/srv/a%b", "/srv/a;b", "/srv/$a", '/srv/"a"'])
def test_a_path_that_needs_quotes_is_refused(directory: str) -> None:
    with pytest.raises(ValueError, match="has characters with a meaning in configuration files: rename it"):
        configuration("nginx", "gevent", LOAD, Path(directory), None)
