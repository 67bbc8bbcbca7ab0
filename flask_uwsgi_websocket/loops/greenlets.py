"""How greenlets of gevent wait: in the hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from .base import Tick, run

if TYPE_CHECKING:
    from gevent.hub import Hub


logger = logging.getLogger("flask_uwsgi_websocket")


class GeventLoop:
    """Waits in gevent's hub. A native thread may wait too: it has a hub of its own."""

    gives_way = True

    def __init__(self, hub: Hub) -> None:
        from gevent import get_hub, getcurrent

        self._hub = hub
        self._get_hub = get_hub
        self._getcurrent = getcurrent
        # The io watchers, touched in the hub's thread only.
        self._readers: dict[int, Any] = {}
        self._writers: dict[int, Any] = {}

    async def wait_readable(self, fd: int, timeout: float | None) -> bool:
        from gevent.socket import wait_read

        return self._wait(wait_read, fd, timeout)

    def block_until_readable(self, fd: int) -> None:
        """Wait with a watcher that is kept for the next time: a new one costs more than all the rest."""
        if self._get_hub() is not self._hub:
            run(self.wait_readable(fd, None))
            return
        watcher = self._readers.get(fd)
        if watcher is None:
            watcher = self._readers[fd] = self._hub.loop.io(fd, 1)
        elif watcher.active:  # somebody else waits for it, too
            run(self.wait_readable(fd, None))
            return
        watcher.start(self._getcurrent().switch)
        try:
            self._hub.switch()
        finally:
            watcher.stop()
            if self._readers.get(fd) is not watcher:  # it was forgotten meanwhile
                watcher.close()

    async def wait_writable(self, fd: int, timeout: float | None) -> bool:
        from gevent.socket import wait_write

        return self._wait(wait_write, fd, timeout)

    @staticmethod
    def _wait(wait: Callable[..., None], fd: int, timeout: float | None) -> bool:
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

    async def sleep(self, seconds: float) -> None:
        from gevent import sleep

        # For 0 seconds gevent lets other greenlets run that are ready, but looks for input only every 5 ms.
        sleep(max(seconds, 1e-9))

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        loop = self._hub.loop
        call_soon = loop.run_callback if self._get_hub() is self._hub else loop.run_callback_threadsafe
        call_soon(self._watch, fd, callback)

    def _watch(self, fd: int, callback: Callable[[], bool]) -> None:
        def ready() -> None:
            if not callback():
                self._forget_writer(fd)

        if not callback():  # in the meantime it may have been closed, and the number be another's
            return
        self._forget_writer(fd)
        self._writers[fd] = watcher = self._hub.loop.io(fd, 2)
        watcher.start(ready)

    def forget(self, fd: int) -> None:
        self._forget_writer(fd)
        watcher = self._readers.pop(fd, None)
        if watcher is not None and not watcher.active:  # who waits with it, closes it
            watcher.close()

    def _forget_writer(self, fd: int) -> None:
        watcher = self._writers.pop(fd, None)
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def run_aside(self, function: Callable[[], None]) -> None:
        from gevent import spawn

        spawn(function)

    def run_every(self, interval: float, tick: Tick) -> None:
        from gevent import spawn

        spawn(self._run, interval, tick)  # it refers to this loop, which thus lives as long as it

    def _run(self, interval: float, tick: Tick) -> None:
        from gevent import sleep

        delay: float | None = interval
        while delay is not None:
            sleep(delay)
            delay = tick()


def is_in_gevent() -> bool:
    """Tell whether the caller is one of gevent's greenlets."""
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(gevent.getcurrent(), gevent.Greenlet)


@cache
def warn_if_unpatched() -> None:
    from gevent.monkey import is_module_patched

    if not is_module_patched("socket"):
        logger.warning(
            "gevent serves this process, but the standard library is not patched: whatever else waits in a handler "
            "holds up all connections. Start uwsgi with --gevent-early-monkey-patch; elsewhere, begin with "
            "gevent.monkey.patch_all()."
        )
