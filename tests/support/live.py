"""Servers for the live tests (uWSGI in each mode behind each front, and others), and clients for them.

A server stays up for all tests that use it. The tests wait for the events that its workers write into their journal,
and for its access log. After the server has stopped, its log may have no crash, no unexpected message, and no traceback
of an exception that was not raised on purpose.
"""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

import pytest
import websockets.asyncio.client
import websockets.sync.client

import flask_uwsgi_websocket
from support.paths import APPS, DOCS
from support.ports import reserved_port
from support.wire import CLOSE, KEY, TEXT, frame

T = TypeVar("T")

PATHS = [str(APPS), str(Path(flask_uwsgi_websocket.__file__).parents[1])]
SERVERS_PAGE = DOCS / "servers.md"
UWSGI = Path(sys.executable).with_name("uwsgi")

#: Seconds for steps that take much less on an idle machine.
DEADLINE = 30

#: The number of clients that the concurrent modes have to serve at the same time.
CROWD = 100


class Mode(NamedTuple):
    """A concurrency mode: the extension, its uWSGI options, and the module with its ``sleep()``."""

    extension: str
    options: Sequence[str]
    sleep: str
    processes: int = 1


_GEVENT = ["--gevent", "300"]
_PATCHED = [*_GEVENT, "--gevent-early-monkey-patch"]

MODES = {
    "threads": Mode("WebSocket", ["--threads", "150"], "time"),
    "gevent": Mode("GeventWebSocket", _PATCHED, "time"),
    "gevent-2-processes": Mode("GeventWebSocket", [*_PATCHED, "--processes", "2"], "time", processes=2),
    "plain-in-gevent": Mode("WebSocket", _GEVENT, "gevent"),
    "asyncio": Mode("AsyncioWebSocket", ["--asyncio", "300", "--greenlet"], "asyncio"),
}

#: Options with which uWSGI keeps an incomplete request. By default it gives up such a request after 4 s.
PATIENT = ["--socket-timeout", "3600"]

FRONTS = {"http-socket": ["--http-socket"], "http": ["--http-websockets", "--http"]}

MATRIX = [pytest.param((mode, front), id=f"{mode}-{front}") for mode in MODES for front in FRONTS]

# The router, [uwsgi-http ...], logs each client that vanishes, which is no fault.
_NOISE = re.compile(
    r"^(?!\[uwsgi-http ).*(\[BUG\]|Segmentation|SIGPIPE|Broken pipe|DAMN|[Rr]espawn|never awaited|stack is not)",
    re.MULTILINE,
)


#: Servers other than uWSGI: the mode of their handlers, and their commands from docs/servers.md.
OTHERS = {
    "flask-run": Mode("WebSocket", ["flask", "--app", "app", "run"], "time"),
    "flask-run-asyncio": Mode("AsyncioWebSocket", ["flask", "--app", "app", "run"], "asyncio"),
    "gunicorn-threads": Mode("WebSocket", ["gunicorn", "--threads", "150", "app:app"], "time"),
    "gunicorn-threads-asyncio": Mode("AsyncioWebSocket", ["gunicorn", "--threads", "150", "app:app"], "asyncio"),
    "gunicorn-gevent": Mode("GeventWebSocket", ["gunicorn", "--worker-class", "gevent", "app:app"], "time"),
    "gevent": Mode("GeventWebSocket", ["python", "serve.py"], "time"),
}


