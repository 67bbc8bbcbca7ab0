"""The closing handshake, started by either side, and the end after it."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed as ClientSawClose

from flask_uwsgi_websocket import ConnectionClosed
from support.inprocess import DEADLINE, ROOM, Site, for_ever, wait_until
from support.wire import BINARY, CLOSE, KEY, TEXT, close_body, frame


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
def test_a_code_or_reason_that_a_close_frame_cannot_carry_is_refused(blocking: Site, code: int, reason: str) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ValueError, match="close"):
            await ws.close(code, reason)
        await ws.send("still open")

    with blocking.connect() as client:
        assert list(client) == ["still open"]


@pytest.mark.parametrize("arguments", [("bye",), (1000, None), (1000, b"bye"), (None,)], ids=repr)
def test_a_close_code_must_be_a_number_and_a_reason_a_text(blocking: Site, arguments: Any) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(TypeError, match=r"close\(code, reason\) takes a number and a str, not"):
            await ws.close(*arguments)
        await ws.send("still open")

    with blocking.connect() as client:
        assert list(client) == ["still open"]


def test_close_ends_a_receive_in_another_task(site: Site) -> None:
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


def test_the_end_of_the_handler_ends_a_receive_in_another_task_even_if_the_peer_does_not_answer(site: Site) -> None:
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


def test_the_end_of_the_handler_ends_a_send_in_another_task_even_if_the_peer_reads_nothing(site: Site) -> None:
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


def test_close_sends_the_last_frame_while_many_tasks_send(site: Site) -> None:
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
    assert client.read_frame() is None  # the server ends the connection
    assert site.noted() == 4000


def test_messages_that_arrive_after_our_close_are_dropped(site: Site) -> None:
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
def test_a_peer_that_never_stops_sending_is_dropped_after_the_close(site: Site, flood: str) -> None:
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
    # The Close frame arrives before the handler ends.
    wait_until(lambda: kept and kept[0].fd == -1)
    site.connect("/later").close()
    assert site.noted() == (False, -1, 1000)
