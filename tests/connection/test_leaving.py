"""Peers that leave without a Close frame."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from flask_uwsgi_websocket import ConnectionClosed
from support.inprocess import ROOM, Site, for_ever, tick, wait_at_gate
from support.wire import BINARY, CLOSE, KEY, TEXT, close_body, frame


@pytest.mark.parametrize("how", ["reset", "end of stream", "close frame"])
@pytest.mark.parametrize("handler_is", ["receiving", "sending", "waiting"])
def test_a_peer_that_leaves_is_detected(site: Site, how: str, handler_is: str) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note("accepted")
        try:
            while ws.connected:
                if handler_is == "receiving":
                    await ws.receive()
                else:
                    if handler_is == "sending":
                        await ws.send("x")
                    await tick(site)
        except ConnectionClosed:
            pass
        site.note(ws.connected)

    client = site.upgrade()
    assert site.noted() == "accepted"
    if how == "reset":
        client.reset()
    elif how == "end of stream":
        client.sock.shutdown(socket.SHUT_WR)
    else:
        client.frame(CLOSE, close_body(1001))
    assert site.noted() is False


@pytest.mark.parametrize("how", ["reset", "end of stream"])
def test_the_next_ping_detects_a_peer_that_left_more_input_than_fits(site: Site, how: str) -> None:
    site.app.config.update(WEBSOCKET_MAX_MESSAGE_SIZE=1000, WEBSOCKET_PING_INTERVAL=0.05)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note("accepted")
        while ws.connected:
            await tick(site)
        site.note(ws.close_code)

    client = site.upgrade()
    assert site.noted() == "accepted"
    client.send(frame(BINARY, b"x" * 1000, key=KEY) * 200)
    client.reset() if how == "reset" else client.close()
    assert site.noted() == 1006


def test_the_end_of_the_input_alone_is_1006(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            site.note(message)
        site.note((ws.close_code, ws.close_reason))

    client = site.upgrade()
    client.frame(TEXT, b"last words")
    client.frame(TEXT, b"half a mess", fin=False)
    client.sock.shutdown(socket.SHUT_WR)
    assert site.noted() == "last words"
    assert site.noted() == (1006, "the connection was lost without a Close frame")
    assert client.read_frame() is None


def test_a_peer_that_ended_its_half_of_tcp_does_not_block_the_end(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        await wait_at_gate(site)
        with pytest.raises(ConnectionClosed):  # after the housekeeper has seen the end
            await for_ever(lambda: ws.send(b"x" * ROOM))

    client = site.upgrade()
    gate = site.noted()
    client.sock.shutdown(socket.SHUT_WR)
    gate.open()
