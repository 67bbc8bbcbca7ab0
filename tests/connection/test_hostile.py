"""Attacks that a review found: each one once killed a worker, made it hang, or made it waste memory."""

from __future__ import annotations

import gc
import io
import json
import socket
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import gevent
import pytest
from flask import Flask, Response

from flask_uwsgi_websocket import Compression, ConcurrencyError, ConnectionClosed, WebSocketClient
from flask_uwsgi_websocket.connection.channel import REENTERED, Lock
from flask_uwsgi_websocket.connection.transport import Transport
from flask_uwsgi_websocket.protocol.deflate import Deflate, DeflateParameters
from flask_uwsgi_websocket.protocol.handshake import Handshake
from flask_uwsgi_websocket.protocol.protocol import CLOSE, PING, PONG, TEXT, Protocol, SharedMessage
from flask_uwsgi_websocket.servers.werkzeug import WerkzeugServer
from flask_uwsgi_websocket.state import State
from support.inprocess import DEADLINE, RawClient, Site, for_ever
from support.wire import KEY, close_body, frame


@contextmanager
def reading(client: RawClient) -> Iterator[None]:
    """Read all frames, and end the connection at the end of the block."""

    def read() -> None:
        with suppress(OSError):
            while client.sock.recv(65536):
                pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        with suppress(OSError):  # the server closed first
            client.sock.shutdown(socket.SHUT_RDWR)
        reader.join(DEADLINE)


@pytest.fixture
def default_timeout() -> Iterator[None]:
    socket.setdefaulttimeout(0.1)
    yield
    socket.setdefaulttimeout(None)


def test_a_default_timeout_of_sockets_does_not_end_idle_connections(site: Site, default_timeout: None) -> None:
    site.app.config["WEBSOCKET_PING_INTERVAL"] = 0.02

    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    client = site.upgrade()
    for _ in range(15):  # pings come with the housekeeper's rounds, so this takes far longer than the timeout
        ping = client.read_frame()
        assert ping is not None
        assert ping[0] == PING
        client.frame(PONG, ping[1])
    client.frame(TEXT, b"still here")
    while (answer := client.read_frame()) != (TEXT, b"still here"):
        assert answer is not None
        assert answer[0] == PING


def test_an_exit_of_the_handler_wakes_a_receiver_and_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(DEADLINE)
    server = WerkzeugServer({"werkzeug.socket": ours, "wsgi.input": io.BytesIO(), "wsgi.multithread": True})
    handshake = Handshake("AAAAAAAAAAAAAAAAAAAAAA==", (), None, None)
    app = Flask(__name__)
    received: list[Any] = []

    def handler(ws: WebSocketClient) -> None:
        ws.accept()
        reader.start()
        raise KeyboardInterrupt

    with ours, theirs:
        with app.test_request_context():
            route = State().route("x", [], {})
            transport = Transport(server.open(), server.release, WebSocketClient.make_loop(), route.settings)
            client = WebSocketClient({}, app, route, transport, handshake)
            reader = threading.Thread(target=lambda: received.append(client.receive()))
            with pytest.raises(KeyboardInterrupt):
                client.serve(handler, {})
        reader.join(DEADLINE)
        assert received == [None]
        data = b""
        while more := theirs.recv(65536):
            data += more
        assert data.partition(b"\r\n\r\n")[2].startswith(b"\x88")


def test_reading_ahead_is_bounded_for_messages_that_inflate_to_much(blocking: Site) -> None:
    blocking.app.config.update(WEBSOCKET_COMPRESSION=Compression(), WEBSOCKET_PING_INTERVAL=0.02)
    go_on = threading.Event()

    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        go_on.wait(DEADLINE)
        for _ in range(60):
            blocking.note(len(await ws.receive()))

    parameters = DeflateParameters(server_max_window_bits=12)
    sender = Protocol(is_client=True, deflate=Deflate(parameters, Compression(), is_client=True))
    frames = b"".join([sender.send_text("x" * 1_000_000) for _ in range(60)])
    assert len(frames) < 100_000
    client = blocking.upgrade(sec_websocket_extensions="permessage-deflate")
    tracemalloc.start()
    try:
        client.send(frames)
        for _ in range(15):  # rounds of the housekeeper
            assert client.read_frame() is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 15_000_000
    go_on.set()
    assert [blocking.noted() for _ in range(60)] == [1_000_000] * 60
    client.close()


