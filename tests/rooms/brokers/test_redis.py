"""The Redis broker, on real servers."""

from __future__ import annotations

import logging
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
import redis
from redis.sentinel import Sentinel

from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers import redis as module
from flask_uwsgi_websocket.rooms.brokers import redis_roster, redis_wire
from flask_uwsgi_websocket.rooms.brokers.base import (
    Attendance,
    Compared,
    Delivered,
    Event,
    Lease,
    Outgoing,
    Retention,
    Subscribed,
    Subscription,
)
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker
from support.brokers import TAKE, take
from support.inprocess import DEADLINE, Clock, wait_until
from support.redis_brokers import (
    check_chain,
    compared,
    messages,
    opened,
    receive,
    receive_messages,
    subscribed,
    threads,
)
from support.redis_server import RedisServer, StartServer
from support.tcp_proxy import TcpProxy


@pytest.fixture
def broker(server: RedisServer) -> Iterator[RedisBroker]:
    with opened(server.unix_url) as broker:
        yield broker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which subscriptions notice silence."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock.monotonic)
    return clock


def receive_to_the_end(subscription: Subscription) -> list[Event]:
    """Receive until the subscription is over, and check that it then stays so."""
    deadline = time.monotonic() + DEADLINE
    events: list[Event] = []
    with suppress(BrokerUnavailable):
        while time.monotonic() < deadline:
            events += take(subscription, 0.05)
        pytest.fail("it is not over")
    with pytest.raises(BrokerUnavailable):
        receive(subscription, lambda _: False)
    return events


def outgoing(room: str, *data: bytes, first: int = 1) -> list[Outgoing]:
    return [Outgoing(room, each, number) for number, each in enumerate(data, first)]


def publish(broker: RedisBroker, room: str, *data: bytes, first: int = 1, publisher: str = "publisher") -> list[int]:
    return list(broker.publish(outgoing(room, *data, first=first), publisher))


def publish_at_last(broker: RedisBroker, room: str, data: bytes, *, publisher: str = "publisher") -> None:
    """Publish with little patience: again and again."""

    def attempt() -> bool:
        with suppress(BrokerUnavailable):
            publish(broker, room, data, publisher=publisher)
            return True
        return False

    wait_until(attempt)


# The order


def test_all_subscriptions_have_the_messages_of_all_publishers_in_one_order(server: RedisServer) -> None:
    with ExitStack() as stack:
        brokers = [stack.enter_context(opened(url)) for url in (server.url, server.unix_url, server.url)]
        first, second = (stack.enter_context(subscribed(broker, "room")) for broker in brokers[:2])

        def publish_all(name: str, broker: RedisBroker) -> None:
            for number in range(1, 101):
                publish(broker, "room", f"{name}{number}".encode(), first=number, publisher=name)

        # Two publishers share a broker, as scripts do that have threads.
        named = zip("abcd", [*brokers, brokers[0]], strict=True)
        with threads(*(partial(publish_all, name, broker) for name, broker in named)):
            events = receive_messages(first, 400)
        assert receive_messages(second, 400) == events
    check_chain(events)
    for name in "abcd":
        mine = [event.data for event in events if event.data.startswith(name.encode())]
        assert mine == [f"{name}{number}".encode() for number in range(1, 101)]


def test_each_room_counts_for_itself(broker: RedisBroker) -> None:
    with subscribed(broker, "a", "b") as subscription:
        broker.publish([Outgoing("ab"[number % 2], b"%d" % number, number) for number in range(10)], "publisher")
        events = receive_messages(subscription, 10)
    for room in "ab":
        check_chain([event for event in events if event.room == room])
    assert [event.data for event in events] == [b"%d" % number for number in range(10)]
    assert {event.room: event.previous for event in events[:2]} == {"a": 0, "b": 0}


def test_publish_returns_how_many_subscriptions_a_message_reaches(broker: RedisBroker) -> None:
    assert publish(broker, "room", b"", b"", first=1) == [0, 0]
    with subscribed(broker, "room"):
        assert publish(broker, "room", b"", first=3) == [1]
        with subscribed(broker, "room"), subscribed(broker, "other"):
            assert publish(broker, "room", b"", first=4) == [2]


def test_no_messages_may_be_published(broker: RedisBroker) -> None:
    assert broker.publish([], "publisher") == []


def test_what_is_published_again_is_not_delivered_again(broker: RedisBroker) -> None:
    with subscribed(broker, "room", "other") as subscription:
        first = outgoing("room", b"1", b"2") + outgoing("other", b"3", first=3)
        assert broker.publish(first, "publisher") == [1, 1, 1]
        assert broker.publish(first, "publisher") == [-1, -1, -1]
        assert broker.publish([*first, *outgoing("room", b"4", first=4)], "publisher") == [-1, -1, -1, 1]
        assert broker.publish(first, "another publisher") == [1, 1, 1]
        events = receive_messages(subscription, 7)
    assert [event.data for event in events] == [b"1", b"2", b"3", b"4", b"1", b"2", b"3"]


def test_what_fails_within_a_batch_does_not_repeat_what_came_before(server: RedisServer, broker: RedisBroker) -> None:
    server.run("LPUSH", "websocket:offset:broken", "this is no number")
    batch = outgoing("room", b"1") + outgoing("broken", b"2", first=2) + outgoing("room", b"3", first=3)
    with subscribed(broker, "room") as subscription:
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
                broker.publish(batch, "publisher")
        server.run("DEL", "websocket:offset:broken")
        assert broker.publish(batch, "publisher") == [-1, 0, 1]
        assert [event.data for event in receive_messages(subscription, 2)] == [b"1", b"3"]


