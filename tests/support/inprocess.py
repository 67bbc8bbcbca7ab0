"""A Flask app that the test process serves over real sockets, in each concurrency mode, and clients for it.

A handler is written once, as a coroutine. In the blocking modes it gets a client whose calls are coroutines that never
suspend, so one ``send(None)`` runs the handler to its end.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import io
import logging
import os
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, NoReturn
from unittest.mock import patch

import gevent
import gevent.event
import greenlet
from flask import Flask
from websockets.sync.client import ClientConnection, connect

from flask_uwsgi_websocket import (
    AsyncioWebSocket,
    AsyncioWebSocketClient,
    GeventWebSocket,
    Room,
    WebSocket,
    WebSocketClient,
)
from flask_uwsgi_websocket.loops.current import current_blocking_loop
from flask_uwsgi_websocket.loops.greenlets import GeventLoop
from flask_uwsgi_websocket.loops.tasks import current_asyncio_loop
from flask_uwsgi_websocket.rooms import exchange
from flask_uwsgi_websocket.servers import find
from flask_uwsgi_websocket.servers.werkzeug import WerkzeugServer
from flask_uwsgi_websocket.worker import housekeeper
from flask_uwsgi_websocket.worker.admission import Capacity
from support.wire import CONTINUATION, KEY, PING, TEXT, frame

#: Seconds for steps that take milliseconds on an idle machine.
DEADLINE = 20

#: More bytes than the sockets of a connection can hold together.
ROOM = 32 * 2**20

#: The request of RFC 6455 section 1.3.
REQUEST = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def run(coroutine: Any) -> Any:
    """Run a coroutine that never suspends, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the coroutine has suspended")


def wait_until(
    condition: Callable[[], Any], what: str | Callable[[], str] = "the condition has not become true"
) -> None:
    """Wait for a condition that no event announces. *what* is the error if it does not become true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.002)


async def for_ever(call: Callable[[], Awaitable[Any]], times: int = sys.maxsize) -> None:
    """Call a function until it raises, at most this number of times."""
    for _ in range(times):
        await call()
    raise AssertionError(f"called {times} times")


class Clock:
    """A clock of connections, which a test puts forward instead of waiting."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def put_forward(self, seconds: float) -> None:
        self._ahead += seconds


class AwaitableClient:
    """A blocking client with the calls of :class:`AsyncioWebSocketClient`."""

    def __init__(self, ws: WebSocketClient) -> None:
        self.blocking = ws

    def __repr__(self) -> str:
        return repr(self.blocking)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.blocking, name)
        is_compiled = name in {"receive", "recv", "send"}  # no coroutine function before CPython 3.12
        if not is_compiled and not inspect.iscoroutinefunction(getattr(AsyncioWebSocketClient, name, None)):
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            return value(*args, **kwargs)

        return call

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        for message in self.blocking:
            yield message

    async def messages(self) -> AsyncIterator[str | bytes]:
        for message in self.blocking.messages():
            yield message


