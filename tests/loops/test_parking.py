"""The parking lots run what is parked whenever it has something to do, and lose nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from contextvars import ContextVar, copy_context
from typing import Any

import gevent
import pytest

from flask_uwsgi_websocket.loops import parking
from flask_uwsgi_websocket.loops.base import run
from flask_uwsgi_websocket.loops.parking import MOST_IDLE, Parked, ThreadLot
from support.inprocess import DEADLINE, Gate, Threads, call, wait_until

#: The threads of a pool.
POOL = 3


class Reader(Parked):
    """Reads a socket, and calls a coroutine function with each byte."""

    def __init__(self, sock: socket.socket, function: Callable[[bytes], Awaitable[None]]) -> None:
        super().__init__()
        self._sock = sock
        self._function = function
        self.context = copy_context()
        self.running = 0
        self.most_running = 0

    def serve_now(self) -> bool:
        return run(self.serve())

    def leave_to_housekeeper(self) -> None:
        """Do nothing: no housekeeper looks after it."""

    async def serve(self) -> bool:
        try:
            data = self._sock.recv(1, socket.MSG_DONTWAIT)
        except OSError:  # there is nothing, or it was removed and closed while it was ready
            return False
        if not data:
            return False
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self._function(data)
        finally:
            self.running -= 1
        return True


class Pool(ThreadLot):
    """A pool whose threads handlers may end without a report."""

    def _work(self) -> None:
        with suppress(SystemExit):
            super()._work()


class Lot:
    """The parking lot of a worker, with sockets that are parked there."""

    def __init__(self, worker: Threads, stack: ExitStack) -> None:
        self.worker = worker
        self._stack = stack
        self.lot: Any = Pool() if worker.name == "threads" else self.call(self._find)
        if worker.name == "threads":
            self.lot.allow(POOL)
            stack.callback(self._end)

    async def _find(self, loop: Any) -> Any:
        return loop.lot()

    def call(self, function: Any) -> Any:
        """Run a coroutine function in the loop."""
        return call(self.worker, function)

    def park(self, function: Callable[[bytes], Awaitable[None]], *, sent: bytes = b"") -> tuple[socket.socket, Reader]:
        """Park a reader that calls *function*, and return the other end of its socket.

        :param sent: what it has to read already.
        """
        one, other = socket.socketpair()
        other.settimeout(DEADLINE)
        parked = Reader(one, function)
        if sent:
            other.sendall(sent)

        async def add(loop: Any) -> None:
            self.lot.add(one.fileno(), parked, is_ready=False)

        async def remove(loop: Any) -> None:
            self.lot.remove(one.fileno())

        self.call(add)
        self._stack.callback(one.close)
        self._stack.callback(other.close)
        self._stack.callback(self.call, remove)
        return other, parked

    def gate(self) -> Gate:
        """Return a gate. Its waits belong to the worker's loop."""

        async def make(loop: Any) -> Gate:
            return self.worker.gate()

        gate: Gate = self.call(make)
        return gate

    def _end(self) -> None:
        """End the pool, which otherwise lasts as long as the process."""
        self.lot._most = 0

        async def end(data: bytes) -> None:
            raise SystemExit

        with ExitStack() as self._stack:
            while self.lot._threads:
                self.park(end, sent=b"x")
                time.sleep(0.002)
        self.lot.epoll.close()
        os.close(self.lot._bell)


@pytest.fixture
def lot(worker: Threads) -> Iterator[Lot]:
    """The parking lot of each mode."""
    with ExitStack() as stack:
        yield Lot(worker, stack)


class Notes(list[bytes]):
    """What was read, in its order."""

    async def add(self, data: bytes) -> None:
        self.append(data)

    def wait_for(self, *expected: bytes) -> None:
        """Wait for these bytes, in any order, and remove them."""
        wait_until(lambda: len(self) >= len(expected), lambda: f"only {self} of {expected}")
        assert sorted(self) == sorted(expected)
        self.clear()


def test_each_is_run_for_all_that_arrives(lot: Lot) -> None:
    notes = Notes()
    ends = [lot.park(notes.add)[0] for _ in range(5)]
    for data in (b"a", b"b"):
        for end in ends:
            end.send(data)
        notes.wait_for(*[data] * 5)


def test_what_has_arrived_before_is_run(lot: Lot) -> None:
    notes = Notes()
    lot.park(notes.add, sent=b"abc")
    notes.wait_for(b"a", b"b", b"c")


class Ready(Reader):
    """Has something to do once, which is no input."""

    async def serve(self) -> bool:
        await self._function(b"")
        return False


