"""What a process publishes: queued, bounded, in order, and handed over again until the broker has it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from gevent import monkey

from flask_uwsgi_websocket import BrokerUnavailable
from flask_uwsgi_websocket.loops.current import current_blocking_loop
from flask_uwsgi_websocket.loops.tasks import current_asyncio_loop
from flask_uwsgi_websocket.rooms import outbox as module
from flask_uwsgi_websocket.rooms.brokers.base import Broker, Outgoing, Subscription
from flask_uwsgi_websocket.rooms.envelope import SEAL_SIZE, unseal
from flask_uwsgi_websocket.rooms.outbox import Direct, Outbox, Receipt, Sender, backoff
from support.inprocess import DEADLINE, MODES, Threads, wait_until


class Log(Broker):
    """A broker that writes down what it gets, while it is open to publishers."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.is_open.set()
        self.error: Exception | None = None
        self.calls = 0
        self.got: list[tuple[str, bytes, int]] = []

    def publish(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int]:
        self.calls += 1
        assert self.is_open.wait(20)
        if self.error is not None:
            raise self.error
        self.got += [(message.room, unseal(message.data)[2], message.number) for message in messages]
        return [7] * len(messages)

    def subscribe(self, rooms: Iterable[str]) -> Subscription:
        raise BrokerUnavailable("it only takes")

    def close(self) -> None:
        pass


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def outbox(log: Log) -> Outbox:
    return Outbox(lambda: log)


def put(outbox: Outbox | Direct, data: bytes, room: str = "room") -> Receipt:
    """Publish a message, and return what becomes of it."""
    receipt = Receipt()
    outbox.put(room, data, receipt=receipt)
    return receipt


class QuickLog(Log):
    """A broker that event loops may call, unless it is stuck."""

    publishes_now = True

    def __init__(self) -> None:
        super().__init__()
        self.is_stuck = False
        #: The sizes of the batches that event loops have published.
        self.batches: list[int] = []

    def publish_now(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int] | None:
        if self.error is not None:
            raise self.error
        if self.is_stuck:
            return None
        self.batches.append(len(messages))
        return self.publish(messages, publisher)


@pytest.fixture
def quick_log() -> QuickLog:
    return QuickLog()