@pytest.mark.parametrize("size", [1, 300_000], ids=["many", "big"])
def test_many_messages_keep_their_order(broker: RedisBroker, size: int) -> None:
    data = [b"%04d" % number * size for number in range(300 if size == 1 else 10)]
    with subscribed(broker, "room") as subscription:
        assert publish(broker, "room", *data) == [1] * len(data)
        events = receive_messages(subscription, len(data))
    assert [event.data for event in events] == data
    check_chain(events)


def test_a_backlog_is_received_in_pieces(broker: RedisBroker) -> None:
    data = [b"%d" % number for number in range(2000)]
    with subscribed(broker, "room") as subscription:
        publish(broker, "room", *data)
        received: list[Event] = []
        while len(received) < len(data):
            events = take(subscription)
            assert len(events) < 1000
            received += events
    assert [event.data for event in messages(received)] == data


@pytest.mark.parametrize(
    "data", [b"", b"\0\r\n:::*1\r\n$1\r\n", bytes(range(256)), b"x" * 2**20, b"\r\n" * 2**16], ids=len
)
def test_any_bytes_are_a_message(server: RedisServer, data: bytes) -> None:
    with opened(server.url) as broker, subscribed(broker, "room") as subscription:
        publish(broker, "room", data, data)
        assert [event.data for event in receive_messages(subscription, 2)] == [data, data]


NAMES = ["", "a b", "a\r\nb", "*", "a?[b-c]", "\0", "größe 部屋", "a:b", "%s {}", "\ud800", "x" * 5000]


@pytest.mark.parametrize("room", NAMES, ids=range(len(NAMES)))
def test_any_text_is_a_room(broker: RedisBroker, room: str) -> None:
    with subscribed(broker, room) as subscription:
        assert publish(broker, f"{room}!", b"another", first=1) == [0]
        assert publish(broker, room, b"data", first=2) == [1]
        (event,) = receive_messages(subscription, 1)
        assert (event.room, event.data) == (room, b"data")
    with subscribed(broker, room) as subscription:
        subscription.add(f"{room}!")
        positions = compared(receive(subscription, compared))
    assert positions.keys() == {f"{room}!"}


# Subscriptions


def test_subscribed_and_compared_come_in_this_order_with_the_positions(broker: RedisBroker) -> None:
    with subscribed(broker, "old") as subscription:
        publish(broker, "old", b"before")
        (before,) = receive_messages(subscription, 1)
    subscription = broker.subscribe(["old", "new"])
    events = receive(subscription, compared)
    assert events == [Subscribed(["old", "new"]), Compared({"old": before.position, "new": None})]
    publish(broker, "old", b"after", first=2)
    (after,) = receive_messages(subscription, 1)
    assert after.previous == before.position.offset
    subscription.close()


def test_between_the_position_and_the_messages_nothing_is_missing(broker: RedisBroker) -> None:
    ended = threading.Event()

    def publish_on() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            publish(broker, "room", b"%d" % number, first=number)

    with threads(publish_on), subscribed(broker) as subscription:
        try:
            for _ in range(50):
                subscription.add("room")
                before = receive(subscription, compared)
                after = receive_messages(subscription, 3)
                position = compared(before)["room"]
                kinds = [type(event) for event in before if not isinstance(event, Delivered)]
                assert kinds == [Subscribed, Compared]
                index = next(index for index, event in enumerate(before) if isinstance(event, Compared))
                check_chain([*messages(before), *after])
                if position is not None:
                    assert all(event.position.offset <= position.offset for event in messages(before[:index]))
                    first = [*messages(before[index:]), *after][0]
                    assert first.previous == position.offset
                subscription.remove("room")
                subscription.add("another")  # whose events come after what was on its way
                receive(subscription, compared)
                subscription.remove("another")
        finally:
            ended.set()


def test_a_removed_room_is_no_longer_received(server: RedisServer, broker: RedisBroker) -> None:
    with subscribed(broker, "a", "b") as subscription:
        subscription.remove("a")
        subscription.add("c")  # is confirmed after it
        receive(subscription, compared)
        assert publish(broker, "a", b"lost") == [0]
        publish(broker, "b", b"seen", first=2)
        assert [event.data for event in receive_messages(subscription, 1)] == [b"seen"]
        subscription.add("a")
        assert compared(receive(subscription, compared)).keys() == {"a"}
        assert publish(broker, "a", b"seen", first=3) == [1]


def test_the_last_of_quick_changes_counts(broker: RedisBroker) -> None:
    with subscribed(broker, "kept") as subscription:
        for _ in range(100):
            subscription.add("added")
            subscription.remove("added")
            subscription.remove("kept")
            subscription.add("kept")
        subscription.add("last")  # is confirmed after them
        receive(subscription, lambda events: "last" in compared(events))
        assert publish(broker, "kept", b"") == [1]
        assert publish(broker, "added", b"", first=2) == [0]


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_other_threads_add_rooms_while_one_receives(start_server: StartServer, tls: bool) -> None:
    server = start_server(tls=tls)
    data = [b"%d" % number * 10_000 for number in range(100)]
    rooms = {f"{thread}/{number}" for thread in range(8) for number in range(50)}

    def add(thread: int) -> None:
        for number in range(50):
            subscription.add(f"{thread}/{number}")

    with opened(server.url) as broker, subscribed(broker, "room") as subscription:
        with threads(*(partial(add, thread) for thread in range(8)), partial(publish, broker, "room", *data)):
            events = receive(
                subscription,
                lambda events: compared(events).keys() == rooms and len(messages(events)) == len(data),
            )
        confirmed = [room for event in events if isinstance(event, Subscribed) for room in event.rooms]
        assert sorted(confirmed) == sorted(rooms)
        assert [event.data for event in messages(events)] == data


