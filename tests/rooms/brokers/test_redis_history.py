"""The history of the Redis broker, on real servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers.base import Delivered, History, Outgoing, Position, Retention
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker
from support.inprocess import DEADLINE, wait_until
from support.redis_brokers import check_chain, compared, opened, receive, receive_messages, subscribed, threads
from support.redis_server import RedisServer, StartServer
from support.tcp_proxy import TcpProxy

KEEP = Retention(100, 300.0, 2**20)


@pytest.fixture
def broker(server: RedisServer) -> Iterator[RedisBroker]:
    with opened(server.unix_url) as broker:
        yield broker


class Publisher:
    """Publishes numbered messages."""

    def __init__(self, broker: RedisBroker, name: str = "publisher") -> None:
        self._broker, self._name = broker, name
        self._number = 0

    def __call__(self, *data: bytes, room: str = "room", retention: Retention | None = KEEP) -> None:
        self._number += len(data)
        first = self._number - len(data) + 1
        self._broker.publish(
            [Outgoing(room, each, number, retention) for number, each in enumerate(data, first)], self._name
        )


@pytest.fixture
def publish(broker: RedisBroker) -> Publisher:
    return Publisher(broker)


def everything(broker: RedisBroker, retention: Retention = KEEP, room: str = "room") -> list[Delivered]:
    """Return all messages of the present epoch that a history has."""
    position = broker.history(room, None, retention).position
    assert position is not None
    return list(broker.history(room, position._replace(offset=0), retention).messages)


def data(messages: list[Delivered]) -> list[bytes]:
    return [message.data for message in messages]


# What is kept


def test_a_history_has_what_subscriptions_get(broker: RedisBroker, publish: Publisher) -> None:
    with subscribed(broker, "room") as subscription:
        publish(*(b"%d" % number for number in range(100)))
        events = receive_messages(subscription, 100)
    assert everything(broker) == events
    for index in (0, 50, 98, 99):
        history = broker.history("room", events[index].position, KEEP)
        assert history == History(events[-1].position, events[index + 1 :])


def test_messages_of_one_batch_may_be_kept_or_not(broker: RedisBroker) -> None:
    batch = [Outgoing("room", b"%d" % number, number, KEEP if number % 2 else None) for number in range(1, 7)]
    batch.append(Outgoing("another", b"7", 7, KEEP))
    with subscribed(broker, "room") as subscription:
        broker.publish(batch, "publisher")
        events = receive_messages(subscription, 6)
    check_chain(events)
    assert everything(broker) == events[::2]
    assert broker.history("room", events[0].position, KEEP).position == events[-1].position
    assert data(everything(broker, room="another")) == [b"7"]


@pytest.mark.parametrize("size", [0, 1, 100, 10_000, 2**20], ids=str)
def test_any_bytes_are_kept(broker: RedisBroker, publish: Publisher, size: int) -> None:
    one = (bytes(range(256)) * (size // 256 + 1))[:size]
    retention = Retention(3, 300, 3 * 2**20)
    publish(one, b"", one, retention=retention)
    assert data(everything(broker, retention)) == [one, b"", one]


@pytest.mark.parametrize("room", ["", "a\r\nb", "\0", "größe 部屋", "a:b", "%s {}", "\ud800", "x" * 5000], ids=range(8))
def test_any_text_is_a_room_with_a_history(broker: RedisBroker, publish: Publisher, room: str) -> None:
    publish(b"data", room=room)
    publish(b"another", room=f"{room}!")
    assert data(everything(broker, room=room)) == [b"data"]


def test_what_is_published_again_is_kept_once(broker: RedisBroker) -> None:
    batch = [Outgoing("room", b"%d" % number, number, KEEP) for number in range(3)]
    for _ in range(3):
        broker.publish(batch, "publisher")
    assert data(everything(broker)) == [b"0", b"1", b"2"]


def test_a_history_that_cannot_be_written_publishes_nothing(
    server: RedisServer, broker: RedisBroker, publish: Publisher
) -> None:
    server.run("LPUSH", "websocket:history:room", "this is no stream")
    with subscribed(broker, "room") as subscription:
        with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
            publish(b"1")
        with pytest.raises(BrokerUnavailable, match="WRONGTYPE"):
            broker.history("room", Position(server.run("GET", "websocket:epoch").decode(), 1), KEEP)
        server.run("DEL", "websocket:history:room")
        publish(b"2")
        assert data(receive_messages(subscription, 1)) == [b"2"]


# Limits


@pytest.mark.parametrize("most", [0, 1, 7, 100])
def test_no_more_messages_are_kept(broker: RedisBroker, publish: Publisher, most: int) -> None:
    all_data = [b"%d" % number for number in range(250)]
    retention = KEEP._replace(messages=most)
    publish(*all_data, retention=retention)
    assert data(everything(broker, retention)) == all_data[250 - most :]


@pytest.mark.parametrize("size", [0, 1, 29, 30, 10_000])
def test_no_more_bytes_are_kept(broker: RedisBroker, publish: Publisher, size: int) -> None:
    all_data = [b"x" * (number % 5 * size // 10) for number in range(20)]
    retention = KEEP._replace(size=size)
    for each in all_data:
        publish(each, retention=retention)
    kept = data(everything(broker, retention))
    assert kept == all_data[len(all_data) - len(kept) :]
    assert sum(map(len, kept)) <= size
    assert len(kept) == len(all_data) or sum(map(len, all_data[-len(kept) - 1 :])) > size


def test_a_message_that_is_larger_than_all_that_is_kept_leaves_nothing(broker: RedisBroker, publish: Publisher) -> None:
    small = KEEP._replace(size=10)
    publish(b"1", b"22", b"x" * 11, retention=small)
    assert everything(broker) == []
    publish(b"5" * 5, b"66666", b"7", retention=small)
    assert data(everything(broker)) == [b"66666", b"7"]


def test_smaller_limits_count_from_the_next_message_on(broker: RedisBroker, publish: Publisher) -> None:
    publish(*[b"x" * 10] * 50)
    publish(b"last", retention=Retention(100, 300.0, 34))
    assert data(everything(broker)) == [b"x" * 10] * 3 + [b"last"]


def test_older_messages_are_not_returned_and_the_next_message_removes_them(
    server: RedisServer, broker: RedisBroker, publish: Publisher
) -> None:
    publish(b"1", b"2")
    time.sleep(0.02)
    for _ in range(2):
        assert broker.history("room", everything(broker)[0].position, KEEP._replace(seconds=0.01)).messages == []
    assert data(everything(broker)) == [b"1", b"2"]
    publish(b"3", retention=KEEP._replace(seconds=0.01))
    assert server.run("XLEN", "websocket:history:room") == 1


def test_a_history_expires_with_its_last_message(server: RedisServer, publish: Publisher) -> None:
    publish(b"1", retention=KEEP._replace(seconds=1000.5))
    assert 990 < server.run("TTL", "websocket:history:room") <= 1001
    publish(b"2", retention=KEEP._replace(seconds=10))
    assert server.run("TTL", "websocket:history:room") <= 10


def test_what_is_beyond_the_limits_is_freed_after_some_dozens(server: RedisServer, publish: Publisher) -> None:
    publish(*[b"x" * 64] * 1000, retention=KEEP._replace(messages=1))
    assert server.run("XLEN", "websocket:history:room") <= 100
    publish(*[b"x" * 64] * 1000, retention=KEEP._replace(size=0))
    assert server.run("XLEN", "websocket:history:room") == 0


def test_a_message_of_a_history_takes_little_memory(server: RedisServer, broker: RedisBroker) -> None:
    for number in range(1000):
        broker.publish([Outgoing("room", b"x" * 64, number, KEEP)], "publisher")
    used = server.run("MEMORY", "USAGE", "websocket:history:room", "SAMPLES", 0)
    assert used / 100 - 64 <= 400


# Positions


def test_a_room_without_messages_has_no_position(broker: RedisBroker) -> None:
    assert broker.history("room", None, KEEP) == History(None, [])
    assert broker.history("room", Position("epoch", 1), KEEP) == History(None, [])


def test_a_position_that_is_not_of_this_epoch_gets_no_messages(broker: RedisBroker, publish: Publisher) -> None:
    publish(b"1", b"2")
    position = everything(broker)[-1].position
    others = ("", "another", f"{position.epoch} ", position.epoch[:-1], "\ud800", "x" * 10_000)
    for after in (None, *(Position(epoch, 0) for epoch in others)):
        assert broker.history("room", after, KEEP) == History(position, [])


@pytest.mark.parametrize("offset", [2**62, 2**63, 2**64 - 1, 2**64, 10**50])
def test_a_position_that_is_made_up_gets_no_messages(broker: RedisBroker, publish: Publisher, offset: int) -> None:
    publish(b"1", b"2")
    position = everything(broker)[-1].position
    assert broker.history("room", position._replace(offset=offset), KEEP) == History(position, [])


def test_between_the_history_and_a_subscription_nothing_is_missing(broker: RedisBroker) -> None:
    ended = threading.Event()
    publish = Publisher(broker)
    publish(b"first")
    position = everything(broker)[0].position

    def publish_on() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            publish(b"%d" % number)

    with threads(publish_on):
        try:
            for _ in range(30):
                with subscribed(broker) as subscription:
                    subscription.add("room")
                    receive(subscription, compared)
                    now = broker.history("room", None, KEEP).position
                    assert now is not None
                    history = broker.history("room", now._replace(offset=now.offset - 20), KEEP)
                    assert history.position is not None
                    live = receive_messages(subscription, 3)
                    later = [each for each in live if each.position.offset > history.position.offset]
                    check_chain([*history.messages, *later])
        finally:
            ended.set()
    assert position.epoch == everything(broker)[0].position.epoch


# What Redis forgets


def test_a_server_that_is_flushed_has_no_old_messages(
    server: RedisServer, broker: RedisBroker, publish: Publisher
) -> None:
    publish(b"1", b"2")
    before = everything(broker)
    server.run("FLUSHALL")
    assert broker.history("room", before[0].position, KEEP) == History(None, [])
    publish(b"3")
    history = broker.history("room", before[0].position, KEEP)
    assert history.messages == []
    assert history.position is not None
    assert history.position.epoch != before[0].position.epoch
    assert data(everything(broker)) == [b"3"]


@pytest.mark.parametrize("is_saved", [False, True], ids=["empty", "with an old snapshot"])
@pytest.mark.parametrize("is_published", [False, True], ids=["reader first", "publisher first"])
def test_a_server_that_starts_again_has_no_old_messages(
    server: RedisServer, broker: RedisBroker, publish: Publisher, is_saved: bool, is_published: bool
) -> None:
    publish(b"1", b"2")
    if is_saved:
        server.save()
    publish(b"3")
    before = everything(broker)
    server.restart()
    if is_published:
        publish(b"4")
    for each in before:
        history = broker.history("room", each.position, KEEP)
        assert history.messages == []
        assert history.position is None or history.position.epoch != each.position.epoch
    publish(b"5")
    assert data(everything(broker)) == ([b"4", b"5"] if is_published else [b"5"])


def test_a_message_that_is_not_kept_does_not_bring_back_those_of_an_old_snapshot(
    server: RedisServer, broker: RedisBroker, publish: Publisher
) -> None:
    publish(b"1", b"2")
    server.save()
    server.restart()
    publish(b"3", retention=None)
    assert everything(broker) == []
    publish(b"4")
    assert data(everything(broker)) == [b"4"]


@pytest.mark.parametrize("key", ["epoch", "offset:room", "history:room", "publisher:publisher"])
def test_a_key_that_is_evicted_leaves_a_chain_that_shows_it(
    server: RedisServer, broker: RedisBroker, publish: Publisher, key: str
) -> None:
    publish(b"1", b"2")
    before = everything(broker)
    assert server.run("DEL", f"websocket:{key}") == 1
    with subscribed(broker, "room") as subscription:
        publish(b"3", b"4")
        events = receive_messages(subscription, 2)
    history = broker.history("room", before[0].position, KEEP)
    assert history.position == events[-1].position
    if key == "epoch":
        assert history.messages == []
    elif key == "history:room":
        assert history.messages == events
        assert events[0].previous == before[-1].position.offset
    else:
        assert history.messages == [before[1], *events]
        assert (events[0].previous == 0) == (key == "offset:room")


def test_a_clock_that_was_put_back_does_not_end_the_history(
    server: RedisServer, broker: RedisBroker, publish: Publisher
) -> None:
    publish(b"1", b"2")
    epoch = server.run("GET", "websocket:epoch")
    server.run("DEL", "websocket:offset:room", "websocket:history:room")
    future = time.time_ns() // 1000 + 10**9
    server.run("XADD", "websocket:history:room", f"{future}-0", "e", epoch, "p", 0, "t", 0, "b", 1, "n", 1, "d", "x")
    publish(b"3", b"4")
    assert data(everything(broker)) == [b"3", b"4"]


# Connections


def test_histories_are_read_on_a_connection_that_is_opened_when_it_is_needed(
    server: RedisServer, broker: RedisBroker, publish: Publisher
) -> None:
    publish(b"1")
    assert server.run("CLIENT", "LIST").count(b"\n") == 2  # with the one that asks
    everything(broker)
    assert server.run("CLIENT", "LIST").count(b"\n") == 3
    broker.close()
    wait_until(lambda: server.run("CLIENT", "LIST").count(b"\n") == 1)
    with pytest.raises(BrokerUnavailable, match="the broker is closed"):
        broker.history("room", None, KEEP)


def test_reading_survives_a_killed_connection(server: RedisServer, broker: RedisBroker, publish: Publisher) -> None:
    publish(b"1")
    for _ in range(5):
        assert data(everything(broker)) == [b"1"]
        server.run("CLIENT", "KILL", "TYPE", "normal")


def test_a_connection_that_breaks_within_a_history_is_replaced(server: RedisServer, broker: RedisBroker) -> None:
    proxy = TcpProxy(server.port)
    publish = Publisher(broker)
    try:
        with opened(f"redis://127.0.0.1:{proxy.port}") as through:
            publish(*[b"x" * 10_000] * 50)
            first = everything(through)[0].position
            proxy.cut_after(100_000)
            assert len(through.history("room", first, KEEP).messages) == 49
            assert proxy.stalled.is_set()
    finally:
        proxy.close()


def test_a_publisher_does_not_wait_for_a_history(server: RedisServer, broker: RedisBroker) -> None:
    proxy = TcpProxy(server.port)
    try:
        with opened(f"redis://127.0.0.1:{proxy.port}") as through:
            publish = Publisher(through)
            publish(*[b"x" * 10_000] * 50)
            first = everything(through)[0].position
            proxy.stall_after(100_000)

            def read() -> None:
                with suppress(BrokerUnavailable):
                    through.history("room", first, KEEP)

            with threads(read):
                assert proxy.stalled.wait(DEADLINE)
                proxy.flow()
                publish(b"more")  # while the reply of the history has stalled
                proxy.cut()
    finally:
        proxy.close()


def test_all_who_wait_for_a_frozen_server_learn_it_at_once(server: RedisServer) -> None:
    errors: list[str] = []
    with opened(f"{server.unix_url}?socket_timeout=1") as broker:
        Publisher(broker)(b"1")

        def read() -> None:
            try:
                broker.history("room", None, KEEP)
            except BrokerUnavailable as error:
                errors.append(str(error))

        read()
        server.pause()
        began = time.monotonic()
        with threads(*[read] * 100):
            pass
        assert time.monotonic() - began < 60  # and not a second or more for each of them
        server.resume()
        assert len(errors) == 100
        assert all("has not answered" in error for error in errors)
        wait_until(lambda: _reads(broker))


def _reads(broker: RedisBroker) -> bool:
    with suppress(BrokerUnavailable):
        return broker.history("room", None, KEEP).position is not None
    return False


def test_an_error_of_one_room_is_not_that_of_those_who_wait(server: RedisServer, broker: RedisBroker) -> None:
    Publisher(broker)(b"1")
    position = everything(broker)[0].position
    Publisher(broker, "another")(b"1", room="broken", retention=None)
    server.run("LPUSH", "websocket:history:broken", "this is no stream")
    results: list[str] = []

    def read(room: str) -> None:
        for _ in range(30):
            try:
                broker.history(room, position._replace(offset=0), KEEP)
            except BrokerUnavailable:
                results.append(f"{room} failed")
            else:
                results.append(room)

    with threads(*(partial(read, room) for room in ("room", "broken") * 5)):
        pass
    assert sorted(results) == ["broken failed"] * 150 + ["room"] * 150


def test_many_read_at_once(start_server: StartServer) -> None:
    server = start_server(tls=True)
    with ExitStack() as stack:
        broker = stack.enter_context(opened(server.url))
        publish = Publisher(broker)
        publish(*[b"%d" % number for number in range(50)])
        first = everything(broker)[0].position
        read: list[list[bytes]] = []

        def read_some() -> None:
            for _ in range(20):
                read.append(data(list(broker.history("room", first, KEEP).messages)))

        with threads(*[read_some] * 10):
            pass
    assert read == [[b"%d" % number for number in range(1, 50)]] * 200
