"""The parking lots: connections that wait for their clients without a thread, greenlet or task of their own.

Each loop has one lot. It finds the connections that have something to do by epoll(7), and runs them in threads,
greenlets or tasks: each connection in one of them at a time, and different connections side by side.

A connection is reported once for all that has arrived (EPOLLET), so it reads until there is nothing left. What arrives
while it runs lets it run again.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from asyncio import current_task, sleep
from collections.abc import Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

from ..protocol.speedups import COMPILED
from .base import T, allocate_lock, original
from .ready import BATCH, IS_LATE, RUNS

if COMPILED:
    from ._ready import Parked, Queue
else:
    from .ready import Parked, Queue

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task

    from gevent.hub import Hub
    from greenlet import greenlet

#: Seconds for which a greenlet runs connections before it lets the others run, and a thread before it looks for input.
SLICE = 0.001

#: The most greenlets that are kept for the next connections, and the most threads that wait in epoll_wait(2) at once:
#: one more than needed, so that there is one when the other runs a connection.
MOST_IDLE = 16
MOST_WAITING = 2

#: Whether this system has epoll(7).
IS_AVAILABLE = hasattr(select, "EPOLLET")

#: What is watched. After the end of the peer's side, and with urgent data, a short read is not the last one.
_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET if IS_AVAILABLE else 0

logger = logging.getLogger("flask_uwsgi_websocket")


class EpollLot(Queue):
    """The parked connections of one loop. A subclass runs what is ready."""

    usage = ""

    def __init__(self) -> None:
        super().__init__(original("select", "epoll")(), allocate_lock())

    def add(self, fd: int, parked: Parked, *, is_ready: bool) -> None:
        self.parked[fd] = parked
        try:
            self.epoll.register(fd, _EVENTS)
        except OSError:
            del self.parked[fd]
            raise
        if is_ready:
            with self.lock:
                self.mark(parked)
            self._wake()

    def remove(self, fd: int) -> None:
        """Let *fd* go, before it is closed. Does nothing when it is unknown."""
        if self.parked.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    def _wake(self) -> None:
        """See to it that what is ready runs soon."""
        raise NotImplementedError

    def look_after(self) -> None:
        """Let the housekeeper read for what has been ready since the last call. Called once a second."""
        with self.lock:
            for parked in self.ready:
                if parked.state == IS_LATE:
                    parked.leave_to_housekeeper()
                parked.state = IS_LATE


class ThreadLot(EpollLot):
    """Runs connections in a pool of threads.

    The threads wait in epoll_wait(2) themselves. One that finds several connections runs them one after the other, and
    calls another thread, which takes over when the first one has to wait in a handler.
    """

    def __init__(self) -> None:
        super().__init__()
        self._most = self._threads = self._waiting = self._resting = 0
        self._is_called = False  # a thread is about to look at the queue
        self._may_run = threading.Semaphore(0)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.epoll.register(self._bell, select.EPOLLIN | select.EPOLLET)

    def allow(self, threads: int) -> None:
        with self.lock:
            self._most = max(self._most, threads)
            if not self._threads:
                self._call()

    @property
    def usage(self) -> str:  # type: ignore[override]
        busy = self._threads - self._waiting - self._resting
        return f"; {busy} of {self._most} threads are busy (WEBSOCKET_THREADS)"

    def _wake(self) -> None:
        with self.lock:
            self._call_if_needed()

    def _call_if_needed(self) -> None:
        """Call a thread if there is something for it: a connection to run, or to wait. Called with the lock."""
        if not self._is_called and (self.ready or not self._waiting):
            self._call()

    def _call(self) -> None:
        if self._waiting:
            self._is_called = True
            os.eventfd_write(self._bell, 1)
        elif self._resting:
            self._is_called = True
            self._resting -= 1
            self._may_run.release()
        elif self._threads < self._most:
            self._is_called = True
            self._threads += 1
            try:
                threading.Thread(target=self._work, name="flask-uwsgi-websocket-view", daemon=True).start()
            except RuntimeError:  # no more threads: the others go on
                self._is_called = False
                self._threads -= 1
                logger.exception("no thread could be started for parked WebSockets")

    def _work(self) -> None:
        try:
            self._is_called = False
            while True:
                while self.ready:
                    with self.lock:
                        is_last = len(self.ready) < 2
                        if not (is_last and self._waiting):
                            self._call_if_needed()
                    if self.run(SLICE):
                        self._collect_now()
                self._wait()
        finally:  # a handler has ended the thread, and another one may take its place
            with self.lock:
                self._threads -= 1
                self._call_if_needed()

    def _collect_now(self) -> None:
        """Put what has something to do into the queue if all threads are busy.

        With the lock, so that no thread begins to wait for what is taken here.
        """
        with self.lock:
            if not self._waiting:
                self.note(self.epoll.poll(0, BATCH))

    def look_after(self) -> None:
        self._collect_now()
        super().look_after()

    def _wait(self) -> None:
        with self.lock:
            if self.ready:
                return
            waits = self._waiting < MOST_WAITING
            self._waiting += waits
            self._resting += not waits
        if waits:
            self.collect(None)
            with self.lock:
                self._waiting -= 1
        else:
            self._may_run.acquire()
        self._is_called = False


class GeventLot(EpollLot):
    """Runs connections in greenlets of one hub. A greenlet runs the next connection if the last one has not waited.

    Only the thread of the hub uses it.
    """

    def __init__(self, hub: Hub, loop: object) -> None:
        from gevent import getcurrent, sleep, spawn

        super().__init__()
        self._loop = loop  # which lives as long as the watcher, so that no second lot is made for the hub
        self._hub = hub
        self._getcurrent = getcurrent
        self._sleep = sleep
        self._spawn = spawn
        self._idle: list[greenlet] = []
        self._gives_way = False
        self._watcher = self._hub.loop.io(self.epoll.fileno(), 1)
        self._watcher.start(self._look)

    def _look(self) -> None:
        """Look for connections that have something to do. Called in the hub."""
        self.collect(0)
        self._call_greenlet()

    def _wake(self) -> None:
        self._hub.loop.run_callback(self._call_greenlet)

    def _call_greenlet(self) -> None:
        """Let a greenlet run what is ready. Called in the hub, also when the last greenlet has begun to wait."""
        if self.ready and not self._gives_way:
            if self._idle:
                self._idle.pop().switch()
            else:
                self._spawn(self._work)

    def _work(self) -> None:
        try:
            while True:
                self._wake()  # in case that a handler waits
                while self.run(SLICE):
                    self._give_way()
                if len(self._idle) >= MOST_IDLE:
                    return
                self._rest()
        except BaseException:  # a handler has ended the greenlet, or the application has kept it, and killed it now
            self._wake()
            raise

    def _give_way(self) -> None:
        self._gives_way = True
        try:
            self._sleep(1e-9)  # 0 would run what is ready, but not look for input
        finally:
            self._gives_way = False
            self._wake()

    def _rest(self) -> None:
        current = self._getcurrent()
        self._idle.append(current)
        try:
            self._hub.switch()
        finally:
            if current in self._idle:  # it was killed
                self._idle.remove(current)


class AsyncioLot(EpollLot):
    """Runs connections in tasks of one event loop. A task runs the next connection if the last one has not waited.

    Any thread may make it and add connections: on a server with threads, the thread of each request does.
    """

    def __init__(self, event_loop: AbstractEventLoop, loop: object) -> None:
        super().__init__()
        self._loop = loop  # which lives as long as the event loop, so that no second lot is made for it
        self._event_loop = event_loop
        self._tasks: set[Task[None]] = set()  # the event loop has only weak references to tasks
        self._runner: object = None  # identifies the task that runs what is ready, or is about to
        event_loop.call_soon_threadsafe(event_loop.add_reader, self.epoll.fileno(), self._look)

    def _look(self) -> None:
        self.collect(0)
        self._call_task()

    def _wake(self) -> None:
        self._event_loop.call_soon_threadsafe(self._call_task)

    def _call_task(self) -> None:
        """Let a task run what is ready, unless there is one. Called by the event loop, never within another call."""
        if self.ready and self._runner is None:
            self._runner = runner = object()  # before the task, which may be eager
            task = Context().run(self._event_loop.create_task, self._work())
            self._tasks.add(task)
            task.add_done_callback(partial(self._end_task, runner))

    def _end_task(self, runner: object, task: Task[None]) -> None:
        """Let another task go on, also when this one was cancelled before it began."""
        self._tasks.discard(task)
        if self._runner is runner:
            self._runner = None
        self._call_task()

    async def _work(self) -> None:
        end = time.monotonic() + SLICE
        while self.ready:
            parked = self.ready.popleft()
            parked.state = RUNS
            coroutine = parked.serve()
            has_waited = has_more = True  # also after an exception
            try:
                awaited = parked.context.run(coroutine.send, None)
                self._runner = None
                self._event_loop.call_soon(self._call_task)
                has_more = await Rest(coroutine, parked.context, awaited)
            except StopIteration as stop:
                has_waited, has_more = False, stop.value
            finally:
                self.finish(parked, has_more)
            if has_waited or _is_cancelled():  # by its handler, which it does not outlive
                return
            if time.monotonic() > end:
                await sleep(0)
                end = time.monotonic() + SLICE


def _is_cancelled() -> bool:
    """Return whether the current task ends where it waits next, as ``Task.cancelling()`` does from CPython 3.11 on."""
    return bool(getattr(current_task(), "_must_cancel", False))


class Rest:
    """What is left of a coroutine that waits, to be awaited by a task.

    :param context: the context in which it runs.
    :param awaited: what it waits for.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], context: Context, awaited: object) -> None:
        self._coroutine = coroutine
        self._context = context
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, T]:
        awaited = self._awaited
        while True:
            try:
                value = yield awaited
            except BaseException as error:
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, value)
            try:
                awaited = self._context.run(step)
            except StopIteration as stop:
                result: T = stop.value
                return result
