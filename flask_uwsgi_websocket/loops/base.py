"""What a connection needs of its concurrency mode, and no more: wait, call back, let the others run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

#: A function to run now and then. It returns the seconds until its next run, or None for no more.
Tick = Callable[[], "float | None"]


class Loop(Protocol):
    """What every mode can do.

    What is awaited, waits. In asyncio it suspends its task; in threads and greenlets it never suspends but blocks
    its caller, so that :func:`run` can run them to their end. All else may be called from any thread.
    """

    #: Whether callbacks run whenever a handler waits, for whatever it is.
    gives_way: bool

    def wait_readable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        """Wait until *fd* can be read or has ended; return False when *timeout* seconds have passed."""

    def wait_writable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        """Wait until *fd* takes more or has ended; return False when *timeout* seconds have passed."""

    async def sleep(self, seconds: float) -> None:
        """Let the other connections of this worker run, and come back after *seconds*, which may be 0."""

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        """Call *callback* whenever *fd* takes more, until it returns False."""

    def forget(self, fd: int) -> None:
        """Drop the callback for *fd*. It is not closed while somebody waits for it."""

    def run_aside(self, function: Callable[[], None]) -> None:
        """Call *function* where it may wait and holds nobody up. Called by a tick."""

    def run_every(self, interval: float, tick: Tick) -> None:
        """Call *tick* in *interval* seconds, and again whenever it says."""


class BlockingLoop(Loop, Protocol):
    """What the modes that block can do, besides."""

    def block_until_readable(self, fd: int) -> None:
        """Wait until *fd* can be read or has ended."""


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that blocks instead of suspending, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("a coroutine that should block has suspended")  # pragma: no cover


def allocate_lock() -> threading.Lock:
    """Return a lock of the interpreter, also where gevent has replaced them.

    It is for sections that never wait, so that no greenlet ever has to wait for another one's.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return threading.Lock()
    lock: threading.Lock = monkey.get_original("_thread", "allocate_lock")()
    return lock


def allocate_rlock() -> threading.RLock:
    """Return a lock as :func:`allocate_lock` does, which the thread that holds it may take again."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return threading.RLock()
    lock: threading.RLock = monkey.get_original("_thread", "RLock")()
    return lock
