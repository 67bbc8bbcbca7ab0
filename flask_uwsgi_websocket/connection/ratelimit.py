"""How much one client may send: a token bucket for messages, frames and bytes."""

from __future__ import annotations

from ..settings import RateLimit

#: The default of ``frames``, per message: browsers and libraries send long messages in fragments of a few KiB.
FRAMES_PER_MESSAGE = 64

#: Finite, because `inf * 0` is NaN.
_UNLIMITED = 1e300


class Meter:
    """The token buckets of one client. Use it with the connection's read lock.

    :param now: the monotonic clock, in seconds.
    """

    def __init__(self, limit: RateLimit, now: float) -> None:
        frames = limit.frames or (limit.messages and limit.messages * FRAMES_PER_MESSAGE)
        self._rates = (limit.messages or _UNLIMITED, frames or _UNLIMITED, limit.bytes or _UNLIMITED)
        self._credit = self._most = tuple(rate * limit.burst for rate in self._rates)
        self._since = now
        self._is_behind = False

    def fall_behind(self) -> None:
        """Note that some input stays unread. All time until it is read counts, as it may have been sent then."""
        self._is_behind = True

    def spend(self, now: float, messages: int, frames: int, size: int, *, is_behind: bool) -> bool:
        """Take input from the credit; return whether there was enough credit.

        :param now: the monotonic clock, in seconds.
        :param messages: the number of messages, Pings and Pongs.
        :param frames: the number of all frames.
        :param size: the number of bytes.
        :param is_behind: whether there may be more to read.
        """
        elapsed, self._since = now - self._since, now
        earned = tuple(credit + rate * elapsed for credit, rate in zip(self._credit, self._rates, strict=True))
        if not self._is_behind:  # the input has arrived just now
            earned = self._at_most(earned)
        left = (earned[0] - messages, earned[1] - frames, earned[2] - size)
        self._is_behind = is_behind
        self._credit = left if is_behind else self._at_most(left)
        return min(left) >= 0

    def _at_most(self, credit: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(map(min, credit, self._most))
