"""The runner locates an application among the modules of this process. test_runner.py runs whole processes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_uwsgi_websocket import UwsgiNotFound, find_uwsgi, run_uwsgi
from flask_uwsgi_websocket.cli.runner import locate_app

SCRIPT = """
from flask import Flask as F
import os.path

site = other = F(__name__)

def make_app(): return F(__name__)

if __name__ == "__main__":
    guarded = F(__name__)
else:
    imported = None
"""


def load(monkeypatch: pytest.MonkeyPatch, path: Path, name: str, source: str = SCRIPT) -> Any:
    """Load a file as the module *name*, like an import or ``python file.py``."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if name == "__main__":
        module.__spec__ = None  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(path.parent))
    spec.loader.exec_module(module)
    return module


def test_a_script_is_named_by_its_directory_and_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load(monkeypatch, tmp_path / "site_app.py", "__main__")
    assert locate_app(module.site) == {"pythonpath": str(tmp_path), "module": "site_app:site"}


def test_an_application_that_only_the_script_binds_is_located_by_its_factory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = load(monkeypatch, tmp_path / "site_app.py", "__main__")
    assert locate_app(module.guarded)["module"] == "site_app:make_app()"


def test_a_script_that_cannot_be_imported_is_named_by_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load(monkeypatch, tmp_path / "my-app.py", "__main__")
    located = locate_app(module.site)
    assert (located["wsgi-file"], located["callable"]) == (str(tmp_path / "my-app.py"), "site")
    with pytest.raises(RuntimeError, match="uWSGI calls factories of importable modules only"):
        locate_app(module.guarded)


def test_a_module_is_named_by_its_directory_and_its_import_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = load(monkeypatch, tmp_path / "site_module.py", "site_module")
    assert locate_app(module.site) == {"pythonpath": str(tmp_path), "module": "site_module:site"}
    assert locate_app("site_module:make_app()")["module"] == "site_module:make_app()"


def test_an_application_without_a_name_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no name leads to"):
        locate_app(Flask("nowhere"))


def test_run_does_nothing_under_the_flask_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    run_uwsgi("site_module:site")
    assert "the 'flask' command has loaded the application" in capsys.readouterr().err


def test_a_missing_binary_that_was_asked_for_is_an_error() -> None:
    with pytest.raises(UwsgiNotFound, match="'no-such-uwsgi'"):
        find_uwsgi("no-such-uwsgi")
