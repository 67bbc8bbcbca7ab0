"""A client sends messages as text or binary, complete, in order, and without delay."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

import pytest

from flask_uwsgi_websocket import ConnectionClosed
from support.inprocess import DEADLINE, Site, for_ever, wait_at_gate
from support.wire import BINARY, CLOSE, KEY, TEXT, close_body, frame


def test_str_is_sent_as_text_and_bytes_like_as_binary(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        for message in ["é", "", b"b", bytearray(b"ba"), memoryview(b"xmvx")[1:3], b""]:
            await ws.send(message)

    with site.connect() as client:
        assert list(client) == ["é", "", b"b", b"ba", b"mv", b""]


def test_the_binary_flag_of_0_6_1_overrides_the_type(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send("é", True)
        await ws.send(b"text", binary=False)
        await ws.send_binary("é")
        await ws.send_binary(b"\xff")
        with pytest.raises(ValueError, match="utf-8"):
            await ws.send(b"\xff", False)

    with site.connect() as client:
        assert list(client) == ["é".encode(), "text", "é".encode(), b"\xff"]


@pytest.mark.parametrize("message", [None, 1, 1.5, ["x"], {"a": 1}, object()], ids=repr)
def test_other_types_cannot_be_sent(blocking: Site, message: Any) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        for send in (ws.send, ws.send_binary):
            with pytest.raises(TypeError, match=type(message).__name__):
                await send(message)
        await ws.send("fine")

    with blocking.connect() as client:
        assert list(client) == ["fine"]


def test_a_lone_surrogate_cannot_be_sent(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ValueError, match="surrogates"):
            await ws.send("\ud800")
        await ws.send("fine")

    with site.connect() as client:
        assert list(client) == ["fine"]


def test_json_is_written_and_read_by_the_provider_of_the_app(site: Site) -> None:
    site.app.json.sort_keys = True  # type: ignore[attr-defined]

    @site.route()
    async def handler(ws: Any) -> None:
        for _ in range(3):
            await ws.send_json({"b": await ws.receive_json(), "a": 1})
        with pytest.raises(ValueError, match="Expecting"):
            await ws.receive_json()
        with pytest.raises(TimeoutError):
            await ws.receive_json(timeout=0.01)
        await ws.send("next")
        with pytest.raises(ConnectionClosed):
            await ws.receive_json()
        site.note("closed")

    with site.connect() as client:
        for message in ['"é"', b"[1]", "null"]:
            client.send(message)
            answer = client.recv(DEADLINE)
            assert json.loads(answer) == {"a": 1, "b": json.loads(message)}
            assert answer.startswith('{"a"')
        client.send("{")
        assert client.recv(DEADLINE) == "next"
    assert site.noted() == "closed"


def test_the_content_of_a_shared_area_can_be_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    class Uwsgi:
        @staticmethod
        def sharedarea_read(id: int, pos: int) -> bytes:
            return b"area %d from %d" % (id, pos)

    monkeypatch.setattr("flask_uwsgi_websocket.connection.base.uwsgi", Uwsgi)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send_from_sharedarea(1, 2)
        await ws.send_binary_from_sharedarea(3, 4)

    with site.connect() as client:
        assert list(client) == ["area 1 from 2", b"area 3 from 4"]


def test_outside_of_uwsgi_there_are_no_shared_areas(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        for send in (ws.send_from_sharedarea, ws.send_binary_from_sharedarea):
            with pytest.raises(RuntimeError, match="only uWSGI has shared areas"):
                await send(1, 2)
        await ws.send("fine")

    assert site.connect().recv(DEADLINE) == "fine"


def test_sending_on_a_closed_connection_raises_with_its_code(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        assert await ws.receive() is None
        for call in (lambda: ws.send("x"), lambda: ws.send_binary(b"x"), lambda: ws.send_json(1), ws.ping):
            with pytest.raises(ConnectionClosed) as error:
                await call()
            site.note((error.value.code, error.value.reason))

    site.connect().close(4001, "enough")
    assert [site.noted() for _ in range(4)] == [(4001, "enough")] * 4


def test_a_loop_that_sends_back_each_message_ends_with_the_connection(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        try:
            await for_ever(lambda: send_back(ws))
        finally:
            site.note(type(sys.exc_info()[1]))

    async def send_back(ws: Any) -> None:
        await ws.send(await ws.receive())

    with site.connect() as client:
        client.send("x")
        assert client.recv() == "x"
    assert site.noted() is ConnectionClosed


def test_sending_to_a_peer_that_vanished_raises(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note("accepted")
        with pytest.raises(ConnectionClosed) as error:
            await for_ever(lambda: ws.send("x" * 1000))
        site.note((error.value.code, ws.connected))

    client = site.upgrade()
    assert site.noted() == "accepted"
    client.reset()
    assert site.noted() == (1006, False)


def test_a_failing_send_raises_the_close_code_that_the_peer_had_sent(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        await wait_at_gate(site)
        with pytest.raises(ConnectionClosed) as error:
            await for_ever(lambda: ws.send("x" * 1000))
        site.note((error.value.code, error.value.reason))

    client = site.upgrade()
    gate = site.noted()
    client.frame(CLOSE, close_body(4002, b"gone"))
    client.close()
    gate.open()
    assert site.noted() in {(4002, "gone"), (1006, "the connection was lost without a Close frame")}


def test_frames_of_many_senders_never_interleave(site: Site) -> None:
    size, senders, rounds = 70_000, 8, 20

    @site.route()
    async def handler(ws: Any) -> None:
        async def send(letter: str) -> None:
            for _ in range(rounds):
                await ws.send(letter * size)

        joins = [site.mode.spawn(send, letter) for letter in "abcdefgh"[:senders]]
        for join in joins:
            await join()

    with site.connect() as client:
        messages = list(client)
    assert len(messages) == senders * rounds
    assert all(message == message[0] * size for message in messages)


def test_the_second_of_two_small_messages_does_not_wait_for_an_acknowledgement(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        with socket.socket(fileno=os.dup(ws.fd)) as sock:
            await ws.send(str(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))

    with site.connect() as client:
        assert client.recv(DEADLINE) == "1"


def test_output_that_waits_for_more_messages_is_sent_when_the_handler_waits(site: Site) -> None:
    gate = site.mode.gate()

    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)
            if message == "2":
                await gate.passed()

    client = site.upgrade()
    client.send(b"".join(frame(TEXT, b"%d" % number, key=KEY) for number in range(5)))
    assert [client.read_frame() for _ in range(3)] == [(TEXT, b"%d" % number) for number in range(3)]
    gate.open()
    assert [client.read_frame() for _ in range(2)] == [(TEXT, b"3"), (TEXT, b"4")]


def test_much_output_that_waits_for_more_messages_stays_in_order(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            for size in (10, 5000, 70_000):
                await ws.send(message * size)
            await ws.send(message.encode())

    client = site.upgrade()
    client.send(b"".join(frame(TEXT, b"%d" % (number % 10), key=KEY) for number in range(100)))
    for number in range(100):
        digit = b"%d" % (number % 10)
        assert [client.read_frame() for _ in range(4)] == [
            *((TEXT, digit * size) for size in (10, 5000, 70_000)),
            (BINARY, digit),
        ]
