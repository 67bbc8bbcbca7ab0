"""The server acts on a little of one client's input at a time, so other tasks run in between, and no input is lost."""

from __future__ import annotations

import asyncio
import os
import socket
import tracemalloc
import zlib
from _socket import socket as RawSocket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import gevent
import pytest

from flask_uwsgi_websocket.connection.channel import RUN_LENGTH, WAIT
from flask_uwsgi_websocket.connection.transport import LOST, Transport
from flask_uwsgi_websocket.exceptions import ConnectionClosed
from flask_uwsgi_websocket.loops.threads import ThreadLoop
from flask_uwsgi_websocket.protocol.deflate import Deflate, DeflateParameters
from flask_uwsgi_websocket.protocol.protocol import Close
from flask_uwsgi_websocket.settings import Settings
from support.inprocess import DEADLINE, Flood, Site
from support.wire import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, close_body, frame


def deflated(size: int) -> bytes:
    """Return a message of zeros, compressed."""
    compressor = zlib.compressobj(wbits=-15)
    payload = compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return frame(BINARY, payload[:-4], rsv=4, key=KEY)


def fragments(payload: bytes, count: int) -> bytes:
    middle = frame(CONTINUATION, payload, fin=False, key=KEY)
    return frame(BINARY, payload, fin=False, key=KEY) + middle * (count - 2) + frame(CONTINUATION, payload, key=KEY)


#: The bytes of one read, of 64 KiB, or of 4 KiB with compression, and the units of work in them.
FLOODS = {
    "empty pings": (frame(PING, key=KEY) * 8_000, 8_000),
    "empty pongs": (frame(PONG, key=KEY) * 8_000, 8_000),
    "empty fragments": (fragments(b"", 8_000), 8_000),
    "fragments of a byte": (fragments(b"x", 8_000), 8_000),
    "a bomb": (deflated(2**20), 1_024),
    "bombs": (deflated(2**18) * 4, 1_024),
    "final blocks": (frame(BINARY, b"\x03\x00" * 1_500 + b"\0", rsv=4, key=KEY), 1_500),
}

TURNS: dict[str, Callable[[], Awaitable[None]]] = {"asyncio": lambda: asyncio.sleep(0)}


async def gevent_turn() -> None:
    gevent.sleep(1e-9)  # sleep(0) would look for input only every 5 ms


TURNS["gevent"] = gevent_turn


@pytest.mark.parametrize("mode", ["gevent", "asyncio"])
@pytest.mark.parametrize("flood", FLOODS)
def test_other_tasks_run_again_and_again_while_a_flood_is_parsed(site: Site, mode: str, flood: str) -> None:
    data, work = FLOODS[flood]
    is_compressed = flood in {"a bomb", "bombs", "final blocks"}
    gate = site.mode.gate()

    @site.route(compression=is_compressed)
    async def handler(ws: Any) -> None:
        await ws.accept()
        await gate.passed()
        turns = 0
        is_done = False

        async def run_beside() -> None:
            nonlocal turns
            while not is_done:
                await TURNS[mode]()
                turns += 1

        join = site.mode.spawn(run_beside)
        while await ws.receive() != "end":
            continue
        is_done = True
        await join()
        site.note(turns)

    client = site.upgrade(sec_websocket_extensions="permessage-deflate" if is_compressed else None)
    client.send(data + frame(TEXT, b"end", key=KEY))
    gate.open()
    assert site.noted() >= work // RUN_LENGTH // 2  # other tasks run after each run, which is bounded


def flood_of_all(*messages: bytes) -> bytes:
    """Return the messages, each after hundreds of other frames."""
    noise = frame(PING, b"p", key=KEY) * 300 + frame(PONG, key=KEY) * 300
    return b"".join(noise + fragments(message, 300) for message in messages)