def test_a_reason_cannot_forge_a_line_of_the_log(blocking: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.receive()
        await ws.send("x")

    client = blocking.upgrade()
    client.frame(CLOSE, b"\x03\xe8good-bye\nINFO forged\x1b[31m")
    while client.read_frame() is not None:
        pass
    client.close()
    blocking.close()
    (line,) = (record.getMessage() for record in caplog.records if "good-bye" in record.getMessage())
    assert line.isprintable()


def test_json_can_be_sent_from_outside_the_handlers_context(site: Site) -> None:
    clients: list[Any] = []

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        clients.append(ws)
        site.note("accepted")
        await ws.receive()

    with site.connect() as client:
        site.noted()

        async def broadcast() -> None:
            await clients[0].send_json({"a": 1})

        site.mode.dispatch(lambda: site.mode.spawn(broadcast))
        assert json.loads(client.recv(DEADLINE)) == {"a": 1}


@pytest.mark.parametrize("mode", ["gevent"])
def test_a_handler_may_be_killed_while_another_greenlet_polls_its_connection(site: Site) -> None:
    # libev aborts the whole process when a watcher starts for a closed descriptor.
    @site.websocket.route("/")
    def handler(ws: WebSocketClient) -> None:
        def poll() -> None:
            while True:
                try:
                    if ws.receive(timeout=0.001) is None:
                        site.note("ended")
                        return
                except TimeoutError:
                    continue

        ws.accept()
        gevent.spawn(poll)
        gevent.sleep(0.01)
        gevent.getcurrent().kill(block=False)
        gevent.sleep(DEADLINE)

    clients = [site.upgrade() for _ in range(30)]
    assert [site.noted() for _ in clients] == ["ended"] * 30
    for client in clients:
        client.close()


def test_a_handler_that_only_sends_does_not_starve_other_handlers(site: Site, request: pytest.FixtureRequest) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        while ws.connected:
            await ws.send("x")

    @site.route("/echo")
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    client = site.upgrade()
    # The server's thread never waits, so each thread of the test has to wait for the interpreter's lock.
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-4)
    with reading(client), site.connect("/echo") as other:
        for _ in range(5):  # each round takes long, because the reader and the server share one interpreter
            other.send("hello")
            assert other.recv(DEADLINE) == "hello"
    client.close()


def test_a_close_reason_forges_no_line_where_the_exception_is_logged() -> None:
    protocol = Protocol()
    protocol.receive_data(frame(CLOSE, close_body(1000, b"bye\nERROR root: on fire"), key=KEY))
    with pytest.raises(ConnectionClosed) as error:
        protocol.send_text("hello")
    assert str(error.value) == r"the WebSocket is closed: 1000 (OK) 'bye\nERROR root: on fire'"
    assert str(ConnectionClosed(1005)) == "the WebSocket is closed: 1005 (no status received)"


def bombs(count: int) -> bytes:
    """Return compressed messages of a million bytes each, in a thousand bytes."""
    parameters = DeflateParameters(server_max_window_bits=12)
    sender = Protocol(is_client=True, deflate=Deflate(parameters, Compression(), is_client=True))
    return b"".join([sender.send_text("x" * 1_000_000) for _ in range(count)])


def test_the_input_that_a_client_leaves_behind_costs_no_more_memory_than_input_that_is_read_ahead(
    blocking: Site,
) -> None:
    blocking.app.config.update(WEBSOCKET_COMPRESSION=Compression(), WEBSOCKET_PING_INTERVAL=None)
    go_on = threading.Event()

    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        blocking.note(ws.blocking)
        go_on.wait(DEADLINE)
        tracemalloc.start()
        try:
            with pytest.raises(ConnectionClosed) as error:
                await for_ever(lambda: ws.send("x" * 100_000))
            blocking.note((tracemalloc.get_traced_memory()[1], error.value.code, ws.close_code))
        finally:
            tracemalloc.stop()

    client = blocking.upgrade(sec_websocket_extensions="permessage-deflate")
    ws = blocking.noted()
    with ws._transport.read_lock:  # so that the housekeeper does not read either
        client.send(bombs(200))
        client.reset()
    go_on.set()
    peak, *codes = blocking.noted()
    assert peak < 15_000_000
    assert codes == [1006, 1006]


