"""When to ping the peer, and when to drop the connection: a decision without any I/O."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import uniform
from typing import NamedTuple

from ..protocol.protocol import ABNORMAL_CLOSURE, Close


class SendPing(NamedTuple):
    """It is time to ping the peer."""


class Heartbeat:
    """The pings of one connection, and their answers. Any input counts as an answer.

    :param interval: seconds between two pings; None for no pings.
    :param timeout: the most seconds for which the peer may stay silent after a ping; None for no limit.
    """

    __slots__ = ("_interval", "_next_ping", "_silent_since", "_timeout")

    def __init__(self, interval: float | None, timeout: float | None) -> None:
        self._interval = interval
        self._timeout = timeout
        self._next_ping = inf
        self._silent_since: float | None = None  # when a ping was sent that has no answer yet

    def start(self, now: float) -> None:
        """Begin with the pings. The first ping comes at a random time, because many connections start after a reload.

        :param now: the monotonic clock, in seconds.
        """
        if self._interval is not None:
            self._next_ping = now + self._interval * uniform(0.5, 1)

    @property
    def due(self) -> float:
        """The time of the next :meth:`check`, unless input comes before."""
        if self._silent_since is None or self._timeout is None:
            return self._next_ping
        return min(self._next_ping, self._silent_since + self._timeout)

    def ping_sent(self, now: float) -> bool:
        """Note that a Ping was sent. Return whether it is the first one since the last answer."""
        begins = self._silent_since is None
        if begins:
            self._silent_since = now
        return begins

    def check(self, now: float, heard: bool, has_unread: Callable[[], bool]) -> SendPing | Close | None:
        """Return what to do now: send a Ping, end the connection, or nothing.

        The code 1006 drops the connection at once. Any other code is sent in a Close frame.

        :param now: the monotonic clock, in seconds.
        :param heard: whether input was read since :meth:`ping_sent` returned True.
        :param has_unread: returns whether there is unread input, which may contain the Pong.
        """
        if heard:
            self._silent_since = None
        elif self._is_late(now) and not has_unread():
            return Close(ABNORMAL_CLOSURE, f"no answer to a ping for {self._timeout} s")
        if now < self._next_ping:
            return None
        self._next_ping = now + (self._interval or 0.0)
        return SendPing()

    def _is_late(self, now: float) -> bool:
        return self._silent_since is not None and self._timeout is not None and now - self._silent_since > self._timeout