class Threads:
    """A thread for each request, as with ``uwsgi --threads``."""

    name = "threads"
    extension = WebSocket

    def __init__(self) -> None:
        self.errors: list[Any] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        pass

    def dispatch(self, call: Callable[[], None]) -> None:
        """Serve a request. The thread that accepts calls this method."""
        self._threads.append(threading.Thread(target=call, name="request"))
        self._threads[-1].start()

    def stop(self) -> None:
        """End after all requests are served."""
        for thread in self._threads:
            thread.join(DEADLINE)
            assert not thread.is_alive(), "a handler does not end"
        wait_for_background()

    def handler(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Turn a coroutine function into a handler."""

        @functools.wraps(function)
        def handler(ws: WebSocketClient, **kwargs: Any) -> Any:
            return run(function(AwaitableClient(ws), **kwargs))

        # Otherwise the extension would see the coroutine function in it.
        del handler.__wrapped__  # type: ignore[attr-defined]
        return handler

    def spawn(self, function: Callable[..., Any], *args: Any) -> Callable[[], Awaitable[Any]]:
        """Run a coroutine function in parallel, and return a function that waits for its result."""
        results: queue.Queue[Any] = queue.Queue()
        thread = threading.Thread(target=lambda: results.put(_outcome(lambda: run(function(*args)))))
        thread.start()

        async def join() -> Any:
            thread.join(DEADLINE)
            return _unpack(results.get_nowait())

        return join

    def gate(self) -> Gate:
        """Return a gate: a handler can wait for it until the test opens it."""
        event = threading.Event()

        async def passed() -> None:
            assert event.wait(DEADLINE), "the test has not opened the gate"

        return Gate(event.set, passed)


class Gevent(Threads):
    """A greenlet for each request, in the hub of another thread. Nothing is monkey-patched."""

    name = "gevent"
    extension = GeventWebSocket

    def start(self) -> None:
        self._greenlets: list[gevent.Greenlet] = []
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="hub")
        self._thread.start()
        assert started.wait(DEADLINE)

    def _run(self, started: threading.Event) -> None:
        self._hub = gevent.get_hub()
        self._hub.handle_error = lambda context, *error: self.errors.append(error)
        self._stop = self._hub.loop.async_()
        self._hub.loop.run_callback(started.set)
        self._hub.wait(self._stop)
        gevent.joinall(self._greenlets, timeout=DEADLINE)
        self._greenlets.clear()
        gevent.spawn(lambda: close_lot(current_blocking_loop())).get()
        self._stop.close()
        del self._hub.handle_error
        self._hub.destroy(destroy_loop=True)

    def dispatch(self, call: Callable[[], None]) -> None:
        self._hub.loop.run_callback_threadsafe(lambda: self._greenlets.append(gevent.spawn(call)))

    def stop(self) -> None:
        wait_until(lambda: all(each.dead for each in self._greenlets), "a handler does not end")
        wait_for_background()
        self._stop.send()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def spawn(self, function: Callable[..., Any], *args: Any) -> Callable[[], Awaitable[Any]]:
        spawned = gevent.spawn(lambda: _outcome(lambda: run(function(*args))))
        self._greenlets.append(spawned)

        async def join() -> Any:
            return _unpack(spawned.get(timeout=DEADLINE))

        return join

    def gate(self) -> Gate:
        event = gevent.event.Event()

        async def passed() -> None:
            assert event.wait(DEADLINE), "the test has not opened the gate"

        return Gate(lambda: self._hub.loop.run_callback_threadsafe(event.set), passed)


class Asyncio(Threads):
    """A greenlet for each request, whose parent runs an event loop, as in uWSGI's asyncio engine."""

    name = "asyncio"
    extension = AsyncioWebSocket

    def start(self) -> None:
        self._greenlets: list[greenlet.greenlet] = []
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(context))
        self._thread = threading.Thread(target=self._run, name="event loop")
        self._thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        self.errors.extend(asyncio.all_tasks(self.loop))
        self.loop.run_until_complete(self._end())
        self.loop.close()
        self._greenlets.clear()

    async def _end(self) -> None:
        close_lot(current_asyncio_loop())
        await self.loop.shutdown_asyncgens()

    def dispatch(self, call: Callable[[], None]) -> None:
        def switch() -> None:
            self._greenlets.append(greenlet.greenlet(call))
            self._greenlets[-1].switch()

        self.loop.call_soon_threadsafe(switch)

    def stop(self) -> None:
        wait_until(lambda: all(each.dead for each in self._greenlets), "a handler does not end")
        wait_for_background()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def handler(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def spawn(self, function: Callable[..., Any], *args: Any) -> Callable[[], Awaitable[Any]]:
        task = asyncio.ensure_future(function(*args))

        async def join() -> Any:
            return await asyncio.wait_for(task, DEADLINE)

        return join

    def gate(self) -> Gate:
        event = asyncio.Event()

        async def passed() -> None:
            await asyncio.wait_for(event.wait(), DEADLINE)

        return Gate(lambda: self.loop.call_soon_threadsafe(event.set), passed)


MODES: dict[str, type[Threads]] = {mode.name: mode for mode in (Threads, Gevent, Asyncio)}


class Background(Threads):
    """A thread for each request, and coroutine handlers in one event loop, as in a server with threads."""

    name = "background"
    extension = AsyncioWebSocket

    def handler(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    spawn = Asyncio.spawn  # called by a handler

    def gate(self) -> Gate:
        """Return a gate. Called by a handler."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        async def passed() -> None:
            await asyncio.wait_for(event.wait(), DEADLINE)

        return Gate(lambda: loop.call_soon_threadsafe(event.set), passed)


class Core(Threads):
    """One thread for all requests, as a core of uWSGI. It serves connections that are parked."""

    name = "core"

    def start(self) -> None:
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._threads.append(threading.Thread(target=self._serve, name="core"))
        self._threads[0].start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def dispatch(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def stop(self) -> None:
        self._calls.put(None)
        super().stop()


def call(worker: Threads, function: Any) -> Any:
    """Run a coroutine function with the loop, as a handler would run, and return its result."""
    results: list[Any] = []
    done = threading.Event()

    async def record(loop: Any) -> None:
        try:
            results.append(await function(loop))
        except BaseException as error:
            results.append(error)
        for fd in list(getattr(loop, "_readers", ())):  # before the test closes it
            loop.forget(fd)
        done.set()

    def start() -> None:
        if worker.name == "asyncio":
            task = asyncio.get_running_loop().create_task(record(current_asyncio_loop()))
            results.append(task)
        else:
            run(record(current_blocking_loop()))

    worker.dispatch(start)
    assert done.wait(DEADLINE)
    if isinstance(results[-1], BaseException):
        raise results[-1]
    return results[-1]


class Gate(NamedTuple):
    """A gate that a handler awaits until the test opens it."""

    open: Callable[[], Any]
    passed: Callable[[], Awaitable[None]]


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except BaseException as error:
        return None, error


def _unpack(outcome: tuple[Any, BaseException | None]) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result


async def join(room: Room, ws: Any, **options: Any) -> bool:
    """Join a room, in every mode.

    :param ws: what a handler of :meth:`Site.route` gets.
    """
    joining: Any = room.join(getattr(ws, "blocking", ws), **options)
    joined: bool = await joining if inspect.isawaitable(joining) else joining
    return joined


def wait_for_background() -> None:
    """Wait until the housekeepers look after no connection, and no room is subscribed or watched."""
    wait_until(
        lambda: not any(each.connections() or each._running for each in list(housekeeper._housekeepers.values())),
        "a connection is left in the housekeeper's registry",
    )
    wait_until(lambda: not any(each._feed._is_running for each in list(exchange._exchanges)), "a room is left")
    keepers = [each._keeper for each in list(exchange._exchanges)]
    for keeper in keepers:
        keeper._ends_at = 0  # rather than after the grace
    wait_until(lambda: not any(keeper._is_running for keeper in keepers), "the keeper of a roster runs")


def close_lot(loop: Any) -> None:
    """Close the parking lot of an event loop that ends, if it has one. Called in its thread."""
    lot = loop._lot
    if lot is None:
        return
    assert not lot.parked, "a connection is left in the parking lot"
    if isinstance(loop, GeventLoop):
        gevent.killall(list(lot._idle))
        lot._watcher.stop()
        lot._watcher.close()
    else:
        loop.event_loop.remove_reader(lot.epoll.fileno())
    lot.epoll.close()


class ParkingServer(WerkzeugServer):
    """The server of a site whose connections may outlive their requests, as on uWSGI."""

    #: The key in the environ of its requests.
    key = "support.parks"

    #: How many requests it serves at once, and so how many threads run parked views.
    cores = 40

    @classmethod
    def serves(cls, environ: Any) -> bool:
        return cls.key in environ

    @classmethod
    def capacity(cls) -> Capacity:
        return Capacity(cls.cores, parks=True)

    def release(self) -> None:
        """Put a socket without a peer in the place of the server's own, as the null device in uWSGI."""
        nobodys, other = socket.socketpair()
        other.close()
        os.dup2(nobodys.fileno(), self._socket.fileno(), inheritable=False)
        nobodys.close()


class Server:
    """A small WSGI server with the same environ as Werkzeug's server.

    It reads the head of a request, and not a byte more.
    """

    def __init__(self, app: Any, mode: Threads, **environ: Any) -> None:
        self._app = app
        self._mode = mode
        self._environ = environ
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.settimeout(None)  # independent of socket.setdefaulttimeout()
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="accept")
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if error.errno != errno.EMFILE:  # the listener was shut down
                    return
                time.sleep(0.01)  # a test has used up the descriptors for one request
                continue
            timeout = sock.gettimeout()
            sock.settimeout(None)
            head = b""
            while not head.endswith(b"\r\n\r\n") and (byte := sock.recv(1)):
                head += byte
            sock.settimeout(timeout)
            if head.endswith(b"\r\n\r\n"):
                environ = {**self._make_environ(head), "werkzeug.socket": sock, **self._environ}
                self._mode.dispatch(functools.partial(self._serve, environ, sock))
            else:
                sock.close()

    def _make_environ(self, head: bytes) -> dict[str, Any]:
        request, *lines = head.decode("latin-1").rstrip().split("\r\n")
        method, target, protocol = request.split(" ")
        path, _, query = target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(self.port),
            "SERVER_PROTOCOL": protocol,
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for line in lines:
            name, _, value = line.partition(":")
            key = name.upper().replace("-", "_")
            key = key if key in {"CONTENT_LENGTH", "CONTENT_TYPE"} else f"HTTP_{key}"
            environ[key] = f"{environ[key]},{value.strip()}" if key in environ else value.strip()
        return environ

    def _serve(self, environ: dict[str, Any], sock: socket.socket) -> None:
        head = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            head[:] = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), "Connection: close"]

        try:
            response = self._app(environ, start_response)
            body = b"".join(response)
            if hasattr(response, "close"):
                response.close()
            with suppress(OSError):  # the socket of a WebSocket may already be closed
                sock.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        finally:
            sock.close()

    def stop(self) -> None:
        """Stop accepting connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)


class Response(NamedTuple):
    """An HTTP response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Return all values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value


