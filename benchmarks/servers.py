"""The servers that are compared: how each is started, and what its processes use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

APPS = Path(__file__).parent / "apps"
BIN = Path(sys.executable).parent
#: Where ``make bench`` installs Flask-uWSGI-WebSocket 0.6.1.
LEGACY = Path(sys.prefix, "legacy")

#: Seconds until a server has to be there; 10,000 greenlets or threads take some.
START_TIMEOUT = 30.0

HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class ServerError(Exception):
    """A server did not start, or did not do what it was asked for."""


@dataclass(frozen=True)
class Server:
    """One of the servers.

    :param name: its name in the table and on the command line.
    :param command: from the port and the number of connections that have to fit, its arguments.
    :param packages: whose versions the report has to tell.
    :param environ: more environment variables.
    :param most_connections: more than these it is not asked to hold.
    :param fans_out: whether its application serves ``/receive`` and ``/publish``.
    """

    name: str
    command: Callable[[int, int], list[str]]
    packages: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    most_connections: int = 10_000
    fans_out: bool = False


def _python(app: str) -> Callable[[int, int], list[str]]:
    return lambda port, connections: [sys.executable, str(APPS / app), str(port)]


def _uwsgi(module: str, *mode: str) -> Callable[[int, int], list[str]]:
    """Run a module in one worker of uWSGI. ``{}`` in an option of the *mode* is the number of connections."""

    def command(port: int, connections: int) -> list[str]:
        backlog = min(1024, int(Path("/proc/sys/net/core/somaxconn").read_text()))  # uWSGI refuses to start above it
        return [
            *(str(BIN / "uwsgi"), "--http-socket", f"127.0.0.1:{port}", "--listen", str(backlog)),
            *(option.format(connections) for option in mode),
            *("--enable-threads", "--disable-logging", "--need-app", "--virtualenv", sys.prefix),
            *("--pythonpath", str(APPS), "--module", module),
        ]

    return command


def _gunicorn(module: str, *mode: str) -> Callable[[int, int], list[str]]:
    def command(port: int, connections: int) -> list[str]:
        return [
            *(str(BIN / "gunicorn"), "--bind", f"127.0.0.1:{port}", "--chdir", str(APPS), "--log-level", "warning"),
            *(option.format(connections) for option in mode),
            module,
        ]

    return command


def _uvicorn(module: str) -> Callable[[int, int], list[str]]:
    return lambda port, connections: [
        *(str(BIN / "uvicorn"), "--port", str(port), "--app-dir", str(APPS), "--loop", "uvloop"),
        *("--ws", "websockets-sansio", "--ws-per-message-deflate", "false", "--log-level", "warning", module),
    ]


_GEVENT = ("--gevent", "{}", "--gevent-early-monkey-patch")
_PACKAGES = ("Flask-uWSGI-WebSocket", "uWSGI", "Flask")

#: In the order of the table.
SERVERS = [
    Server(
        "this package, gevent",
        _uwsgi("package_app:app", *_GEVENT),
        (*_PACKAGES, "gevent"),
        environ={"MODE": "gevent"},
        fans_out=True,
    ),
    Server(
        "this package, gevent, pure Python",
        _uwsgi("package_app:app", *_GEVENT),
        (*_PACKAGES, "gevent"),
        environ={"MODE": "gevent", "FLASK_UWSGI_WEBSOCKET_PURE": "1"},
        fans_out=True,
    ),
    Server(
        "this package, asyncio",
        _uwsgi("package_app:app", "--asyncio", "{}", "--greenlet"),
        (*_PACKAGES, "greenlet"),
        environ={"MODE": "asyncio"},
        fans_out=True,
    ),
    Server(
        "this package, threads",
        _uwsgi("package_app:app", "--threads", "{}"),
        _PACKAGES,
        environ={"MODE": "threads"},
        most_connections=2_000,
    ),
    Server("uWSGI's C API, gevent", _uwsgi("uwsgi_app", *_GEVENT), ("uWSGI", "gevent")),
    Server("picows + uvloop", _python("picows_app.py"), ("picows", "uvloop")),
    Server("Starlette on uvicorn", _uvicorn("starlette_app:app"), ("starlette", "uvicorn", "uvloop", "websockets")),
    Server("aiohttp", _python("aiohttp_app.py"), ("aiohttp",)),
    Server("websockets (asyncio)", _python("websockets_app.py"), ("websockets",), fans_out=True),
    Server(
        "flask-sock on gunicorn, gevent",
        _gunicorn("flask_sock_app:app", "--worker-class", "gevent", "--worker-connections", "{}"),
        ("flask-sock", "simple-websocket", "gunicorn", "gevent"),
    ),
    Server(
        "flask-sock on gunicorn, threads",
        _gunicorn("flask_sock_app:app", "--worker-class", "gthread", "--threads", "{0}", "--worker-connections", "{0}"),
        ("flask-sock", "simple-websocket", "gunicorn"),
        most_connections=2_000,
    ),
    Server("gevent-websocket", _python("gevent_websocket_app.py"), ("gevent-websocket", "gevent")),
    Server(
        "Flask-uWSGI-WebSocket 0.6.1, gevent",
        _uwsgi("legacy_app:app", *_GEVENT, "--pythonpath", str(LEGACY)),
        _PACKAGES[1:],
        most_connections=900,  # it waits in select(2), which ends at descriptor 1,023
    ),
]

#: What all ratios of the table are to.
REFERENCE = "uWSGI's C API, gevent"


class Running:
    """A server that serves.

    :param port: where it listens.
    :param pid: its process. Those below it, its workers, have to be there by now: ``pids`` has them all.
    """

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pids = list(_process_tree(pid))

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have used so far, in user space and in the kernel."""
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_kb(self) -> int:
        """Return the memory of its processes (Pss: what they share is counted once)."""
        return sum(map(_pss_kb, self.pids))


def _process_tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has ended
            for child in (task / "children").read_text().split():
                yield from _process_tree(int(child))


def _pss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise ServerError("the kernel does not tell the Pss of a process in smaps_rollup")


@contextmanager
def running(server: Server, connections: int) -> Iterator[Running]:
    """Run a server on a free port, with room for so many connections.

    What it printed last goes to stderr when something is wrong.

    :raises ServerError: when it does not complete a handshake in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            server.command(port, connections + 100),  # some are still ending when the next ones come
            env={**os.environ, **server.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            try:
                _await_handshake(process, port)
                yield Running(port, process.pid)
            except (ServerError, OSError):
                log.seek(0)
                printed = log.read().decode(errors="replace").strip().splitlines()[-8:]
                print(*printed, sep="\n", file=sys.stderr)
                raise
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await_handshake(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    answer = b"nothing"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"it ended with status {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as sock:
                sock.sendall(HANDSHAKE)
                answer = sock.recv(4096)
        except OSError:
            time.sleep(0.05)
            continue
        if answer.startswith(b"HTTP/1.1 101 "):
            return
        time.sleep(0.05)
    raise ServerError(f"no handshake in {START_TIMEOUT:.0f} s; the last answer began {answer[:60]!r}")
