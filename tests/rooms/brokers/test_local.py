"""The local broker between real processes: one order, what may be lost shows, and nothing hangs for ever."""

from __future__ import annotations

import fcntl
import gc
import itertools
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import flask_uwsgi_websocket
from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers import local, local_directory, local_log, local_schema
from flask_uwsgi_websocket.rooms.brokers.base import (
    Compared,
    Delivered,
    Event,
    Outgoing,
    Position,
    Subscribed,
    Subscription,
)
from flask_uwsgi_websocket.rooms.brokers.local import LocalBroker, LocalSubscription
from flask_uwsgi_websocket.rooms.brokers.local_directory import is_in_use, remove
from flask_uwsgi_websocket.rooms.brokers.local_log import Log
from support.brokers import TAKE
from support.inprocess import DEADLINE, wait_until
from support.live import UWSGI
from support.needs import require

#: What each other process begins with.
PRELUDE = (
    """
import fcntl, gc, itertools, json, os, signal, sqlite3, sys, threading, time
from contextlib import closing
from pathlib import Path
from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers import local, local_directory, local_log, local_schema
from flask_uwsgi_websocket.rooms.brokers.base import Compared, Delivered, Outgoing, Subscribed
from flask_uwsgi_websocket.rooms.brokers.local import LocalBroker

directory = Path(sys.argv[1])

def say(*what):
    print(json.dumps(what), flush=True)

def is_unavailable(call, *arguments):
    try:
        call(*arguments)
    except BrokerUnavailable as error:
        return str(error)

def use(path):
    with closing(LocalBroker(path)) as broker:
        broker.publish([], "me")
"""
    + TAKE
)

#: Publishes messages, as many at a time as its name has letters.
PUBLISHER = """
rooms, name, count = json.loads(sys.argv[2]), sys.argv[3], int(sys.argv[4])
broker = LocalBroker(directory)
say("ready")
sys.stdin.readline()
messages = iter([Outgoing(rooms[n % len(rooms)], f"{name} {n}".encode(), n) for n in range(1, count + 1)])
while batch := list(itertools.islice(messages, len(name))):
    broker.publish(batch, name)
broker.close()
"""

SUBSCRIBER = """
broker = LocalBroker(directory)
subscription = broker.subscribe(json.loads(sys.argv[2]))
while True:
    for event in take(subscription):
        if isinstance(event, Delivered):
            say("delivered", event.room, *event.position, event.previous, event.data.decode())
        elif isinstance(event, Subscribed):
            say("subscribed", *event.rooms)
        else:
            say("compared", event.positions)
"""

#: Holds the lock of the log, and stops.
HOLDER = """
(log,) = directory.glob("log-*/log")
connection = sqlite3.connect(log, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
say("ready")
os.kill(os.getpid(), signal.SIGSTOP)
connection.execute("COMMIT")
"""


