"""The servers in the comparison: the command of each, and the CPU time and memory of its processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

APPS = Path(__file__).parent / "apps"
BUILD = Path(__file__).parent.parent / "build"
BIN = Path(sys.executable).parent
#: Where ``make bench`` installs Flask-uWSGI-WebSocket 0.6.1.
LEGACY = Path(sys.prefix, "legacy")

HOST = "127.0.0.1"

#: Seconds within which a server has to answer. 10,000 greenlets or threads take some.
START_TIMEOUT = 30.0

_REQUEST = (
    "GET {} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
HANDSHAKE = _REQUEST.format("/echo").encode()


#: The measures of a server that serves ``/echo``, and of one that also serves ``/receive`` and ``/publish``.
ECHOING = ("echo", "calls", "connect", "flood", "idle")
FANNING_OUT = (*ECHOING, "fanout")

#: Returns the arguments of each process, for the port of each worker and the number of connections that a worker fits.
Commands = Callable[[Sequence[int], int], list[list[str]]]


class ServerError(Exception):
    """A server that did not start, or did not do what was asked of it."""


@dataclass(frozen=True)
class Server:
    """A server.

    :param name: its name in the table and on the command line.
    :param commands: its commands.
    :param packages: the packages whose versions are in the report.
    :param environ: more environment variables.
    :param most_connections: the largest number of connections in a measure.
    :param measures: the names of the measures in which it takes part.
    :param room: how it serves a room, if it does.
    :param ready: a path, and the status of the answer to a handshake there when the server is ready.
    """

    name: str
    commands: Commands
    packages: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    most_connections: int = 10_000
    measures: Sequence[str] = ECHOING
    room: RoomServer | None = None
    ready: tuple[str, int] = ("/echo", 101)


@dataclass(frozen=True)
class RoomServer:
    """How a server serves a room.

    :param publish: the path of the publisher.
    :param receive: the path of the members.
    :param workers: the number of workers. Each has a port of its own.
    :param has_redis: whether Redis carries the messages. Its URL is in the environment variable REDIS.
    :param has_socketio: whether the server speaks Socket.IO.
    :param rate: messages per second to 1,000 members.
    :param is_ours: whether the application is ``rooms_app.py``.
    """

    publish: str = "/publish"
    receive: str = "/receive"
    workers: int = 2
    has_redis: bool = True
    has_socketio: bool = False
    rate: int = 20
    is_ours: bool = False


def _python(app: str) -> Commands:
    return lambda ports, connections: [[sys.executable, str(APPS / app), str(port)] for port in ports]


def longest_backlog() -> int:
    """Return how many clients may wait for a server at most: uWSGI refuses to start with a longer queue."""
    return int(Path("/proc/sys/net/core/somaxconn").read_text())


def _uwsgi(module: str, *mode: str) -> Commands:
    """Return the command of uWSGI. ``{}`` in an option of *mode* is the number of connections."""

    def commands(ports: Sequence[int], connections: int) -> list[list[str]]:
        backlog = min(1024, longest_backlog())
        sockets = []
        for index, port in enumerate(ports):
            sockets += ["--http-socket", f"127.0.0.1:{port}", "--map-socket", f"{index}:{index + 1}"]
        return [
            [
                *(str(BIN / "uwsgi"), "--processes", str(len(ports)), *sockets, "--listen", str(backlog)),
                *(option.format(connections) for option in mode),
                *("--enable-threads", "--disable-logging", "--need-app", "--virtualenv", sys.prefix),
                *("--pythonpath", str(APPS), "--module", module),
            ]
        ]

    return commands


def _gunicorn(module: str, *mode: str) -> Commands:
    return lambda ports, connections: [
        [
            *(str(BIN / "gunicorn"), "--bind", f"127.0.0.1:{port}", "--chdir", str(APPS), "--log-level", "warning"),
            *(option.format(connections) for option in mode),
            module,
        ]
        for port in ports
    ]


def _uvicorn(module: str) -> Commands:
    return lambda ports, connections: [
        [
            *(str(BIN / "uvicorn"), "--port", str(port), "--app-dir", str(APPS), "--loop", "uvloop"),
            *("--ws", "websockets-sansio", "--ws-per-message-deflate", "false", "--log-level", "warning", module),
        ]
        for port in ports
    ]


def _compiled(source: str) -> Commands:
    def commands(ports: Sequence[int], connections: int) -> list[list[str]]:
        BUILD.mkdir(exist_ok=True)
        binary = BUILD / Path(source).stem
        compile_c(APPS / source, binary)
        return [[str(binary), *map(str, ports)]]

    return commands


def compile_c(source: Path, binary: Path, *options: str) -> None:
    """Compile a program of one file."""
    subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", *options, "-o", binary, source, "-lm"], check=True)


_GEVENT = ("--gevent", "{}", "--gevent-early-monkey-patch")
_PACKAGES = ("Flask-uWSGI-WebSocket", "uWSGI", "Flask")

# This package sets TCP_NODELAY itself, and so do all other servers or their applications.
_NODELAY = ("--tcp-nodelay",)

_ASYNCIO = ("--asyncio", "{}", "--greenlet")
_THREADS = ("--threads", "{}")
# Requests at a time, and no more for connections: these are parked.
_PARKED: Mapping[str, Sequence[str]] = {
    "gevent": ("--gevent", "100", "--gevent-early-monkey-patch"),
    "threads": ("--threads", "16"),
    "asyncio": ("--asyncio", "100", "--greenlet"),
}
PARKED = "this package, parked views, {}"
_SOCKETIO = "/socket.io/?EIO=4&transport=websocket&role={}"

#: The servers with which the rooms of this package are compared.
FLASK_SOCKETIO = "Flask-SocketIO, gevent, its queue in Redis"
CHANNELS = "Channels, pub/sub layer in Redis"
BARE = "a bare C program"


def _parked(mode: str, packages: Sequence[str], *measures: str) -> Server:
    return Server(
        PARKED.format(mode),
        _uwsgi("parked_app:app", *_PARKED[mode]),
        (*_PACKAGES, *packages),
        environ={"MODE": mode},
        measures=(*ECHOING, *measures, "returns"),
    )


#: The servers, in the order of the table.
SERVERS = [
    Server(
        "this package, gevent",
        _uwsgi("package_app:app", *_GEVENT),
        (*_PACKAGES, "gevent"),
        environ={"MODE": "gevent"},
        measures=(*FANNING_OUT, "page", "housekeeping"),
    ),
    Server(
        "this package, gevent, pure Python",
        _uwsgi("package_app:app", *_GEVENT),
        (*_PACKAGES, "gevent"),
        environ={"MODE": "gevent", "FLASK_UWSGI_WEBSOCKET_PURE": "1"},
        measures=FANNING_OUT,
    ),
    Server(
        "this package, asyncio",
        _uwsgi("package_app:app", *_ASYNCIO),
        (*_PACKAGES, "greenlet"),
        environ={"MODE": "asyncio"},
        measures=(*FANNING_OUT, "housekeeping"),
    ),
    Server(
        "this package, asyncio on uvloop",
        _uwsgi("package_app:app", *_ASYNCIO),
        (*_PACKAGES, "greenlet", "uvloop"),
        environ={"MODE": "asyncio", "LOOP": "uvloop"},
        measures=FANNING_OUT,
    ),
    Server(
        "this package, threads",
        _uwsgi("package_app:app", *_THREADS),
        _PACKAGES,
        environ={"MODE": "threads"},
        most_connections=2_000,
    ),
    Server(
        "this package, drop-in for flask-sock, gevent",
        _uwsgi("flask_sock_app:app", *_GEVENT),
        (*_PACKAGES, "gevent"),
        environ={"SOCK": "flask_uwsgi_websocket.compat"},
    ),
    _parked("gevent", ["gevent"], "crowd"),
    _parked("asyncio", ["greenlet"]),
    _parked("threads", [], "asked"),
    Server("uWSGI's C API, gevent", _uwsgi("uwsgi_app", *_GEVENT, *_NODELAY), ("uWSGI", "gevent")),
    Server("picows + uvloop", _python("picows_app.py"), ("picows", "uvloop")),
    Server("Starlette on uvicorn", _uvicorn("starlette_app:app"), ("starlette", "uvicorn", "uvloop", "websockets")),
    Server("aiohttp", _python("aiohttp_app.py"), ("aiohttp",)),
    Server("websockets (asyncio)", _python("websockets_app.py"), ("websockets",), measures=FANNING_OUT),
    Server(
        "websockets on uvloop",
        _python("websockets_app.py"),
        ("websockets", "uvloop"),
        environ={"LOOP": "uvloop"},
        measures=FANNING_OUT,
    ),
    Server(
        "flask-sock on gunicorn, gevent",
        _gunicorn("flask_sock_app:app", "--worker-class", "gevent", "--worker-connections", "{}"),
        ("flask-sock", "simple-websocket", "gunicorn", "gevent"),
        environ={"SOCK": "flask_sock"},
    ),
    Server(
        "flask-sock on gunicorn, threads",
        _gunicorn("flask_sock_app:app", "--worker-class", "gthread", "--threads", "{0}", "--worker-connections", "{0}"),
        ("flask-sock", "simple-websocket", "gunicorn"),
        environ={"SOCK": "flask_sock"},
        most_connections=2_000,
    ),
    Server("gevent-websocket", _python("gevent_websocket_app.py"), ("gevent-websocket", "gevent")),
    Server(
        "Flask-uWSGI-WebSocket 0.6.1, gevent",
        _uwsgi("legacy_app:app", *_GEVENT, *_NODELAY, "--pythonpath", str(LEGACY)),
        _PACKAGES[1:],
        most_connections=900,  # it waits in select(2), which ends at descriptor 1,023
    ),
    Server(BARE, _compiled("bare.c"), (), measures=("fanout",)),
]

#: The pages of a Flask application without this package.
PLAIN = Server(
    "Flask alone, gevent", _uwsgi("flask_app:app", *_GEVENT), _PACKAGES[1:], measures=("page",), ready=("/page", 400)
)


def _rooms(mode: str, options: Sequence[str], packages: Sequence[str], *, redis: bool, workers: int = 2) -> Server:
    broker = "redis" if redis else "local" if workers > 1 else "memory"
    return Server(
        f"this package, {mode}, {broker}",
        _uwsgi("rooms_app:app", *options),
        (*_PACKAGES, *packages),
        environ={"MODE": mode},
        measures=("rooms",),
        room=RoomServer("/room", "/member", workers, has_redis=redis, is_ours=True),
    )


#: The servers of rooms, in the order of their tables.
ROOM_SERVERS = [
    _rooms("gevent", _GEVENT, ["gevent"], redis=False, workers=1),
    _rooms("gevent", _GEVENT, ["gevent"], redis=False),
    _rooms("gevent", _GEVENT, ["gevent", "redis"], redis=True),
    _rooms("asyncio", _ASYNCIO, ["greenlet"], redis=False),
    _rooms("asyncio", _ASYNCIO, ["greenlet", "redis"], redis=True),
    _rooms("threads", _THREADS, [], redis=False),
    _rooms("threads", _THREADS, ["redis"], redis=True),
    Server(
        FLASK_SOCKETIO,
        _python("flask_socketio_app.py"),
        ("Flask-SocketIO", "python-socketio", "python-engineio", "gevent", "redis"),
        measures=("rooms",),
        room=RoomServer(_SOCKETIO.format("publish"), _SOCKETIO.format("receive"), has_socketio=True),
    ),
    Server(
        CHANNELS,
        _uvicorn("channels_app:app"),
        ("channels", "channels_redis", "Django", "uvicorn", "uvloop"),
        measures=("rooms",),
        room=RoomServer(rate=5),
    ),
    Server(
        "Starlette and Redis by hand",
        _uvicorn("starlette_rooms_app:app"),
        ("starlette", "redis"),
        measures=("rooms",),
        room=RoomServer(),
    ),
    Server(
        "websockets.broadcast and Redis by hand",
        _python("websockets_rooms_app.py"),
        ("websockets", "uvloop", "redis"),
        measures=("rooms",),
        room=RoomServer(),
    ),
    Server(BARE, _compiled("bare.c"), (), measures=("rooms",), room=RoomServer(has_redis=False)),
]

#: The server with which all ratios of the table compare.
REFERENCE = "uWSGI's C API, gevent"


class Running:
    """A running server.

    :param ports: where its workers listen.
    :param pids: its processes. Its workers must have started by now, because ``pids`` lists them from the beginning.
    :param redis: the process of its Redis, which ``pids`` does not list.
    :param hosts: the address of each worker, if they are not on this machine.
    :param is_pinned: whether it is pinned to a CPU.
    """

    def __init__(
        self,
        ports: Sequence[int],
        pids: Iterable[int],
        redis: int | None = None,
        hosts: Sequence[str] = (),
        *,
        is_pinned: bool = False,
    ) -> None:
        self.places = [f"{host}:{port}" for host, port in zip(hosts or [HOST] * len(ports), ports, strict=True)]
        self.port = ports[0]
        self.pids = [each for pid in pids for each in _process_tree(pid)]
        self.is_pinned = is_pinned
        self._redis = redis

    def cpu_seconds(self) -> float:
        """Return the CPU time of all processes so far, in user space and in the kernel."""
        return sum(map(cpu_seconds, self.pids))

    def redis_cpu_seconds(self) -> float:
        """Return the CPU time of its Redis so far, or 0 if it has none."""
        return 0 if self._redis is None else cpu_seconds(self._redis)

    def memory_kb(self) -> int:
        """Return the memory of all processes (Pss: shared memory counts once)."""
        return sum(map(_pss_kb, self.pids))


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far."""
    return time.clock_gettime(~pid << 3 | 2)  # as clock_getcpuclockid(3) has it; the ticks of /proc/PID/stat are 10 ms


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
    raise ServerError("the kernel reports no Pss of a process in smaps_rollup")