class RawClient:
    """A client that sends exactly the bytes that a test gives it."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self._input = self.sock.makefile("rb")

    def request(self, path: str = "/", method: str = "GET", protocol: str = "HTTP/1.1", **changes: str | None) -> None:
        """Send an upgrade request. *headers* replace the usual ones, with ``_`` for ``-``; None omits a header."""
        headers: dict[str, str | None] = {name.lower(): value for name, value in REQUEST.items()}
        headers.update((name.replace("_", "-").lower(), value) for name, value in changes.items())
        lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
        self.send("\r\n".join([f"{method} {path} {protocol}", *lines, "", ""]).encode("latin-1"))

    def response(self) -> Response:
        """Read a response. The body of a response other than 101 extends to the end of the connection."""
        status = int(self._input.readline().split()[1])
        headers = []
        while line := self._input.readline().decode("latin-1").rstrip("\r\n"):
            name, _, value = line.partition(": ")
            headers.append((name, value))
        return Response(status, headers, b"" if status == 101 else self._input.read())

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_for_ever(self, data: bytes) -> NoReturn:
        """Send until a send raises."""
        while True:
            self.sock.sendall(data)

    def send_until_refused(self, data: bytes) -> None:
        """Send until the server has read nothing for some time. A part of the last piece may not be sent."""
        self.sock.settimeout(0.3)
        sent = 0
        try:
            while sent < ROOM:
                self.sock.sendall(data)
                sent += len(data)
        except TimeoutError:
            self.sock.settimeout(DEADLINE)
        else:
            raise AssertionError(f"the server has taken {sent} bytes")

    def frame(self, opcode: int, payload: bytes = b"", **how: Any) -> None:
        """Send a masked frame."""
        self.send(frame(opcode, payload, key=KEY, **how))

    def read_frame(self) -> tuple[int, bytes] | None:
        """Read a frame, and return its opcode and payload, or None at the end of the input."""
        try:
            start = self._input.read(2)
        except ConnectionResetError:
            return None
        if not start:
            return None
        length = start[1]
        assert start[0] & 0xF0 == 0x80, "fragmented"
        assert length < 128, "masked"
        if length == 126:
            (length,) = struct.unpack("!H", self._input.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._input.read(8))
        return start[0] & 0x0F, self._input.read(length)

    def read_ping(self) -> bytes:
        """Read a frame, which has to be a Ping, and return its payload."""
        opcode, payload = self.read_frame() or (None, b"")
        assert opcode == PING
        return payload

    def read(self, size: int) -> None:
        """Read this number of bytes."""
        assert len(self._input.read(size)) == size

    def reset(self) -> None:
        """Vanish without a Close frame: the server gets a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self._input.close()
        self.sock.close()


