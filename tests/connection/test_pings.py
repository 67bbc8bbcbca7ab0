"""Pings measure the latency and detect peers that have gone."""

from __future__ import annotations

import select
import time
from typing import Any

import pytest

from support.inprocess import DEADLINE, Clock, Site, tick, wait_at_gate, wait_until
from support.wire import PING, PONG, TEXT


def test_ping_measures_the_latency(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        assert ws.latency is None
        await ws.ping()
        assert await ws.receive() == "x"
        site.note(ws.latency)

    client = site.upgrade()
    payload = client.read_ping()
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
        await wait_at_gate(site)

    client = site.upgrade()
    gate = site.noted()
    client.frame(PING, b"anybody?")
    assert client.read_frame() == (PONG, b"anybody?")
    gate.open()


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
        payload = client.read_ping()
        before = ws.latency
        client.frame(PONG, payload)
        wait_until(lambda before=before: ws.latency is not before, "the answer was not noticed")
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
    client.read_ping()


def test_a_peer_that_does_not_answer_a_ping_of_the_handler_is_dropped(site: Site, clock: Clock) -> None:
    site.app.config.update(WEBSOCKET_PING_INTERVAL=None, WEBSOCKET_PING_TIMEOUT=30)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.ping()
        site.note(await ws.receive())
        site.note((ws.close_code, ws.close_reason))

    client = site.upgrade()
    client.read_ping()
    clock.put_forward(31)
    assert site.noted() is None
    assert site.noted() == (1006, "no answer to a ping for 30 s")


@pytest.mark.parametrize("mode", ["gevent", "asyncio"])  # modes in which one handler can block all others
def test_a_peer_whose_answer_has_arrived_stays_even_if_it_is_read_too_late(site: Site) -> None:
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
        ws.tick()  # before the task in receive() runs
        site.note(ws.connected)
        await join()

    client = site.upgrade()
    client.frame(PONG, client.read_ping())
    assert site.noted() is True
    client.frame(TEXT, b"still here")
    assert site.noted() == "still here"


def test_without_a_ping_interval_there_are_no_pings(site: Site) -> None:
    site.app.config["WEBSOCKET_PING_INTERVAL"] = None

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(str(ws.timeout))
        await ws.receive()

    with site.connect() as client:
        assert client.recv(DEADLINE) == "None"
