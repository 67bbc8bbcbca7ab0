"""The interface between a connection and its concurrency mode: wait, call back, let other connections run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from importlib import import_module
from typing import Any, Protocol, TypeVar

from .ready import Parked

T = TypeVar("T")

#: A function that runs repeatedly. It returns the seconds until its next run, or None to stop.
Tick = Callable[[], "float | None"]


class Watch(Protocol):
    """Waits for a descriptor again and again, and for a clock that ticks. One at a time uses it, in its loop.

    It costs less than a wait with a timeout, because the clock goes on between two waits.
    """

    def wait(self) -> Awaitable[bool]:
        """Wait until the descriptor is readable or has ended, or until the next tick. Return False for a tick.

        A tick that nobody was waiting for comes with the next wait. Several of them are one.
        """

    def close(self) -> None:
        """Stop the clock, and let the descriptor go."""


class Reader(Protocol):
    """Waits for one descriptor again and again, for a caller that blocks."""

    def wait(self) -> object:
        """Wait until the descriptor is readable or has ended, or sooner without a reason."""


class Lot(Protocol):
    """The parking lot of a loop: it runs what is parked when there is something to do."""

    @property
    def usage(self) -> str:
        """How many threads run what is parked, as the end of a sentence in the log."""

    def add(self, fd: int, parked: Parked, *, is_ready: bool) -> None:
        """Run *parked* from now on whenever *fd* is readable or has ended, until :meth:`Loop.forget`.

        :param is_ready: whether it has something to do already, besides what the system knows.
        :raises OSError: when the system takes no more descriptors.
        """

    def look_after(self) -> None:
        """Let the housekeeper read for what has waited for a thread for a second or more. Called once a second."""


class Loop(Protocol):
    """The operations of every mode.

    The awaitable operations wait. In asyncio they suspend the task. In threads and greenlets they block the caller and
    never suspend, so that :func:`run` can run them to their end. All other operations may be called from any thread.
    """

    #: Whether callbacks run while a handler waits for anything.
    gives_way: bool

    def wait_readable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        """Wait until *fd* is readable or has ended. Return False when *timeout* seconds have passed."""

    def watch(self, fd: int, interval: float) -> Watch:
        """Wait for a descriptor for long. Called where the waits will be.

        :param interval: the seconds between two ticks.
        """

    def wait_writable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        """Wait until *fd* is writable or has ended. Return False when *timeout* seconds have passed."""

    async def sleep(self, seconds: float) -> None:
        """Let the other connections of this worker run for *seconds*, which may be 0."""

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        """Call *callback* whenever *fd* is writable, until it returns False."""

    def forget(self, fd: int) -> None:
        """Let *fd* go, with its callback, before it is closed. It is closed only when nobody waits for it."""

    def lot(self, threads: int = 0) -> Lot:
        """Return the parking lot of this loop.

        :param threads: how many threads may run what is parked, if threads do that, unless more of them may already.
        """

    def run_aside(self, function: Callable[[], None]) -> None:
        """Call *function* where it may wait and holds nobody up. Called by a tick."""

    def run_every(self, interval: float, tick: Tick) -> None:
        """Call *tick* after *interval* seconds, and again after each delay that it returns."""

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Run *coroutine* in a thread, greenlet or task of its own, without the caller's context variables.

        :param name: the name of the thread.
        """

    async def call_blocking(self, function: Callable[[], T]) -> T:
        """Call *function*, which may block for long, without blocking other connections of this worker."""


class EventLoop(Loop, Protocol):
    """The operations of the modes that have an event loop: gevent and asyncio."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call *callback* once, after the others that are ready have run. It may not wait.

        Only the thread of the event loop may call this.
        """


class BlockingLoop(Loop, Protocol):
    """The operations of the modes that block: threads and gevent."""

    def reader(self, fd: int) -> Reader:
        """Return what waits for *fd*. Nobody may use it after :meth:`forget`."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that blocks instead of suspending, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("a coroutine that should block has suspended")  # pragma: no cover


def settle(future: Future[T], function: Callable[[], T]) -> None:
    """Call a function, and give its result or its error to a future."""
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


def original(module: str, name: str) -> Any:
    """Return an object of the standard library, even where gevent has replaced or removed it."""
    monkey = sys.modules.get("gevent.monkey")
    return getattr(import_module(module), name) if monkey is None else monkey.get_original(module, name)


def allocate_lock() -> threading.Lock:
    """Return a lock of the interpreter, even where gevent has patched ``threading``.

    Only sections that never wait may hold it, so that no greenlet waits for a lock of another greenlet.
    """
    lock: threading.Lock = original("_thread", "allocate_lock")()
    return lock


def allocate_rlock() -> threading.RLock:
    """Return a lock as :func:`allocate_lock` does, which the thread that holds it may acquire again."""
    lock: threading.RLock = original("_thread", "RLock")()
    return lock
