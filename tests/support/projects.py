"""Projects in their own directories, and Python processes that run in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import flask_uwsgi_websocket

DEADLINE = 30  # seconds, for steps that take one or two on an idle machine

# Scripts call this to start themselves. It serves the application, or prints where the package found it.
START = """
import json, os
from flask_uwsgi_websocket.cli.runner import locate_app, run_uwsgi

def start(app, **options):
    if "PORT" in os.environ:
        run_uwsgi(app, port=int(os.environ["PORT"]), **options)
    else:
        print(json.dumps(locate_app(app)))
"""


def write(project: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)


def environment(project: Path, **variables: object) -> dict[str, str]:
    """Return the environment for a project's processes, in which the package and ``start`` can be imported."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FLASK_", "PORT"))}
    paths = [str(Path(flask_uwsgi_websocket.__file__).parents[1]), str(project.parent / "library")]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), **{k: str(v) for k, v in variables.items()}}


def run(project: Path, *arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in the project to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=environment(project, **variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


class Server(NamedTuple):
    process: subprocess.Popen[bytes]
    log: Path
    url: str

    def get(self) -> str:
        """Return the answer of the server, as soon as it answers."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                with urllib.request.urlopen(self.url, timeout=DEADLINE) as response:
                    return str(response.read().decode())
            except urllib.error.HTTPError as error:
                with error:
                    return f"{error.code}"
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)


@contextmanager
def serving(project: Path, port: int, *arguments: str, **variables: object) -> Iterator[Server]:
    """Run Python with these arguments in the project, as a server for as long as the context lasts."""
    log = project.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=project,
            env=environment(project, PORT=port, **variables),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Server(process, log, f"http://127.0.0.1:{port}/")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def change(path: Path, text: str, server: Server, expected: str) -> None:
    """Change a module, and wait until the server serves the change."""
    path.write_text(text)
    deadline = time.monotonic() + DEADLINE
    while server.get() != expected:
        assert time.monotonic() < deadline, server.log.read_text()
        # The reloader compares whole seconds, and only with the times that it has seen itself.
        later = path.stat().st_mtime + 1
        os.utime(path, (later, later))
        time.sleep(0.1)