def test_a_subscription_may_have_thousands_of_rooms(broker: RedisBroker) -> None:
    rooms = [f"room {number}" for number in range(2000)]
    with subscribed(broker, *rooms) as subscription:
        broker.publish([Outgoing(room, room.encode(), number) for number, room in enumerate(rooms)], "publisher")
        events = receive_messages(subscription, 2000)
        assert [(event.room, event.data) for event in events] == [(room, room.encode()) for room in rooms]
        for room in rooms[1:]:
            subscription.remove(room)
        subscription.add("last")
        receive(subscription, compared)
        assert publish(broker, "room 0", b"", first=2001) == [1]
        assert publish(broker, "room 1999", b"", first=2002) == [0]


@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
def test_no_call_waits_for_a_server_that_takes_nothing(start_server: StartServer, kind: str) -> None:
    server = start_server(tls=kind == "tls")
    # The commands are more than the buffers of two sockets hold. The replies are less: Redis 7.0 ends a connection of
    # TLS ("bad length") when it cannot send at once.
    rooms = [f"{number} {'x' * 5000}" for number in range(700)]
    with opened(server.unix_url if kind == "unix" else server.url) as broker, subscribed(broker) as subscription:
        server.pause()
        for room in rooms:
            subscription.add(room)
        subscription.tick()
        assert subscription.receive() == []
        server.resume()
        events = receive(subscription, lambda events: len(compared(events)) == len(rooms))
        assert [room for event in events if isinstance(event, Subscribed) for room in event.rooms] == rooms
        assert publish(broker, rooms[-1], b"data") == [1]


@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
def test_the_descriptor_is_readable_until_all_is_received(start_server: StartServer, kind: str) -> None:
    server = start_server(tls=kind == "tls")
    sizes = [0, 1, 16_000, 2**14, 2**14 + 1, 2**16, 300_000] * 8  # less and more than a record of TLS, and a read
    with (
        opened(server.unix_url if kind == "unix" else server.url) as broker,
        subscribed(broker, "room") as subscription,
    ):
        data = [b"%d " % number + b"x" * size for number, size in enumerate(sizes)]
        received: list[Event] = []
        with threads(partial(publish, broker, "room", *data)):
            while len(received) < len(data):
                assert select.select([subscription], [], [], DEADLINE)[0]
                received += subscription.receive()
    assert [event.data for event in messages(received)] == data