def test_what_is_ready_is_run_without_input(lot: Lot) -> None:
    notes = Notes()
    one, other = socket.socketpair()
    with one, other:

        async def add(loop: Any) -> None:
            lot.lot.add(one.fileno(), Ready(one, notes.add), is_ready=True)

        async def remove(loop: Any) -> None:
            lot.lot.remove(one.fileno())
            lot.lot.remove(one.fileno())  # does nothing the second time

        lot.call(add)
        notes.wait_for(b"")
        lot.call(remove)


@pytest.mark.parametrize("mode", ["asyncio"])
def test_the_thread_of_a_request_may_park_in_an_event_loop_that_has_nothing_else_to_do(lot: Lot) -> None:
    """So it is on servers with threads, where an event loop in the background serves all coroutine handlers."""
    notes = Notes()
    one, other = socket.socketpair()
    with one, other:

        async def remove(loop: Any) -> None:
            lot.lot.remove(one.fileno())

        lot.lot.add(one.fileno(), Ready(one, notes.add), is_ready=True)
        notes.wait_for(b"")
        lot.call(remove)


def test_each_runs_in_one_place_at_a_time_and_in_its_context(lot: Lot) -> None:
    variable: ContextVar[bytes] = ContextVar("variable")
    variable.set(b"set before ")
    notes, gate = Notes(), lot.gate()

    async def work(data: bytes) -> None:
        await gate.passed()
        await notes.add(variable.get() + data)

    end, parked = lot.park(work)
    end.send(b"a")
    wait_until(lambda: parked.running)
    end.send(b"b")  # while it runs
    other, _ = lot.park(notes.add)
    other.send(b"x")
    notes.wait_for(b"x")
    gate.open()
    notes.wait_for(b"set before a", b"set before b")
    assert parked.most_running == 1


def test_a_handler_that_waits_does_not_hold_up_the_others_of_its_batch(lot: Lot) -> None:
    """They arrived together, so one thread or greenlet would run all of them."""
    notes, entrance, exit_ = Notes(), lot.gate(), lot.gate()

    async def enter(data: bytes) -> None:
        await entrance.passed()

    async def work(data: bytes) -> None:
        if data == b"w":
            await exit_.passed()
        await notes.add(data)

    # All threads of the pool are busy while the batch arrives.
    guards = [lot.park(enter) for _ in range(POOL)]
    for end, parked in guards:
        end.send(b"x")
        wait_until(lambda parked=parked: parked.running)  # type: ignore[misc]
    for data in (b"w", b"1", b"2", b"3", b"4"):
        lot.park(work, sent=data)
    entrance.open()
    notes.wait_for(b"1", b"2", b"3", b"4")
    exit_.open()
    notes.wait_for(b"w")


@pytest.mark.parametrize("count", [2 * POOL, MOST_IDLE + 4])
def test_more_handlers_that_wait_than_may_run_or_rest_lose_nothing(lot: Lot, count: int) -> None:
    for _ in range(2):
        check_crowd(lot, count)


def check_crowd(lot: Lot, count: int) -> None:
    notes, gate = Notes(), lot.gate()

    async def work(data: bytes) -> None:
        await gate.passed()
        await notes.add(data)

    parked = [lot.park(work) for _ in range(count)]
    for end, _ in parked:
        end.send(b"a")
    most = min(count, POOL) if isinstance(lot.lot, ThreadLot) else count
    wait_until(lambda: sum(each.running for _, each in parked) == most)
    for end, _ in parked:
        end.send(b"b")
    gate.open()
    notes.wait_for(*[b"a"] * count, *[b"b"] * count)
    for end, _ in parked:  # the threads or greenlets that have waited rest, or have ended
        end.send(b"c")
    notes.wait_for(*[b"c"] * count)


def test_a_flood_does_not_hold_up_the_others(lot: Lot) -> None:
    notes, stop = Notes(), threading.Event()

    class Endless(Reader):
        async def serve(self) -> bool:
            await self._function(b"")
            return not stop.is_set()

    ran = threading.Event()

    async def work(data: bytes) -> None:
        ran.set()
        time.sleep(0.0001)  # in which the thread of the test gets the interpreter

    one, other = socket.socketpair()
    with one, other:

        async def add(loop: Any) -> None:
            lot.lot.add(one.fileno(), Endless(one, work), is_ready=True)

        async def remove(loop: Any) -> None:
            lot.lot.remove(one.fileno())

        lot.call(add)
        assert ran.wait(DEADLINE)
        try:
            for _ in range(5):
                end, _ = lot.park(notes.add)
                end.send(b"x")
                notes.wait_for(b"x")
        finally:
            stop.set()
            lot.call(remove)