class Server:
    """A running server.

    :param mode: the concurrency mode.
    :param front: the key of uWSGI's front, or None for another server.
    :param options: more options for its command line.
    :param hosts: more addresses to listen on.
    :param master: whether uWSGI has its master process.
    :param module: the module of the application.
    :param expected: a regular expression of the exceptions whose tracebacks may be in the log.
    """

    host = "127.0.0.1"

    #: The status in a line of the access log.
    _status = re.compile(r"\(HTTP/1\.1 (\d+)\)")

    #: The exceptions of the server itself whose tracebacks may be in the log.
    _own = r"(?!)"

    def __init__(
        self,
        directory: Path,
        mode: Mode,
        front: str | None,
        *,
        options: Sequence[str] = (),
        hosts: Sequence[str] = (),
        master: bool = True,
        module: str = "live_app",
        expected: str = "live_app.Deliberate",
    ) -> None:
        self.mode = mode
        self.front = front
        self.expected = expected
        self._reservation = ExitStack()
        self.port = self._reservation.enter_context(reserved_port())
        self._tokens = map("t{}".format, itertools.count())
        self._log = directory / "log"
        self._journal = directory / "journal"
        self._journal.touch()
        self.reloads = 0
        self._is_stopping = False
        self._reading = threading.Lock()
        self._read = 0  # the number of bytes of the journal that were read
        self._entries: list[dict[str, Any]] = []
        arguments = [*self._arguments(directory, module, hosts, master=master), *options]
        environ = {
            **os.environ,
            **self._environ(),
            "LIVE_CLASS": mode.extension,
            "LIVE_SLEEP": mode.sleep,
            "LIVE_JOURNAL": str(self._journal),
            "LIVE_COVERAGE": coverage_config(),
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
            )

    def _arguments(self, directory: Path, module: str, hosts: Sequence[str], *, master: bool) -> list[str]:
        *flags, listen = FRONTS[self.front]
        addresses = [f"{host}:{self.port}" for host in (self.host, *hosts)]
        return [
            str(UWSGI),
            *("--master", "--die-on-term") * master,
            *("--need-app", "--enable-threads", "--sharedarea", "1", "--add-header", "Connection: close"),
            *("--virtualenv", sys.prefix) * (sys.prefix != sys.base_prefix),
            *(item for path in PATHS for item in ("--pythonpath", path)),
            *("--module", f"{module}:app"),
            *flags,
            *(item for address in addresses for item in (listen, address)),
            *self.mode.options,
        ]

    def _environ(self) -> Mapping[str, str]:
        return {}

    def wait_until_ready(self) -> None:
        def answers() -> bool:
            assert self._process.poll() is None, f"the server has ended:\n{self.log}"
            with suppress(OSError, http.client.HTTPException):
                return self.get("/").status == 200
            return False

        wait_until(answers, lambda: f"the server does not answer:\n{self.log}")
        wait_until(lambda: len(self.workers) == self.mode.processes, lambda: f"workers are missing:\n{self.log}")

    @property
    def pid(self) -> int:
        """The process id of the server, which is uWSGI's master."""
        return self._process.pid

    def signal(self, signum: signal.Signals) -> None:
        """Send the signal to stop or to reload, like an administrator."""
        self._save_coverage()
        os.kill(self._process.pid, signum)
        if signum == signal.SIGHUP:
            self.reloads += 1
        else:
            self._is_stopping = True

    def stop(self) -> None:
        """Stop the server, and check what it leaves behind."""
        if self._process.poll() is None and not self._is_stopping:
            self._save_coverage()
            self._interrupt()
        self.wait_until_ended()

    def wait_until_ended(self) -> None:
        """Wait until the server has stopped, and make sure that no process of it is left."""
        try:
            self._process.wait(DEADLINE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._reservation.close()

    def _interrupt(self) -> None:
        """Press Ctrl-C."""
        os.killpg(self._process.pid, signal.SIGINT)

    def check_log(self) -> None:
        """Check that no worker has died, and that the log has no unnoticed errors."""
        log = self.log
        noise = _NOISE.search(log)
        assert noise is None, f"{noise[0]}:\n{log}"
        for traceback in log.split("Traceback (most recent call last):")[1:]:
            assert re.search(rf"^({self.expected}|{self._own})\b", traceback, re.MULTILINE), traceback
        statuses = ((line, self._status.search(line)) for line in log.splitlines() if "GET /raise-before?" not in line)
        failed = [line for line, status in statuses if status is not None and status[1] == "500"]
        assert not failed or "Deliberate" not in self.expected, failed
        assert len(self.workers) == self.mode.processes * (1 + self.reloads), log

    def _save_coverage(self) -> None:
        if coverage_config():
            saved: set[int] = set()
            wait_until(
                lambda: saved.add(self.json("/save-coverage", method="POST")["pid"]) or saved >= self.running_workers(),
                lambda: f"a worker has not saved its coverage:\n{self.log}",
            )

    # State

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def workers(self) -> set[int]:
        """The process ids of all workers that have started so far."""
        return {entry["pid"] for entry in self.journal() if entry["event"] == "worker"}

    def running_workers(self) -> set[int]:
        """Return the process ids of the workers that are running."""
        return {pid for pid in self.workers if Path(f"/proc/{pid}").exists()}

    def wait_until_idle(self) -> None:
        """Wait until no thread of any worker runs or waits for the interpreter's lock.

        A thread that is about to get this lock may look asleep for a moment, so all of them have to stay asleep.
        """
        times = 0
        while times < 5:
            times = times + 1 if all(map(_is_asleep, self.running_workers())) else 0
            time.sleep(0.01)

    def journal(self) -> list[dict[str, Any]]:
        """Return the events that the workers have written."""
        with self._reading, self._journal.open("rb") as journal:
            journal.seek(self._read)
            lines, newline, _ = journal.read().rpartition(b"\n")
            self._read += len(lines + newline)
            self._entries += map(json.loads, lines.splitlines())
            return self._entries[:]

    def wait_for(self, event: str, client: Any) -> dict[str, Any]:
        """Wait for an *event* of the handler of *client*, and return it."""
        token = token_of(client)

        def find() -> dict[str, Any] | None:
            entries = self.journal()
            return next((e for e in entries if e["event"] == event and e.get("token") == token), None)

        return wait_until(find, lambda: f"no {event!r} of the handler of {token}:\n{self.log[-5000:]}")

    def wait_for_access_log(self, client: Any) -> int:
        """Wait for the line of *client* in the access log, and return the status in it."""
        token = token_of(client)

        def find() -> re.Match[str] | None:
            line = next((line for line in self.log.splitlines() if f"token={token} " in line), "")
            return self._status.search(line)  # the line may be incomplete

        return int(wait_until(find, lambda: f"no request {token} in the access log:\n{self.log[-5000:]}")[1])

    def open_files(self) -> dict[int, int]:
        """Return the number of open descriptors of each worker."""
        return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers}

    # Clients

    def path(self, path: str) -> str:
        """Return *path* with a token that identifies its handler in the journal, unless *path* has one."""
        if "token=" in path:
            return path
        return f"{path}{'&' if '?' in path else '?'}token={next(self._tokens)}"

    def socket(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), DEADLINE)

    @contextmanager
    def connect(self, path: str, **options: Any) -> Iterator[websockets.sync.client.ClientConnection]:
        """Open a WebSocket of the websockets library."""
        with websockets.sync.client.connect(
            f"ws://{self.host}:{self.port}{self.path(path)}",
            sock=self.socket(),
            **{"compression": None, "open_timeout": DEADLINE, "max_size": None, "ping_interval": None, **options},
        ) as client:
            yield client

    @asynccontextmanager
    async def open(self, path: str, **options: Any) -> AsyncIterator[websockets.asyncio.client.ClientConnection]:
        """Open a WebSocket of the websockets library in an event loop."""
        sock = self.socket()
        sock.setblocking(False)
        async with websockets.asyncio.client.connect(
            f"ws://{self.host}:{self.port}{self.path(path)}",
            sock=sock,
            **{"compression": None, "open_timeout": DEADLINE, "max_size": None, "ping_interval": None, **options},
        ) as client:
            yield client

    @asynccontextmanager
    async def open_many(
        self, paths: Sequence[str], options: Callable[[int], Mapping[str, Any]] = lambda _: {}
    ) -> AsyncIterator[list[websockets.asyncio.client.ClientConnection]]:
        """Open a WebSocket to each of *paths*, all at the same time, and close them all at the same time."""
        async with AsyncExitStack() as stack:
            opening = (stack.enter_async_context(self.open(path, **options(i))) for i, path in enumerate(paths))
            clients = await asyncio.gather(*opening)
            yield clients
            await asyncio.gather(*(client.close() for client in clients))

    @contextmanager
    def raw(self, path: str = "/echo", headers: Mapping[str, str | None] | None = None) -> Iterator[Raw]:
        """Open a WebSocket that sends exactly the bytes that a test gives it."""
        client = Raw(self, self.path(path))
        try:
            response = client.handshake(headers or {})
            assert response.status == 101, (response.status, response.body)
            yield client
        finally:
            client.close()

    def handshake(
        self,
        path: str = "/echo",
        headers: Mapping[str, str | None] | None = None,
        *,
        method: str = "GET",
        rest: bytes = b"",
    ) -> Response:
        """Send a handshake, changed by *headers* and followed by *rest*, and return the response."""
        client = Raw(self, self.path(path))
        try:
            return client.handshake(headers or {}, method=method, rest=rest)
        finally:
            client.close()

    def get(self, path: str, *, method: str = "GET") -> Response:
        """Send a plain HTTP request."""
        client = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE)
        try:
            client.request(method, path)
            response = client.getresponse()
            return Response(response.status, dict(response.getheaders()), response.read())
        finally:
            client.close()

    def json(self, path: str, *, method: str = "GET") -> Any:
        return json.loads(self.get(path, method=method).body)