@pytest.fixture(params=["gevent", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Iterator[Threads]:
    """A worker with an event loop that connections use."""
    worker = MODES[request.param]()
    worker.start()
    current = current_asyncio_loop if worker.name == "asyncio" else current_blocking_loop
    loops: list[Any] = []  # so that the loop stays in use
    run_in(worker, lambda: loops.append(current()))
    yield worker
    worker.stop()
    assert not worker.errors, worker.errors


def run_in(worker: Threads, function: Callable[[], Any]) -> None:
    """Run a function as a handler would run, and wait for its end."""
    done = threading.Event()

    def call() -> None:
        try:
            function()
        finally:
            done.set()

    worker.dispatch(call)
    assert done.wait(DEADLINE)


@pytest.fixture
def quick(quick_log: QuickLog) -> Outbox:
    """An outbox whose thread has reached the broker, and has ended."""
    outbox = Outbox(lambda: quick_log)
    outbox.put("room", b"first")
    wait_until(lambda: not outbox._is_running)
    assert quick_log.batches == []
    quick_log.got.clear()
    return outbox


def put_many(outbox: Outbox, count: int) -> None:
    for number in range(count):
        outbox.put("room", b"%d" % number)


def numbers(log: Log) -> list[int]:
    return [int(data) for _, data, _ in log.got]


def test_an_event_loop_publishes_the_messages_of_a_turn_together_and_without_a_thread(
    quick_log: QuickLog, quick: Outbox, loop: Threads
) -> None:
    run_in(loop, lambda: put_many(quick, 20))
    wait_until(lambda: len(quick) == 0)
    assert (quick_log.batches, numbers(quick_log)) == ([20], list(range(20)))
    assert not quick._is_running


def test_an_event_loop_publishes_many_messages_in_several_turns(
    quick_log: QuickLog, quick: Outbox, loop: Threads
) -> None:
    run_in(loop, lambda: put_many(quick, 2 * module.BATCH_NOW + 1))
    wait_until(lambda: len(quick) == 0)
    assert quick_log.batches == [module.BATCH_NOW, module.BATCH_NOW, 1]
    assert numbers(quick_log) == list(range(2 * module.BATCH_NOW + 1))


@pytest.mark.parametrize("error", [None, ZeroDivisionError("a bug")])
def test_the_thread_publishes_what_an_event_loop_cannot(
    error: Exception | None,
    quick_log: QuickLog,
    quick: Outbox,
    loop: Threads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "backoff", lambda attempt: 0.001)
    quick_log.error, quick_log.is_stuck = error, error is None
    run_in(loop, lambda: put_many(quick, 100))
    if error is not None:
        wait_until(lambda: quick.error)
        quick_log.error = None
    wait_until(lambda: len(quick) == 0)
    assert (quick_log.batches, numbers(quick_log)) == ([], list(range(100)))
    quick_log.is_stuck = False
    run_in(loop, lambda: put_many(quick, 1))
    wait_until(lambda: len(quick) == 0)
    assert quick_log.batches == [1]


def test_no_message_of_a_thread_waits_for_an_event_loop_that_is_busy(
    quick_log: QuickLog, quick: Outbox, loop: Threads
) -> None:
    is_seen = threading.Event()

    def put_and_be_busy() -> None:
        quick.put("room", b"0")
        thread = monkey.get_original("_thread", "start_new_thread")
        thread(quick.put, ("room", b"1"))
        wait_until(lambda: len(quick) == 0)  # which blocks the loop
        is_seen.set()

    run_in(loop, put_and_be_busy)
    assert is_seen.is_set()
    run_in(loop, lambda: quick.put("room", b"2"))  # after the callback that had nothing to do
    wait_until(lambda: len(quick) == 0)
    assert (quick_log.batches, numbers(quick_log)) == ([1], [0, 1, 2])


def test_messages_whose_event_loop_has_ended_are_sent_when_the_process_ends(
    quick_log: QuickLog, quick: Outbox, loop: Threads
) -> None:
    def put_and_hurry() -> None:
        quick.put("room", b"0")
        quick.hurry()
        assert quick._sender is not Sender.CALLBACK

    run_in(loop, put_and_hurry)
    wait_until(lambda: len(quick) == 0)
    assert (quick_log.batches, numbers(quick_log)) == ([], [0])


def test_messages_reach_the_broker_in_order_with_growing_numbers(log: Log, outbox: Outbox) -> None:
    receipts = [put(outbox, b"%d" % number, f"room {number % 3}") for number in range(1000)]
    wait_until(lambda: len(outbox) == 0)
    assert log.got == [(f"room {number % 3}", b"%d" % number, number + 1) for number in range(1000)]
    assert {receipt.reached for receipt in receipts} == {7}


def test_a_message_after_a_pause_starts_again(log: Log, outbox: Outbox) -> None:
    for number in range(3):
        outbox.put("room", b"%d" % number)
        wait_until(lambda: not outbox._is_running)
    assert [data for _, data, _ in log.got] == [b"0", b"1", b"2"]


def test_messages_wait_while_the_broker_is_away_and_none_comes_twice(
    log: Log, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "backoff", lambda attempt: 0.001)
    log.error = BrokerUnavailable("it is away")
    for number in range(10):
        outbox.put("room", b"%d" % number)
    wait_until(lambda: log.calls >= 3)
    assert outbox.error == "it is away"
    log.error = None
    wait_until(lambda: len(outbox) == 0)
    assert [data for _, data, _ in log.got] == [b"%d" % number for number in range(10)]
    assert [record.getMessage() for record in caplog.records] == [
        "The broker of the rooms is not available, and messages wait for it: it is away",
        "The broker of the rooms is available again.",
    ]
    assert outbox.error is None


def test_the_oldest_messages_are_lost_beyond_so_many_bytes(
    log: Log, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.is_open.clear()
    first = put(outbox, b"in the broker's hands")
    wait_until(lambda: log.calls)
    monkeypatch.setattr(module, "MOST_BYTES", 5 * (10 + SEAL_SIZE + module._OVERHEAD))
    receipts = [put(outbox, b"%010d" % number) for number in range(8)]
    assert (len(outbox), outbox.lost) == (6, 3)
    log.is_open.set()
    wait_until(lambda: len(outbox) == 0)
    assert [data for _, data, _ in log.got] == [
        b"in the broker's hands",
        *(b"%010d" % number for number in range(3, 8)),
    ]
    assert [receipt.reached for receipt in (first, *receipts)] == [7, 0, 0, 0, 7, 7, 7, 7, 7]


def test_messages_are_lost_after_so_many_seconds_and_that_is_logged(
    log: Log, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "backoff", lambda attempt: 0.001)
    monkeypatch.setattr(module, "MOST_SECONDS", 0.05)
    log.error = BrokerUnavailable("it is away")
    receipts = [put(outbox, b"old"), put(outbox, b"old")]
    wait_until(lambda: len(outbox) == 0)
    assert (outbox.lost, [receipt.reached for receipt in receipts]) == (2, [0, 0])
    wait_until(lambda: "messages to rooms are lost" in caplog.text)
    log.error = None
    outbox.put("room", b"new")
    wait_until(lambda: log.got)
    assert log.got == [("room", b"new", 3)]


def test_another_error_of_a_broker_does_not_end_the_outbox(
    log: Log, outbox: Outbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "backoff", lambda attempt: 0.001)
    log.error = ZeroDivisionError("a bug")
    outbox.put("room", b"data")
    wait_until(lambda: log.calls >= 2)
    log.error = None
    wait_until(lambda: log.got)
    assert "ZeroDivisionError: a bug" in caplog.text


def test_a_message_larger_than_the_outbox_is_refused(outbox: Outbox) -> None:
    with pytest.raises(ValueError, match="cannot be published"):
        outbox.put("room", bytes(module.MOST_BYTES))


def test_many_threads_publish_each_in_its_order(log: Log, outbox: Outbox) -> None:
    def publish(name: int) -> None:
        for number in range(200):
            outbox.put("room", b"%d %d" % (name, number))

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(outbox) == 0)
    assert [number for _, _, number in log.got] == list(range(1, 1601))
    for name in range(8):
        of_one = [data for _, data, _ in log.got if data.startswith(b"%d " % name)]
        assert of_one == [b"%d %d" % (name, number) for number in range(200)]


def test_outside_of_a_worker_a_call_returns_when_the_broker_has_the_message(log: Log) -> None:
    direct = Direct(lambda: log)
    assert put(direct, b"data").reached == 7
    assert log.got == [("room", b"data", 1)]
    log.error = BrokerUnavailable("it is away")
    with pytest.raises(BrokerUnavailable):
        direct.put("room", b"lost")
    log.error = None
    direct.put("room", b"next")
    assert log.got == [("room", b"data", 1), ("room", b"next", 3)]


def test_the_backoff_grows_to_five_seconds_with_jitter() -> None:
    assert all(0.02 < backoff(0) <= 0.05 and 2.5 <= backoff(attempt) <= 5 for attempt in (7, 50, 10**6))
    assert len({backoff(9) for _ in range(10)}) > 1