def test_silence_returns_nothing_and_does_not_end_a_subscription(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PING_AFTER", 0.01)
    with subscribed(broker, "room") as subscription:
        for _ in range(10):
            assert take(subscription, 0.02) == []
        publish(broker, "room", b"data")
        assert [event.data for event in receive_messages(subscription, 1)] == [b"data"]


def test_a_receiver_that_comes_late_and_reads_before_it_judges_finds_no_silence(
    broker: RedisBroker, clock: Clock
) -> None:
    with subscribed(broker, "room") as subscription:
        for number in range(1, 20):
            clock.put_forward(module.PING_AFTER)
            subscription.tick()  # sends a PING, whose answer nobody reads for long
            clock.put_forward(module.SILENT_AFTER + 1)
            publish(broker, "room", b"data", first=number)
            assert select.select([subscription], [], [], DEADLINE)[0]
            receive_messages(subscription, 1)
            subscription.tick()


def test_what_others_publish_to_a_channel_is_skipped_and_logged_once(
    server: RedisServer, broker: RedisBroker, caplog: pytest.LogCaptureFixture
) -> None:
    with subscribed(broker, "room") as subscription, caplog.at_level(logging.WARNING, "flask_uwsgi_websocket"):
        for garbage in (b"", b"garbage", b"a:b:c:d", b"\xff:1:2:data", b"e:1:2", b"e::2:data"):
            assert server.run("PUBLISH", b"websocket:room:0:room", garbage) == 1
        publish(broker, "room", b"data")
        assert [event.data for event in receive_messages(subscription, 1)] == [b"data"]
    (record,) = caplog.records
    assert "somebody else publishes to the channel of the room 'room'" in record.getMessage()


# What Redis forgets


def epochs(events: Sequence[Delivered]) -> list[str]:
    return [event.position.epoch for event in events]


def test_a_server_that_starts_empty_begins_another_epoch(server: RedisServer, broker: RedisBroker) -> None:
    with subscribed(broker, "room") as subscription:
        publish(broker, "room", b"before")
        (before,) = receive_messages(subscription, 1)
        server.restart()
        receive_to_the_end(subscription)
    with subscribed(broker, "room") as subscription:
        assert publish(broker, "room", b"after", first=2) == [1]
        (after,) = receive_messages(subscription, 1)
    assert after.position.epoch != before.position.epoch
    assert after.previous == 0


@pytest.mark.parametrize("first", ["subscriber", "publisher"])
def test_a_server_that_starts_with_an_old_snapshot_begins_another_epoch(
    server: RedisServer, broker: RedisBroker, first: str
) -> None:
    with subscribed(broker, "room") as subscription:
        publish(broker, "room", b"1")
        server.save()
        publish(broker, "room", b"2", b"3", first=2)
        before = receive_messages(subscription, 3)
        server.restart()
        receive_to_the_end(subscription)
    if first == "publisher":
        publish(broker, "room", b"4", first=4)
    subscription = broker.subscribe(["room"])
    position = compared(receive(subscription, compared))["room"]
    publish(broker, "room", b"5", first=5)
    (after,) = receive_messages(subscription, 1)
    subscription.close()
    assert position is not None
    assert position.epoch == after.position.epoch != before[0].position.epoch
    assert after.previous == position.offset


def test_processes_that_meet_a_new_run_at_once_agree_on_its_epoch(server: RedisServer) -> None:
    with ExitStack() as stack:
        brokers = [stack.enter_context(opened(server.unix_url)) for _ in range(8)]
        subscription = stack.enter_context(subscribed(brokers[0], "room"))
        for number, each in enumerate(brokers):
            publish(each, "room", b"before", publisher=str(number))
        old = set(epochs(receive_messages(subscription, 8)))
        server.save()
        server.restart()
        receive_to_the_end(subscription)
        subscription = stack.enter_context(subscribed(brokers[0], "room"))
        publishers = [partial(publish, each, "room", b"after", publisher=f"new {n}") for n, each in enumerate(brokers)]
        with threads(*publishers):
            new = receive_messages(subscription, 8)
    assert len(old) == len(set(epochs(new))) == 1
    assert not old & set(epochs(new))
    check_chain(new)


def test_a_restart_between_two_messages_of_a_connection_is_noticed(server: RedisServer, broker: RedisBroker) -> None:
    publish(broker, "room", b"1")
    server.save()
    epoch = server.run("GET", "websocket:epoch")
    server.restart()
    assert server.run("GET", "websocket:epoch") == epoch
    assert publish(broker, "room", b"2", first=2) == [0]
    assert server.run("GET", "websocket:epoch") != epoch


def test_connections_to_the_same_run_keep_the_epoch(server: RedisServer, broker: RedisBroker) -> None:
    publish(broker, "room", b"1")
    epoch = server.run("GET", "websocket:epoch")
    with opened(server.url) as another, subscribed(another, "room") as subscription:
        publish(another, "room", b"2", publisher="another")
        assert epochs(receive_messages(subscription, 1)) == [epoch.decode()]


def test_a_server_that_is_flushed_begins_another_epoch(server: RedisServer, broker: RedisBroker) -> None:
    with subscribed(broker, "room") as subscription:
        publish(broker, "room", b"1", b"2")
        server.run("FLUSHALL")
        publish(broker, "room", b"3", first=3)
        one, two, three = receive_messages(subscription, 3)
    assert one.position.epoch == two.position.epoch != three.position.epoch
    assert three.previous == 0


def test_a_room_that_is_forgotten_goes_on_above_its_offsets(server: RedisServer, broker: RedisBroker) -> None:
    with subscribed(broker, "room") as subscription:
        publish(broker, "room", b"1", b"2")
        assert 86000 < server.run("TTL", "websocket:offset:room") <= 86400
        assert server.run("DEL", "websocket:offset:room") == 1
        publish(broker, "room", b"3", first=3)
        _, two, three = receive_messages(subscription, 3)
    assert three.previous == 0
    assert three.position > two.position
    assert three.position.epoch == two.position.epoch


def test_a_script_that_is_forgotten_is_sent_again(server: RedisServer, broker: RedisBroker) -> None:
    publish(broker, "room", b"1")
    server.run("SCRIPT", "FLUSH")
    with subscribed(broker, "room") as subscription:
        assert publish(broker, "room", b"2", first=2) == [1]
        assert [event.data for event in receive_messages(subscription, 1)] == [b"2"]


def test_nothing_but_counters_is_stored(server: RedisServer, broker: RedisBroker) -> None:
    publish(broker, "a room", b"data")
    keys = {"websocket:epoch", "websocket:offset:a room", "websocket:publisher:publisher"}
    assert {key.decode() for key in server.run("KEYS", "*")} == keys
    assert 0 < server.run("TTL", "websocket:publisher:publisher") <= 300


# Connections that break


def test_a_killed_connection_of_a_subscription_ends_it(server: RedisServer, broker: RedisBroker) -> None:
    with subscribed(broker, "room") as subscription:
        publish(broker, "room", b"1")
        assert server.run("CLIENT", "KILL", "TYPE", "pubsub") == 1
        assert [event.data for event in messages(receive_to_the_end(subscription))] == [b"1"]


def test_publishing_survives_a_killed_connection(server: RedisServer, broker: RedisBroker) -> None:
    with subscribed(broker, "room") as subscription:
        for number in range(1, 6):
            assert publish(broker, "room", b"%d" % number, first=number) == [1]
            server.run("CLIENT", "KILL", "TYPE", "normal")
        assert [event.data for event in receive_messages(subscription, 5)] == [b"1", b"2", b"3", b"4", b"5"]


def test_a_server_that_is_gone_is_unavailable_until_it_is_back(server: RedisServer, broker: RedisBroker) -> None:
    publish(broker, "room", b"1")
    server.kill()
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match=r"socket, database 0: .*(refused|No such file)"):
            publish(broker, "room", b"2", first=2)
        with pytest.raises(BrokerUnavailable, match="socket, database 0"):
            broker.subscribe(["room"])
    server.start()
    with subscribed(broker, "room"):
        assert publish(broker, "room", b"2", first=2) == [1]


@pytest.mark.parametrize("first_tick", [0.01, 0.5, 0.99])
def test_a_silent_server_ends_a_subscription_within_ten_seconds(
    server: RedisServer, broker: RedisBroker, clock: Clock, first_tick: float
) -> None:
    with subscribed(broker, "room") as subscription:
        server.pause()
        clock.put_forward(first_tick)

        def tick_for_ten_seconds() -> None:
            for _ in range(10):
                assert subscription.receive() == []
                subscription.tick()
                clock.put_forward(1.0)

        with pytest.raises(BrokerUnavailable, match=r"has not answered for \d+ seconds"):
            tick_for_ten_seconds()
    assert redis_wire.CONNECT_TIMEOUT + redis_wire.TIMEOUT < 10


