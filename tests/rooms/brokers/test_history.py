"""The history of a room, in all brokers: what is kept, in which order, and for how long."""

from __future__ import annotations

import itertools
import sqlite3
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers import local, local_history, local_log, memory_history
from flask_uwsgi_websocket.rooms.brokers.base import Broker, Delivered, History, Outgoing, Position, Retention
from flask_uwsgi_websocket.rooms.brokers.local import LocalBroker
from flask_uwsgi_websocket.rooms.brokers.memory import MemoryBroker
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker
from support.brokers import take
from support.inprocess import Clock, wait_until
from support.redis_server import RedisServer

#: More than any test needs.
AMPLE = Retention(1000, 3600.0, 2**20)

#: The brokers that keep a history. Each has a function below that makes it.
BROKERS = ["memory", "local", "redis"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short."""
    with tempfile.TemporaryDirectory(prefix="broker-") as name:
        yield Path(name).resolve() / "rooms"


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with closing(request.getfixturevalue(f"{request.param}_broker")) as broker:
        yield broker


@pytest.fixture
def memory_broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def local_broker(directory: Path) -> LocalBroker:
    return LocalBroker(directory)


@pytest.fixture
def redis_broker(server: RedisServer) -> RedisBroker:
    return RedisBroker(server.unix_url)


class Publisher:
    """Publishes messages with ascending numbers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._numbers = itertools.count(1)

    def __call__(self, room: str, *data: bytes, retention: Retention | None = AMPLE) -> None:
        self._broker.publish([Outgoing(room, each, next(self._numbers), retention) for each in data], "me")


@pytest.fixture
def publish(broker: Broker) -> Publisher:
    return Publisher(broker)


def position_of(broker: Broker, room: str) -> Position:
    position = broker.history(room, None, AMPLE).position
    assert position is not None
    return position


def data_of(history: History) -> list[bytes]:
    return [message.data for message in history.messages]


def kept(broker: Broker, room: str, retention: Retention = AMPLE) -> list[bytes]:
    """Return the data of all messages in the history of a room that has messages."""
    start = position_of(broker, room)._replace(offset=0)
    return data_of(broker.history(room, start, retention))


def check_chain(history: History, after: Position) -> None:
    """Check that the messages of a history are all that came after a position."""
    before = after.offset
    for message in history.messages:
        assert (message.previous, message.position) == (before, after._replace(offset=before + 1))
        before = message.position.offset
    assert history.position == after._replace(offset=before)


def test_the_history_after_a_position_is_all_that_came_after_it(broker: Broker, publish: Publisher) -> None:
    publish("a", b"1", b"2")
    after = position_of(broker, "a")
    assert broker.history("a", after, AMPLE) == (after, [])
    publish("a", b"3")
    publish("a", b"4", b"5")
    history = broker.history("a", after, AMPLE)
    assert data_of(history) == [b"3", b"4", b"5"]
    assert {message.room for message in history.messages} == {"a"}
    check_chain(history, after)


def test_a_room_without_messages_has_no_position(broker: Broker, publish: Publisher) -> None:
    assert broker.history("a", None, AMPLE) == (None, [])
    publish("b", b"1")
    assert broker.history("a", None, AMPLE) == (None, [])
    assert broker.history("a", position_of(broker, "b"), AMPLE) == (None, [])


def test_without_a_position_of_this_epoch_no_messages_are_returned(broker: Broker, publish: Publisher) -> None:
    publish("a", b"1", b"2")
    position = position_of(broker, "a")
    assert broker.history("a", None, AMPLE) == (position, [])
    assert broker.history("a", Position("another", 0), AMPLE) == (position, [])
    assert broker.history("a", Position("", position.offset - 1), AMPLE) == (position, [])


@pytest.mark.parametrize("offset", [-(2**63), -1, 0])
def test_a_position_before_all_messages_returns_all_that_are_kept(
    broker: Broker, publish: Publisher, offset: int
) -> None:
    publish("a", b"1", b"2")
    position = position_of(broker, "a")
    history = broker.history("a", position._replace(offset=offset), AMPLE)
    assert data_of(history) == [b"1", b"2"]


@pytest.mark.parametrize("beyond", [1, 1000, 2**62])
def test_a_position_after_all_messages_returns_none(broker: Broker, publish: Publisher, beyond: int) -> None:
    publish("a", b"1", b"2")
    position = position_of(broker, "a")
    assert broker.history("a", position._replace(offset=position.offset + beyond), AMPLE) == (position, [])


def test_rooms_have_separate_histories(broker: Broker, publish: Publisher) -> None:
    rooms = ["a", "b", "A", "a ", "", "\0", "'; DROP TABLE history; --", "%", "ø 部屋 🚪", "x" * 1000]
    for text in (b"1", b"2"):
        for room in rooms:
            publish(room, room.encode() + text)
    for room in rooms:
        assert kept(broker, room) == [room.encode() + b"1", room.encode() + b"2"]


@pytest.mark.parametrize("data", [b"", bytes(range(256)), b"x" * 2**19], ids=["empty", "binary", "512 KiB"])
def test_a_message_comes_back_as_it_was(broker: Broker, publish: Publisher, data: bytes) -> None:
    publish("a", data, b"end")
    assert kept(broker, "a") == [data, b"end"]


def test_the_number_of_messages_is_bounded(broker: Broker, publish: Publisher) -> None:
    retention = AMPLE._replace(messages=3)
    for number in range(10):
        publish("a", b"%d" % number, retention=retention)
        assert len(kept(broker, "a", retention)) == min(number + 1, 3)
    assert kept(broker, "a") == [b"7", b"8", b"9"]
    publish("a", *[b"%d" % number for number in range(10, 60)], retention=retention)
    assert kept(broker, "a") == [b"57", b"58", b"59"]


def test_the_bytes_of_a_history_are_bounded(broker: Broker, publish: Publisher) -> None:
    retention = AMPLE._replace(size=1000)
    for number in range(10):
        publish("a", b"%d" % number * 300, retention=retention)
    assert kept(broker, "a") == [b"7" * 300, b"8" * 300, b"9" * 300]
    publish("a", b"a" * 700, retention=retention)
    assert kept(broker, "a") == [b"9" * 300, b"a" * 700]
    publish("a", b"b" * 1000, retention=retention)
    assert kept(broker, "a") == [b"b" * 1000]


def test_a_message_beyond_the_bytes_of_its_history_is_not_kept(broker: Broker, publish: Publisher) -> None:
    retention = AMPLE._replace(size=1000)
    publish("a", b"1", retention=retention)
    after = position_of(broker, "a")
    publish("a", b"x" * 1001, retention=retention)
    history = broker.history("a", after, retention)
    assert history == (after._replace(offset=after.offset + 1), [])
    publish("a", b"2", retention=retention)
    (message,) = broker.history("a", after, retention).messages
    assert message == Delivered("a", after._replace(offset=after.offset + 2), after.offset + 1, b"2")


def test_old_messages_are_not_returned(broker: Broker, publish: Publisher) -> None:
    retention = AMPLE._replace(seconds=0.3)
    publish("a", b"1", b"2", retention=retention)
    after = position_of(broker, "a")._replace(offset=0)
    wait_until(lambda: not broker.history("a", after, retention).messages)
    publish("a", b"3", retention=retention)
    assert b"1" not in kept(broker, "a", AMPLE._replace(seconds=0.3))


def test_the_retention_of_the_reader_holds_too(broker: Broker, publish: Publisher) -> None:
    publish("a", *[b"%d" % number * 100 for number in range(6)])
    assert kept(broker, "a", AMPLE._replace(messages=2)) == [b"4" * 100, b"5" * 100]
    assert kept(broker, "a", AMPLE._replace(size=399)) == [b"3" * 100, b"4" * 100, b"5" * 100]
    assert kept(broker, "a", AMPLE._replace(size=99)) == []
    start = time.monotonic()
    wait_until(lambda: time.monotonic() > start + 0.01)
    assert kept(broker, "a", AMPLE._replace(seconds=0.01)) == []


def test_messages_without_retention_are_not_kept_and_break_the_chain(broker: Broker, publish: Publisher) -> None:
    publish("a", b"1")
    after = position_of(broker, "a")
    publish("a", b"lost", retention=None)
    history = broker.history("a", after, AMPLE)
    assert history == (after._replace(offset=after.offset + 1), [])
    publish("a", b"2")
    history = broker.history("a", after, AMPLE)
    assert data_of(history) == [b"2"]
    assert history.messages[0].previous == after.offset + 1


def test_one_call_may_publish_messages_with_and_without_retention(broker: Broker) -> None:
    small, none = AMPLE._replace(messages=1), None
    retentions = [AMPLE, none, small, AMPLE, small, none, AMPLE]
    rooms = ["a", "b", "c", "a", "c", "a", "b"]
    subscription = broker.subscribe(["a", "b", "c"])
    try:
        count = 0
        while count < 1:
            count += sum(not isinstance(event, Delivered) for event in take(subscription))
        messages = [
            Outgoing(room, b"%d" % number, number, retention)
            for number, (room, retention) in enumerate(zip(rooms, retentions, strict=True), 1)
        ]
        broker.publish(messages, "me")
        events: list[Delivered] = []
        while len(events) < len(messages):
            events += [event for event in take(subscription) if isinstance(event, Delivered)]
    finally:
        subscription.close()
    for room, expected in {"a": [b"1", b"4"], "b": [b"7"], "c": [b"5"]}.items():
        own = [event for event in events if event.room == room]
        assert [event.data for event in own] == [message.data for message in messages if message.room == room]
        for before, event in pairwise(own):
            assert (event.previous, event.position.offset) == (before.position.offset, before.position.offset + 1)
        assert position_of(broker, room) == own[-1].position
        assert kept(broker, room) == expected


def test_what_is_delivered_and_what_is_kept_is_the_same(broker: Broker, publish: Publisher) -> None:
    subscription = broker.subscribe(["a"])
    try:
        while not take(subscription):
            pass
        after = broker.history("a", None, AMPLE).position
        assert after is None
        publish("a", b"1", b"2", b"3")
        events: list[Delivered] = []
        while len(events) < 3:
            events += [event for event in take(subscription) if isinstance(event, Delivered)]
        history = broker.history("a", events[0].position, AMPLE)
        assert list(history.messages) == events[1:]
        assert history.position == events[-1].position
    finally:
        subscription.close()


def test_a_history_needs_no_subscription(broker: Broker, publish: Publisher) -> None:
    publish("a", b"1")
    after = position_of(broker, "a")
    with closing(broker.subscribe(["a"])):
        publish("a", b"2")
    publish("a", b"3")
    with closing(broker.subscribe(["a"])) as subscription:
        subscription.remove("a")
    publish("a", b"4")
    history = broker.history("a", after, AMPLE)
    assert data_of(history) == [b"2", b"3", b"4"]
    check_chain(history, after)


def test_a_smaller_retention_forgets_what_a_larger_one_has_kept(broker: Broker, publish: Publisher) -> None:
    publish("a", *[b"%d" % number for number in range(500)])
    publish("a", b"end", retention=AMPLE._replace(messages=2))
    assert kept(broker, "a") == [b"499", b"end"]


def test_a_retention_of_nothing_keeps_nothing(broker: Broker, publish: Publisher) -> None:
    offsets = []
    for retention in (AMPLE._replace(messages=0), AMPLE._replace(size=0)):
        publish("a", b"x", retention=retention)
        assert kept(broker, "a") == []
        offsets.append(position_of(broker, "a").offset)
    assert offsets[1] == offsets[0] + 1


def test_a_history_that_is_read_while_others_publish_is_a_chain_from_its_start_to_its_position(broker: Broker) -> None:
    retention = AMPLE._replace(messages=50)
    ended = threading.Event()
    errors: list[BaseException] = []

    def publish_all(name: str) -> None:
        try:
            for number in itertools.count(1):
                if ended.is_set():
                    return
                broker.publish([Outgoing("a", b"%d" % number, number, retention)], name)
        except BaseException as error:
            errors.append(error)

    broker.publish([Outgoing("a", b"%d" % number, number, retention) for number in range(50)], "me")
    threads = [threading.Thread(target=publish_all, args=(name,)) for name in ("x", "y")]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            after = position_of(broker, "a")
            start = after._replace(offset=after.offset - 30)
            history = broker.history("a", start, retention)
            assert history.position is not None
            first = history.messages[0].previous if history.messages else history.position.offset
            assert first >= start.offset
            check_chain(history, start._replace(offset=first))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not errors


# What the memory broker does besides.


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which the memory broker forgets."""
    clock = Clock()
    monkeypatch.setattr(memory_history, "monotonic", clock.monotonic)
    return clock


def test_memory_forgets_rooms_whose_time_is_over_without_being_called_for_them(
    memory_broker: MemoryBroker, clock: Clock
) -> None:
    publish = Publisher(memory_broker)
    for number in range(200):
        publish(f"room {number}", b"x", retention=AMPLE._replace(seconds=60.0))
    publish("room 199", b"kept")
    clock.put_forward(61)
    for _ in range(200):
        publish("other", b"x", retention=None)
    positions = [memory_broker.history(f"room {number}", None, AMPLE).position for number in range(200)]
    assert positions[:-1] == [None] * 199
    assert kept(memory_broker, "room 199") == [b"x", b"kept"]


def test_memory_does_not_use_an_offset_of_a_room_twice(memory_broker: MemoryBroker, clock: Clock) -> None:
    publish = Publisher(memory_broker)
    publish("a", b"1", b"2", b"3", retention=AMPLE._replace(seconds=60.0))
    before = position_of(memory_broker, "a")
    clock.put_forward(61)
    publish("other", b"x", retention=None)
    assert memory_broker.history("a", None, AMPLE).position is None
    publish("a", b"4")
    (message,) = memory_broker.history("a", before, AMPLE).messages
    assert message.previous == 0
    assert message.position.offset > before.offset


def test_memory_bounds_the_bytes_of_all_histories(memory_broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 2 * (500 + memory_history.OVERHEAD) + memory_history.ROOM_OVERHEAD
    monkeypatch.setattr(memory_history, "MOST_BYTES", 35 * room)
    publish = Publisher(memory_broker)
    for number in range(200):
        publish(f"room {number}", b"x" * 500, b"y" * 500)
    rooms = [number for number in range(200) if memory_broker.history(f"room {number}", None, AMPLE).position]
    assert 30 < len(rooms) <= 35
    assert rooms == list(range(200 - len(rooms), 200))


def test_memory_costs_at_most_400_bytes_for_a_message(memory_broker: MemoryBroker) -> None:
    publish = Publisher(memory_broker)
    count, size = 1000, 200
    publish("a", b"first")
    tracemalloc.start()
    try:
        for number in range(count):
            publish("a", b"%d" % number + bytes(size - len(b"%d" % number)))
        assert tracemalloc.get_traced_memory()[0] < count * (size + 400)
    finally:
        tracemalloc.stop()


# What the local broker does besides.


def log_of(broker: LocalBroker) -> local_log.Log:
    opened = broker._use().opened
    assert opened is not None
    return opened.log


def rows(directory: Path, table: str) -> int:
    (file,) = directory.glob("log-*/log")
    with closing(sqlite3.connect(file)) as connection:
        ((count,),) = connection.execute(f"SELECT count(*) FROM {table}")
    return int(count)


def test_local_has_one_history_for_all_processes(directory: Path) -> None:
    with closing(LocalBroker(directory)) as broker, closing(LocalBroker(directory)) as other:
        Publisher(broker)("a", b"1", b"2")
        assert kept(other, "a") == [b"1", b"2"]
        assert position_of(other, "a") == position_of(broker, "a")


def test_local_deletes_what_is_too_old_without_being_called_for_its_room(
    directory: Path, local_broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PRUNE_MESSAGES", 1)
    with closing(local_broker) as broker:
        publish = Publisher(broker)
        for number in range(50):
            publish(f"room {number}", b"x", b"y", retention=AMPLE._replace(seconds=0.0))
        publish("kept", b"x")

        def is_pruned() -> bool:
            publish("other", b"x", retention=None)
            return rows(directory, "history") == rows(directory, "histories") == 1

        wait_until(is_pruned)
        assert kept(broker, "kept") == [b"x"]
        assert position_of(broker, "room 7").offset == 2
        publish("room 7", b"z")
        (message,) = broker.history("room 7", position_of(broker, "room 7")._replace(offset=0), AMPLE).messages
        assert (message.previous, message.position.offset) == (2, 3)


def test_local_bounds_the_bytes_of_all_histories_and_the_oldest_go_first(
    directory: Path, local_broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_history, "HISTORY_BYTES", 50 * (1000 + local_history.HISTORY_OVERHEAD))
    monkeypatch.setattr(local, "PRUNE_MESSAGES", 1)
    with closing(local_broker) as broker:
        publish = Publisher(broker)
        publish("first", b"x" * 1000)
        for number in range(200):
            publish(f"room {number % 7}", b"%03d" % number + b"x" * 997)
        publish("other", b"x", retention=None)
        assert kept(broker, "first") == []
        numbers = sorted(int(data[:3]) for room in range(7) for data in kept(broker, f"room {room}"))
        assert numbers == list(range(150, 200))


def test_local_counts_the_bytes_of_all_histories_exactly(
    directory: Path, local_broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PRUNE_MESSAGES", 20)
    monkeypatch.setattr(local_history, "HISTORY_BYTES", 30_000)
    with closing(local_broker) as broker:
        publish = Publisher(broker)
        for number in range(300):
            retention = Retention(1 + number % 11, (number % 5) * 0.01, 200 * (number % 13))
            publish(f"room {number % 17}", b"x" * (number * 7 % 501), retention=retention)
        log = log_of(broker)
        ((bytes_,),) = log.execute("SELECT bytes FROM history_size")
        ((expected,),) = log.execute(
            f"SELECT coalesce(sum(length(data) + {local_history.HISTORY_OVERHEAD}), 0) FROM history"
        )
        assert bytes_ == expected


def test_local_keeps_a_busy_room_from_pushing_out_a_quiet_one(
    directory: Path, local_broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_history, "HISTORY_BYTES", 50 * (1000 + local_history.HISTORY_OVERHEAD))
    monkeypatch.setattr(local, "PRUNE_MESSAGES", 1)
    with closing(local_broker) as broker:
        publish = Publisher(broker)
        publish("quiet", b"x")
        for _ in range(200):
            publish("busy", b"x" * 1000, retention=AMPLE._replace(messages=20))
        assert kept(broker, "quiet") == [b"x"]


def test_local_keeps_the_position_of_a_room_with_history_however_long_it_was_not_used(
    directory: Path, local_broker: LocalBroker
) -> None:
    with closing(local_broker) as broker:
        publish = Publisher(broker)
        publish("kept", b"1", b"2")
        publish("other", b"3", retention=None)
        log = log_of(broker)
        log.execute("UPDATE rooms SET hour = hour - 100")
        log.forget()
        assert broker.history("other", None, AMPLE).position is None
        assert kept(broker, "kept") == [b"1", b"2"]


def test_local_returns_no_old_messages_when_the_clock_was_set_back(
    directory: Path, local_broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    with closing(local_broker) as broker:
        Publisher(broker)("a", b"1", b"2")
        monkeypatch.setattr(time, "time", lambda: now - 7200)
        assert kept(broker, "a") == [b"1", b"2"]
        assert kept(broker, "a", AMPLE._replace(seconds=0.0)) == []
        monkeypatch.setattr(time, "time", lambda: now + 7200)
        assert kept(broker, "a") == []


def test_local_knows_no_messages_of_a_log_that_was_replaced(directory: Path, local_broker: LocalBroker) -> None:
    with closing(local_broker) as broker:
        publish = Publisher(broker)
        publish("a", b"1", b"2")
        after = position_of(broker, "a")
        log_of(broker).retire()
        with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
            broker.history("a", after, AMPLE)
        assert broker.history("a", after, AMPLE) == (None, [])
        publish("a", b"3")
        assert broker.history("a", after, AMPLE).messages == []
        assert position_of(broker, "a").epoch != after.epoch


def test_local_costs_at_most_400_bytes_for_a_message(directory: Path, local_broker: LocalBroker) -> None:
    retention = AMPLE._replace(messages=100)
    with closing(local_broker) as broker:
        publish = Publisher(broker)
        for number in range(3000):
            publish(f"a room with a name {number % 10}", bytes(200), retention=retention)
        log = log_of(broker)

        def free() -> int:
            ((pages,),) = log.execute("PRAGMA freelist_count")
            return int(pages) * local_log.PAGE_SIZE

        before, count = free(), rows(directory, "history")
        assert count == 1000
        log.execute("DELETE FROM history")
        log.execute("DELETE FROM histories")
        assert free() - before < count * (200 + 400)