class Process:
    """Another Python process, which prints lines of JSON."""

    def __init__(self, code: str, *arguments: object, command: Sequence[str] = ()) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(flask_uwsgi_websocket.__file__).parents[1])}
        self.popen = subprocess.Popen(
            [*command, sys.executable, "-W", "error", "-c", PRELUDE + code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def read(self) -> Any:
        """Return what it says next."""
        assert self.popen.stdout
        line = self.popen.stdout.readline()
        assert line, f"it has ended with {self.popen.wait()}"
        return json.loads(line)

    def read_until(self, kind: str) -> Any:
        while (said := self.read())[0] != kind:
            pass
        return said

    def go_on(self) -> None:
        assert self.popen.stdin
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def stop(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)
        self.wait_until_stopped()

    def wait_until_stopped(self) -> None:
        os.waitid(os.P_PID, self.popen.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def expect_success(self) -> None:
        assert self.popen.wait() == 0


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start other processes, which end with the test."""
    processes: list[Process] = []

    def start(code: str, *arguments: object, command: Sequence[str] = ()) -> Process:
        processes.append(Process(code, *arguments, command=command))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        for stream in (process.popen.stdin, process.popen.stdout):
            assert stream
            stream.close()


@pytest.fixture
def parent() -> Iterator[Path]:
    """A directory whose path is short."""
    with tempfile.TemporaryDirectory(prefix="broker-") as name:
        yield Path(name).resolve()


@pytest.fixture
def directory(parent: Path) -> Path:
    return parent / "rooms"


class TidyBroker(LocalBroker):
    """A broker that closes its subscriptions when it is closed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._subscriptions: list[LocalSubscription] = []

    def subscribe(self, rooms: Iterable[str]) -> LocalSubscription:
        self._subscriptions.append(super().subscribe(rooms))
        return self._subscriptions[-1]

    def close(self) -> None:
        super().close()
        for subscription in self._subscriptions:
            subscription.close()


@pytest.fixture
def broker(directory: Path) -> Iterator[LocalBroker]:
    with closing(TidyBroker(directory)) as broker:
        yield broker


def use(path: Path) -> None:
    """Open a directory and close it, as the first use of a broker opens it."""
    with closing(LocalBroker(path)) as broker:
        broker.publish([], "me")


def log_of(broker: LocalBroker) -> Log:
    opened = broker._use().opened
    assert opened is not None
    return opened.log


def outgoing(room: str, *texts: str, first: int = 1) -> list[Outgoing]:
    return [Outgoing(room, text.encode(), number) for number, text in enumerate(texts, first)]


def next_events(subscription: Subscription) -> Sequence[Event]:
    """Wait until the descriptor of a subscription announces something, without a tick, and return it."""
    poll = select.poll()
    poll.register(subscription.fileno(), select.POLLIN)
    assert poll.poll(DEADLINE * 1000), "nobody has rung"
    return subscription.receive()


def receive(subscription: Subscription, enough: Callable[[list[Event]], object]) -> list[Event]:
    """Receive until there is enough."""
    events: list[Event] = []
    while not enough(events):
        events += next_events(subscription)
    return events


def delivered(events: list[Event]) -> list[Delivered]:
    return [event for event in events if isinstance(event, Delivered)]


def texts(events: list[Event]) -> list[str]:
    return [event.data.decode() for event in delivered(events)]


def compared(events: list[Event]) -> dict[str, Position | None]:
    return {room: place for event in events if isinstance(event, Compared) for room, place in event.positions.items()}


def until_texts(subscription: Subscription, *expected: str) -> None:
    assert texts(receive(subscription, lambda events: len(texts(events)) >= len(expected))) == list(expected)


def confirmed(broker: LocalBroker, *rooms: str) -> Subscription:
    """Return a subscription that has confirmed its rooms."""
    subscription = broker.subscribe(rooms)
    receive(subscription, lambda events: len(compared(events)) == len(set(rooms)))
    return subscription


def bells(directory: Path) -> set[str]:
    return {bell.name for bell in directory.glob("log-*/bells/*")}


def log_file(directory: Path) -> Path:
    (file,) = directory.glob("log-*/log")
    return file


def epoch_of(directory: Path) -> str:
    return log_file(directory).parent.name.removeprefix("log-")


def check_chain(events: Sequence[tuple[str, int, int]]) -> None:
    """Check that the messages of each room follow one another: room, offset, previous."""
    last: dict[str, int] = {}
    for room, offset, previous in events:
        assert previous == last.get(room, 0)
        assert offset == previous + 1
        last[room] = offset


def test_all_processes_see_one_order_of_the_messages_of_several_processes(
    directory: Path, start: Callable[..., Process]
) -> None:
    rooms, count = ["a", "b", "c"], 400
    subscribers = [start(SUBSCRIBER, directory, json.dumps(rooms)) for _ in range(2)]
    for subscriber in subscribers:
        subscriber.read_until("compared")
    names = ["x", "yyy", "zzzzzzzzzz"]
    publishers = [start(PUBLISHER, directory, json.dumps(rooms), name, count) for name in names]
    for publisher in publishers:
        publisher.read_until("ready")
    for publisher in publishers:
        publisher.go_on()
    seen = [[subscriber.read_until("delivered") for _ in range(count * len(names))] for subscriber in subscribers]
    assert seen[0] == seen[1]
    check_chain([(room, offset, previous) for _, room, _, offset, previous, _ in seen[0]])
    for name in names:
        numbers = [int(text.split()[1]) for *_, text in seen[0] if text.split()[0] == name]
        assert numbers == list(range(1, count + 1))
    for publisher in publishers:
        publisher.expect_success()


def test_a_publisher_learns_how_many_subscriptions_it_reaches(
    directory: Path, broker: LocalBroker, start: Callable[..., Process]
) -> None:
    assert broker.publish(outgoing("a", "1"), "me") == [0]
    with closing(broker.subscribe(["a"])):
        start(SUBSCRIBER, directory, '["a"]').read_until("compared")
        assert broker.publish(outgoing("a", "2", "3", first=2), "me") == [2, 2]
    assert broker.publish(outgoing("a", "4", first=4), "me") == [1]


def test_a_repeated_batch_is_not_published_again(directory: Path, broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    broker.publish(outgoing("a", "1", "2"), "me")
    assert broker.publish(outgoing("a", "1", "2", "3"), "me") == [-1, -1, 1]
    with closing(LocalBroker(directory)) as other:
        assert other.publish(outgoing("a", "2", "3", "4", first=2), "me") == [-1, -1, 1]
        assert other.publish(outgoing("a", "1 of another"), "another") == [1]
    assert broker.publish([], "me") == []
    until_texts(subscription, "1", "2", "3", "4", "1 of another")


def test_a_repeated_batch_rings_because_the_first_one_may_not_have(broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    log_of(broker).publish(outgoing("a", "1"), "me")
    assert broker.publish(outgoing("a", "1"), "me") == [-1]
    until_texts(subscription, "1")


def test_a_subscription_confirms_rooms_and_then_compares_them(broker: LocalBroker) -> None:
    broker.publish(outgoing("a", "1", "2"), "me")
    subscription = broker.subscribe(["a", "empty"])
    subscribed, comparison = receive(subscription, compared)
    assert isinstance(subscribed, Subscribed)
    assert set(subscribed.rooms) == {"a", "empty"}
    epoch = log_of(broker).epoch
    assert comparison == Compared({"a": Position(epoch, 2), "empty": None})
    broker.publish(outgoing("a", "3", first=3), "me")
    assert next_events(subscription) == [Delivered("a", Position(epoch, 3), 2, b"3")]


def test_what_is_published_after_add_is_delivered_and_counts_as_delivered(broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    subscription.add("b")
    broker.publish(outgoing("b", "1"), "me")
    broker.publish(outgoing("a", "2", first=2), "me")
    events = receive(subscription, compared)
    assert texts(events) == ["1", "2"]
    assert events[2:] == [Subscribed(["b"]), Compared({"b": Position(log_of(broker).epoch, 1)})]


def test_a_room_that_is_removed_is_neither_confirmed_nor_delivered(broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a", "b")
    subscription.add("c")
    subscription.remove("c")
    subscription.remove("b")
    subscription.remove("unknown")
    broker.publish([*outgoing("b", "1"), *outgoing("c", "2", first=2), *outgoing("a", "3", first=3)], "me")
    events = receive(subscription, delivered)
    assert texts(events) == ["3"]
    assert not compared(events)


def test_rooms_that_come_and_go_while_messages_arrive_are_complete_from_their_confirmation_on(
    directory: Path, broker: LocalBroker, start: Callable[..., Process]
) -> None:
    rooms, count = ["a", "b", "c"], 1500
    subscription = confirmed(broker, "a")
    publisher = start(PUBLISHER, directory, json.dumps(rooms), "x", count)
    publisher.read_until("ready")
    publisher.go_on()
    ended = threading.Event()
    names = itertools.cycle(["b", "c"])

    def come_and_go() -> None:
        while not ended.is_set():
            room = next(names)
            subscription.add(room)
            subscription.remove(room)
            subscription.add(room)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    last = dict.fromkeys(rooms, 0)

    def note(events: Sequence[Event]) -> None:
        for event in delivered(list(events)):
            # Of the others, messages may be lost between remove() and add(). A comparison follows.
            assert event.previous == last["a"] or event.room != "a"
            last[event.room] = event.position.offset
        for room, place in compared(list(events)).items():
            last[room] = place.offset if place else 0

    try:
        while last["a"] < count // 3:
            note(next_events(subscription))
    finally:
        ended.set()
        thread.join()
    subscription.add("end")
    note(receive(subscription, lambda events: "end" in compared(events)))
    assert last == {**dict.fromkeys(rooms, count // 3), "end": 0}


def test_thousands_of_rooms_are_confirmed_in_several_calls(broker: LocalBroker) -> None:
    rooms = {f"room {number}" for number in range(2 * local.COMPARED_ROOMS + 500)}
    with closing(broker.subscribe(rooms)) as subscription:
        sizes = [len(compared(list(next_events(subscription)))) for _ in range(3)]
        assert sizes == [local.COMPARED_ROOMS, local.COMPARED_ROOMS, 500]
        broker.publish(outgoing("room 7", "1"), "me")
        until_texts(subscription, "1")


@pytest.mark.parametrize(
    "room", ["", "\0", "a\0b", "line\nfeed", "'; DROP TABLE log; --", '"', "ø 部屋 🚪", "x" * 10_000]
)
def test_a_room_may_have_any_name(broker: LocalBroker, room: str) -> None:
    subscription = confirmed(broker, room, "a")
    broker.publish(outgoing(room, "1"), "me")
    (event,) = delivered(receive(subscription, delivered))
    assert (event.room, event.data) == (room, b"1")
    subscription.add(room)
    assert compared(receive(subscription, compared)) == {room: event.position}


@pytest.mark.parametrize("data", [b"", bytes(range(256)), os.urandom(2**20)], ids=["empty", "binary", "1 MiB"])
def test_a_message_may_be_any_bytes(broker: LocalBroker, data: bytes) -> None:
    subscription = confirmed(broker, "a")
    broker.publish([Outgoing("a", data, number) for number in range(1, 21)], "me")
    events = receive(subscription, lambda events: len(events) == 20)
    assert {event.data for event in delivered(events)} == {data}
    check_chain([(event.room, event.position.offset, event.previous) for event in delivered(events)])


def test_a_subscription_begins_at_the_end_of_the_log(directory: Path, broker: LocalBroker) -> None:
    broker.publish(outgoing("a", "1"), "me")
    subscription = confirmed(broker, "a")
    broker.publish(outgoing("a", "2", first=2), "me")
    until_texts(subscription, "2")


def test_a_message_arrives_without_its_bell_at_the_next_tick(broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    log_of(broker).publish(outgoing("a", "1"), "me")
    subscription.tick()
    until_texts(subscription, "1")


def test_a_bell_is_found_as_soon_as_it_is_there(broker: LocalBroker) -> None:
    for number in range(1, 200):
        with closing(broker.subscribe(["a"])):
            assert broker.publish(outgoing("a", "x", first=number), "me") == [1]
        if number % 3 == 0:
            assert broker.publish(outgoing("b", "x", first=number), "you") == [0]


def test_a_subscription_whose_bell_was_deleted_is_over(directory: Path, broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    (bell,) = directory.glob("log-*/bells/*")
    bell.unlink()
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="was deleted"):
            subscription.tick()


def test_a_stopped_subscriber_does_not_silence_the_bells_of_others(
    directory: Path, broker: LocalBroker, start: Callable[..., Process]
) -> None:
    stopped = start(SUBSCRIBER, directory, '["a"]')
    stopped.read_until("compared")
    stopped.stop()
    subscription = confirmed(broker, "a")
    for number in range(1, 2001):
        assert broker.publish(outgoing("a", "x", first=number), "me") == [2]
        assert len(receive(subscription, delivered)) == 1
    stopped.resume()
    for number in range(1, 2001):
        assert stopped.read_until("delivered")[3] == number


def test_the_bells_of_killed_subscribers_are_removed(
    directory: Path, broker: LocalBroker, start: Callable[..., Process]
) -> None:
    subscribers = [start(SUBSCRIBER, directory, '["a"]') for _ in range(3)]
    for subscriber in subscribers:
        subscriber.read_until("compared")
    assert broker.publish(outgoing("a", "1"), "me") == [3]
    for subscriber in subscribers[1:]:
        subscriber.kill()
    assert broker.publish(outgoing("a", "2", first=2), "me") == [1]
    assert len(bells(directory)) == 1
    with closing(LocalBroker(directory)) as other:  # which finds a dead bell at once
        subscribers[0].kill()
        assert other.publish(outgoing("a", "3", first=3), "me") == [0]
    assert not bells(directory)


def test_publishing_ends_with_an_error_when_another_process_stops_with_the_lock(
    directory: Path, broker: LocalBroker, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_directory, "LOCK_TIMEOUT", 0.2)
    subscription = confirmed(broker, "a")
    broker.publish(outgoing("a", "1"), "me")
    holder = start(HOLDER, directory)
    holder.read()
    holder.wait_until_stopped()
    with pytest.raises(BrokerUnavailable, match=r"has locked .*SIGSTOP.* Continue or end it\."):
        broker.publish(outgoing("a", "2", first=2), "me")
    assert is_in_use(directory)
    until_texts(subscription, "1")
    subscription.add("b")
    assert compared(receive(subscription, compared)) == {"b": None}
    confirmed(broker, "a").close()
    holder.kill()
    assert broker.publish(outgoing("a", "2", first=2), "me") == [1]
    until_texts(subscription, "2")


def test_publishing_goes_on_at_once_when_the_holder_of_the_lock_is_killed(
    directory: Path, broker: LocalBroker, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_directory, "LOCK_TIMEOUT", 1000.0)
    broker.publish([], "me")
    holder = start(HOLDER, directory)
    holder.read()
    killer = threading.Timer(0.1, holder.popen.kill)
    killer.start()
    assert broker.publish(outgoing("a", "1"), "me") == [0]
    killer.join()


def test_a_subscriber_that_was_stopped_for_too_long_learns_what_it_has_missed(
    directory: Path, broker: LocalBroker, start: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_log, "LOG_BYTES", 10 * local_schema.OVERHEAD)
    monkeypatch.setattr(local, "PRUNE_MESSAGES", 1)
    subscriber = start(SUBSCRIBER, directory, '["a", "b", "empty"]')
    subscriber.read_until("compared")
    subscriber.stop()
    broker.publish(outgoing("b", "1"), "me")
    for number in range(2, 402):
        broker.publish(outgoing("a", "", first=number), "me")
    subscriber.resume()
    epoch = log_of(broker).epoch
    first = subscriber.read_until("delivered")
    assert first[1] == "a"
    assert 300 < first[3] < 401
    assert first[4] == first[3] - 1
    assert subscriber.read_until("compared")[1] == {"a": [epoch, 400], "b": [epoch, 1], "empty": None}


def test_old_messages_are_deleted(directory: Path, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_log, "LOG_SECONDS", -1)
    monkeypatch.setattr(local, "PRUNE_MESSAGES", 1)
    for number in range(1, 100):
        broker.publish(outgoing("a", "x", first=number), "me")
    with closing(sqlite3.connect(log_file(directory))) as connection:
        assert connection.execute("SELECT id FROM log").fetchall() == [(98,), (99,)]


def test_a_room_that_was_forgotten_begins_above_all_earlier_offsets(
    broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = confirmed(broker, "a", "b")
    broker.publish(outgoing("a", "1", "2", "3"), "me")
    broker.publish(outgoing("b", "4", first=4), "me")
    monkeypatch.setattr(local_log, "FORGET_HOURS", -1)
    log_of(broker).forget()
    assert broker.publish(outgoing("b", "5", "6", first=5), "me") == [1, 1]
    events = delivered(receive(subscription, lambda events: len(delivered(events)) == 6))
    assert [(event.room, event.position.offset, event.previous) for event in events[-2:]] == [("b", 4, 0), ("b", 5, 4)]


def test_a_room_in_use_is_not_forgotten(broker: LocalBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    broker.publish(outgoing("a", "1"), "me")
    log = log_of(broker)
    log.execute("UPDATE rooms SET hour = hour - 100")
    broker.publish(outgoing("a", "2", first=2), "me")
    log.forget()
    assert log.positions(["a"]) == {"a": Position(log.epoch, 2)}
    log.execute("UPDATE rooms SET hour = hour - 100")
    log.forget()
    assert log.positions(["a"]) == {"a": None}


def test_the_log_and_its_journal_stay_small(directory: Path, broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    data = os.urandom(2**19)
    most = 0
    for number in range(1, 401):
        broker.publish([Outgoing("a", data, number)], "me")
        receive(subscription, delivered)
        most = max(most, sum(file.stat().st_size for file in directory.glob("log-*/log*")))
    assert 0 < most < local_log.LOG_BYTES + local.PRUNE_BYTES + local_log.LONG_JOURNAL + 2 * 2**20


def test_a_log_whose_journal_grows_is_replaced(
    directory: Path, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_log, "LONG_JOURNAL", 2**16)
    monkeypatch.setattr(local_log, "LONGEST_JOURNAL", 2**20)
    monkeypatch.setattr(local, "PRUNE_MESSAGES", 1)
    subscription = confirmed(broker, "a")
    with closing(sqlite3.connect(log_file(directory), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM log").fetchall()

        def publish() -> None:
            for number in range(1, 100):
                broker.publish([Outgoing("a", bytes(2**16), number)], "me")

        epoch = epoch_of(directory)
        with pytest.raises(BrokerUnavailable, match="has grown"):
            publish()
    assert broker.publish(outgoing("a", "1"), "me") == [0]
    assert epoch_of(directory) != epoch
    with pytest.raises(BrokerUnavailable, match="replaced"):
        subscription.tick()


FULL = """
broker = LocalBroker(directory)
subscription = broker.subscribe(["a"])
take(subscription)
broker.publish([Outgoing("a", b"x" * 1000, 1)], "me")
with open(directory / "filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        pass
number = 2
while not (error := is_unavailable(broker.publish, [Outgoing("a", b"x" * 1000, number)], "me")):
    number += 1
say(error)
say(is_unavailable(use, directory) or "opened")
say(is_unavailable(lambda: broker.subscribe(["a"]).close()) or "subscribed")
os.unlink(directory / "filler")
broker.publish([Outgoing("a", b"x" * 1000, number), Outgoing("a", b"end", number + 1)], "me")
offsets = []
while len(offsets) < number + 1:
    offsets += [event.position.offset for event in take(subscription) if isinstance(event, Delivered)]
assert offsets == list(range(1, number + 2)), offsets
subscription.close()
broker.close()
"""


def mounting(options: str, directory: Path) -> list[str]:
    """Return a command that runs another one where a directory is a tmpfs of its own."""
    script = 'mount -t tmpfs -o "$1,mode=700" tmpfs "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", options, str(directory)]


def test_a_full_file_system_is_an_error_and_publishing_goes_on_when_there_is_space_again(
    directory: Path, start: Callable[..., Process]
) -> None:
    require("namespaces")
    directory.mkdir(0o700)
    process = start(FULL, directory, command=mounting("size=2m", directory))
    assert "Check that there is space" in process.read()[0]
    process.expect_success()


def test_the_log_leaves_space_on_a_small_file_system(directory: Path, start: Callable[..., Process]) -> None:
    require("namespaces")
    directory.mkdir(0o700)
    code = """
broker = LocalBroker(directory)
for number in range(1, 301):
    broker.publish([Outgoing("a", os.urandom(2**18), number)], "me")
"""
    start(code, directory, command=mounting("size=20m", directory)).expect_success()


def test_a_read_only_file_system_is_an_error_with_a_remedy(directory: Path, start: Callable[..., Process]) -> None:
    require("namespaces")
    directory.mkdir(0o700)
    code = "say(is_unavailable(use, directory), is_unavailable(use, directory / 'new'))"
    for error in start(code, directory, command=mounting("ro", directory)).read():
        assert "Read-only file system. Choose" in error


def test_the_directory_is_made_for_this_user_alone_by_the_first_use(directory: Path, broker: LocalBroker) -> None:
    assert not directory.exists()
    broker.publish([], "me")
    assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_a_directory_that_others_may_use_is_refused(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(BrokerUnavailable, match=r"Other users may use .* Run chmod 700"):
        use(directory)
    assert not list(directory.iterdir())


def test_a_link_to_a_directory_is_refused(parent: Path, directory: Path) -> None:
    (parent / "target").mkdir(0o700)
    directory.symlink_to(parent / "target")
    for call in (use, is_in_use, remove):
        with pytest.raises(BrokerUnavailable, match="is not a directory"):
            call(directory)


def test_a_directory_of_another_user_is_refused(directory: Path) -> None:
    if os.geteuid() == 0:
        directory.mkdir(0o700)
        os.chown(directory, 1, 1)
    else:
        directory = Path("/")
    for call in (use, is_in_use, remove):
        with pytest.raises(BrokerUnavailable, match=r"belongs to user .* Run all processes"):
            call(directory)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("/dev/null", "is not a directory"),
        ("/dev/null/rooms", "Choose a path whose parts are directories"),
        ("/dev/shm/missing/rooms", "Make its parent directory"),
        ("/sys/rooms", r"Choose a directory"),
        ("/tmp/" + "x" * 80, "13 bytes too long"),
    ],
)
def test_a_path_that_cannot_be_used_is_an_error_with_a_remedy(path: str, remedy: str) -> None:
    with pytest.raises(BrokerUnavailable, match=remedy):
        use(Path(path))


def test_a_path_may_be_as_long_as_the_error_says(parent: Path) -> None:
    name = "x" * (local_directory.MAX_PATH - len(os.fsencode(parent)) - 1)
    with closing(TidyBroker(parent / name)) as broker:
        subscription = confirmed(broker, "a")
        assert broker.publish(outgoing("a", "1"), "me") == [1]
        until_texts(subscription, "1")


def check_healed(broker: LocalBroker, epoch: str) -> None:
    """Check that a broker works again, with another log than the one of an epoch."""
    subscription = confirmed(broker, "a")
    assert log_of(broker).epoch != epoch
    assert broker.publish(outgoing("a", "healed"), "you") == [1]
    until_texts(subscription, "healed")


@pytest.mark.parametrize("first", ["publish", "subscribe"])
def test_a_directory_that_was_deleted_is_made_again_by_the_call_after_the_one_that_notices(
    directory: Path, broker: LocalBroker, first: str
) -> None:
    subscription = confirmed(broker, "a")
    epoch = epoch_of(directory)
    shutil.rmtree(directory)
    with pytest.raises(BrokerUnavailable):
        broker.publish(outgoing("a", "1"), "me") if first == "publish" else broker.subscribe(["a"])
    with pytest.raises(BrokerUnavailable, match="was deleted"):
        subscription.tick()
    check_healed(broker, epoch)


def test_a_deleted_log_is_noticed_and_made_again(
    directory: Path, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PRUNE_MESSAGES", 1)
    subscription = confirmed(broker, "a")
    epoch = epoch_of(directory)
    log_file(directory).unlink()
    with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
        broker.publish(outgoing("a", "1"), "me")
    with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
        subscription.tick()
    check_healed(broker, epoch)


def test_a_replaced_log_wakes_its_readers(directory: Path, broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    log_of(broker).retire()
    use(directory)
    with pytest.raises(BrokerUnavailable, match="replaced"):
        receive(subscription, lambda _: False)


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000], ids=["empty", "garbage"])
def test_a_damaged_log_is_replaced_when_it_is_opened(directory: Path, content: bytes) -> None:
    with closing(LocalBroker(directory)) as broker:
        broker.publish(outgoing("a", "1"), "me")
    epoch = epoch_of(directory)
    log_file(directory).write_bytes(content)
    with closing(LocalBroker(directory)) as other:
        assert other.publish(outgoing("a", "1"), "me") == [0]
    assert epoch_of(directory) != epoch


def test_a_log_that_is_damaged_while_it_is_open_is_replaced(directory: Path, broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    for number in range(1, 100):
        broker.publish([Outgoing("a", bytes(1000), number)], "me")
    receive(subscription, lambda events: len(delivered(events)) == 99)
    log_of(broker).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    epoch, file = epoch_of(directory), log_file(directory)
    with file.open("r+b") as stream:
        stream.write(os.urandom(file.stat().st_size))
    with pytest.raises(BrokerUnavailable, match=r"is damaged: .*replaces it\."):
        confirmed(broker, "a")
    with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
        subscription.tick()
    check_healed(broker, epoch)


def test_a_log_of_another_version_is_not_touched(directory: Path) -> None:
    use(directory)
    with closing(sqlite3.connect(log_file(directory))) as connection:
        connection.execute("PRAGMA user_version = 1000")
    with pytest.raises(BrokerUnavailable, match="Another version"):
        use(directory)
    assert log_file(directory).exists()


def test_processes_that_open_and_close_at_once_share_one_log(directory: Path, start: Callable[..., Process]) -> None:
    code = """
say("ready")
sys.stdin.readline()
for number in range(1, 31):
    broker = LocalBroker(directory)
    broker.publish([Outgoing("a", b"x", number)], sys.argv[2])
    epoch = broker._use().opened.log.epoch
    broker.close()
say(epoch)
"""
    processes = [start(code, directory, name) for name in "abcdef"]
    for process in processes:
        process.read()
    for process in processes:
        process.go_on()
    epochs = {tuple(process.read()) for process in processes}
    epoch = epoch_of(directory)
    assert epochs == {(epoch,)}
    with closing(TidyBroker(directory)) as broker:
        subscription = broker.subscribe(["a"])
        assert compared(receive(subscription, compared)) == {"a": Position(epoch, 180)}


@pytest.mark.parametrize(("name", "what"), [("setup", "is making the log in"), ("users", "is removing")])
def test_opening_ends_with_an_error_when_another_process_stops_in_the_middle_of_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    use(directory)
    monkeypatch.setattr(local_directory, "LOCK_TIMEOUT", 0.1)
    with (directory / name).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BrokerUnavailable, match=f"{what} .* Continue or end that process"):
            use(directory)
    use(directory)


def test_a_closed_subscription_says_so_and_ignores_the_rest(directory: Path, broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    subscription.close()
    assert not bells(directory)
    subscription.close()
    subscription.add("b")
    subscription.remove("a")
    with pytest.raises(BrokerUnavailable, match="is closed"):
        subscription.receive()


def test_a_closed_broker_leaves_nothing_and_opens_again_at_its_next_use(directory: Path, broker: LocalBroker) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(1, 21):
        subscription = confirmed(broker, "a")
        assert broker.publish(outgoing("a", "x", first=number), "me") == [1]
        broker.close()
        assert not is_in_use(directory)
        assert not bells(directory)
        assert not local_log._logs
        with pytest.raises(BrokerUnavailable, match="is closed"):
            subscription.receive()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_closing_a_broker_waits_for_no_publisher_and_disturbs_none(directory: Path, broker: LocalBroker) -> None:
    broker.publish([], "me")
    opened, reached = broker._use().opened, list[int]()
    assert opened is not None
    with closing(sqlite3.connect(log_file(directory), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=lambda: reached.extend(broker.publish(outgoing("a", "1"), "me")))
        thread.start()
        wait_until(lambda: opened.calls)
        broker.close()
        holder.execute("COMMIT")
        thread.join()
    assert reached == [0]
    assert not local_log._logs


def test_what_is_published_at_once_comes_in_the_order_of_all_calls(broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    assert broker.publish_now(outgoing("a", "early"), "me") is None  # not before a call that may wait
    assert broker.publish(outgoing("a", "1"), "me") == [1]
    assert broker.publish_now(outgoing("a", "2", "3", first=2), "me") == [1, 1]
    assert broker.publish(outgoing("a", "4", first=4), "me") == [1]
    assert broker.publish_now(outgoing("a", "5", first=5), "me") == [1]
    until_texts(subscription, "1", "2", "3", "4", "5")


def test_nothing_is_published_at_once_that_would_wait_or_come_twice(
    directory: Path, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = confirmed(broker, "a")
    broker.publish(outgoing("a", "1"), "me")
    with closing(sqlite3.connect(log_file(directory), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        assert broker.publish_now(outgoing("a", "2", first=2), "me") is None
        holder.execute("COMMIT")
    assert broker.publish_now(outgoing("a", "2", first=2), "another") is None
    assert broker.publish_now(outgoing("a", "1"), "me") is None
    with monkeypatch.context() as patch:
        patch.setattr(local, "TRANSACTION_BYTES", 10)
        assert broker.publish_now(outgoing("a", "2", first=2), "me") is None
    assert broker.publish_now(outgoing("a", "2", first=2), "me") == [1]
    until_texts(subscription, "1", "2")
    broker.close()
    assert broker.publish_now(outgoing("a", "3", first=3), "me") is None


def test_several_publishers_of_one_broker_do_not_mix_up_their_numbers(broker: LocalBroker) -> None:
    subscription = confirmed(broker, "a")
    count, names = 300, ["x", "y", "z"]
    reached: list[int] = []

    def publish(name: str) -> None:
        # The numbers differ, so that the last number of another publisher would look like a repetition.
        first = 1 + names.index(name) * count
        for number in range(first, first + count):
            reached.extend(broker.publish([Outgoing("a", name.encode(), number)], name))

    threads = [threading.Thread(target=publish, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reached == [1] * count * len(names)
    events = receive(subscription, lambda events: len(delivered(events)) == count * len(names))
    assert sorted(texts(events)) == sorted(names * count)


def test_a_directory_may_be_deleted_again_and_again_while_threads_publish_and_subscribe(
    directory: Path, broker: LocalBroker
) -> None:
    ended = threading.Event()
    errors: list[BaseException] = []

    def repeat(call: Callable[[int], object]) -> None:
        for number in itertools.count(1):
            if ended.is_set():
                return
            try:
                call(number)
            except BrokerUnavailable:
                continue
            except BaseException as error:
                errors.append(error)
                return

    def publish(number: int) -> None:
        broker.publish(outgoing("a", "x", first=number), str(threading.get_ident()))

    def subscribe(number: int) -> None:
        with closing(LocalBroker.subscribe(broker, ["a"])) as subscription:
            subscription.tick()
            subscription.receive()

    def epochs() -> set[str]:
        return {log.parent.name for log in directory.glob("log-*/log")}

    threads = [threading.Thread(target=repeat, args=(call,)) for call in (publish, publish, subscribe, subscribe)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            before = epochs()
            shutil.rmtree(directory, ignore_errors=True)
            wait_until(lambda before=before: errors or epochs() - before)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not errors
    with suppress(BrokerUnavailable):  # of the last deletion, if no thread has noticed it
        broker.publish([], "me")
    check_healed(broker, "")
    broker.close()
    assert not local_log._logs


def test_rooms_that_come_and_go_leave_nothing(broker: LocalBroker) -> None:
    subscription = broker.subscribe([])
    numbers = itertools.count(1)

    def churn(rounds: int) -> int:
        for round_ in range(rounds):
            rooms = [f"{round_} {number}" for number in range(1000)]
            for room in rooms:
                subscription.add(room)
            receive(subscription, lambda events: len(compared(events)) == 1000)
            broker.publish([Outgoing(room, b"x", next(numbers)) for room in rooms[:100]], "me")
            receive(subscription, lambda events: len(delivered(events)) == 100)
            for room in rooms:
                subscription.remove(room)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = churn(3)
        assert churn(10) < before + 2**17
    finally:
        tracemalloc.stop()


def test_whether_a_directory_is_in_use_ends_with_its_processes(directory: Path, start: Callable[..., Process]) -> None:
    assert not is_in_use(directory)
    processes = [start(SUBSCRIBER, directory, '["a"]') for _ in range(2)]
    for process in processes:
        process.read_until("compared")
        assert is_in_use(directory)
    for process in processes:
        assert is_in_use(directory)
        remove(directory)
        assert directory.exists()
        process.kill()
    assert not is_in_use(directory)
    for _ in range(2):
        remove(directory)
        assert not directory.exists()


def test_a_directory_is_in_use_while_a_broker_or_a_subscription_has_it_open(directory: Path) -> None:
    broker = LocalBroker(directory)
    subscription = broker.subscribe(["a"])
    broker.close()
    assert is_in_use(directory)
    broker.publish([], "me")
    subscription.close()
    assert is_in_use(directory)
    remove(directory)
    assert directory.exists()
    broker.close()
    assert not is_in_use(directory)


def test_removing_leaves_the_files_of_others(directory: Path) -> None:
    use(directory)
    (directory / "precious").touch()
    for _ in range(2):
        remove(directory)
        assert [file.name for file in directory.iterdir()] == ["precious"]


def test_a_directory_that_is_removed_again_and_again_can_always_be_opened(
    directory: Path, start: Callable[..., Process]
) -> None:
    code = """
say("ready")
while True:
    local_directory.remove(directory)
"""
    start(code, directory).read()
    for number in range(1, 100):
        with closing(LocalBroker(directory)) as broker:
            assert broker.publish(outgoing("a", "x", first=number), "me") == [0]


GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent

ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0)

def ticking(call, *arguments):
    before = ticks
    result = call(*arguments)
    assert ticks > before + 10, "no other greenlet has run"
    return result

local_directory.LOCK_TIMEOUT = 0.3
gevent.spawn(tick)
broker = LocalBroker(directory)
subscription = broker.subscribe(["a"])
subscription.receive()
assert ticking(take, subscription) == []
say("waited")
sys.stdin.readline()
assert "has locked" in ticking(is_unavailable, broker.publish, [Outgoing("a", b"1", 1)], "me")
say("unavailable")
sys.stdin.readline()
assert broker.publish([Outgoing("a", b"1", 1)], "me") == [1]
assert [event.data for event in take(subscription)] == [b"1"]

# A flood does not keep the others from running.
def flood():
    for number in range(2, 1000):
        broker.publish([Outgoing("a", b"x", number)], "me")
        broker.publish([Outgoing("b", b"x", number)], "you")
        if number % 10 == 0:
            gevent.sleep(0)
gevent.spawn(flood)
count = 0
def receive_all():
    global count
    while count < 998:
        count += len(take(subscription))
ticking(receive_all)
subscription.close()
broker.close()
say("done")
"""


def test_with_gevent_other_greenlets_run_while_the_broker_waits(
    directory: Path, broker: LocalBroker, start: Callable[..., Process]
) -> None:
    process = start(GEVENT, directory)
    assert process.read() == ["waited"]
    with closing(sqlite3.connect(log_file(directory), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        process.go_on()
        assert process.read() == ["unavailable"]
        holder.execute("COMMIT")
    process.go_on()
    assert process.read() == ["done"]
    process.expect_success()


FORK = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about a fork with threads

def wait_for(child):
    assert os.waitpid(child, 0)[1] == 0

def follow(habit):
    # Do what a habit does with the objects of the parent, and return the broker of the child.
    global broker, subscription
    if habit == "close":
        broker.close()
        subscription.close()
    elif habit == "drop":
        broker = subscription = None
        gc.collect()
    return broker or LocalBroker(directory)

broker = LocalBroker(directory)
subscription = broker.subscribe(["a"])
take(subscription)
broker.publish([Outgoing("a", b"1", 1)], "me")

child = os.fork()
if not child:
    assert "was forked" in is_unavailable(subscription.receive)
    own = follow(sys.argv[2])
    assert own.publish([Outgoing("a", b"2", 1)], "child") == [1]
    with closing(own.subscribe(["a"])) as another:
        take(another)
        assert own.publish([Outgoing("b", b"2", 2)], "child") == [2]
    own.close()
    sys.exit()  # with all that the interpreter does at its end
wait_for(child)
assert local_directory.is_in_use(directory)
assert broker.publish([Outgoing("a", b"3", 2)], "me") == [1]
data = []
while len(data) < 3:
    data += [event.data for event in take(subscription)]
assert data == [b"1", b"2", b"3"]

# While threads publish and receive.
ended = False
number = 2
def publish():
    global number
    while not ended:
        number += 1
        assert broker.publish([Outgoing("a", b"x", number)], "me") == [1]
offset = 3
def receive():
    global offset
    while not ended or offset <= number:
        for event in take(subscription):
            assert event.previous == offset
            offset = event.position.offset
threads = [threading.Thread(target=publish), threading.Thread(target=receive)]
for thread in threads:
    thread.start()
for _ in range(30):
    child = os.fork()
    if not child:
        threads = None
        own = follow(sys.argv[2])
        own.publish([], "child")
        own.close()
        sys.stdout.flush()
        os._exit(0)
    wait_for(child)
ended = True
for thread in threads:
    thread.join()
assert offset == number + 1, (offset, number)
assert broker._use().opened.log.execute("PRAGMA integrity_check") == [("ok",)]
broker.close()
subscription.close()
assert not local_directory.is_in_use(directory)
say("done")
"""


@pytest.mark.parametrize("habit", ["close", "drop", "ignore"])
def test_a_fork_changes_nothing_for_the_parent(directory: Path, start: Callable[..., Process], habit: str) -> None:
    process = start(FORK, directory, habit)
    assert process.read() == ["done"]
    process.expect_success()


def test_a_child_may_use_a_broker_that_another_thread_was_opening_at_the_fork(
    directory: Path, start: Callable[..., Process]
) -> None:
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about a fork with threads
directory.mkdir(0o700)
setup = os.open(directory / "setup", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(setup, fcntl.LOCK_EX)
broker = LocalBroker(directory)
thread = threading.Thread(target=broker.publish, args=([], "me"))
thread.start()
while not broker._use().lock.locked():
    time.sleep(0.001)
child = os.fork()
os.close(setup)
if not child:
    assert broker.publish([Outgoing("a", b"1", 1)], "child") == [0]
    broker.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join()
broker.close()
say("done")
"""
    process = start(code, directory)
    assert process.read() == ["done"]
    process.expect_success()


def test_a_child_that_was_forked_while_the_log_was_made_holds_up_nobody(
    directory: Path, start: Callable[..., Process]
) -> None:
    code = """
opened = local_directory.Directory(directory)
with opened.setup():
    child = os.fork()
    if not child:
        os.close(1)
        sys.stdin.readline()
        os._exit(0)
use(directory)
opened.close()
say("done")
assert os.waitpid(child, 0)[1] == 0
"""
    process = start(code, directory)
    assert process.read() == ["done"]
    process.go_on()
    process.expect_success()


#: How uWSGI's workers may be forked. On CPython 3.13 and newer, a worker with the last option dies in the interpreter.
FORKS = [(), ("--py-call-uwsgi-fork-hooks",), *([("--py-call-osafterfork",)] if sys.version_info < (3, 13) else [])]


@pytest.mark.parametrize("options", FORKS, ids=str)
def test_the_workers_of_uwsgi_may_use_a_broker_that_was_opened_before_they_were_forked(
    parent: Path, directory: Path, options: Sequence[str]
) -> None:
    (parent / "app.py").write_text(f"""
import os, uwsgi
from pathlib import Path
from flask_uwsgi_websocket.rooms.brokers.base import Outgoing
from flask_uwsgi_websocket.rooms.brokers.local import LocalBroker

broker = LocalBroker(Path({str(directory)!r}))
broker.publish([Outgoing("a", b"master", 1)], "master")

def publish():
    broker.publish([Outgoing("a", b"worker", 1)], str(os.getpid()))

uwsgi.post_fork_hook = publish
app = print
""")
    environ = {**os.environ, "PYTHONPATH": str(Path(flask_uwsgi_websocket.__file__).parents[1])}
    command = [
        *(str(UWSGI), "--master", "--die-on-term", "--enable-threads", "--processes", "3", *options),
        *("--virtualenv", sys.prefix) * (sys.prefix != sys.base_prefix),
        *("--socket", str(parent / "socket"), "--wsgi-file", str(parent / "app.py"), "--callable", "app"),
    ]
    log = parent / "log"
    with closing(TidyBroker(directory)) as broker:
        subscription = confirmed(broker, "a")
        with log.open("w") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output, env=environ, start_new_session=True)
        try:
            until_texts(subscription, "master", "worker", "worker", "worker")
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # a worker that is starting ignores other signals
            server.wait()
        assert log_of(broker).execute("PRAGMA integrity_check") == [("ok",)]
    assert not any(word in log.read_text() for word in ("Traceback", "Exception ignored")), log.read_text()