class OtherServer(Server):
    """A running server other than uWSGI: one of ``OTHERS``."""

    _status = re.compile(r'HTTP/1\.1\S*" (\d+) ')  # Werkzeug's line has colours

    #: A worker of gunicorn with gevent may get another signal to quit while its interpreter shuts down.
    _own = "SystemExit: 0"

    def _arguments(self, directory: Path, module: str, hosts: Sequence[str], *, master: bool) -> list[str]:
        (directory / "serve.py").write_text(script(module, self.port))
        names = {"app": module, "app:app": f"{module}:app", "serve.py": str(directory / "serve.py")}
        command, *arguments = (names.get(argument, argument) for argument in self.mode.options)
        return [str(Path(sys.executable).with_name(command)), *arguments]

    def _environ(self) -> Mapping[str, str]:
        return {
            "PYTHONPATH": os.pathsep.join(PATHS),
            "PYTHONUNBUFFERED": "1",
            "FLASK_RUN_PORT": str(self.port),
            "GUNICORN_CMD_ARGS": f"--bind {self.host}:{self.port} --access-logfile - --no-control-socket",
        }

    def _interrupt(self) -> None:
        # One after the other: gunicorn replaces a worker that ends before it, and the new worker does not get the
        # signal.
        os.kill(self._process.pid, signal.SIGINT)

    def check_log(self) -> None:
        """Check that the log has no unnoticed errors."""
        super().check_log()
        assert not re.search(r"\[(ERROR|CRITICAL)\]", self.log), self.log