class Site:
    """A Flask app with WebSockets. It is served from the first connection until its fixture closes it.

    :param parks: whether connections may outlive their requests, so that views are parked.
    """

    def __init__(self, mode: Threads, *, parks: bool = False, **settings: Any) -> None:
        self.mode = mode
        self.parks = parks
        self.app = Flask("site")
        self.app.secret_key = "secret"
        self.websocket = mode.extension(self.app, **settings)
        #: The notes of handlers for the test.
        self.notes: queue.Queue[Any] = queue.Queue()
        self.note = self.notes.put
        #: The logged warnings and errors. A test that expects one takes it out.
        self.log: list[logging.LogRecord] = []
        self._server: Server | None = None
        self._clients = ExitStack()
        self.environ: dict[str, Any] = {}
        self._servers = ExitStack()
        if parks:
            self.environ[ParkingServer.key] = True
            self._servers.enter_context(patch.object(find, "SERVERS", (ParkingServer, *find.SERVERS)))
        self._handler = logging.Handler(logging.WARNING)
        self._handler.emit = self._on_log  # type: ignore[method-assign]
        self._loggers = [self.app.logger, logging.getLogger("flask_uwsgi_websocket")]
        for logger in self._loggers:
            logger.addHandler(self._handler)
        mode.start()

    def _on_log(self, record: logging.LogRecord) -> None:
        deliberate = ("not patched", "a page of another origin", "did you mean @websocket.route")
        if not any(text in record.getMessage() for text in deliberate):
            self.log.append(record)

    def route(self, rule: str = "/", **options: Any) -> Callable[[Any], Any]:
        """Declare a coroutine function as the handler of a URL, in every mode."""
        return lambda function: self.websocket.route(rule, **options)(self.mode.handler(function))

    def noted(self) -> Any:
        """Return the next note of a handler."""
        return self.notes.get(timeout=DEADLINE)

    @property
    def port(self) -> int:
        if self._server is None:
            self._server = Server(self.app, self.mode, **self.environ)
        return self._server.port

    def connect(self, path: str = "/", **options: Any) -> ClientConnection:
        """Connect a client of the library ``websockets``."""
        options = {"compression": None, "ping_interval": None, "max_size": None, "close_timeout": DEADLINE, **options}
        client = connect(f"ws://127.0.0.1:{self.port}{path}", proxy=None, open_timeout=DEADLINE, **options)
        return self._clients.enter_context(client)

    def raw(self) -> RawClient:
        """Connect a client that sends nothing by itself."""
        client = RawClient(self.port)
        self._clients.callback(client.close)
        return client

    def upgrade(self, path: str = "/", **headers: str | None) -> RawClient:
        """Connect a raw client, and make its handshake."""
        client = self.raw()
        client.request(path, **headers)
        response = client.response()
        assert response.status == 101, response
        return client

    def refusal(self, path: str = "/", **request: Any) -> Response:
        """Send a request, and return the response, which must not be 101."""
        client = self.raw()
        client.request(path, **request)
        response = client.response()
        client.close()
        assert response.status != 101
        return response

    def logged(self) -> logging.LogRecord:
        """Wait for a log record, and take it."""
        wait_until(lambda: self.log, "nothing was logged")
        return self.log.pop(0)

    def disconnect(self) -> None:
        """Close the clients."""
        self._clients.close()

    def close(self) -> None:
        """Close the clients, and wait until all handlers have ended."""
        try:
            self.disconnect()
        finally:
            if self._server is not None:
                self._server.stop()
            try:
                self.mode.stop()
            finally:
                self._servers.close()
                for logger in self._loggers:
                    logger.removeHandler(self._handler)
        assert not self.mode.errors, self.mode.errors
        assert not self.log, [record.getMessage() for record in self.log]