@pytest.mark.parametrize("mode", ["gevent"])
def test_a_greenlet_that_is_killed_while_it_rests_is_replaced(lot: Lot) -> None:
    kept: list[gevent.Greenlet] = []
    notes = Notes()

    async def keep(data: bytes) -> None:
        kept.append(gevent.getcurrent())
        await notes.add(data)

    end, _ = lot.park(keep)
    for data in (b"a", b"b"):
        end.send(data)
        notes.wait_for(data)
        wait_until(lambda: kept[-1] in lot.lot._idle)

        async def kill(loop: Any) -> None:
            kept[-1].kill()

        lot.call(kill)
        assert kept[-1] not in lot.lot._idle
    end.send(b"c")
    notes.wait_for(b"c")


@pytest.mark.parametrize("mode", ["asyncio"])
def test_a_task_that_is_cancelled_before_it_begins_is_replaced(lot: Lot) -> None:
    notes = Notes()
    end, _ = lot.park(notes.add)

    async def cancel(loop: Any) -> None:
        end.send(b"x")
        lot.lot._look()
        (task,) = lot.lot._tasks
        task.cancel()

    lot.call(cancel)
    notes.wait_for(b"x")


@pytest.mark.parametrize("mode", ["asyncio"])
def test_a_handler_that_cancels_its_task_interrupts_no_other_one(lot: Lot) -> None:
    notes = Notes()

    async def cancel(data: bytes) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def wait(data: bytes) -> None:
        await asyncio.sleep(0)
        await notes.add(data)

    ends = [lot.park(function)[0] for function in (cancel, wait) * 5]

    async def send(loop: Any) -> None:
        for end in ends:
            end.send(b"x")

    lot.call(send)
    notes.wait_for(*[b"x"] * 5)


@pytest.mark.parametrize("mode", ["asyncio"])
def test_a_thousand_handlers_may_wait_in_eager_tasks(lot: Lot) -> None:
    """Eager tasks are of CPython 3.12 and newer, and begin while they are made. Older tasks begin later."""

    def make(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        eager = {"eager_start": True} if sys.version_info >= (3, 12) and coroutine.__name__ == "_work" else {}
        return asyncio.Task(coroutine, loop=loop, **eager, **options)

    async def set_factory(loop: Any) -> None:
        loop.event_loop.set_task_factory(make)

    lot.call(set_factory)
    check_crowd(lot, 1100)


@pytest.mark.parametrize("mode", ["threads"])
def test_a_thread_that_a_handler_ends_is_replaced(lot: Lot) -> None:
    notes = Notes()

    async def work(data: bytes) -> None:
        if data == b"x":
            raise SystemExit
        await notes.add(data)

    end, _ = lot.park(work)
    others = [lot.park(notes.add)[0] for _ in range(3)]
    for _ in range(2 * POOL):
        end.send(b"x")
        for other in others:
            other.send(b"y")
        notes.wait_for(*[b"y"] * 3)
        end.send(b"z")
        notes.wait_for(b"z")


@pytest.mark.parametrize("mode", ["threads"])
def test_a_pool_has_no_more_threads_than_needed(lot: Lot) -> None:
    notes = Notes()
    ends = [lot.park(notes.add)[0] for _ in range(10)]
    for _ in range(20):
        for end in ends:
            end.send(b"x")
        notes.wait_for(*[b"x"] * 10)
    assert lot.lot._threads <= POOL
    assert lot.lot.usage.endswith(f" of {POOL} threads are busy (WEBSOCKET_THREADS)")


@pytest.mark.parametrize("mode", ["threads"])
def test_a_batch_of_the_most_is_run_by_few_threads(lot: Lot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[parking.Queue.__module__], "BATCH", 2)
    notes = Notes()
    ends = [lot.park(notes.add)[0] for _ in range(9)]
    for end in ends:
        end.send(b"x")
    notes.wait_for(*[b"x"] * 9)


@pytest.mark.parametrize("mode", ["threads"])
def test_a_thread_that_begins_to_wait_while_the_housekeeper_looks_loses_nothing(lot: Lot) -> None:
    ran, is_over = threading.Semaphore(0), threading.Event()

    async def work(data: bytes) -> None:
        ran.release()

    def look_after() -> None:
        while not is_over.is_set():
            lot.lot.look_after()

    lot.lot._most = 1
    end, _ = lot.park(work)
    housekeeper = threading.Thread(target=look_after)
    housekeeper.start()
    try:
        for _ in range(10_000):
            end.send(b"x")
            assert ran.acquire(timeout=DEADLINE)
    finally:
        is_over.set()
        housekeeper.join()
