"""The queue of a parking lot: which connections have something to do, and who runs them.

This is the pure-Python twin. The compiled one, in ``_ready.pyx``, does the same for each message without the
interpreter. Both declare :class:`Parked`, which subclasses implement.
"""

from __future__ import annotations

import select
import time
from collections import deque
from contextvars import Context
from threading import Lock

#: The most connections that one call of epoll_wait(2) reports. Each of them runs for at most the length of a run.
BATCH = 32

#: What epoll_wait(2) reports when there is input, and nothing else.
INPUT: int = getattr(select, "EPOLLIN", 0)

# The states of what is parked. What is late was ready when the housekeeper looked last.
WAITS, IS_READY, IS_LATE, RUNS, RUNS_AGAIN = range(5)


class Parked:
    """What waits for a descriptor and needs no thread, greenlet or task meanwhile."""

    #: Whether there may be more to read after a short read: the peer has ended its side, or has sent urgent data.
    reads_to_the_end: bool
    #: What the lot knows of it. Set with the lock of the lot.
    state: int
    #: The context in which it runs.
    context: Context

    def __init__(self) -> None:
        self.reads_to_the_end = False
        self.state = WAITS

    async def serve(self) -> bool:
        """Do what there is to do, for at most the length of a run; return whether there is more.

        It raises nothing but what ends a thread or greenlet, and is called again after that.
        """
        raise NotImplementedError

    def serve_now(self) -> bool:
        """Do the same, for a caller that blocks."""
        raise NotImplementedError

    def leave_to_housekeeper(self) -> None:
        """Let the housekeeper read until the next :meth:`serve`, which is late. Called with the lock of the lot."""
        raise NotImplementedError


class Queue:
    """What is parked, by its descriptor, and what of it has something to do.

    :param epoll: finds what has something to do.
    :param lock: guards the states and the queue. Nobody waits while holding it.
    """

    def __init__(self, epoll: select.epoll, lock: Lock) -> None:
        self.epoll = epoll
        self.lock = lock
        self.parked: dict[int, Parked] = {}
        self.ready: deque[Parked] = deque()

    def collect(self, timeout: float | None) -> None:
        """Wait for what has something to do, for at most *timeout* seconds, and put it into the queue."""
        found = self.epoll.poll(timeout, BATCH)
        with self.lock:
            self.note(found)

    def note(self, found: list[tuple[int, int]]) -> None:
        """Put what epoll_wait(2) has found into the queue. Called with the lock."""
        for fd, events in found:
            parked = self.parked.get(fd)
            if parked is not None:  # otherwise it has just ended
                if events != INPUT:
                    parked.reads_to_the_end = True
                self.mark(parked)

    def mark(self, parked: Parked) -> None:
        """Let *parked* run soon. Called with the lock."""
        if parked.state == WAITS:
            parked.state = IS_READY
            self.ready.append(parked)
        elif parked.state == RUNS:
            parked.state = RUNS_AGAIN

    def run(self, seconds: float) -> bool:
        """Run what is ready, for a caller that blocks: one after the other, and the first one in any case.

        :param seconds: when these are over, no more of them begins.
        :returns: whether something is ready.
        """
        end = time.monotonic() + seconds
        while True:
            with self.lock:
                if not self.ready:
                    return False
                parked = self.ready.popleft()
                parked.state = RUNS
            has_more = True  # also after an exception
            try:
                has_more = parked.context.run(parked.serve_now)
            finally:
                self.finish(parked, has_more)
            if time.monotonic() > end:
                return bool(self.ready)

    def finish(self, parked: Parked, has_more: bool) -> None:
        """Note that *parked* has run.

        :param has_more: whether it is to run again.
        """
        with self.lock:
            if has_more or parked.state == RUNS_AGAIN:
                parked.state = IS_READY
                self.ready.append(parked)
            else:
                parked.state = WAITS
