"""The waits of callers that block, for one descriptor each.

``_readers.pyx`` has the two classes, compiled. The loops choose between the twins.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gevent.hub import Hub

#: The longest timeout of poll(2) in milliseconds: 24 days.
_LONGEST_POLL = 2**31 - 1


class PollReader:
    """Waits for a descriptor with poll(2), in the caller's thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def wait(self) -> None:
        poll(self._fd, select.POLLIN, None)


def poll(fd: int, event: int, timeout: float | None) -> bool:
    """Wait for an event of *fd* with poll(2). Return False when *timeout* seconds have passed."""
    polled = select.poll()  # select(2) would end at descriptor 1,023
    polled.register(fd, event)
    return bool(polled.poll(None if timeout is None else min(max(0.0, timeout) * 1000, _LONGEST_POLL)))


class GeventReader:
    """Waits until a descriptor is readable, with a watcher that stays started between two waits.

    The watcher switches straight to the greenlet that waits. If there is none, it stops until the next wait. Only
    greenlets of one hub use it; a greenlet of another thread, and a second one that waits, get a watcher of their own.
    """

    def __init__(self, hub: Hub, fd: int) -> None:
        from gevent import get_hub, getcurrent

        self._hub = hub
        self._get_hub = get_hub
        self._getcurrent = getcurrent
        self._fd = fd
        self._watcher: Any = None
        self._is_started = False
        self._is_closed = False
        self._waiting: Callable[[bool], object] | None = None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the descriptor is readable or has ended. Return False when *timeout* seconds have passed."""
        if self._waiting is not None or self._get_hub() is not self._hub:
            return wait_apart(self._fd, timeout)
        timer = None
        self._waiting = self._getcurrent().switch
        try:
            if timeout is not None:
                timer = self._hub.loop.timer(max(0.0, timeout))
                timer.start(self._waiting, False)
            if not self._is_started:
                if self._watcher is None:
                    self._watcher = self._hub.loop.io(self._fd, 1)
                self._watcher.start(self)
                self._is_started = True
            return bool(self._hub.switch())
        finally:
            self._waiting = None
            if timer is not None:
                timer.close()
            if self._is_closed:
                self._close_watcher()

    def __call__(self) -> None:
        """Switch to the greenlet that waits. The watcher calls it, in the hub, whenever the descriptor is readable."""
        if self._waiting is not None:
            self._waiting(True)
        elif self._watcher is not None:
            self._watcher.stop()
            self._is_started = False

    def close(self) -> None:
        """Close the watcher, as soon as nobody waits with it."""
        self._is_closed = True
        if self._waiting is None:
            self._close_watcher()

    def _close_watcher(self) -> None:
        watcher, self._watcher, self._is_started = self._watcher, None, False
        if watcher is not None:
            watcher.stop()
            watcher.close()


def wait_apart(fd: int, timeout: float | None) -> bool:
    """Wait as :meth:`GeventReader.wait` does, with a watcher of one's own."""
    from gevent.socket import wait_read

    return wait_in_hub(wait_read, fd, timeout)


def wait_in_hub(wait: Callable[..., None], fd: int, timeout: float | None) -> bool:
    """Wait with a function of gevent. Return False when *timeout* seconds have passed."""
    if timeout is None:
        wait(fd)
        return True
    expired = TimeoutError()
    try:
        wait(fd, timeout, expired)
    except TimeoutError as error:
        if error is not expired:
            raise
        return False
    return True