@contextmanager
def running(server: Server, connections: int, cpu: int | None = None) -> Iterator[Running]:
    """Run a server on free ports, with room for this number of connections in each worker.

    If there is an error, the last lines of the server's output go to stderr.

    :param cpu: the only CPU that it may use; None for all.
    :raises ServerError: when the server does not complete a handshake in time.
    """
    room = server.room
    path, status = (room.receive, 101) if room else server.ready
    ports = free_ports(room.workers if room else 1)
    environ = {**os.environ, **server.environ}
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        redis = None
        if room and room.has_redis:
            environ["REDIS"], redis = stack.enter_context(start_redis())
        # Some connections are still ending when the next ones open.
        commands = server.commands(ports, connections + 100)
        processes = [stack.enter_context(start(command, environ, log, cpu)) for command in commands]
        try:
            for index, port in enumerate(ports):
                await_handshake(processes[index % len(processes)], port, path, status=status)
            yield Running(ports, [process.pid for process in processes], redis, is_pinned=cpu is not None)
        except (ServerError, OSError):
            log.seek(0)
            printed = log.read().decode(errors="replace").strip().splitlines()[-8:]
            print(*printed, sep="\n", file=sys.stderr)
            raise


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def start(
    command: Sequence[str], environ: Mapping[str, str], log: IO[bytes], cpu: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a ``with`` statement, on one CPU or on all."""
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=pinning(cpu),
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # the process has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def pinning(cpu: int | None) -> Callable[[], None] | None:
    """Return the function that pins a child process to a CPU, or None to leave it on all."""
    return None if cpu is None else partial(os.sched_setaffinity, 0, {cpu})


@contextmanager
def start_redis(host: str = HOST) -> Iterator[tuple[str, int]]:
    """Run a Redis that stores nothing; yield its URL and its process.

    :param host: another address of this machine where it listens, too.
    """
    (port,) = free_ports(1)
    options = [
        "--bind",
        *{HOST, host},
        "--protected-mode",
        "no",
        "--port",
        str(port),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with tempfile.TemporaryFile() as log, start(["redis-server", *options], os.environ, log) as process:
        deadline = time.monotonic() + START_TIMEOUT
        while not _accepts(port):
            if time.monotonic() > deadline or process.poll() is not None:
                raise ServerError("redis-server did not start")
            time.sleep(0.05)
        yield f"redis://{host}:{port}", process.pid


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def await_handshake(
    process: subprocess.Popen[bytes], port: int, path: str, host: str = HOST, *, status: int = 101
) -> None:
    """Wait until a server completes a handshake, or answers it with another status.

    :raises ServerError: when it does not in time.
    """
    deadline = time.monotonic() + START_TIMEOUT
    answer = b"nothing"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"the server ended with status {process.returncode}")
        try:
            with socket.create_connection((host, port), 1) as sock:
                sock.sendall(_REQUEST.format(path).encode())
                answer = sock.recv(4096)
        except OSError:
            time.sleep(0.05)
            continue
        if answer.startswith(f"HTTP/1.1 {status} ".encode()):
            return
        time.sleep(0.05)
    raise ServerError(f"no handshake in {START_TIMEOUT:.0f} s; the last answer began {answer[:60]!r}")