def script(module: str, port: int) -> str:
    """Return the script of docs/servers.md that runs an app in gevent's server."""
    (code,) = re.findall(r"(?s)```python\n(from gevent import monkey.*?)```", SERVERS_PAGE.read_text())
    assert "from app import app" in code
    return str(code).replace("from app import", f"from {module} import").replace("5000", str(port))


class Response(NamedTuple):
    """A response to an HTTP request."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Raw:
    """A client that sends exactly the bytes that a test gives it. ``path`` is its URL."""

    def __init__(self, server: Server, path: str) -> None:
        self.path = path
        self.host = f"{server.host}:{server.port}"
        self.sock = server.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb")

    def handshake(self, headers: Mapping[str, str | None], *, method: str = "GET", rest: bytes = b"") -> Response:
        """Send the handshake, and return the response; see :meth:`send_handshake`."""
        self.send_handshake(headers, method=method, rest=rest)
        status_line = self.file.readline()
        if not status_line:
            raise ConnectionError("the server has ended TCP without an answer")
        status = int(status_line.split()[1])
        answered = {}
        while line := self.file.readline().strip().decode():
            name, _, value = line.partition(": ")
            answered[name] = value
        size = int(answered.get("Content-Length", -1))  # Werkzeug's server ends TCP only after the client has
        return Response(status, answered, b"" if status == 101 else self.file.read(size))

    def send_handshake(self, headers: Mapping[str, str | None], *, method: str = "GET", rest: bytes = b"") -> None:
        """Send the handshake.

        :param headers: replaces and adds headers; None omits one.
        :param rest: bytes in the same segment.
        """
        fields = {
            "Host": self.host,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **headers,
        }
        lines = [f"{method} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v is not None)]
        self.send("\r\n".join([*lines, "", ""]).encode() + rest)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_frame(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        self.send(frame(opcode, payload, key=KEY, **options))

    def receive(self) -> tuple[int, bytes]:
        """Return the opcode and payload of the next frame, which has to be complete."""
        first, length = self.file.read(2)
        assert first & 0xF0 == 0x80
        if length == 126:
            (length,) = struct.unpack("!H", self.file.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.file.read(8))
        return first & 0x0F, self.file.read(length)

    def receive_close(self) -> tuple[int, str]:
        """Return the code and reason of the Close frame, which has to be the next and last frame."""
        opcode, payload = self.receive()
        assert opcode == CLOSE, (opcode, payload)
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def reset(self) -> None:
        """Vanish with a TCP reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.file.close()
        self.sock.close()


