"""When to ping the peer, and when to give it up: a decision without any I/O."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import uniform
from typing import NamedTuple

from ..protocol.protocol import ABNORMAL_CLOSURE


class SendPing(NamedTuple):
    """It is time to ping the peer."""


class Drop(NamedTuple):
    """The peer is gone.

    :param code: the close code. 1006 drops the connection; any other code is sent in a Close frame.
    :param reason: what happened.
    """

    code: int
    reason: str


class Heartbeat:
    """The pings of one connection, and the answers to them. Any input is an answer.

    :param interval: seconds between two pings; None for no pings.
    :param timeout: seconds for which the peer may stay silent after a ping; None for any time.
    """

    def __init__(self, interval: float | None, timeout: float | None) -> None:
        self._interval = interval
        self._timeout = timeout
        self._next_ping = inf
        self._silent_since: float | None = None  # a ping was sent, and nothing has been heard

    def start(self, now: float) -> None:
        """Begin with the pings. Connections may start together, as after a reload: their first pings are spread.

        :param now: the monotonic clock, in seconds.
        """
        if self._interval is not None:
            self._next_ping = now + self._interval * uniform(0.5, 1)

    @property
    def due(self) -> float:
        """The time at which :meth:`check` has something to do, if nothing happens before."""
        if self._silent_since is None or self._timeout is None:
            return self._next_ping
        return min(self._next_ping, self._silent_since + self._timeout)

    def on_ping(self, now: float) -> bool:
        """Note that a Ping was sent. Return whether the peer has now to be heard again."""
        begins = self._silent_since is None
        if begins:
            self._silent_since = now
        return begins

    def check(self, now: float, heard: bool, has_unread: Callable[[], bool]) -> SendPing | Drop | None:
        """Return what to do.

        :param heard: whether something was read since :meth:`on_ping` returned True.
        :param has_unread: returns whether there is input that was not read. It may hold the Pong.
        """
        if heard:
            self._silent_since = None
        elif self._is_late(now) and not has_unread():
            return Drop(ABNORMAL_CLOSURE, f"no answer to a ping for {self._timeout} s")
        if now < self._next_ping:
            return None
        self._next_ping = now + (self._interval or 0.0)
        return SendPing()

    def _is_late(self, now: float) -> bool:
        return self._silent_since is not None and self._timeout is not None and now - self._silent_since > self._timeout
