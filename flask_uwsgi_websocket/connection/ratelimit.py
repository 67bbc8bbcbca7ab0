"""How much one client may send: a token bucket for messages, frames and bytes."""

from __future__ import annotations

from ..settings import RateLimit

#: The default of ``frames``, for each of ``messages``: browsers and libraries send long ones in pieces of some KiB.
FRAMES_PER_MESSAGE = 64

#: A rate that is never reached, and finite: infinity times no time at all is not a number.
_UNLIMITED = 1e300


class Meter:
    """What one client may still send. Belongs to the connection's read lock.

    :param now: the monotonic clock, in seconds.
    """

    def __init__(self, limit: RateLimit, now: float) -> None:
        frames = limit.frames or (limit.messages and limit.messages * FRAMES_PER_MESSAGE)
        self._rates = (limit.messages or _UNLIMITED, frames or _UNLIMITED, limit.bytes or _UNLIMITED)
        self._credit = self._most = tuple(rate * limit.burst for rate in self._rates)
        self._since = now
        self._is_behind = False

    def fall_behind(self) -> None:
        """Note that something stays unread. When it was sent, nobody will know: all time until it is read counts."""
        self._is_behind = True

    def spend(self, now: float, messages: int, frames: int, size: int, *, is_behind: bool) -> bool:
        """Take what was read from the credit; return whether there was enough.

        :param messages: messages, Pings and Pongs.
        :param frames: all frames.
        :param size: bytes.
        :param is_behind: whether there may be more to read.
        """
        elapsed, self._since = now - self._since, now
        earned = tuple(credit + rate * elapsed for credit, rate in zip(self._credit, self._rates, strict=True))
        if not self._is_behind:  # so what was read has come just now
            earned = self._at_most(earned)
        left = (earned[0] - messages, earned[1] - frames, earned[2] - size)
        self._is_behind = is_behind
        self._credit = left if is_behind else self._at_most(left)
        return min(left) >= 0

    def _at_most(self, credit: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(map(min, credit, self._most))