@pytest.mark.parametrize("what", ["send", "close", "ping"])
def test_a_finalizer_that_runs_within_a_call_cannot_wait_for_the_lock_of_the_call(site: Site, what: str) -> None:
    # Garbage collection may run when any object is created, and a signal handler nearly everywhere.
    @site.route()
    async def handler(ws: Any) -> None:
        client = getattr(ws, "blocking", ws)
        outcomes = set()

        class Finalized:
            def __init__(self) -> None:
                self.me = self

            def __del__(self) -> None:
                try:
                    client.offer(SharedMessage("from a finalizer"))
                    if what == "close":
                        client._transport.begin_close(1000, "")
                    outcomes.add("sent")
                except ConcurrencyError as error:
                    outcomes.add(str(error))
                except ConnectionClosed:
                    outcomes.add("closed")

        thresholds = gc.get_threshold()
        gc.freeze()  # garbage collection would take long to look through the objects of all other tests
        gc.set_threshold(1)
        try:
            # Another thread may collect the garbage. Wait for it, because its finalizer needs the open connection.
            for number in count():
                Finalized()
                with suppress(ConnectionClosed):
                    await (ws.send(b"x" * 1000) if what == "send" else ws.ping())
                if number >= 50:
                    gc.collect()
                    if outcomes:
                        break
        finally:
            gc.set_threshold(*thresholds)
            gc.unfreeze()
            gc.collect()
        site.note(outcomes)

    client = site.upgrade()
    with reading(client):
        outcomes = site.noted()
    assert outcomes & {"sent", REENTERED}


def test_a_call_while_its_own_thread_acquires_or_releases_the_lock_does_not_hang() -> None:
    # A signal handler may run between any two steps of the lock, and from Python 3.12 on also garbage collection.
    lock = Lock()
    outcomes: list[str] = []

    def call_at_each_step(frame: Any, event: str, arg: object) -> Any:
        if frame.f_code not in {Lock.__enter__.__code__, Lock.__exit__.__code__}:
            return None
        frame.f_trace_opcodes = True
        try:
            with lock:
                outcomes.append("done")
        except ConcurrencyError:
            outcomes.append("refused")
        return call_at_each_step

    def take_and_give_back() -> None:
        sys.settrace(call_at_each_step)
        with lock:
            outcomes.append("within")
        sys.settrace(None)

    thread = threading.Thread(target=take_and_give_back, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert not thread.is_alive()
    assert {"done", "within", "refused"} == set(outcomes)


@pytest.mark.parametrize("mode", ["threads", "gevent"])
def test_a_finalizer_that_runs_within_the_handshake_does_not_wait_for_it(site: Site) -> None:
    kept: list[WebSocketClient] = []

    class Finalized(Response):
        """A response whose creation triggers garbage collection."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if kept:
                with pytest.raises(ConcurrencyError, match="__del__"):
                    kept[0].send("from a finalizer")
                site.note("refused")

    @site.route()
    async def handler(ws: Any) -> None:
        kept.append(ws.blocking)
        await ws.send("hello")
        kept.clear()

    site.app.response_class = Finalized
    site.websocket.after_websocket(lambda response: response)  # without it, the handshake creates no response
    with site.connect() as client:
        assert client.recv(DEADLINE) == "hello"
        assert site.noted() == "refused"


@pytest.mark.parametrize("lock", ["read_lock", "write_lock"])
def test_a_call_within_a_locked_section_of_its_own_connection_is_refused(blocking: Site, lock: str) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        with getattr(ws._transport, lock), pytest.raises(ConcurrencyError, match="__del__"):
            await ws.send("x") if lock == "write_lock" else ws.recv_nb()
        await ws.receive()
        blocking.note("went on")

    with blocking.connect() as client:
        client.send("x")
        assert blocking.noted() == "went on"
