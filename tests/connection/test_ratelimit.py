"""Limits for one client: messages, frames and bytes per second, and fragments of a message."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from flask_uwsgi_websocket import RateLimit
from flask_uwsgi_websocket.connection.ratelimit import Meter
from flask_uwsgi_websocket.settings import Settings
from support.inprocess import DEADLINE, Site, hold
from support.wire import BINARY, CLOSE, CONTINUATION, KEY, PING, TEXT, close_body, frame


def test_a_client_that_sends_more_messages_than_allowed_is_closed_with_1008(site: Site) -> None:
    @site.route("/", rate_limit=RateLimit(messages=1, burst=10))
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    with site.connect() as client:
        for number in range(10):
            client.send(str(number))
            assert client.recv(DEADLINE) == str(number)
        with suppress(ConnectionClosed):
            for number in range(100):  # some messages arrive while these are sent
                client.send(str(number))
                client.recv(DEADLINE)
        assert (client.close_code, client.close_reason) == (1008, "more was sent than the rate limit allows")


def test_a_client_that_sends_more_bytes_than_allowed_is_closed_with_1008(site: Site) -> None:
    @site.route("/", rate_limit=RateLimit(bytes=1_000, burst=10))
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    with site.connect() as client:
        client.send("x" * 5_000)
        assert client.recv(DEADLINE) == "x" * 5_000
        with suppress(ConnectionClosed):
            client.send("x" * 100_000)
            client.recv(DEADLINE)
        assert client.close_code == 1008


def test_pings_count_as_messages(site: Site) -> None:
    site.app.config["WEBSOCKET_RATE_LIMIT"] = RateLimit(messages=1, burst=5)
    hold(site)
    client = site.upgrade()
    for _ in range(30):
        client.frame(PING, b"x")
    opcodes = []
    while (read := client.read_frame()) is not None and read[0] != 8:
        opcodes.append(read[0])
    assert read is not None
    assert read[1][:2] == (1008).to_bytes(2, "big")


@pytest.mark.parametrize("limit", [RateLimit(messages=1, burst=2), RateLimit(frames=64, burst=2)], ids=repr)
@pytest.mark.parametrize("payload", [b"", b"x"])
def test_fragments_count_as_frames(site: Site, limit: RateLimit, payload: bytes) -> None:
    site.app.config["WEBSOCKET_RATE_LIMIT"] = limit
    hold(site)
    client = site.upgrade()
    client.frame(BINARY, payload, fin=False)
    with suppress(OSError):  # the server closed the connection
        client.send(frame(CONTINUATION, payload, fin=False, key=KEY) * 10_000)
    assert client.read_frame() == (TEXT, b"hello")
    read = client.read_frame()
    assert read is not None
    assert read[1][:2] == (1008).to_bytes(2, "big")


def test_a_long_message_in_pieces_of_16_kib_is_one_message(site: Site) -> None:
    @site.route("/", rate_limit=RateLimit(messages=1, burst=1))
    async def handler(ws: Any) -> None:
        site.note(len(await ws.receive()))
        site.note(await ws.receive())

    client = site.upgrade()
    client.frame(BINARY, bytes(16_384), fin=False)
    for _ in range(62):
        client.frame(CONTINUATION, bytes(16_384), fin=False)
    client.frame(CONTINUATION, bytes(16_384))
    assert site.noted() == 2**20
    client.frame(CLOSE)
    assert site.noted() is None


def test_the_inflated_size_of_a_compressed_message_counts(site: Site) -> None:
    @site.route("/", compression=True, rate_limit=RateLimit(bytes=10_000, burst=10))
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(str(len(message)))

    with site.connect(compression="deflate") as client:
        client.send("x" * 50_000)
        assert client.recv(DEADLINE) == "50000"
        with suppress(ConnectionClosed):
            client.send("x" * 500_000)  # half a kilobyte on the network
            client.recv(DEADLINE)
        assert client.close_code == 1008


def test_a_message_that_inflates_to_nothing_counts_with_its_compressed_size(site: Site) -> None:
    @site.route("/", compression=True, rate_limit=RateLimit(bytes=10_000, burst=10))
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    client = site.upgrade(sec_websocket_extensions="permessage-deflate")
    with suppress(OSError):  # the server closed the connection
        for _ in range(100):  # empty deflate blocks
            client.frame(BINARY, b"\0\0\0\xff\xff" * 1_000 + b"\0", rsv=4)
    while (read := client.read_frame()) == (BINARY, b""):
        pass
    assert read is not None
    assert read[1][:2] == (1008).to_bytes(2, "big")


def test_a_message_of_more_fragments_than_allowed_closes_with_1008(site: Site) -> None:
    @site.route("/", max_fragments=100)
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(str(len(message)))

    client = site.upgrade()
    middle = frame(CONTINUATION, b"x", fin=False, key=KEY)
    client.send(frame(BINARY, b"x", fin=False, key=KEY) + middle * 98 + frame(CONTINUATION, b"x", key=KEY))
    assert client.read_frame() == (TEXT, b"100")
    client.send(frame(BINARY, b"x", fin=False, key=KEY) + middle * 100)
    assert client.read_frame() == (CLOSE, close_body(1008, b"a message may have at most 100 fragments"))


def test_messages_that_arrived_before_the_limit_are_delivered(site: Site) -> None:
    @site.route("/", rate_limit=RateLimit(messages=1, burst=5))
    async def handler(ws: Any) -> None:
        async for message in ws:
            site.note(message)
        site.note((ws.close_code, ws._transport.who_ended()))

    client = site.upgrade()
    for number in range(20):
        client.frame(TEXT, str(number).encode())
    received = []
    while isinstance(message := site.noted(), str):
        received.append(message)
    assert len(received) >= 5
    assert received == [str(number) for number in range(len(received))]
    assert message == (1008, "server")


def spend(meter: Meter, now: float, messages: int, *, is_behind: bool) -> bool:
    return meter.spend(now, messages, messages, messages, is_behind=is_behind)


def test_a_polite_client_of_a_slow_handler_does_not_count_as_a_fast_client() -> None:
    meter = Meter(RateLimit(messages=10, burst=2), now=0)
    assert spend(meter, 0, 20, is_behind=True)
    assert spend(meter, 30, 300, is_behind=True)
    assert not spend(meter, 30, 1, is_behind=True)


def test_a_silent_client_saves_no_more_credit_than_the_burst() -> None:
    meter = Meter(RateLimit(messages=10, burst=2), now=0)
    assert spend(meter, 1, 5, is_behind=False)
    assert not spend(meter, 3_600, 21, is_behind=False)


@pytest.mark.parametrize("limit", [RateLimit(messages=10), RateLimit(bytes=10), RateLimit()], ids=repr)
def test_a_meter_without_a_limit_is_never_spent_even_if_no_time_has_passed(limit: RateLimit) -> None:
    meter = Meter(limit, now=0)
    for _ in range(3):
        assert spend(meter, 0, 2, is_behind=True)


def test_after_all_input_is_read_the_credit_is_at_most_the_burst() -> None:
    meter = Meter(RateLimit(messages=10, burst=2), now=0)
    meter.fall_behind()
    assert spend(meter, 3_600, 100, is_behind=False)
    assert not spend(meter, 3_600, 21, is_behind=False)


@pytest.mark.parametrize("name", ["messages", "frames", "bytes", "burst"])
@pytest.mark.parametrize("value", [0, -1, True, "1", float("nan")], ids=repr)
def test_a_rate_is_a_number_above_0(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} of a RateLimit must be a number above 0, not"):
        RateLimit(**{name: value})


def test_rate_limit_is_a_rate_limit_or_none() -> None:
    with pytest.raises(TypeError, match="rate_limit must be a RateLimit, not 10"):
        Settings(rate_limit=10)  # type: ignore[arg-type]
