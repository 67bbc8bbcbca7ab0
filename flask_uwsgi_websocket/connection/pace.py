"""Whether the peer reads fast enough: a decision without any I/O."""

from __future__ import annotations


class Pace:
    """How fast the peer reads the output that waits for it.

    :param send_timeout: seconds for which the peer may read nothing, and over which its rate is measured.
    :param min_read_rate: the bytes per second that the peer has to read on average.
    """

    def __init__(self, send_timeout: float, min_read_rate: float) -> None:
        self._send_timeout = send_timeout
        self._min_read_rate = min_read_rate
        #: When the peer last took output, on the monotonic clock.
        self.stuck_since = 0.0
        self._measured_since = 0.0
        self._measured_from = 0

    def begin(self, now: float, sent: int) -> None:
        """Note that output begins to wait.

        :param sent: the bytes that were sent before.
        """
        self.stuck_since = self._measured_since = now
        self._measured_from = sent

    def check(self, now: float, sent: int) -> str | None:
        """Return the reason to drop a peer that reads too slowly, or None. Called while output waits.

        :param sent: the bytes that were sent so far.
        """
        if now - self.stuck_since > self._send_timeout:
            return f"the peer has read nothing for {self._send_timeout} s"
        elapsed = now - self._measured_since
        if elapsed > self._send_timeout:
            if sent - self._measured_from < self._min_read_rate * elapsed:
                return f"the peer has read less than {self._min_read_rate} bytes/s for {self._send_timeout} s"
            self._measured_since, self._measured_from = now, sent
        return None
