"""Operators get counters, and one line in the log for each connect and each close."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from flask import Flask

from flask_uwsgi_websocket import RateLimit, WebSocket
from support.inprocess import DEADLINE, Site, wait_until

#: The counters of rooms in an app without any.
NO_ROOMS = {
    "rooms": 0,
    "members": 0,
    "published": 0,
    "delivered": 0,
    "slow": 0,
    "gaps": 0,
    "filled": 0,
    "resumed": 0,
    "snapshots": 0,
    "reaped": 0,
    "waiting": 0,
    "lost": 0,
    "broker_losses": 0,
    "broker_errors": [],
}


def wait_for(site: Site, **expected: object) -> dict[str, Any]:
    """Return the counters once they have the expected values."""
    stats: dict[str, Any] = {}

    def have_come() -> bool:
        stats.update(site.websocket.stats())
        return expected.items() <= stats.items()

    wait_until(have_come, lambda: f"the counters are {stats}")
    return stats


def test_before_the_first_connection_all_counters_are_zero() -> None:
    expected = {
        "open": 0,
        "total": 0,
        "messages_received": 0,
        "messages_sent": 0,
        "bytes_received": 0,
        "bytes_sent": 0,
        "rejected": 0,
        "slow_consumers": 0,
        "closes": {},
        "rooms": NO_ROOMS,
    }
    assert WebSocket().stats() == expected
    assert WebSocket(Flask(__name__)).stats() == expected


def test_connections_messages_and_bytes_are_counted_during_a_connection_and_after_it(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message * 2)

    with site.connect() as client:
        for _ in range(3):
            client.send("hello")
            assert client.recv(DEADLINE) == "hellohello"
        stats = wait_for(site, messages_sent=3)
        response = stats["bytes_sent"] - 3 * 12
        assert response > 100  # the 101 response
        assert stats == {
            "open": 1,
            "total": 1,
            "messages_received": 3,
            "messages_sent": 3,
            "bytes_received": 3 * (2 + 4 + 5),
            "bytes_sent": response + 3 * (2 + 10),
            "rejected": 0,
            "slow_consumers": 0,
            "closes": {},
            "rooms": NO_ROOMS,
        }
    stats = wait_for(site, open=0)
    assert (stats["total"], stats["messages_received"], stats["messages_sent"]) == (1, 3, 3)
    assert stats["bytes_received"] == 3 * 11 + 8  # with the Close frame
    assert stats["bytes_sent"] == response + 3 * 12 + 4
    assert stats["closes"] == {1000: 1}


def test_closes_are_counted_by_code(site: Site) -> None:
    @site.route("/<int:code>", rate_limit=RateLimit(messages=1, burst=1))
    async def handler(ws: Any, code: int) -> None:
        await ws.close(code)

    for code in (1000, 4001, 4001):
        with site.connect(f"/{code}") as client, pytest.raises(Exception, match=str(code)):
            client.recv(DEADLINE)
    site.upgrade("/1000").reset()
    stats = wait_for(site, open=0, total=4)
    assert sum(stats["closes"].values()) == 4
    assert stats["closes"][4001] == 2


def test_upgrade_requests_with_other_answers_are_counted(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> Any:
        return "no", 403

    for path in ("/", "/nowhere"):
        client = site.raw()
        client.request(path)
        assert client.response().status in {403, 404}
    assert wait_for(site, rejected=2)["total"] == 0


def test_a_peer_that_reads_nothing_is_counted_when_it_is_dropped(site: Site) -> None:
    @site.route("/", send_timeout=0.2, send_buffer=1)
    async def handler(ws: Any) -> None:
        while True:
            await ws.send("x" * 1_000_000)

    site.upgrade()
    assert wait_for(site, slow_consumers=1, open=0)["total"] == 1


def test_each_connection_has_one_line_when_it_comes_and_one_when_it_goes(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    @site.route("/chat/<room>")
    async def handler(ws: Any, room: str) -> None:
        async for message in ws:
            await ws.send(message)

    caplog.set_level(logging.INFO, "flask_uwsgi_websocket")
    with site.connect(
        "/chat/secret-path?token=secret-query", additional_headers={"Cookie": "a=secret-cookie"}
    ) as client:
        client.send("secret-message")
        client.recv(DEADLINE)
        client.close(4000, "bye\nforged")
    wait_for(site, open=0)
    wait_until(lambda: len(caplog.messages) >= 2)
    connected, closed = caplog.messages
    match = re.fullmatch(r"WebSocket (\w{32}) connected: /chat/<room> from 127\.0\.0\.1", connected)
    assert match is not None, connected
    assert re.fullmatch(
        rf"WebSocket {match[1]} closed: 4000 'bye\\nforged' by client, /chat/<room> from 127\.0\.0\.1, \d+\.\d s, "
        r"1 messages received, 1 sent",
        closed,
    ), closed
    assert "secret" not in caplog.text