def test_messages_before_the_end_of_the_input_are_received_before_the_end(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            site.note(message)
        site.note(ws.close_code)

    for end, code in [(frame(CLOSE, close_body(4000), key=KEY), 4000), (b"", 1006)]:
        client = site.upgrade()
        client.send(flood_of_all(b"a", b"b") + end)
        client.sock.shutdown(socket.SHUT_WR)
        assert [site.noted() for _ in range(3)] == [b"a" * 300, b"b" * 300, code]


def test_all_pings_of_a_flood_are_answered_in_their_order(site: Site, echo: Any) -> None:
    client = site.upgrade()
    client.send(b"".join(frame(PING, b"%d" % number, key=KEY) for number in range(1_000)))
    assert [client.read_frame() for _ in range(1_000)] == [(PONG, b"%d" % number) for number in range(1_000)]


def test_the_answer_to_a_close_is_found_behind_a_flood_that_was_already_read(site: Site) -> None:
    site.app.config["WEBSOCKET_CLOSE_TIMEOUT"] = 10 * DEADLINE

    @site.route()
    async def handler(ws: Any) -> None:
        site.note(await ws.receive())
        await ws.close(4001)
        site.note("closed")

    client = site.upgrade()
    answer = frame(CLOSE, close_body(4001), key=KEY)
    client.send(frame(TEXT, b"first", key=KEY) + flood_of_all(b"a", b"b") + answer)  # most likely in one read
    assert site.noted() == "first"
    assert site.noted() == "closed"


def test_a_message_behind_a_flood_is_found_without_waiting(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.receive()
        while (message := ws.recv_nb()) is None:
            await ws.send("none yet")
        site.note(message)

    client = site.upgrade()
    client.send(frame(TEXT, b"first", key=KEY) + flood_of_all(b"a"))
    assert site.noted() == b"a" * 300


def test_pings_of_a_flood_are_answered_while_the_handler_does_not_receive(site: Site) -> None:
    gate = site.mode.gate()

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        await gate.passed()
        site.note(await ws.receive())

    client = site.upgrade()
    client.send(flood_of_all(b"a"))
    for _ in range(300):
        assert client.read_frame() == (PONG, b"p")
    gate.open()
    assert site.noted() == b"a" * 300


def test_a_flood_after_an_error_does_not_starve_other_clients(site: Site, echo: Any) -> None:
    site.app.config["WEBSOCKET_CLOSE_TIMEOUT"] = 3600

    flooding = site.upgrade()
    with site.connect() as other:
        flooding.frame(3)
        with Flood(flooding):
            for _ in range(50):
                other.send("x")
                assert other.recv(DEADLINE) == "x"


@pytest.mark.parametrize("kind", ["messages", "pings", "fragments"])
def test_a_flooding_client_does_not_starve_other_clients(site: Site, kind: str) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async for _ in ws:
            pass

    @site.route("/echo")
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    flooding = site.upgrade()
    with site.connect("/echo") as other:
        if kind == "fragments":
            flooding.frame(TEXT, fin=False)
        with Flood(flooding, {"messages": TEXT, "pings": PING, "fragments": CONTINUATION}[kind]):
            for _ in range(20):
                other.send("x")
                assert other.recv(DEADLINE) == "x"


# The connection by itself


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        theirs.settimeout(DEADLINE)
        yield theirs, ours


def close_of(connection: Transport) -> Close:
    assert connection.protocol.closed is not None
    return connection.protocol.closed


def open_connection(ours: socket.socket, settings: Settings, deflate: Deflate | None = None) -> Transport:
    connection = Transport(RawSocket(fileno=os.dup(ours.fileno())), lambda: None, ThreadLoop(), settings, deflate)
    connection.start(b"")
    return connection


def test_a_connection_does_not_wait_for_its_socket_while_input_is_left(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = sockets
    connection = open_connection(ours, Settings())
    theirs.sendall(frame(PING, key=KEY) * 200 + frame(TEXT, b"end", key=KEY))
    takes = 0
    while (message := connection.take()) is WAIT:
        takes += 1
        connection.work = 0  # another thread that sends may do this
        assert connection.is_on_a_run()
    assert message == "end"
    assert takes >= 200 // RUN_LENGTH
    assert connection.take() is WAIT
    assert not connection.is_on_a_run()
    connection.detach()


def test_a_call_that_never_waits_finds_a_message_behind_a_flood_that_was_read(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = sockets
    connection = open_connection(ours, Settings())
    theirs.sendall(flood_of_all(b"a", b"b"))
    for message in (b"a", b"b"):
        assert connection.receive_now() == message * 300
    assert connection.receive_now() is None  # a caller that now waits for the descriptor misses nothing
    assert not connection.has_rest
    theirs.sendall(frame(PING, key=KEY) * 200 + frame(TEXT, b"end", key=KEY))
    assert connection.take() is WAIT
    connection.detach()
    with pytest.raises(ConnectionClosed):
        connection.receive_now()


def test_a_failing_send_does_not_read_the_whole_flood_that_a_peer_left_behind(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = sockets
    connection = open_connection(ours, Settings())
    theirs.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += theirs.send(frame(PING, key=KEY) * 100)
    theirs.close()
    with pytest.raises(ConnectionClosed):
        connection.put("too late")
    assert connection.bytes_received < sent
    assert close_of(connection).reason == LOST
    connection.detach()


def test_a_failing_send_finds_the_close_frame_behind_a_thousand_messages(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    theirs, ours = sockets
    connection = open_connection(ours, Settings())
    theirs.sendall(frame(TEXT, b"x", key=KEY) * 1_000 + frame(CLOSE, close_body(4000), key=KEY))
    theirs.close()
    with pytest.raises(ConnectionClosed):
        connection.put("too late")
    assert close_of(connection).code == 4000
    assert len(connection.inbox) == 1_000
    connection.detach()


def test_the_rest_of_a_flood_is_dropped_with_the_connection(sockets: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = sockets
    connection = open_connection(ours, Settings())
    theirs.sendall(frame(PING, key=KEY) * 200 + frame(TEXT, b"end", key=KEY))
    assert connection.take() is WAIT
    assert connection.is_on_a_run()
    assert connection._has_input()
    connection.abort("enough")
    assert not connection._has_input()
    assert connection.take() is None
    assert not connection.is_on_a_run()
    assert close_of(connection).reason == "enough"
    connection.detach()


@pytest.mark.parametrize("size", [100_000, 2**20])
def test_the_worst_compressed_input_takes_no_more_memory_than_documented(
    sockets: tuple[socket.socket, socket.socket], size: int
) -> None:
    theirs, ours = sockets
    deflate = Deflate(DeflateParameters(server_max_window_bits=12))
    connection = open_connection(ours, Settings(max_message_size=size), deflate)
    compressor = zlib.compressobj(wbits=-15)

    def bomb(size: int) -> bytes:
        payload = compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return frame(BINARY, payload[:-4], rsv=4, key=KEY)

    # The first message leaves room for one more. Then come messages of the largest size, and a thousand small ones.
    data = bomb(size - 1000) + b"".join(bomb(size) + bomb(100) * 20 for _ in range(50))
    theirs.sendall(data)
    tracemalloc.start()
    try:
        for _ in range(1_000):
            connection._read_ahead()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    kept = sum(map(len, connection.inbox))
    assert size < kept <= 2 * size + 1024 * RUN_LENGTH
    # The message that arrives, which exists twice when it is complete, and zlib's window come on top of that.
    assert peak < kept + 2.5 * size + 100_000
    connection.detach()
