"""Programs for the originals of the drop-ins, on each server, and what their clients see.

A program is written for flask-sock or Flask-Sockets. With the drop-in it runs with one line changed. What the program
prints after RECORD belongs to its record, too.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import flask_uwsgi_websocket
from support.ports import reserved_port

DEADLINE = 30  # seconds, for steps that take one or two on an idle machine

_BIN = Path(sys.executable).parent
_PACKAGE = Path(flask_uwsgi_websocket.__file__).parents[1]

#: The commands of each server. PORT is its port.
SERVERS = {
    "flask-run": ["flask", "--app", "app", "run", "--port", "PORT"],
    "gunicorn-threads": ["gunicorn", "--threads", "20", "--bind", "127.0.0.1:PORT", "app:app"],
    "gunicorn-gevent": ["gunicorn", "--worker-class", "gevent", "--bind", "127.0.0.1:PORT", "app:app"],
    "gevent": ["python", "app.py"],
    "flask-sockets-worker": [
        "gunicorn",
        "--worker-class",
        "flask_sockets.worker",
        "--bind",
        "127.0.0.1:PORT",
        "app:app",
    ],
    "uwsgi-threads": ["uwsgi", "--http-socket", "127.0.0.1:PORT", "--threads", "20", "--enable-threads"],
    "uwsgi-gevent": ["uwsgi", "--http-socket", "127.0.0.1:PORT", "--gevent", "20", "--gevent-early-monkey-patch"],
}

_UWSGI = ["--master", "--lazy-apps", "--need-app", "--die-on-term", "--add-header", "Connection: close"]

#: Flask-Sockets does not run with Werkzeug 2 or newer, whose rules for WebSockets need this option.
_MENDED = """
import flask_sockets, werkzeug.routing
flask_sockets.Sockets.add_url_rule = lambda self, rule, _, f, **options: self.url_map.add(
    werkzeug.routing.Rule(rule, endpoint=f, websocket=True)
)
"""


class Program:
    """A running program.

    :param port: its port.
    :param log: what it and its server print.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def records(self, count: int) -> list[str]:
        """Wait until the program has printed this number of records, and return them in their order."""
        wait_until(lambda: len(self._records()) >= count, lambda: self.log)
        return self._records()

    def _records(self) -> list[str]:
        return re.findall(r"^RECORD (.*)\n", self.log, re.MULTILINE)

    def connect(self, path: str, **options: Any) -> ClientConnection:
        """Connect a client, for a ``with`` statement."""
        options = {"compression": None, "ping_interval": None, "max_size": None, **options}
        return connect(f"ws://127.0.0.1:{self.port}{path}", proxy=None, open_timeout=DEADLINE, **options)

    def talk(self, path: str, *messages: str | bytes, **options: Any) -> list[Any]:
        """Send each message, and then record all that comes until the end."""
        with self.connect(path, **options) as ws:
            for message in messages:
                ws.send(message)
            return rest(ws)

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            client.request(method, path, body, {"Content-Type": "application/json"})
            response = client.getresponse()
            return response.status, response.read().decode()
        finally:
            client.close()


def rest(ws: ClientConnection) -> list[Any]:
    """Return all messages until the end, and then the code and reason of the server's Close frame."""
    seen: list[Any] = []
    try:
        while True:
            seen.append(ws.recv(DEADLINE))
    except ConnectionClosed as end:
        seen.append(None if end.rcvd is None else (end.rcvd.code, end.rcvd.reason))
    return seen


def vanish(ws: ClientConnection) -> None:
    """End TCP without a Close frame."""
    ws.socket.shutdown(2)


def wait_until(condition: Callable[[], Any], complain: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, complain()
        time.sleep(0.01)


def changed(source: str) -> str:
    """Return a program with the one line changed that makes it a program of the drop-in."""
    after = re.sub("^from flask_sock(ets)? import", "from flask_uwsgi_websocket.compat import", source, flags=re.M)
    lines = zip(source.splitlines(), after.splitlines(), strict=True)
    assert sum(before != now for before, now in lines) == 1
    return after


@contextmanager
def running(directory: Path, path: Path, server: str, *, original: bool = False, **config: Any) -> Iterator[Program]:
    """Run a program.

    :param directory: an empty directory.
    :param original: whether to run it with the package for which it is written.
    :param config: values for its ``app.config``.
    """
    source = path.read_text()
    source = _MENDED + source if original else changed(source)
    if not original:  # as its users have to
        source = source.replace(", handler_class=WebSocketHandler", "")
    (directory / "app.py").write_text(source)
    if config:
        (directory / "configured.py").write_text(f"from app import app\napp.config.update({config!r})\n")
    with reserved_port() as port:
        command = [argument.replace("PORT", str(port)) for argument in SERVERS[server]]
        if command[0] == "uwsgi":
            command += [*_UWSGI, "--pythonpath", str(directory), "--pythonpath", str(_PACKAGE), "--module", "app:app"]
            command += ["--virtualenv", sys.prefix] * (sys.prefix != sys.base_prefix)
        if config:
            command = ["configured" if argument == "app" else argument for argument in command]
            command = ["configured:app" if argument == "app:app" else argument for argument in command]
        path = directory / "log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [str(_BIN / command[0]), *command[1:]],
                cwd=directory,
                env={**os.environ, **_environ(port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        program = Program(port, path)
        try:
            wait_until(lambda: _answers(program, process), lambda: program.log)
            yield program
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environ(port: int) -> dict[str, str]:
    paths = [str(_PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PORT": str(port),
        "GUNICORN_CMD_ARGS": "--no-control-socket",
    }


def _answers(program: Program, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, program.log
    with suppress(OSError, http.client.HTTPException):
        return program.request("GET", "/") is not None
    return False
