"""When a connection has lasted or idled long enough: a decision without any I/O."""

from __future__ import annotations

from math import inf
from random import uniform

from ..protocol.protocol import GOING_AWAY, SERVICE_RESTART, Close


class Lifespan:
    """The age of one connection, and the time since its last message.

    :param max_lifetime: the most seconds that the connection may last; None for no limit. A connection may get up to a
        tenth less, so that connections that start together do not end together.
    :param idle_timeout: the most seconds without a message; None for no limit.
    """

    __slots__ = ("_count", "_ends_at", "_idle_since", "_idle_timeout", "_max_lifetime")

    def __init__(self, max_lifetime: float | None, idle_timeout: float | None) -> None:
        self._max_lifetime = max_lifetime
        self._idle_timeout = idle_timeout
        self._ends_at = inf
        # When check() last noticed a new message, and the count of messages at that time.
        self._idle_since = inf
        self._count = 0

    def start(self, now: float) -> None:
        """Begin to measure the time.

        :param now: the monotonic clock, in seconds.
        """
        self._idle_since = now
        if self._max_lifetime is not None:
            self._ends_at = now + self._max_lifetime * uniform(0.9, 1)

    def due(self, now: float) -> float:
        """Return the time of the next :meth:`check`."""
        return self._ends_at if self._idle_timeout is None else min(self._ends_at, now + self._idle_timeout / 10)

    def check(self, now: float, count: int) -> Close | None:
        """Return the Close frame that ends the connection, or None.

        :param count: a number that grows with each message.
        """
        if now >= self._ends_at:
            return Close(SERVICE_RESTART, "the connection has lasted long enough: connect again")
        if count != self._count:
            self._count, self._idle_since = count, now
        if self._idle_timeout is not None and now - self._idle_since >= self._idle_timeout:
            return Close(GOING_AWAY, f"no message for {self._idle_timeout} s")
        return None
