"""Wake a thread, greenlet or task that waits, from any thread and in any mode."""

from __future__ import annotations

import os
from contextlib import suppress


class Wakeup:
    """A flag that one thread, greenlet or task waits for, and that any other may set.

    It is a pipe, so that every loop can wait for it.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._is_set = False

    def fileno(self) -> int:
        """Return the descriptor to wait for: it is readable while the flag is set."""
        return self._reader

    def set(self) -> None:
        """Set the flag. Does nothing after :meth:`close`."""
        if not self._is_set and self._writer >= 0:
            self._is_set = True
            with suppress(OSError):
                os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Clear the flag. Look for work after this call, not before."""
        with suppress(BlockingIOError):
            os.read(self._reader, 64)
        self._is_set = False

    def close(self) -> None:
        """Close the pipe. Called by the one that waits."""
        reader, writer, self._reader, self._writer = self._reader, self._writer, -1, -1
        os.close(reader)
        os.close(writer)
