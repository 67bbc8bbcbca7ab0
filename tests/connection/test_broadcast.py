"""A broadcast sends one message to many connections."""

from __future__ import annotations

import zlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flask_uwsgi_websocket import Compression
from flask_uwsgi_websocket.protocol import deflate
from support.inprocess import DEADLINE, Site
from support.wire import BINARY, TEXT


def test_a_broadcast_reaches_all_connections_and_makes_missing_handshakes(site: Site) -> None:
    members: list[Any] = []
    gate = site.mode.gate()

    @site.route()
    async def handler(ws: Any) -> None:
        members.append(getattr(ws, "blocking", ws))
        site.note("in")
        await gate.passed()
        async for message in ws:
            assert site.websocket.broadcast(message, members) == []

    def join(client: Any) -> Any:
        client.request()
        return client

    clients = [join(site.raw()) for _ in range(5)]
    for _ in clients:
        site.noted()
    gate.open()
    assert clients[0].response().status == 101
    for message, opcode in [(b"text", TEXT), (b"\xff", BINARY)]:
        clients[0].frame(opcode, message)
        for client in clients:
            if client is not clients[0] and opcode == TEXT:
                assert client.response().status == 101
            assert client.read_frame() == (opcode, message)


def test_a_broadcast_leaves_out_closed_connections_and_returns_those_that_are_too_slow(site: Site) -> None:
    members: list[Any] = []

    @site.route("/member")
    async def member(ws: Any) -> None:
        members.append(getattr(ws, "blocking", ws))
        async for _ in ws:
            pass
        site.note("left")

    @site.route("/publish", send_buffer=1000)
    async def publish(ws: Any) -> None:
        members.append(getattr(ws, "blocking", ws))
        site.note("ready")
        await ws.receive()
        slow: list[Any] = []
        while not slow:
            slow = site.websocket.broadcast(b"x" * 100_000, members)
        site.note([each is members[-1] for each in slow])

    gone = site.upgrade("/member")
    gone.reset()
    assert site.noted() == "left"
    publisher = site.upgrade("/publish")
    assert site.noted() == "ready"
    publisher.frame(TEXT, b"go")
    assert site.noted() == [True]
    publisher.reset()


def test_a_broadcast_is_compressed_for_connections_that_agreed_to_it(site: Site) -> None:
    members: list[Any] = []

    @site.route(compression=True)
    async def handler(ws: Any) -> None:
        members.append(getattr(ws, "blocking", ws))
        async for message in ws:
            site.websocket.broadcast(message, members)

    with site.connect(compression="deflate") as one, site.connect() as other:
        for client in (one, other):
            client.send("x" * 1000)
        for client in (one, other):
            assert client.recv(DEADLINE) == "x" * 1000


def test_a_broadcast_is_compressed_once_for_connections_without_context_and_with_equal_parameters(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def compressobj(*args: Any) -> Any:
        made.append(args)
        return zlib.compressobj(*args)

    monkeypatch.setattr(deflate, "zlib", SimpleNamespace(**{**vars(zlib), "compressobj": compressobj}))
    afresh = Compression(threshold=100, context_takeover=False)
    kinds = {
        "/afresh": afresh,
        "/fast": replace(afresh, level=1),
        "/late": replace(afresh, threshold=1001),
        "/takeover": replace(afresh, context_takeover=True),
        "/plain": False,
    }
    members: list[Any] = []

    async def member(ws: Any) -> None:
        members.append(getattr(ws, "blocking", ws))
        await ws.accept()
        site.note("in")
        async for message in ws:
            site.note(site.websocket.broadcast(message, members))

    for path, compression in kinds.items():
        site.route(path, compression=compression, endpoint=path)(member)

    clients = [site.connect(path, compression="deflate") for path in [*kinds, *kinds, *kinds]]
    for _ in clients:
        site.noted()
    # One compressor for each level without context takeover, and one for each connection with it.
    for message, count in [("x" * 1000, 2 + 3), (b"\xff" * 1000, 2), ("\u2603" * 1000, 2), ("short", 0)]:
        made.clear()
        clients[4].send(message)  # without compression
        assert site.noted() == []
        assert [client.recv(DEADLINE) for client in clients] == [message] * len(clients)
        assert len(made) == count


def test_a_broadcast_of_neither_text_nor_bytes_is_a_type_error(site: Site) -> None:
    with pytest.raises(TypeError, match=r"a message is str \(text\) or bytes \(binary\), not dict"):
        site.websocket.broadcast({"a": 1}, [])


def test_a_broadcast_to_a_connection_instead_of_a_list_is_a_type_error(blocking: Site) -> None:
    @blocking.websocket.route("/")
    def handler(ws: Any) -> None:
        with pytest.raises(TypeError, match=r"broadcast\(\) takes many connections, not one: use send\(\)"):
            blocking.websocket.broadcast("x", ws)  # a loop over it would receive its messages
        ws.send("fine")

    with blocking.connect() as client:
        assert list(client) == ["fine"]
