"""A Pong is an event: listeners hear of it whatever the handler does, and they may use the connection."""

from __future__ import annotations

from typing import Any

import pytest
from flask import request

from flask_uwsgi_websocket import WebSocketBlueprint
from support.inprocess import DEADLINE, RawClient, Site
from support.wire import KEY, PING, PONG, TEXT, frame


@pytest.fixture
def heard(site: Site) -> None:
    """A listener that sends each client a message about its pong."""

    async def answered(ws: Any, latency: float) -> None:
        assert 0 <= latency == ws.latency < DEADLINE
        await ws.send(f"{request.path} answered")

    tell = site.mode.handler(answered)
    site.websocket.on_pong(lambda app, ws, **event: tell(ws, **event))


def answer(client: RawClient) -> None:
    client.frame(PONG, client.read_ping())


@pytest.mark.usefixtures("heard")
def test_listeners_hear_of_a_pong_at_once_while_the_handler_receives(site: Site) -> None:
    @site.route("/receives")
    async def handler(ws: Any) -> None:
        await ws.ping()
        assert await ws.receive() == "a message"
        await ws.send("so the wait went on")

    client = site.upgrade("/receives")
    answer(client)
    assert client.read_frame() == (TEXT, b"/receives answered")
    client.frame(TEXT, b"a message")
    assert client.read_frame() == (TEXT, b"so the wait went on")


@pytest.mark.usefixtures("heard")
def test_a_message_behind_a_pong_is_not_lost(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.ping()
        async for message in ws:
            await ws.send(message)

    client = site.upgrade()
    opcode, payload = client.read_frame() or (None, b"")
    assert opcode == PING
    client.send(b"".join([frame(TEXT, b"1", key=KEY), frame(PONG, payload, key=KEY), frame(TEXT, b"2", key=KEY)]))
    assert sorted([client.read_frame() for _ in range(3)]) == [(TEXT, b"/ answered"), (TEXT, b"1"), (TEXT, b"2")]


@pytest.mark.usefixtures("heard")
def test_the_housekeeper_delivers_the_pongs_of_a_handler_that_does_not_receive(site: Site) -> None:
    gate = site.mode.gate()

    @site.route("/waits")
    async def handler(ws: Any) -> None:
        await ws.ping()
        await gate.passed()

    client = site.upgrade("/waits")
    answer(client)
    assert client.read_frame() == (TEXT, b"/waits answered")
    gate.open()


def test_an_unsolicited_pong_is_no_event(site: Site) -> None:
    told: list[float] = []
    site.websocket.on_pong(lambda app, latency, **extra: told.append(latency))

    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    client = site.upgrade()
    client.frame(PONG, b"unasked")
    client.frame(TEXT, b"x")
    assert client.read_frame() == (TEXT, b"x")
    assert told == []


def test_a_failing_listener_is_logged_and_the_connection_continues(site: Site) -> None:
    @site.websocket.on_pong
    def fails(app: Any, **event: Any) -> None:
        raise KeyError("oops")

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.ping()
        async for message in ws:
            await ws.send(message)

    client = site.upgrade()
    answer(client)
    assert "websocket-pong" in site.logged().getMessage()
    client.frame(TEXT, b"x")
    assert client.read_frame() == (TEXT, b"x")


def test_the_listeners_of_a_blueprint_hear_of_its_own_pongs(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    chat.on_pong(lambda app, ws, **event: blocking.note(request.blueprint))

    @chat.websocket("/")
    def pings(ws: Any) -> None:
        ws.ping()
        ws.receive()

    blocking.app.register_blueprint(chat)
    answer(blocking.upgrade("/chat/"))
    assert blocking.noted() == "chat"
