"""Every call of a client means the same in each concurrency mode."""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from flask import abort, current_app, g, got_request_exception, request, session
from websockets.exceptions import ConnectionClosed as ClientSawClose
from websockets.exceptions import InvalidStatus

from flask_uwsgi_websocket import Compression, ConcurrencyError, ConnectionClosed
from flask_uwsgi_websocket.connection import base
from flask_uwsgi_websocket.protocol import deflate
from support.inprocess import DEADLINE, REQUEST, ROOM, Clock, RawClient, Site, for_ever, wait_until
from support.wire import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, close_body, frame

# Receiving


def test_text_is_received_as_str_and_binary_as_bytes_and_empty_messages_are_messages(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        for _ in range(4):
            site.note(await ws.receive())

    with site.connect() as client:
        for message in ["é", b"\xff", "", b""]:
            client.send(message)
        assert [site.noted() for _ in range(4)] == ["é", b"\xff", "", b""]


def test_receive_returns_none_once_and_then_raises(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        site.note(await ws.receive())
        for _ in range(2):
            with pytest.raises(ConnectionClosed) as error:
                await ws.recv()
            site.note((error.value.code, error.value.reason))
        with pytest.raises(ConnectionClosed):
            ws.recv_nb()

    site.connect().close(4001, "enough")
    assert site.noted() is None
    assert site.noted() == site.noted() == (4001, "enough")


def test_messages_before_a_close_are_received_before_the_end(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        gate = site.mode.gate()
        await ws.accept()
        site.note(gate)
        await gate.passed()
        site.note([await ws.receive() for _ in range(4)])

    client = site.upgrade()
    gate = site.noted()
    for message in (b"a", b"b", b"c"):
        client.frame(TEXT, message)
    client.frame(CLOSE, close_body(1000))
    assert client.read_frame() == (CLOSE, close_body(1000))  # by the housekeeper
    gate.open()
    assert site.noted() == ["a", "b", "c", None]


def test_a_timeout_loses_no_message(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        for timeout in (0, 0.01, 0.01):
            with pytest.raises(TimeoutError, match="timed out"):
                await ws.receive(timeout)
        await ws.send("ready")
        site.note(await ws.receive(timeout=DEADLINE))
        # Half a message is kept, too.
        with pytest.raises(TimeoutError):
            await ws.receive(timeout=0.01)
        await ws.send("ready")
        site.note(await ws.receive(timeout=DEADLINE))

    client = site.upgrade()
    assert client.read_frame() == (TEXT, b"ready")
    client.frame(TEXT, b"whole")
    assert site.noted() == "whole"
    client.frame(TEXT, b"first ", fin=False)
    assert client.read_frame() == (TEXT, b"ready")
    client.frame(CONTINUATION, b"second")
    assert site.noted() == "first second"


def test_a_timeout_holds_while_pings_pour_in(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(TimeoutError):
            await ws.receive(timeout=0.05)
        site.note("timeout")

    with Flood(site.upgrade(), PING):
        assert site.noted() == "timeout"


def test_recv_nb_returns_a_message_that_is_here_or_none(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        gate = site.mode.gate()
        site.note(ws.recv_nb())
        site.note(gate)
        await gate.passed()
        site.note([ws.recv_nb(), ws.recv_nb(), ws.recv_nb()])

    client = site.upgrade()
    assert site.noted() is None
    gate = site.noted()
    client.frame(TEXT, b"one")
    client.frame(TEXT, b"")
    client.frame(PING, b"?")  # answered by the housekeeper: then all is here
    assert client.read_frame() == (PONG, b"?")
    gate.open()
    assert site.noted() == ["one", "", None]


def test_recv_nb_raises_once_the_peer_has_closed(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()
        site.note(gate)
        await gate.passed()
        site.note(ws.recv_nb())
        with pytest.raises(ConnectionClosed, match="1000"):
            ws.recv_nb()
        site.note("raised")

    client = site.upgrade()
    gate = site.noted()
    client.frame(TEXT, b"last")
    client.frame(CLOSE, close_body(1000))
    assert client.read_frame() == (CLOSE, close_body(1000))
    gate.open()
    assert site.noted() == "last"
    assert site.noted() == "raised"


def test_iteration_ends_when_the_peer_closes(site: Site, echo: Any) -> None:
    with site.connect() as client:
        for message in ["a", b"b", ""]:
            client.send(message)
            assert client.recv(DEADLINE) == message
    assert client.close_code == 1000


def test_iteration_ends_when_this_side_closes(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.close(4000, str(message))
        async for _ in ws:
            raise AssertionError
        site.note("ended")

    with site.connect() as client:
        client.send("bye")
        with pytest.raises(ClientSawClose, match=r"4000.*bye"):
            client.recv(DEADLINE)
    assert site.noted() == "ended"


def test_messages_gives_each_message_an_app_context_of_its_own(site: Site) -> None:
    @site.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        site.note(f"teardown of {g.get('name')}: {error}")

    @site.route()
    async def handler(ws: Any) -> None:
        g.name = "request"
        async for message in ws.messages():
            assert "name" not in g
            g.name = message
            await ws.send(f"{current_app.name} {request.path}")
        assert g.name == "request"

    with site.connect() as client:
        for message in "ab":
            client.send(message)
            assert client.recv(DEADLINE) == "site /"
            assert site.noted() == f"teardown of {message}: None"
    assert site.noted() == "teardown of request: None"


def test_messages_left_by_break_gives_its_app_context_back_at_once(site: Site) -> None:
    @site.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        site.note(f"teardown of {g.name}")

    @site.route()
    async def handler(ws: Any) -> None:
        g.name = "request"
        async for message in ws.messages():
            g.name = message
            break
        assert g.name == "request"
        await ws.send("x")

    with site.connect() as client:
        client.send("message")
        assert client.recv(DEADLINE) == "x"
        assert site.noted() == "teardown of message"
    assert site.noted() == "teardown of request"


def test_messages_left_by_an_exception_gives_its_app_context_back(site: Site) -> None:
    @site.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        site.note(f"teardown of {g.name}")

    @site.route()
    async def handler(ws: Any) -> None:
        g.name = "request"
        async for message in ws.messages():
            g.name = message
            abort(404)

    with site.connect() as client:
        client.send("message")
        with pytest.raises(ClientSawClose, match="4404"):
            client.recv(DEADLINE)
    assert site.noted() == "teardown of message"
    assert site.noted() == "teardown of request"


def test_two_receivers_are_one_too_many(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()

        async def receive() -> Any:
            gate.open()
            while True:
                with suppress(ConcurrencyError):  # while the other one tries
                    return await ws.receive()
                await tick(site)

        async def try_to_receive() -> None:
            assert ws.recv_nb() is None
            await tick(site)

        join = site.mode.spawn(receive)
        await gate.passed()
        # The other one is in receive(), or about to be.
        with pytest.raises(ConcurrencyError, match="let one of them receive"):
            await for_ever(try_to_receive)
        await ws.send("done")
        assert await join() == "for the first one"

    with site.connect() as client:
        assert client.recv(DEADLINE) == "done"
        client.send("for the first one")


# Sending


def test_str_is_sent_as_text_and_bytes_like_as_binary(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        for message in ["é", "", b"b", bytearray(b"ba"), memoryview(b"xmvx")[1:3], b""]:
            await ws.send(message)

    with site.connect() as client:
        assert list(client) == ["é", "", b"b", b"ba", b"mv", b""]


def test_the_binary_flag_of_0_6_1_overrules_the_type(site: Site) -> None:
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
def test_nothing_else_can_be_sent(blocking: Site, message: Any) -> None:
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


def test_json_is_written_and_read_by_the_app(site: Site) -> None:
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


def test_what_the_shared_area_holds_is_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_outside_of_uwsgi_there_is_no_shared_area(site: Site) -> None:
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


def test_a_loop_that_sends_what_it_receives_ends_with_the_connection(site: Site) -> None:
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


def test_a_send_that_fails_tells_the_good_bye_that_the_peer_had_said(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()
        site.note(gate)
        await gate.passed()
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


# Ping


def test_ping_measures_the_latency(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        assert ws.latency is None
        await ws.ping()
        assert await ws.receive() == "x"
        site.note(ws.latency)

    client = site.upgrade()
    answer = client.read_frame()
    assert answer is not None
    opcode, payload = answer
    assert opcode == PING
    client.frame(PONG, b"something else")
    client.frame(PONG, payload)
    client.frame(TEXT, b"x")
    assert 0 < site.noted() < DEADLINE


def test_an_unsolicited_pong_measures_nothing(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.receive()
        site.note(ws.latency)

    client = site.upgrade()
    client.frame(PONG, b"!")
    client.frame(TEXT, b"x")
    assert site.noted() is None


def test_a_ping_is_answered_while_the_handler_is_busy(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()
        site.note(gate)
        await gate.passed()

    client = site.upgrade()
    gate = site.noted()
    client.frame(PING, b"anybody?")
    assert client.read_frame() == (PONG, b"anybody?")
    gate.open()


def test_a_message_read_ahead_wakes_the_receiver(blocking: Site) -> None:
    # tick() reads for a handler that is not in receive(), which this one enters all the time.
    @blocking.route()
    async def handler(ws: Any) -> None:
        done = threading.Event()

        async def look_after() -> None:
            while not done.is_set():
                ws.tick()

        await ws.accept()
        joins = [blocking.mode.spawn(look_after) for _ in range(4)]
        try:
            async for message in ws:
                await ws.send(message)
        finally:
            done.set()
            for join in joins:
                await join()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with blocking.connect() as client:
            for number in range(500):
                client.send(str(number))
                assert client.recv(DEADLINE) == str(number)
    finally:
        sys.setswitchinterval(interval)


# The end


def test_the_code_and_reason_of_the_peers_close_are_known(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        assert (ws.close_code, ws.close_reason, ws.connected) == (None, None, True)
        await ws.receive()
        site.note((ws.close_code, ws.close_reason, ws.connected))

    client = site.connect()
    client.close(3000, "gone home")
    assert site.noted() == (3000, "gone home", False)
    assert (client.close_code, client.close_reason) == (3000, "gone home")


def test_a_close_without_a_code_is_1005(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.receive()
        site.note(ws.close_code)

    client = site.upgrade()
    client.frame(CLOSE)
    assert client.read_frame() == (CLOSE, b"")
    assert client.read_frame() is None
    assert site.noted() == 1005


def test_the_code_and_reason_of_close_reach_the_peer(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.close(3000, "fermé")
        site.note((ws.close_code, ws.close_reason, ws.connected))
        await ws.close(4000, "again")
        with pytest.raises(ConnectionClosed, match="3000"):
            await ws.send("x")
        site.note(ws.close_code)

    with site.connect() as client, pytest.raises(ClientSawClose):
        client.recv(DEADLINE)
    assert (client.close_code, client.close_reason) == (3000, "fermé")
    assert site.noted() == (3000, "fermé", False)
    assert site.noted() == 3000


def test_a_handler_that_returns_closes_with_1000(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send("only this")

    with site.connect() as client:
        assert list(client) == ["only this"]
    assert (client.close_code, client.close_reason) == (1000, "")


@pytest.mark.parametrize(
    ("code", "reason"),
    [(0, ""), (999, ""), (1004, ""), (1005, ""), (1006, ""), (1015, ""), (2999, ""), (5000, ""), (1000, "é" * 62)],
)
def test_what_a_close_frame_cannot_carry_is_refused(blocking: Site, code: int, reason: str) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ValueError, match="close"):
            await ws.close(code, reason)
        await ws.send("still open")

    with blocking.connect() as client:
        assert list(client) == ["still open"]


@pytest.mark.parametrize("arguments", [("bye",), (1000, None), (1000, b"bye"), (None,)], ids=repr)
def test_a_close_without_a_number_and_a_text_is_a_type_error(blocking: Site, arguments: Any) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(TypeError, match=r"close\(code, reason\) takes a number and a str, not"):
            await ws.close(*arguments)
        await ws.send("still open")

    with blocking.connect() as client:
        assert list(client) == ["still open"]


def test_close_ends_a_receive_elsewhere(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()

        async def close() -> None:
            await gate.passed()
            await ws.close(4000)

        join = site.mode.spawn(close)
        site.note(gate)
        site.note(await ws.receive())
        await join()

    with site.connect() as client:
        site.noted().open()
        with pytest.raises(ClientSawClose, match="4000"):
            client.recv(DEADLINE)
    assert site.noted() is None


def test_a_receive_elsewhere_ends_with_the_handler_even_if_the_peer_does_not_answer(site: Site) -> None:
    site.app.config["WEBSOCKET_CLOSE_TIMEOUT"] = 0.2

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()

        async def receive() -> None:
            gate.open()
            try:
                site.note(await ws.receive())
            except ConnectionClosed as error:
                site.note(error)

        site.mode.spawn(receive)
        await gate.passed()

    client = site.upgrade()
    assert client.read_frame() == (CLOSE, close_body(1000))
    ended = site.noted()
    assert ended is None or ended.code == 1000


def test_a_send_elsewhere_ends_with_the_handler_even_if_the_peer_reads_nothing(site: Site) -> None:
    site.app.config.update(WEBSOCKET_CLOSE_TIMEOUT=0.2, WEBSOCKET_SEND_BUFFER=1000)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()

        async def send() -> None:
            with pytest.raises(ConnectionClosed):
                await for_ever(lambda: ws.send("x" * ROOM))
            site.note("ended")

        site.mode.spawn(send)

    site.upgrade()
    assert site.noted() == "ended"


def test_close_beside_many_senders_is_the_last_frame(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async def send() -> None:
            with pytest.raises(ConnectionClosed) as error:
                await for_ever(lambda: ws.send("x" * 10_000))
            site.note(error.value.code)

        joins = [site.mode.spawn(send) for _ in range(4)]
        assert await ws.receive() == "close"
        await ws.close(4000)
        for join in joins:
            await join()

    client = site.upgrade()
    client.frame(TEXT, b"close")
    frames = []
    while (answer := client.read_frame())[0] != CLOSE:  # type: ignore[index]
        frames.append(answer)
    assert answer == (CLOSE, close_body(4000))
    client.frame(CLOSE, close_body(4000))
    assert client.read_frame() is None
    assert set(frames) <= {(TEXT, b"x" * 10_000)}
    assert [site.noted() for _ in range(4)] == [4000] * 4


def test_the_peer_has_the_close_timeout_to_answer_a_close(site: Site) -> None:
    site.app.config["WEBSOCKET_CLOSE_TIMEOUT"] = 0.1

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.close(4000)
        site.note(ws.close_code)

    client = site.upgrade()
    assert client.read_frame() == (CLOSE, close_body(4000))
    assert client.read_frame() is None  # and it was the server that ended it
    assert site.noted() == 4000


def test_messages_that_cross_a_close_are_dropped(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.close(4000)
        site.note(await ws.receive())

    client = site.upgrade()
    assert client.read_frame() == (CLOSE, close_body(4000))
    client.frame(TEXT, b"crossing")
    client.frame(CLOSE, close_body(4000))
    assert client.read_frame() is None
    assert site.noted() is None


@pytest.mark.parametrize("flood", ["after its close", "after our close", "after an error"])
def test_a_peer_that_never_stops_sending_is_dropped_all_the_same(site: Site, flood: str) -> None:
    site.app.config["WEBSOCKET_CLOSE_TIMEOUT"] = 0.2

    @site.route()
    async def handler(ws: Any) -> None:
        await (ws.close() if flood == "after our close" else ws.receive())

    client = site.upgrade()
    if flood == "after its close":
        client.frame(CLOSE, close_body(1000))
    elif flood == "after an error":
        client.frame(3)
    data = frame(BINARY, b"x" * 100_000, key=KEY)
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        client.send_for_ever(data)


def test_a_flood_after_an_error_does_not_starve_the_others(site: Site, echo: Any) -> None:
    site.app.config["WEBSOCKET_CLOSE_TIMEOUT"] = 3600

    flooding = site.upgrade()
    with site.connect() as other:
        flooding.frame(3)
        with Flood(flooding):
            for _ in range(50):
                other.send("x")
                assert other.recv(DEADLINE) == "x"


# The lazy handshake


def test_a_handler_may_abort_before_the_handshake(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        abort(403, "not you")

    response = site.refusal()
    assert response.status == 403
    assert b"not you" in response.body


def test_a_handler_may_return_a_response_instead_of_the_handshake(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> Any:
        return {"error": "full"}, 503, {"Retry-After": "1"}

    response = site.refusal()
    assert (response.status, json.loads(response.body), response["Retry-After"]) == (503, {"error": "full"}, "1")


def test_a_decorator_that_knows_no_coroutines_may_return_a_response(site: Site) -> None:
    async def handler(ws: Any) -> None:
        await ws.send("hello")

    handler = site.mode.handler(handler)

    @site.websocket.route("/")
    @wraps(handler)
    def login_required(ws: Any) -> Any:
        return handler(ws) if "user" in request.args else ("log in first", 401)

    assert site.refusal().status == 401
    with site.connect("/?user=1") as client:
        assert list(client) == ["hello"]


def test_an_exception_before_the_handshake_is_a_500(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        raise KeyError("oops")

    assert site.refusal().status == 500
    assert "oops" in str(site.logged().exc_info)


def test_a_handler_that_does_nothing_accepts_and_closes(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        assert ws.connected

    with site.connect() as client:
        assert list(client) == []
    assert client.close_code == 1000


def test_what_a_handler_returns_after_the_handshake_is_not_sent(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> str:
        await ws.send("x")
        return "nobody can read this"

    with site.connect() as client:
        assert list(client) == ["x"]
    assert client.close_code == 1000


def test_the_first_send_may_come_from_elsewhere(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async def broadcast() -> None:
            await ws.send("from elsewhere")
            site.note("sent")

        gate = site.mode.gate()
        site.note(gate)
        join = site.mode.spawn(broadcast)
        await gate.passed()
        await join()
        await ws.send("from the handler")

    client = site.upgrade()
    gate = site.noted()
    assert site.noted() == "sent"
    assert client.read_frame() == (TEXT, b"from elsewhere")
    gate.open()
    assert client.read_frame() == (TEXT, b"from the handler")
    assert client.read_frame() == (CLOSE, close_body(1000))


def test_many_first_sends_make_one_handshake(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async def send() -> None:
            await ws.send("x")

        for join in [site.mode.spawn(send) for _ in range(8)]:
            await join()

    with site.connect() as client:
        assert list(client) == ["x"] * 8


def test_after_a_refusal_nothing_can_be_sent_or_received(site: Site) -> None:
    kept = []

    @site.route()
    async def handler(ws: Any) -> None:
        kept.append(ws)
        abort(401)

    @site.route("/later")
    async def later(ws: Any) -> None:
        (refused,) = kept
        for call in (lambda: refused.send("x"), refused.receive, refused.ping, refused.accept):
            with pytest.raises(ConnectionClosed, match="refused"):
                await call()
        await refused.close()
        refused.tick()
        site.note((refused.connected, refused.fd))

    assert site.refusal().status == 401
    site.connect("/later").close()
    assert site.noted() == (False, -1)


def test_after_the_end_nothing_can_be_sent_or_received(site: Site) -> None:
    kept = []

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        kept.append(ws)

    @site.route("/later")
    async def later(ws: Any) -> None:
        (ended,) = kept
        for call in (lambda: ended.send("x"), ended.ping):
            with pytest.raises(ConnectionClosed, match="1000"):
                await call()
        assert await ended.receive() is None
        with pytest.raises(ConnectionClosed):
            await ended.receive()
        await ended.close()
        await ended.accept()
        ended.tick()
        site.note((ended.connected, ended.fd, ended.close_code))

    with site.connect() as client:
        assert list(client) == []
    # The Close frame travels faster than the handler ends.
    wait_until(lambda: kept and kept[0].fd == -1)
    site.connect("/later").close()
    assert site.noted() == (False, -1, 1000)


# What leaves a handler after the handshake


def test_an_http_exception_closes_with_4000_and_its_status(site: Site) -> None:
    @site.route("/<int:status>")
    async def handler(ws: Any, status: int) -> None:
        await ws.accept()
        abort(status)

    for status, name in [(404, "Not Found"), (401, "Unauthorized"), (503, "Service Unavailable")]:
        with site.connect(f"/{status}") as client, pytest.raises(ClientSawClose):
            client.recv(DEADLINE)
        assert (client.close_code, client.close_reason) == (4000 + status, name)


def test_abort_with_a_response_closes_with_4000_and_its_status(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        abort(current_app.make_response(("too late", 302)))

    with site.connect() as client, pytest.raises(ClientSawClose):
        client.recv(DEADLINE)
    assert (client.close_code, client.close_reason) == (4302, "")


def test_any_other_exception_is_reported_and_closes_with_1011(site: Site) -> None:
    def receiver(app: Any, exception: BaseException, **extra: Any) -> None:
        site.note((app, request.path, repr(exception)))

    @site.route("/<name>")
    async def handler(ws: Any, name: str) -> None:
        await ws.accept()
        raise KeyError(name)

    with got_request_exception.connected_to(receiver):
        with site.connect("/oops") as client, pytest.raises(ClientSawClose):
            client.recv(DEADLINE)
        assert site.noted() == (site.app, "/oops", "KeyError('oops')")
    assert (client.close_code, client.close_reason) == (1011, "internal error")
    record = site.logged()
    assert (record.name, record.levelname) == ("site", "ERROR")
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError
    assert record.exc_info[2] is not None


def test_connection_closed_may_leave_a_handler_without_a_traceback(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flask_uwsgi_websocket")

    @site.route()
    async def handler(ws: Any) -> None:
        while True:
            await ws.send(await ws.receive() or "no more")

    site.connect().close(4001, "enough")
    wait_until(lambda: "closed: 4001 'enough'" in caplog.text)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("when", ["after its handshake", "before its handshake"])
def test_the_end_of_another_connection_that_leaves_a_handler_is_an_error_of_it(site: Site, when: str) -> None:
    listeners: list[Any] = []
    failures: list[Any] = []

    @site.route("/listens")
    async def listens(ws: Any) -> None:
        listeners.append(getattr(ws, "blocking", ws))
        await ws.send("ready")
        with suppress(ConnectionClosed):
            await ws.receive()

    @site.route("/speaks")
    async def speaks(ws: Any) -> None:
        if when == "after its handshake":
            await ws.accept()
        site.note(getattr(ws, "blocking", ws))
        await send_to(site, listeners[0], "hello")

    site.websocket.on_error(lambda app, ws, exception, **extra: failures.append(exception))
    site.websocket.teardown_websocket(lambda error: site.note(error) if request.path == "/speaks" else None)
    listener = site.connect("/listens")
    assert listener.recv(DEADLINE) == "ready"
    listener.close(4001, "enough")
    wait_until(lambda: not listeners[0].connected)
    if when == "after its handshake":
        with pytest.raises(ClientSawClose, match=r"1011.*internal error"):
            site.connect("/speaks").recv(DEADLINE)
    else:
        assert site.refusal("/speaks").status == 500
    speaker, error = site.noted(), site.noted()
    assert (error.code, error.reason, error.connection) == (4001, "enough", listeners[0])
    record = site.logged()
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    if when == "after its handshake":
        assert failures == [error]
        assert f"{speaker!r} does not handle the end of {listeners[0]!r}" in record.getMessage()


@pytest.mark.parametrize("case", ["another", "another, with a timeout", "its own"])
def test_a_handler_that_waits_long_for_anothers_client_is_told_of_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(base, "LONG_WAIT", 0)
    site.app.config.update(WEBSOCKET_SEND_TIMEOUT=0.1, WEBSOCKET_SEND_BUFFER=1000)
    listeners: list[Any] = []

    @site.route("/listens")
    async def listens(ws: Any) -> None:
        listeners.append(ws)
        site.note("listens")
        await ws.accept()
        await ws.receive()

    @site.route("/speaks")
    async def speaks(ws: Any) -> None:
        await ws.accept()
        other = ws if case == "its own" else listeners.pop()
        options = {"timeout": 0.1} if "timeout" in case else {}
        with pytest.raises(ConnectionClosed):
            await for_ever(lambda: other.send(b"x" * ROOM, **options))
        site.note("spoken")

    for _ in range(2):
        listener, speaker = site.raw(), site.raw()
        listener.request("/listens")
        assert site.noted() == "listens"
        speaker.request("/speaks")
        assert site.noted() == "spoken"
        listener.close()
        speaker.close()
    if case == "another":
        message = site.logged().getMessage()
        assert "/speaks> has waited " in message
        assert "/listens>, whose client does not read. To send to other connections, use broadcast()" in message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_the_process_closes_with_1011_and_goes_on(blocking: Site) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        raise KeyboardInterrupt

    client = blocking.upgrade()
    assert client.read_frame() == (CLOSE, close_body(1011, b"internal error"))


def test_a_handler_that_exits_ends_its_connection_only(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        sys.exit("enough")

    with pytest.raises(ClientSawClose, match=r"1011.*internal error"):
        site.connect().recv(DEADLINE)
    wait_until(lambda: bool(site.log))
    (record,) = site.log
    site.log.clear()
    assert record.getMessage() == "Exception on '/' [WebSocket]"
    assert record.exc_info is not None
    assert record.exc_info[0] is SystemExit


@pytest.mark.parametrize("where", ["handler", "before_websocket", "after_websocket"])
def test_an_exit_before_the_handshake_is_an_error_like_any_other(site: Site, where: str) -> None:
    def leave(*args: Any) -> None:
        sys.exit("enough")

    @site.route()
    async def handler(ws: Any) -> None:
        if where == "handler":
            leave()
        await ws.accept()

    if where != "handler":
        getattr(site.websocket, where)(leave)
    assert site.refusal().status == 500
    assert "raised SystemExit('enough') before its handshake" in str(site.logged().exc_info)


@pytest.mark.parametrize("mode", ["gevent"])
def test_a_timeout_of_gevent_that_leaves_the_handler_is_an_error_like_any_other(site: Site) -> None:
    @site.route("/<when>")
    async def handler(ws: Any, when: str) -> None:
        if when == "after":
            await ws.accept()
        with gevent.Timeout(0.01):
            gevent.sleep(DEADLINE)

    assert site.refusal("/before").status == 500
    assert "seconds=0.01> before its handshake" in str(site.logged().exc_info)
    with pytest.raises(ClientSawClose, match=r"1011.*internal error"):
        site.connect("/after").recv(DEADLINE)
    assert "Exception on '/after' [WebSocket]" in site.logged().getMessage()


# Contexts


def test_each_of_many_connections_has_its_own_contexts(site: Site) -> None:
    torn_down = []
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 2**16

    @site.app.route("/login/<user>")
    def login(user: str) -> str:
        session["user"] = user
        return ""

    @site.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        if error is None and "user" in g:
            torn_down.append(g.user)

    @site.route("/<int:number>/<path:rest>")
    async def handler(ws: Any, number: int, rest: str) -> None:
        g.user = session["user"]
        async for message in ws:
            assert request.view_args == {"number": number, "rest": rest}
            assert current_app._get_current_object() is site.app  # type: ignore[attr-defined]
            await ws.send(f"{message} {number} {rest} {request.args['q']} {session['user']} {g.user}")

    clients = []
    for number in range(50):
        raw = site.raw()
        raw.request(f"/login/u{number}", upgrade=None, connection=None)
        cookie = raw.response()["Set-Cookie"].partition(";")[0]
        clients.append(site.connect(f"/{number}/a/b?q=q{number}", additional_headers={"Cookie": cookie}))
    for turn in range(3):
        for client in clients:
            client.send(str(turn))
        for number, client in enumerate(clients):
            assert client.recv(DEADLINE) == f"{turn} {number} a/b q{number} u{number} u{number}"
    for client in clients:
        client.close()
    wait_until(lambda: len(torn_down) == 50)
    assert sorted(torn_down) == sorted(f"u{number}" for number in range(50))


def test_a_client_knows_its_connection(site: Site) -> None:
    @site.route("/<room>", subprotocols=["chat"])
    async def handler(ws: Any, room: str) -> None:
        site.note((ws.id, ws.environ is request.environ, ws.fd, ws.connected, ws.timeout, ws.subprotocol, str(ws)))
        await ws.send(socket.socket(fileno=ws.fd).detach().__class__.__name__)

    ids = set()
    for _ in range(2):
        with site.connect("/a?b=c", subprotocols=["chat"]) as client:
            assert list(client) == ["int"]
        id, same, fd, connected, timeout, subprotocol, text = site.noted()
        assert (same, connected, timeout, subprotocol) == (True, True, 25.0, "chat")
        assert fd > 2
        assert id in text
        assert "/<room>" in text
        assert "WebSocketClient" in text
        ids.add(id)
    assert len(ids) == 2


# Peers that do not read, do not answer, or are gone


def test_the_second_of_two_small_messages_does_not_wait_for_an_acknowledgement(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        with socket.socket(fileno=os.dup(ws.fd)) as sock:
            await ws.send(str(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))

    with site.connect() as client:
        assert client.recv(DEADLINE) == "1"


def test_send_waits_for_a_peer_that_reads_slowly_and_loses_nothing(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 1000
    count = 40

    @site.route()
    async def handler(ws: Any) -> None:
        for number in range(count):
            await ws.send(bytes([number]) * 300_000)
            site.note(number)

    client = site.upgrade()
    # It has sent what the sockets and the buffer take, and waits.
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
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)  # which the kernel would let grow to ROOM
    header = 10
    for number in range(32):
        client.read(ROOM // 16)
        time.sleep(0.02)  # a fast peer would find the server in the middle of sending
        if number % 8 == 7:  # since the last time, more was read than the sockets hold: the server has got on
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


def test_the_timeout_of_a_send_overrules_the_setting(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 1000

    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ConnectionClosed, match=r"0\.1 s"):
            await for_ever(lambda: ws.send(b"x" * 100_000, timeout=0.1))
        site.note("raised")

    site.upgrade()
    assert site.noted() == "raised"


def test_a_peer_that_reads_nothing_is_dropped_though_nobody_sends_any_more(site: Site) -> None:
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


def test_what_did_not_fit_is_written_while_the_handler_is_busy(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(b"x" * ROOM)
        gate = site.mode.gate()
        site.note(gate)
        await gate.passed()

    client = site.upgrade()
    gate = site.noted()
    assert client.read_frame() == (BINARY, b"x" * ROOM)
    gate.open()


def test_a_peer_that_reads_nothing_gets_no_more_pongs_than_it_has_room_for(site: Site) -> None:
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


def test_messages_that_nobody_receives_are_read_ahead_to_a_bound(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 100_000

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()
        site.note(gate)
        await gate.passed()
        site.note(sum(map(len, ws._transport.inbox)))
        count = 0
        async for message in ws:
            assert message == b"x" * 1000
            count += 1
        site.note(count)

    client = site.upgrade()
    gate = site.noted()
    client.send_until_refused(frame(BINARY, b"x" * 1000, key=KEY))
    gate.open()
    assert site.noted() < 100_000 + 65_536
    client.reset()
    assert site.noted() > 100


def test_many_tiny_messages_that_nobody_receives_are_bounded_too(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 10_000

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()
        site.note(gate)
        await gate.passed()
        site.note(len(ws._transport.inbox))

    client = site.upgrade()
    gate = site.noted()
    client.send_until_refused(frame(TEXT, b"", key=KEY) * 1000)  # one by one would take long
    gate.open()
    assert site.noted() < (10_000 + 65_536) // 6
    client.reset()


@pytest.mark.parametrize("kind", ["messages", "pings", "fragments"])
def test_a_flooding_client_does_not_starve_the_others(site: Site, kind: str) -> None:
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


def test_a_peer_that_answers_pings_stays(site: Site, clock: Clock) -> None:
    site.app.config.update(WEBSOCKET_PING_INTERVAL=20, WEBSOCKET_PING_TIMEOUT=30)

    @site.route()
    async def handler(ws: Any) -> None:
        site.note(getattr(ws, "blocking", ws))
        site.note(await ws.receive())

    client = site.upgrade()
    ws = site.noted()
    for _ in range(4):
        clock.put_forward(20)
        answer = client.read_frame()
        assert answer is not None
        assert answer[0] == PING
        ws.latency = None
        client.frame(PONG, answer[1])
        wait_until(lambda: ws.latency is not None, "the answer was not noticed")
    client.frame(TEXT, b"still here")
    assert site.noted() == "still here"


@pytest.mark.parametrize("handler_is", ["receiving", "busy"])
def test_a_silent_peer_is_dropped(site: Site, handler_is: str) -> None:
    site.app.config.update(WEBSOCKET_PING_INTERVAL=0.1, WEBSOCKET_PING_TIMEOUT=0.2)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        if handler_is == "receiving":
            assert await ws.receive() is None
        else:
            while ws.connected:
                await tick(site)
        site.note((ws.close_code, ws.close_reason))

    client = site.upgrade()
    assert site.noted() == (1006, "no answer to a ping for 0.2 s")
    answer = client.read_frame()
    assert answer is not None
    assert answer[0] == PING


@pytest.mark.parametrize("mode", ["gevent", "asyncio"])  # in which one handler can hold up all
def test_a_peer_whose_answer_has_arrived_stays_though_it_is_read_too_late(site: Site) -> None:
    site.app.config.update(WEBSOCKET_PING_INTERVAL=None, WEBSOCKET_PING_TIMEOUT=0.01)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()

        async def receive() -> None:
            gate.open()
            site.note(await ws.receive())

        join = site.mode.spawn(receive)
        await gate.passed()
        await ws.ping()
        time.sleep(0.02)
        select.select([ws.fd], [], [], DEADLINE)
        ws.tick()  # before the one in receive() has its turn
        site.note(ws.connected)
        await join()

    client = site.upgrade()
    answer = client.read_frame()
    assert answer is not None
    assert answer[0] == PING
    client.frame(PONG, answer[1])
    assert site.noted() is True
    client.frame(TEXT, b"still here")
    assert site.noted() == "still here"


@pytest.mark.parametrize("mode", ["gevent", "asyncio"])
def test_a_peer_that_reads_stays_though_what_is_next_is_sent_too_late(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_TIMEOUT"] = 0.01

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(b"x" * ROOM)
        time.sleep(0.02)
        select.select([], [ws.fd], [], DEADLINE)
        ws.tick()  # before the loop has its turn
        site.note(ws.connected)

    client = site.upgrade()
    while site.notes.empty():
        client.sock.recv(2**16)
    assert site.noted() is True
    client.reset()


def test_without_a_ping_interval_there_are_no_pings(site: Site) -> None:
    site.app.config["WEBSOCKET_PING_INTERVAL"] = None

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(str(ws.timeout))
        await ws.receive()

    with site.connect() as client:
        assert client.recv(DEADLINE) == "None"


@pytest.mark.parametrize("how", ["reset", "end of stream", "close frame"])
@pytest.mark.parametrize("handler_is", ["receiving", "sending", "waiting"])
def test_a_peer_that_leaves_is_noticed(site: Site, how: str, handler_is: str) -> None:
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
def test_a_peer_that_leaves_behind_more_than_fits_is_noticed_by_the_next_ping(site: Site, how: str) -> None:
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


def test_a_peer_that_has_ended_its_half_does_not_get_in_the_way_of_the_end(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        gate = site.mode.gate()
        await ws.accept()
        site.note(gate)
        await gate.passed()
        with pytest.raises(ConnectionClosed):  # when the housekeeper has seen the end
            await for_ever(lambda: ws.send(b"x" * ROOM))

    client = site.upgrade()
    gate = site.noted()
    client.sock.shutdown(socket.SHUT_WR)
    gate.open()


# Failures


@pytest.mark.parametrize("handler_is", ["receiving", "busy"])
@pytest.mark.parametrize(
    ("code", "opcode", "payload", "how"),
    [
        (1002, 3, b"", {}),
        (1002, TEXT, b"", {"rsv": 4}),
        (1002, PING, b"", {"fin": False}),
        (1007, TEXT, b"\xff", {}),
        (1009, BINARY, b"x" * 1001, {}),
    ],
    ids=["opcode", "rsv1", "fragmented ping", "utf-8", "too big"],
)
def test_a_failure_tells_the_peer_even_when_it_has_more_to_say(
    site: Site, handler_is: str, code: int, opcode: int, payload: bytes, how: dict[str, Any]
) -> None:
    site.app.config.update(WEBSOCKET_MAX_MESSAGE_SIZE=1000, WEBSOCKET_CLOSE_TIMEOUT=DEADLINE)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        while ws.connected:
            await (ws.receive() if handler_is == "receiving" else tick(site))
        site.note(ws.close_code)

    client = site.upgrade()
    more = frame(BINARY, b"more" * 50_000, key=KEY)
    client.frame(opcode, payload, **how)
    for _ in range(20):
        client.send(more)
    answer = client.read_frame()
    assert answer is not None
    assert (answer[0], answer[1][:2]) == (CLOSE, code.to_bytes(2, "big"))
    assert client.read_frame() is None
    assert site.noted() == code


def test_an_unmasked_frame_is_refused(site: Site, echo: Any) -> None:
    client = site.upgrade()
    client.send(b"\x81\x01x")
    answer = client.read_frame()
    assert answer is not None
    assert (answer[0], answer[1][:2]) == (CLOSE, close_body(1002))


def test_the_largest_message_may_be_larger_than_any(site: Site, echo: Any) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 2**64
    client = site.connect()
    client.send("x" * 100_000)
    assert client.recv(DEADLINE) == "x" * 100_000


def test_the_largest_message_passes_and_a_larger_one_is_1009(site: Site, echo: Any) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 100_000

    with site.connect() as client:
        client.send("x" * 100_000)
        assert client.recv(DEADLINE) == "x" * 100_000
        with suppress(ClientSawClose):  # which may arrive before all is sent
            client.send(["x" * 50_000, "y" * 50_001])
        with pytest.raises(ClientSawClose, match="1009"):
            client.recv(DEADLINE)


def test_fragments_of_many_clients_do_not_mix(site: Site, echo: Any) -> None:
    clients = [site.upgrade() for _ in range(10)]
    for part in range(5):
        for number, client in enumerate(clients):
            client.frame(CONTINUATION if part else TEXT, b"%d" % number * 10, fin=False)
    for number, client in enumerate(clients):
        client.frame(CONTINUATION)
        assert client.read_frame() == (TEXT, b"%d" % number * 50)


def test_data_sent_right_behind_the_handshake_is_not_lost(site: Site, echo: Any) -> None:
    client = site.raw()
    lines = ["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in REQUEST.items()), "", ""]
    client.send("\r\n".join(lines).encode() + frame(TEXT, b"early", key=KEY))
    assert client.response().status == 101
    assert client.read_frame() == (TEXT, b"early")


# Settings that change what calls mean


def test_text_as_bytes_is_what_0_6_1_did(site: Site) -> None:
    site.app.config["WEBSOCKET_TEXT_AS_BYTES"] = True

    @site.route()
    async def handler(ws: Any) -> None:
        while True:
            message = await ws.receive()
            if message is None:
                return
            site.note(message)
            await ws.send(message)

    with site.connect() as client:
        for message in ["é", "", b"b"]:
            client.send(message)
            data = message.encode() if isinstance(message, str) else message
            assert site.noted() == data
            assert client.recv(DEADLINE) == data.decode()
        client.send(b"\xff")
        with pytest.raises(ClientSawClose, match="1011"):
            client.recv(DEADLINE)
    assert "utf-8" in str(site.logged().exc_info)


@pytest.mark.parametrize("compression", [True, Compression(threshold=0), Compression(context_takeover=False)])
def test_messages_are_compressed_when_both_sides_want_it(site: Site, echo: Any, compression: Any) -> None:
    site.app.config["WEBSOCKET_COMPRESSION"] = compression

    with site.connect(compression="deflate") as client:
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for message in ["", "short", "long " * 1000, b"binary" * 1000]:
            client.send(message)
            assert client.recv(DEADLINE) == message
    with site.connect(compression=None) as client:
        client.send("plain")
        assert client.recv(DEADLINE) == "plain"


def test_compression_is_off_unless_configured(site: Site, echo: Any) -> None:
    with site.connect(compression="deflate") as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
        client.send("x" * 10_000)
        assert client.recv(DEADLINE) == "x" * 10_000


def test_a_bomb_is_1009(site: Site, echo: Any) -> None:
    site.app.config.update(WEBSOCKET_COMPRESSION=True, WEBSOCKET_MAX_MESSAGE_SIZE=10_000)

    with site.connect(compression="deflate") as client:
        client.send(b"\0" * 10_000_000)
        with pytest.raises(ClientSawClose, match="1009"):
            client.recv(DEADLINE)


def test_the_old_style_of_handler_works_unchanged(blocking: Site) -> None:
    @blocking.websocket.route("/")
    def echo(ws: Any) -> None:
        while True:
            msg = ws.receive()
            if msg is None:
                return
            ws.send(msg)

    with blocking.connect() as client:
        client.send("as ever")
        assert client.recv(DEADLINE) == "as ever"


def test_a_refusal_is_not_an_upgrade_for_the_library(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        abort(403)

    with pytest.raises(InvalidStatus, match="403"):
        site.connect()


# Helpers


async def tick(site: Site) -> None:
    """Give the others some time, as a handler does that only looks at its connection now and then."""
    gate = site.mode.gate()
    gate.open()
    await gate.passed()


async def send_to(site: Site, connection: Any, message: str) -> None:
    """Send to a connection as its mode's handlers get it."""
    sent = connection.send(message)
    if site.mode.name == "asyncio":
        await sent


class Flood:
    """Sends empty frames as fast as it can, and reads what comes back, until the block ends."""

    def __init__(self, client: RawClient, opcode: int = TEXT) -> None:
        self._client = client
        # Megabytes of such frames would be left at its end, which the slowest of interpreters reads for half a minute.
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
        with suppress(OSError):  # it has been dropped
            self._client.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(DEADLINE)


# Broadcasts


def test_a_broadcast_reaches_all_also_those_whose_handshake_it_makes(site: Site) -> None:
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


def test_a_broadcast_leaves_out_who_is_closed_and_tells_who_is_too_slow(site: Site) -> None:
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


def test_a_broadcast_is_compressed_where_that_was_agreed(site: Site) -> None:
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


def test_a_broadcast_is_compressed_once_for_all_that_start_afresh_with_equal_parameters(
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
    # A compressor for each level among those that start afresh, and one for each connection that does not.
    for message, count in [("x" * 1000, 2 + 3), (b"\xff" * 1000, 2), ("\u2603" * 1000, 2), ("short", 0)]:
        made.clear()
        clients[4].send(message)  # without compression
        assert site.noted() == []
        assert [client.recv(DEADLINE) for client in clients] == [message] * len(clients)
        assert len(made) == count


def test_a_broadcast_of_neither_text_nor_bytes_is_a_type_error(site: Site) -> None:
    with pytest.raises(TypeError, match=r"a message is str \(text\) or bytes \(binary\), not dict"):
        site.websocket.broadcast({"a": 1}, [])


def test_a_broadcast_to_one_connection_that_is_in_no_list_is_a_type_error(blocking: Site) -> None:
    @blocking.websocket.route("/")
    def handler(ws: Any) -> None:
        with pytest.raises(TypeError, match=r"broadcast\(\) takes many connections, not one: use send\(\)"):
            blocking.websocket.broadcast("x", ws)  # a loop over it would eat its messages
        ws.send("fine")

    with blocking.connect() as client:
        assert list(client) == ["fine"]


def test_json_that_is_nested_too_deeply_is_a_value_error(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ValueError, match="nested too deeply"):
            await ws.receive_json()
        await ws.send("still here")

    client = site.upgrade()
    client.frame(TEXT, b"[" * 500_000)
    assert client.read_frame() == (TEXT, b"still here")


def test_a_close_need_not_wait_for_the_answer(site: Site) -> None:
    gate = site.mode.gate()

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.close(4000, "bye", wait=False)
        site.note("back")
        await gate.passed()

    client = site.upgrade()
    assert site.noted() == "back"
    assert client.read_frame() == (CLOSE, close_body(4000, b"bye"))
    client.frame(CLOSE, close_body(4000, b"bye"))
    gate.open()


def test_what_is_sent_while_more_messages_are_at_hand_goes_out_when_the_handler_waits(site: Site) -> None:
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


def test_much_that_is_sent_while_more_messages_are_at_hand_stays_in_order(site: Site) -> None:
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