def serving(mode: str, **options: Any) -> Iterator[Site]:
    """Yield a site, as the body of a fixture.

    :param options: settings, and options of :class:`Site`.
    """
    site = Site({**MODES, Background.name: Background, Core.name: Core}[mode](), **options)
    try:
        yield site
    finally:
        site.close()


def hold(site: Site, **options: Any) -> None:
    """Declare a handler at ``/`` that ends with its connection."""

    @site.route("/", **options)
    async def handler(ws: Any) -> None:
        await ws.send("hello")
        async for _ in ws:
            pass


async def wait_at_gate(site: Site) -> None:
    """Note a gate, and wait until the test opens it."""
    gate = site.mode.gate()
    site.note(gate)
    await gate.passed()


async def tick(site: Site) -> None:
    """Let other tasks run, like a handler that only checks its connection now and then."""
    gate = site.mode.gate()
    gate.open()
    await gate.passed()


async def send_to(site: Site, connection: Any, message: str) -> None:
    """Send to a connection, in the way of its mode's handlers."""
    sent = connection.send(message)
    if site.mode.name == "asyncio":
        await sent


class Kept:
    """A connection for the housekeeper: it is its own channel, and always has something to do."""

    id = "kept"

    @property
    def channel(self) -> Any:
        return self

    @staticmethod
    def find_due(connections: dict[Any, Any]) -> list[Any]:
        return list(connections.values())

    def tick(self, *, read_ahead: bool) -> None:
        """Do nothing."""


class Flood:
    """Send empty frames as fast as possible, and read all answers, until the block ends."""

    def __init__(self, client: RawClient, opcode: int = TEXT) -> None:
        self._client = client
        # Otherwise megabytes of such frames would be left at the end, which the slowest interpreter reads for half a
        # minute.
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        self._data = frame(opcode, key=KEY, fin=opcode != CONTINUATION) * 10_000
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._read)]

    def _send(self) -> None:
        with suppress(OSError):
            self._client.send_for_ever(self._data)

    def _read(self) -> None:
        with suppress(OSError):
            while self._client.sock.recv(65536):
                pass

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # the server dropped the connection
            self._client.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE)
