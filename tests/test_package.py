"""The distributions have all files and a page for PyPI, and they install on a machine without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from pathlib import Path

import pytest
from websockets.sync.client import connect

from support.inprocess import wait_until
from support.pages import PACKAGE, block_not_run
from support.paths import ROOT
from support.ports import reserved_port

pytestmark = [pytest.mark.live, pytest.mark.once, pytest.mark.timeout(300)]

#: Files that tools leave in the checkout, and that are not part of the project.
LEFT_BY_TOOLS = ("__pycache__", ".*", "build", "dist", "instance", "*.egg-info", "*.so", "*.py[cod]", "_*.c")

DEADLINE = 30

APP = """\
from flask import Flask
from flask_uwsgi_websocket import {extension}

app = Flask(__name__)


@{extension}(app).route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)


if __name__ == "__main__":
    app.run(port={port})
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, in which no other process builds."""
    path = tmp_path_factory.mktemp("beside") / Path(PACKAGE).name
    shutil.copytree(ROOT, path, ignore=shutil.ignore_patterns(*LEFT_BY_TOOLS))
    for name in (".ci", ".github"):
        shutil.copytree(ROOT / name, path / name)
    shutil.copy(ROOT / ".pre-commit-config.yaml", path)
    return path


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source distribution and the wheel."""
    path = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", str(path)], checkout, dict(os.environ))
    return path


def run(command: list[str], directory: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_source_distribution_has_every_file(checkout: Path, built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        packed = {member.name.partition("/")[2] for member in archive if member.isfile()}
    ours = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    made = {"PKG-INFO"} | {name for name in packed if name.startswith("Flask_uWSGI_WebSocket.egg-info/")}
    assert {name.lower() for name in packed - made} == {name.lower() for name in ours - {*made}}


def test_the_wheel_has_the_package_and_its_extensions(checkout: Path, built: Path) -> None:
    (path,) = built.glob("*.whl")
    package = checkout / "flask_uwsgi_websocket"
    ours = {str(path.relative_to(checkout)) for path in package.rglob("*") if path.is_file()}
    with zipfile.ZipFile(path) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    extensions = {path.removesuffix(".pyx") for path in ours if path.endswith(".pyx")}
    assert extensions
    assert {re.sub(r"\..*\.so$", "", path) for path in packed - ours} == extensions
    assert ours - packed == {path for path in ours if path.endswith((".pyx", ".pxd"))}


def test_both_distributions_pass_twines_checks_and_the_page_for_pypi_has_no_dead_link(built: Path) -> None:
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())], built, dict(os.environ))
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = str(message_from_bytes(archive.read(name)).get_payload())
    links = re.findall(r"\]\((.*?)\)", page)
    assert len(links) > 25
    for link in links:
        assert link.startswith("https://"), link
    pictures = re.findall(r"!\[[^]]*\]\((.*?)\)", page)
    assert pictures
    for picture in pictures:
        repository, _, path_there = picture.partition("/raw/HEAD/")
        assert repository.startswith("https://github.com/"), picture
        assert (ROOT / path_there).exists()
    for link in {*links} - {*pictures}:
        _, is_ours, path_there = link.partition("/blob/HEAD/")
        assert not is_ours or (ROOT / path_there.partition("#")[0]).exists(), link


@pytest.fixture(scope="module")
def without_a_compiler(checkout: Path) -> tuple[Path, dict[str, str]]:
    """A project's directory beside the checkout, and the virtual environment that the page creates for it."""
    project = checkout.parent / "project"
    run([sys.executable, "-m", "venv", str(project / ".venv")], checkout, dict(os.environ))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FLASK_", "PYTHON"))}
    environ["PATH"] = str(project / ".venv/bin")
    for command in block_not_run("docs/installation.md: pip install").splitlines():
        run(["/bin/sh", "-c", command], project, environ)
    return project, environ


@pytest.mark.parametrize("extension", ["WebSocket", "GeventWebSocket"])
def test_without_a_compiler_pyuwsgi_serves_and_reloads(
    without_a_compiler: tuple[Path, dict[str, str]], extension: str
) -> None:
    project, environ = without_a_compiler
    with reserved_port() as port:
        (project / "app.py").write_text(APP.format(extension=extension, port=port))
        with serving(project, environ) as server:
            log = project / "log"

            def starts() -> int:
                return log.read_text().count("spawned uWSGI worker 1 ")

            for count in (1, 2):
                wait_until(lambda count=count: starts() == count or server.poll() is not None, log.read_text)
                with connect(f"ws://localhost:{port}/echo", origin=f"http://localhost:{port}") as ws:
                    ws.send("hello")
                    assert ws.recv(DEADLINE) == "hello"
                server.send_signal(signal.SIGHUP)


@contextmanager
def serving(project: Path, environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with (project / "log").open("wb") as log:
        server = subprocess.Popen(
            ["python", "app.py"], cwd=project, env=environ, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_without_a_compiler_the_doctor_and_the_startup_block_report_pure_python(
    without_a_compiler: tuple[Path, dict[str, str]],
) -> None:
    project, environ = without_a_compiler
    (project / "app.py").write_text(APP.format(extension="WebSocket", port=1))
    (project / "uwsgi.ini").write_text("[uwsgi]\nmaster = true\nthreads = 9\n")
    said = (
        "missing, as there was no C compiler, and pure Python runs instead: install gcc and Python's header files, "
        "then reinstall this package"
    )
    doctor = run(["flask", "websocket", "doctor", "uwsgi.ini"], project, environ)
    assert doctor == f"The C extension is {said}.\nNothing in uwsgi.ini harms WebSockets.\n"
    code = "from flask_uwsgi_websocket.cli.startup import describe; print(describe(['uwsgi'], {}, None, False))"
    assert f"   C extension {said}\n" in run(["python", "-c", code], project, environ)
