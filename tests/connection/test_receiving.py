"""A client receives messages in their order until the connection ends, and reads ahead up to a limit."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import Any

import pytest
from flask import abort, current_app, g, request
from websockets.exceptions import ConnectionClosed as ClientSawClose

from flask_uwsgi_websocket import ConcurrencyError, ConnectionClosed
from support.inprocess import DEADLINE, REQUEST, Flood, Site, for_ever, tick, wait_at_gate
from support.wire import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, close_body, frame


def test_text_is_received_as_str_binary_as_bytes_and_empty_messages_are_messages(site: Site) -> None:
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
        await ws.accept()
        await wait_at_gate(site)
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
        # A timeout in the middle of a message loses nothing either.
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


def test_a_timeout_ends_a_receive_while_many_pings_arrive(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(TimeoutError):
            await ws.receive(timeout=0.05)
        site.note("timeout")

    with Flood(site.upgrade(), PING):
        assert site.noted() == "timeout"


def test_recv_nb_returns_a_message_that_has_arrived_or_none(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        site.note(ws.recv_nb())
        await wait_at_gate(site)
        site.note([ws.recv_nb(), ws.recv_nb(), ws.recv_nb()])

    client = site.upgrade()
    assert site.noted() is None
    gate = site.noted()
    client.frame(TEXT, b"one")
    client.frame(TEXT, b"")
    client.frame(PING, b"?")  # when the housekeeper has answered it, all messages have arrived
    assert client.read_frame() == (PONG, b"?")
    gate.open()
    assert site.noted() == ["one", "", None]


def test_recv_nb_raises_once_the_peer_has_closed(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        await wait_at_gate(site)
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


def test_messages_gives_each_message_its_own_app_context(site: Site) -> None:
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


def test_a_break_in_messages_ends_the_app_context_at_once(site: Site) -> None:
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


def test_an_exception_in_messages_ends_the_app_context(site: Site) -> None:
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


def test_only_one_task_may_receive_at_a_time(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        gate = site.mode.gate()

        async def receive() -> Any:
            gate.open()
            while True:
                with suppress(ConcurrencyError):  # the other task may be trying
                    return await ws.receive()
                await tick(site)

        async def try_to_receive() -> None:
            assert ws.recv_nb() is None
            await tick(site)

        join = site.mode.spawn(receive)
        await gate.passed()
        # The other task is in receive(), or will be soon.
        with pytest.raises(ConcurrencyError, match="let one of them receive"):
            await for_ever(try_to_receive)
        await ws.send("done")
        assert await join() == "for the first one"

    with site.connect() as client:
        assert client.recv(DEADLINE) == "done"
        client.send("for the first one")


def test_text_as_bytes_delivers_bytes_as_0_6_1_did(site: Site) -> None:
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


def test_the_old_style_of_handlers_works_unchanged(blocking: Site) -> None:
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


def test_json_that_is_nested_too_deeply_is_a_value_error(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ValueError, match="nested too deeply"):
            await ws.receive_json()
        await ws.send("still here")

    client = site.upgrade()
    client.frame(TEXT, b"[" * 500_000)
    assert client.read_frame() == (TEXT, b"still here")


def test_a_message_read_ahead_wakes_the_receiver(blocking: Site) -> None:
    # tick() reads for a handler that is not in receive(). This handler enters receive() all the time.
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


def test_reading_ahead_of_messages_that_no_task_receives_is_bounded(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 100_000

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        await wait_at_gate(site)
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


def test_reading_ahead_of_many_tiny_messages_is_bounded_too(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 10_000

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        await wait_at_gate(site)
        site.note(len(ws._transport.inbox))

    client = site.upgrade()
    gate = site.noted()
    client.send_until_refused(frame(TEXT, b"", key=KEY) * 1000)  # one at a time would take long
    gate.open()
    assert site.noted() < (10_000 + 65_536) // 6
    client.reset()


def test_fragments_of_many_clients_do_not_mix(site: Site, echo: Any) -> None:
    clients = [site.upgrade() for _ in range(10)]
    for part in range(5):
        for number, client in enumerate(clients):
            client.frame(CONTINUATION if part else TEXT, b"%d" % number * 10, fin=False)
    for number, client in enumerate(clients):
        client.frame(CONTINUATION)
        assert client.read_frame() == (TEXT, b"%d" % number * 50)


def test_data_sent_directly_after_the_handshake_is_not_lost(site: Site, echo: Any) -> None:
    client = site.raw()
    lines = ["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in REQUEST.items()), "", ""]
    client.send("\r\n".join(lines).encode() + frame(TEXT, b"early", key=KEY))
    assert client.response().status == 101
    assert client.read_frame() == (TEXT, b"early")