def test_a_frozen_server_ends_a_subscription(
    server: RedisServer, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subscribed(broker, "room") as subscription:
        server.pause()
        monkeypatch.setattr(module, "PING_AFTER", 0.1)
        monkeypatch.setattr(module, "SILENT_AFTER", 0.1)
        with pytest.raises(BrokerUnavailable, match="has not answered for"):
            receive(subscription, lambda _: False)


def test_what_a_frozen_server_had_is_published_once(server: RedisServer, broker: RedisBroker) -> None:
    # It executes the commands after it has thawed, though nobody waits for the replies.
    with opened(f"{server.unix_url}?socket_timeout=0.1") as hasty, subscribed(broker, "room") as subscription:
        publish_at_last(hasty, "room", b"1")
        server.pause()
        for _ in range(3):
            with pytest.raises(BrokerUnavailable, match=r"has not answered for 0\.1 seconds"):
                publish(hasty, "room", b"2", first=2)
        server.resume()
        assert publish(broker, "room", b"2", b"3", first=2) in ([-1, 1], [1, 1])
        assert [event.data for event in receive_messages(subscription, 3)] == [b"1", b"2", b"3"]


def test_a_subscription_that_is_too_slow_is_ended_by_the_server(server: RedisServer, broker: RedisBroker) -> None:
    server.run("CONFIG", "SET", "client-output-buffer-limit", "pubsub 100kb 0 0")
    with subscribed(broker, "room") as subscription:
        number = 1
        while publish(broker, "room", b"x" * 10_000, first=number) == [1]:
            number += 1
        events = messages(receive_to_the_end(subscription))
    check_chain(events)
    assert len(events) < number


@pytest.mark.parametrize("end", ["silence", "cut"])
def test_a_network_that_breaks_within_a_message_ends_a_subscription(
    server: RedisServer, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    proxy = TcpProxy(server.port)
    try:
        with (
            opened(f"redis://127.0.0.1:{proxy.port}") as through,
            subscribed(through, "room") as subscription,
        ):
            publish(broker, "room", b"1")
            assert [event.data for event in receive_messages(subscription, 1)] == [b"1"]
            proxy.stall_after(50_000)
            publish(broker, "room", b"2" * 10_000, b"3" * 100_000, first=2)
            assert proxy.stalled.wait(DEADLINE)
            monkeypatch.setattr(module, "PING_AFTER", 0.1)
            monkeypatch.setattr(module, "SILENT_AFTER", 0.1)
            if end == "cut":
                proxy.cut()
            events = messages(receive_to_the_end(subscription))
            assert [event.data for event in events] == [b"2" * 10_000]
    finally:
        proxy.close()


def test_a_reply_that_is_lost_does_not_repeat_the_message(server: RedisServer, broker: RedisBroker) -> None:
    proxy = TcpProxy(server.port)
    try:
        with (
            opened(f"redis://127.0.0.1:{proxy.port}?socket_timeout=0.1") as through,
            subscribed(broker, "room") as subscription,
        ):
            publish_at_last(through, "room", b"1")
            proxy.stall_after(2)
            with pytest.raises(BrokerUnavailable):
                publish(through, "room", b"2", first=2)
            assert publish(broker, "room", b"2", b"3", first=2) == [-1, 1]
            assert [event.data for event in receive_messages(subscription, 3)] == [b"1", b"2", b"3"]
    finally:
        proxy.close()


def test_a_subscription_that_receives_another_protocol_ends(server: RedisServer) -> None:
    proxy = TcpProxy(server.port)
    try:
        with opened(f"redis://127.0.0.1:{proxy.port}") as broker, subscribed(broker, "room") as subscription:
            proxy.inject(b"SSH-2.0-OpenSSH_9.2\r\n")
            receive_to_the_end(subscription)
    finally:
        proxy.close()


def test_another_protocol_is_unavailable(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" * 10)
                with suppress(OSError):
                    connection.recv(1000)

        with threads(answer), opened(f"redis://127.0.0.1:{port}") as broker, pytest.raises(BrokerUnavailable):
            publish(broker, "room", b"")


# The end


def test_a_subscription_may_be_closed_again_and_used_by_somebody_who_does_not_know_it_yet(broker: RedisBroker) -> None:
    with subscribed(broker, "room") as subscription:
        subscription.close()
        subscription.close()
        subscription.add("another")
        subscription.remove("room")
        for call in (subscription.receive, subscription.tick):
            with pytest.raises(BrokerUnavailable, match="the subscription is closed"):
                call()


def test_closing_ends_the_connections(server: RedisServer, broker: RedisBroker) -> None:
    subscription = broker.subscribe(["room"])
    publish(broker, "room", b"data")
    subscription.close()
    broker.close()
    broker.close()
    wait_until(lambda: server.run("CLIENT", "LIST").count(b"\n") == 1)  # that asks
    with pytest.raises(BrokerUnavailable, match="the subscription is closed"):
        subscription.receive()
    with pytest.raises(BrokerUnavailable, match="the broker is closed"):
        publish(broker, "room", b"data", first=2)


# The URL


@pytest.mark.parametrize("password", ["secret", "p@ss/w:rd?#%20"])
def test_a_password_is_in_the_url_and_in_no_text(start_server: StartServer, password: str) -> None:
    server = start_server(password=password) if password == "secret" else start_server()
    server.run("ACL", "SETUSER", "me", "on", f">{password}", "+@all", "~*", "&*")
    address = f"127.0.0.1:{server.port}/0"
    with opened(f"redis://me:{quote(password, safe='')}@{address}") as broker, subscribed(broker, "room"):
        assert publish(broker, "room", b"data") == [1]
        assert password not in repr(broker)
    server.run("ACL", "SETUSER", "me", "resetpass", ">another")
    with opened(f"redis://me:{quote(password, safe='')}@{address}") as broker:
        with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{server.port}.*Check the user and the pass") as raised:
            publish(broker, "room", b"data")
        assert password not in str(raised.value)


def test_a_missing_password_is_named(start_server: StartServer) -> None:
    server = start_server(password="secret")
    with (
        opened(f"redis://127.0.0.1:{server.port}") as broker,
        pytest.raises(BrokerUnavailable, match="Put the password into the URL"),
    ):
        broker.subscribe([])


#: What the user of a broker needs.
PERMISSIONS = (
    "+eval +evalsha +ping +subscribe +unsubscribe +publish +mget +get +set +incr +expire +time +info"
    " +del +xadd +xdel +xrange +xrevrange +hget +hgetall +hset +hdel +hlen +hexists"
    " +zadd +zrem +zscore +zrange +zrangebyscore +zremrangebyscore +zpopmin +zcount +zscan"
    " resetchannels ~websocket:* &websocket:*"
)


def test_a_user_needs_few_permissions(server: RedisServer) -> None:
    server.run("ACL", "SETUSER", "me", "on", ">secret", *PERMISSIONS.split())
    with opened(f"redis://me:secret@127.0.0.1:{server.port}") as broker, subscribed(broker, "room") as subscription:
        publish(broker, "room", b"data")
        assert receive_messages(subscription, 1)


def use_histories_and_rosters(broker: RedisBroker) -> None:
    retention = Retention(10, 100.0, 10)
    for number in range(3):
        broker.publish([Outgoing("room", b"123456", number, retention)], "publisher")
    position = broker.history("room", None, retention).position
    assert position is not None
    assert len(broker.history("room", position._replace(offset=0), retention).messages) == 1
    broker.publish([Outgoing("room", b"", 3, retention)], "publisher")
    roster, another = broker.roster(), broker.roster()
    with closing(roster), closing(another):
        attendances = [Attendance("room", member, "connection", b"", 0.0) for member in "abc"]
        assert len(roster.enter(attendances)) == 3
        roster.leave(attendances)
        assert roster.enter(attendances[:1]) == []
        assert roster.renew() is Lease.HELD
        assert [each.member for each in roster.members("room")] == ["a"]
        assert roster.count("room") == 1
        assert len(roster.sweep()) == 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(redis_roster, "LEASE", 0.0)  # it dies at once
            another.enter(attendances)
        assert len(roster.sweep()) == 2


def test_histories_and_rosters_need_few_permissions_and_name_a_missing_one(server: RedisServer) -> None:
    server.run("ACL", "SETUSER", "me", "on", ">secret", *PERMISSIONS.split())
    url = f"redis://me:secret@127.0.0.1:{server.port}"
    with opened(url) as broker:
        use_histories_and_rosters(broker)
    for command in PERMISSIONS.split("+del ")[1].split():
        if command.startswith("+"):
            server.run("FLUSHALL")
            server.run("ACL", "SETUSER", "me", command.replace("+", "-"))
            with opened(url) as broker, pytest.raises(BrokerUnavailable, match="ACL SETUSER"):
                use_histories_and_rosters(broker)
            server.run("ACL", "SETUSER", "me", command)


@pytest.mark.parametrize("missing", ["-evalsha", "-publish", "-info", "-incr", "resetkeys", "resetchannels"])
def test_a_missing_permission_is_named(server: RedisServer, missing: str) -> None:
    server.run("ACL", "SETUSER", "me", "on", ">secret", *PERMISSIONS.split(), missing)
    with (
        opened(f"redis://me:secret@127.0.0.1:{server.port}") as broker,
        pytest.raises(BrokerUnavailable, match="ACL SETUSER"),
    ):
        publish(broker, "room", b"data")


@pytest.mark.parametrize("missing", ["-subscribe", "-mget", "resetchannels"])
def test_a_permission_that_a_subscription_lacks_is_named(server: RedisServer, missing: str) -> None:
    server.run("ACL", "SETUSER", "me", "on", ">secret", *PERMISSIONS.split(), missing)
    with (
        opened(f"redis://me:secret@127.0.0.1:{server.port}") as broker,
        closing(broker.subscribe(["room"])) as subscription,
        pytest.raises(BrokerUnavailable, match="ACL SETUSER"),
    ):
        receive(subscription, compared)


def test_tls_checks_the_certificate(start_server: StartServer) -> None:
    server = start_server(tls=True)
    data = [b"%06d" % number * 10_000 for number in range(20)]  # each in several records
    with opened(server.url) as broker, subscribed(broker, "room") as subscription:
        publish(broker, "room", *data, b"last")
        assert [event.data for event in receive_messages(subscription, 21)] == [*data, b"last"]
    with (
        opened(f"rediss://127.0.0.1:{server.port}") as broker,
        pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        publish(broker, "room", b"data")


def test_databases_and_prefixes_are_apart(server: RedisServer) -> None:
    urls = [
        server.unix_url,
        f"{server.unix_url}?db=1",
        f"{server.url}/2",
        f"{server.unix_url}?prefix=other",
        f"{server.url}/1?prefix=an%20other&client_name=x",
    ]
    with ExitStack() as stack:
        brokers = [stack.enter_context(opened(url)) for url in urls]
        subscriptions = [stack.enter_context(subscribed(broker, "room")) for broker in brokers]
        for number, broker in enumerate(brokers):
            assert publish(broker, "room", b"%d" % number) == [1]
        for number, subscription in enumerate(subscriptions):
            assert [event.data for event in receive_messages(subscription, 1)] == [b"%d" % number]
    assert server.run("KEYS", "an other:*") == []
    assert len(server.run("KEYS", "other:*")) == 3


def test_the_urls_prefix_goes_before_the_argument(server: RedisServer) -> None:
    with (
        opened(f"{server.unix_url}?prefix=mine", prefix="yours") as mine,
        opened(server.unix_url, prefix="mine") as same,
        subscribed(mine, "room"),
    ):
        assert publish(same, "room", b"data") == [1]


@pytest.mark.parametrize(
    "url",
    [
        "http://:secret@localhost",
        "redis://:se/cret@localhost:6379",
        "redis://:secret@localhost:port",
        "redis://:secret@localhost?db=one",
        "redis://:secret@localhost?colour=red",
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="The URL of Redis") as raised:
        RedisBroker(url)
    assert "cret" not in str(raised.value)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(RuntimeError, match=r'pip install "Flask-uWSGI-WebSocket\[redis\]"'):
        RedisBroker("redis://localhost")


# Clients


@pytest.mark.parametrize(
    "options", [{}, {"protocol": 3}, {"decode_responses": True, "health_check_interval": 1}], ids=repr
)
def test_a_client_may_be_given(server: RedisServer, options: dict[str, Any]) -> None:
    with (
        redis.Redis(host="127.0.0.1", port=server.port, db=1, **options) as client,
        opened(client) as broker,
        subscribed(broker, "room") as subscription,
    ):
        assert publish(broker, "room", b"\xff") == [1]
        assert [event.data for event in receive_messages(subscription, 1)] == [b"\xff"]
        assert repr(broker) == f"<RedisBroker: Redis at 127.0.0.1:{server.port}, database 1>"


def test_with_sentinel_rooms_survive_the_master(start_server: StartServer) -> None:
    master = start_server()
    replica = start_server(options=(f"replicaof 127.0.0.1 {master.port}",))
    wait_until(lambda: b"master_link_status:up" in replica.run("INFO", "replication"))
    watch = (
        f"sentinel monitor main 127.0.0.1 {master.port} 1",
        "sentinel down-after-milliseconds main 2000",
        "sentinel failover-timeout main 5000",
    )
    sentinel = start_server(sentinel=True, options=watch)
    wait_until(lambda: len(sentinel.run("SENTINEL", "REPLICAS", "main")) == 1)
    sentinels = Sentinel([("127.0.0.1", sentinel.port)])
    with (
        sentinels.sentinels[0],
        sentinels.master_for("main") as client,
        opened(client) as broker,
        subscribed(broker, "room") as subscription,
    ):
        assert "'main'" in repr(broker)
        publish(broker, "room", b"before")
        (before,) = receive_messages(subscription, 1)
        wait_until(lambda: replica.run("GET", "websocket:offset:room"))
        master.kill()
        receive_to_the_end(subscription)
        publish_at_last(broker, "another room", b"meanwhile", publisher="another")
        with subscribed(broker, "room") as subscription:
            publish(broker, "room", b"after", first=2)
            (after,) = receive_messages(subscription, 1)
    assert after.position.epoch != before.position.epoch


# Errors


def test_a_full_server_is_unavailable(server: RedisServer, broker: RedisBroker) -> None:
    publish(broker, "room", b"1")
    server.run("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(BrokerUnavailable, match="Raise its maxmemory"):
        publish(broker, "room", b"2", first=2)
    server.run("CONFIG", "SET", "maxmemory", 0)
    with subscribed(broker, "room"):
        assert publish(broker, "room", b"2", first=2) == [1]


def test_a_replica_is_unavailable(server: RedisServer, start_server: StartServer) -> None:
    replica = start_server(options=(f"replicaof 127.0.0.1 {server.port}",))
    wait_until(lambda: b"master_link_status:up" in replica.run("INFO", "replication"))
    with opened(replica.unix_url) as broker:
        for call in (lambda: publish(broker, "room", b""), lambda: broker.subscribe([])):
            with pytest.raises(BrokerUnavailable, match="use the address of the master"):
                call()


def test_a_master_that_becomes_a_replica_is_unavailable(
    server: RedisServer, broker: RedisBroker, start_server: StartServer
) -> None:
    publish(broker, "room", b"1")
    server.run("REPLICAOF", "127.0.0.1", start_server().port)
    with pytest.raises(BrokerUnavailable, match="use the address of the master"):
        publish(broker, "room", b"2", first=2)


def test_a_server_that_cannot_save_is_unavailable(server: RedisServer, broker: RedisBroker) -> None:
    (server.directory / "dump.rdb").mkdir()
    (server.directory / "dump.rdb/file").touch()
    server.run("CONFIG", "SET", "save", "3600 1")
    server.run("BGSAVE")
    wait_until(lambda: b"rdb_last_bgsave_status:err" in server.run("INFO", "persistence"))
    with pytest.raises(BrokerUnavailable, match="its log says why"):
        publish(broker, "room", b"")


def test_a_server_that_reads_its_data_is_unavailable(server: RedisServer, broker: RedisBroker) -> None:
    server.run("EVAL", "for i = 1, 100000 do redis.call('SET', i, i) end", 0)
    server.save()
    server.kill()
    slow = RedisServer(server.directory, options=("key-load-delay 1000", "loading-process-events-interval-bytes 1024"))
    try:
        slow.start(wait=False)
        with pytest.raises(BrokerUnavailable, match="answers when it has read its data"):
            publish(broker, "room", b"")
    finally:
        slow.close()


def test_a_server_of_a_cluster_is_unavailable(start_server: StartServer) -> None:
    server = start_server(options=("cluster-enabled yes",))
    with opened(server.unix_url) as broker, pytest.raises(BrokerUnavailable, match="no part of a Redis Cluster"):
        publish(broker, "room", b"")


def test_a_server_without_a_command_is_unavailable(start_server: StartServer) -> None:
    server = start_server(options=('rename-command EVAL ""',))
    with opened(server.unix_url) as broker, pytest.raises(BrokerUnavailable, match=r"Redis or Valkey 6\.2 or newer"):
        publish(broker, "room", b"")


def test_a_lack_of_descriptors_is_unavailable(server: RedisServer, broker: RedisBroker) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(BrokerUnavailable, match="Too many open files"):
            broker.subscribe(["room"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_subscription_that_cannot_be_opened_leaves_nothing_behind(server: RedisServer) -> None:
    server.pause()
    with opened(f"{server.unix_url}?socket_timeout=0.01") as broker, pytest.raises(BrokerUnavailable):
        broker.subscribe(["room"])


def test_a_server_with_too_many_clients_is_unavailable(server: RedisServer) -> None:
    with opened(server.url) as broker, subscribed(broker):
        server.run("CONFIG", "SET", "maxclients", 1)
        with pytest.raises(BrokerUnavailable, match="Raise its maxclients"):
            publish(broker, "room", b"")


# gevent


GEVENT = f"""
from gevent import monkey; monkey.patch_all()
import gevent, os, signal, sys, threading
from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers import redis as module
from flask_uwsgi_websocket.rooms.brokers.base import Compared, Delivered, Outgoing
{TAKE}
url, pid = sys.argv[1], int(sys.argv[2])
broker = module.RedisBroker(url)

def receive(kind):
    while True:
        for event in take(subscription, 0.05):
            if isinstance(event, kind):
                return event

def later(function):
    # After other greenlets have had many turns: none, if the caller does not let them.
    def run():
        for _ in range(50):
            gevent.sleep(0.002)
        function()
    return gevent.spawn(run)
"""


def run_under_gevent(server: RedisServer, code: str, url: str | None = None) -> None:
    pid = server.run("INFO", "server").split(b"process_id:")[1].split()[0].decode()
    command = [sys.executable, "-c", GEVENT + code, url or server.url, pid]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_under_gevent_other_greenlets_go_on_while_one_receives(start_server: StartServer, tls: bool) -> None:
    run_under_gevent(
        start_server(tls=tls),
        """
subscription = broker.subscribe(["room"])
receive(Compared)
for number in range(3):
    later(lambda: broker.publish([Outgoing("room", b"%d" % number * 100_000, number)], "publisher"))
    assert receive(Delivered).data == b"%d" % number * 100_000
later(lambda: subscription.add("another"))
assert receive(Compared).positions == {"another": None}
subscription.close()
broker.close()
print("done")
""",
    )


def test_under_gevent_a_timeout_leaves_no_reply_behind(server: RedisServer) -> None:
    run_under_gevent(
        server,
        """
for number in (0, 10):  # on a new connection, and on one that there is
    os.kill(pid, signal.SIGSTOP)
    with gevent.Timeout(0.05, False):
        broker.publish([Outgoing("room", b"", number + each) for each in range(5)], "publisher")
        print("answered")
    os.kill(pid, signal.SIGCONT)
    assert broker.publish([Outgoing("room", b"", number + 9)], "publisher") == [0]
print("done")
broker.close()
""",
    )


def test_under_gevent_other_greenlets_go_on_while_one_waits_for_a_frozen_server(server: RedisServer) -> None:
    run_under_gevent(
        server,
        """
def thaw():
    os.kill(pid, signal.SIGCONT)

subscription = broker.subscribe(["room"])
receive(Compared)
for number in range(2):  # on a connection that there is, and on a new one
    os.kill(pid, signal.SIGSTOP)
    later(thaw)
    assert broker.publish([Outgoing("room", b"data", number)], f"publisher {number}") == [1]
    broker.close()
    broker = module.RedisBroker(url)
os.kill(pid, signal.SIGSTOP)
later(thaw)
broker.subscribe(["room"]).close()
module.PING_AFTER = module.SILENT_AFTER = 0.2
received = []
while len(received) < 2:
    received += take(subscription, 0.05)
os.kill(pid, signal.SIGSTOP)
try:
    receive(Delivered)
except BrokerUnavailable as error:
    assert "has not answered" in str(error)
    print("done")
thaw()
""",
    )


@pytest.mark.parametrize("kind", ["unix", "tcp", "tls"])
def test_under_gevent_no_call_of_a_subscription_lets_other_greenlets_run(start_server: StartServer, kind: str) -> None:
    server = start_server(tls=kind == "tls")
    run_under_gevent(
        server,
        """
import greenlet
subscription = broker.subscribe(["room"])
receive(Compared)
broker.publish([Outgoing("room", b"x" * 100_000, number) for number in range(10)], "publisher")
os.kill(pid, signal.SIGSTOP)
switches = []
greenlet.settrace(lambda *event: switches.append(event))
for number in range(2000):
    subscription.add(f"{number} " + "x" * 5000)
for number in range(2000):
    subscription.remove(f"{number} " + "x" * 5000)
for _ in range(100):
    subscription.receive()
subscription.tick()
subscription.close()
greenlet.settrace(None)
os.kill(pid, signal.SIGCONT)
assert switches == [], switches
broker.close()
print("done")
""",
        server.unix_url if kind == "unix" else server.url,
    )