class Network(NamedTuple):
    """A network for clients. It has the server's address in it, and the commands to enter and cut it."""

    name: str
    host: str

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *arguments]

    def link(self, state: str) -> None:
        """Plug the cable in ("up") or out ("down"). Neither side is notified: packets are just lost."""
        subprocess.run(self.command("ip", "link", "set", f"{self.name}c", state), check=True)


def request_in_a_row(connect: Callable[[], socket.socket], *paths: str) -> list[int]:
    """Request *paths* like a client that keeps its connection as long as it may, and return the statuses.

    The client sends the next request at once, and does not check whether the server has ended TCP.

    :param connect: opens a connection.
    :raises OSError: when a request is lost, because the server ended a connection without an announcement.
    """

    class Client(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = connect()

    client = Client("localhost", timeout=DEADLINE)
    statuses = []
    for path in paths:
        client.request("GET", path)
        response = client.getresponse()
        response.read()
        statuses.append(response.status)
    client.close()
    return statuses


def token_of(client: Any) -> str:
    """Return the token that identifies a client's handler in the journal. *client* is a connection or its path."""
    if not isinstance(client, str):
        client = client.path if isinstance(client, Raw) else client.request.path
    return parse_qs(urlsplit(client).query)["token"][0]


def wait_until(find: Callable[[], T], complain: Callable[[], str]) -> T:
    """Wait until *find* returns something true, and return that."""
    deadline = time.monotonic() + DEADLINE
    while not (found := find()):
        assert time.monotonic() < deadline, complain()
        time.sleep(0.01)
    return found


def coverage_config() -> str:
    """Return the configuration file if coverage is measured. The workers then measure their coverage, too."""
    coverage = sys.modules.get("coverage")
    current = coverage and coverage.Coverage.current()
    return str(current.config.config_file) if current else ""


def _is_asleep(pid: int) -> bool:
    """Return whether all threads of a process sleep. The main thread is checked last."""
    tasks = sorted(map(int, os.listdir(f"/proc/{pid}/task")), reverse=True)
    try:
        stats = [Path(f"/proc/{pid}/task/{task}/stat").read_text() for task in tasks]
    except FileNotFoundError:  # a thread has just ended
        return False
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)


@contextmanager
def processes(*commands: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Run each client in its own process, and yield the processes when the clients are connected."""
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline() == "connected\n"
        yield clients
    finally:
        for client in clients:
            client.kill()
            client.communicate()


def in_threads(count: int, function: Callable[[int], object]) -> None:
    """Call *function* with 0, 1, ... in this number of threads, and raise the first error of them."""
    errors = []

    def run(number: int) -> None:
        try:
            function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@contextmanager
def serving(
    directory: Path, mode: Mode, front: str | None, *, trouble: re.Pattern[str] | None = None, **options: Any
) -> Iterator[Server]:
    """Run a server, and check what it leaves behind.

    :param front: the key of uWSGI's front, or None for another server.
    :param trouble: faults that must not be in the log. It replaces the usual check if workers die or are replaced.
    """
    server = (OtherServer if front is None else Server)(directory, mode, front, **options)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
    if trouble is None:
        server.check_log()
    else:
        assert not trouble.search(server.log), server.log


def check_room(server: Server, most: int) -> None:
    """Check that a server accepts this number of connections and no more, and always serves HTTP."""
    with ExitStack() as stack:
        clients = [stack.enter_context(server.raw("/echo")) for _ in range(most)]
        for _ in range(3):
            refused = Raw(server, server.path("/echo"))
            response = refused.handshake({})
            assert (response.status, response.headers["Retry-After"]) == (503, "10")
            refused.close()
            assert server.get("/").status == 200
        for client in clients:
            client.send_frame(TEXT, b"still here")
            assert client.receive() == (TEXT, b"still here")
        clients[0].reset()

        def is_admitted() -> bool:
            client = Raw(server, server.path("/echo"))
            stack.callback(client.close)
            return client.handshake({}).status == 101

        wait_until(is_admitted, lambda: server.log)
