"""Peers that read slowly, or not at all."""

from __future__ import annotations

import select
import socket
import time
from typing import Any

import pytest

from flask_uwsgi_websocket import ConnectionClosed
from support.inprocess import DEADLINE, ROOM, Clock, Site, for_ever, wait_at_gate
from support.wire import BINARY, CLOSE, PING, TEXT, close_body


def test_send_waits_for_a_peer_that_reads_slowly_and_loses_nothing(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 1000
    count = 40

    @site.route()
    async def handler(ws: Any) -> None:
        for number in range(count):
            await ws.send(bytes([number]) * 300_000)
            site.note(number)

    client = site.upgrade()
    # The handler has sent as much as the sockets and the buffer hold, and waits.
    assert site.noted() == 0
    for number in range(count):
        assert client.read_frame() == (BINARY, bytes([number]) * 300_000)
    assert client.read_frame() == (CLOSE, close_body(1000))
    assert [site.noted() for _ in range(count - 1)] == list(range(1, count))


def test_a_peer_that_reads_slowly_is_not_dropped_however_long_a_send_has_to_wait(site: Site, clock: Clock) -> None:
    site.app.config.update(WEBSOCKET_SEND_BUFFER=1000, WEBSOCKET_PING_INTERVAL=None)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(b"x" * 2 * ROOM)
        await ws.send("the next")

    client = site.upgrade()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)  # the kernel would let the buffer grow to ROOM
    header = 10
    for number in range(32):
        client.read(ROOM // 16)
        time.sleep(0.02)  # a fast peer would interrupt the server in the middle of sending
        if number % 8 == 7:  # the peer has since read more than the sockets hold, so the server has sent more
            clock.put_forward(11)
    client.read(header)
    assert client.read_frame() == (TEXT, b"the next")


def test_a_peer_that_reads_nothing_is_dropped_and_costs_bounded_memory(site: Site) -> None:
    site.app.config.update(WEBSOCKET_SEND_BUFFER=100_000, WEBSOCKET_SEND_TIMEOUT=0.3)

    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ConnectionClosed) as error:
            await for_ever(lambda: ws.send(b"x" * 10_000), ROOM // 10_000)
        site.note((error.value.code, error.value.reason, ws.connected))

    @site.route("/echo")
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    site.upgrade()
    with site.connect("/echo") as other:
        while site.notes.empty():
            other.send("x")
            assert other.recv(DEADLINE) == "x"
    assert site.noted() == (1006, "the peer has read nothing for 0.3 s", False)


def test_the_timeout_of_a_send_overrides_the_setting(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 1000

    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ConnectionClosed, match=r"0\.1 s"):
            await for_ever(lambda: ws.send(b"x" * 100_000, timeout=0.1))
        site.note("raised")

    site.upgrade()
    assert site.noted() == "raised"


def test_a_peer_that_reads_nothing_is_dropped_even_if_no_task_sends_any_more(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_TIMEOUT"] = 0.3

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        await ws.send(b"x" * ROOM)
        site.note(await ws.receive())
        site.note((ws.close_code, ws.close_reason))

    site.upgrade()
    assert site.noted() is None
    assert site.noted() == (1006, "the peer has read nothing for 0.3 s")


def test_buffered_output_is_written_while_the_handler_is_busy(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(b"x" * ROOM)
        await wait_at_gate(site)

    client = site.upgrade()
    gate = site.noted()
    assert client.read_frame() == (BINARY, b"x" * ROOM)
    gate.open()


def test_a_peer_that_reads_nothing_gets_no_more_pongs_than_fit(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 1000

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(b"x" * ROOM)
        assert await ws.receive() == "done"
        site.note(len(ws._transport.outbox))

    client = site.upgrade()
    for _ in range(5000):
        client.frame(PING, b"p" * 125)
    client.frame(TEXT, b"done")
    assert site.noted() < ROOM
    client.reset()


@pytest.mark.parametrize("mode", ["gevent", "asyncio"])
def test_a_peer_that_reads_stays_even_if_the_server_sends_the_rest_too_late(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_TIMEOUT"] = 0.01

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(b"x" * ROOM)
        time.sleep(0.02)
        select.select([], [ws.fd], [], DEADLINE)
        ws.tick()  # before the loop runs
        site.note(ws.connected)

    client = site.upgrade()
    while site.notes.empty():
        client.sock.recv(2**16)
    assert site.noted() is True
    client.reset()
