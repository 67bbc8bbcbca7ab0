"""The loop for gevent: greenlets wait in the hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context
from functools import cache
from typing import TYPE_CHECKING, Any

from .base import T, Tick, run, settle

if TYPE_CHECKING:
    from gevent.hub import Hub


logger = logging.getLogger("flask_uwsgi_websocket")


class GeventLoop:
    """Waits in gevent's hub. A native thread may wait, too, in a hub of its own."""

    gives_way = True

    def __init__(self, hub: Hub) -> None:
        from gevent import get_hub, getcurrent

        self._hub = hub
        self._get_hub = get_hub
        self._getcurrent = getcurrent
        # The io watchers. Only the hub's thread uses them.
        self._readers: dict[int, Any] = {}
        self._writers: dict[int, Any] = {}

    async def wait_readable(self, fd: int, timeout: float | None) -> bool:
        return self._wait_readable(fd, timeout)

    def block_until_readable(self, fd: int) -> None:
        self._wait_readable(fd, None)

    def _wait_readable(self, fd: int, timeout: float | None) -> bool:
        """Wait with a watcher that is kept for the next wait: to create one costs more than the rest of the wait."""
        watcher = self._readers.get(fd)
        if self._get_hub() is not self._hub or (watcher is not None and watcher.active):  # another greenlet waits
            from gevent.socket import wait_read

            return self._wait(wait_read, fd, timeout)
        if watcher is None:
            watcher = self._readers[fd] = self._hub.loop.io(fd, 1)
        switch = self._getcurrent().switch
        timer = None if timeout is None else self._hub.loop.timer(max(0.0, timeout))
        try:
            watcher.start(switch, True)
            if timer is not None:
                timer.start(switch, False)
            return bool(self._hub.switch())
        finally:
            watcher.stop()
            if timer is not None:
                timer.close()
            if self._readers.get(fd) is not watcher:  # forget() was called meanwhile
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

        # sleep(0) runs the other greenlets that are ready, but gevent then looks for input only every 5 ms.
        sleep(max(seconds, 1e-9))

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        loop = self._hub.loop
        call_soon = loop.run_callback if self._get_hub() is self._hub else loop.run_callback_threadsafe
        call_soon(self._watch, fd, callback)

    def _watch(self, fd: int, callback: Callable[[], bool]) -> None:
        def ready() -> None:
            if not callback():
                self._forget_writer(fd)

        if not callback():  # fd may have been closed meanwhile, and another connection may have its number
            return
        self._forget_writer(fd)
        self._writers[fd] = watcher = self._hub.loop.io(fd, 2)
        watcher.start(ready)

    def forget(self, fd: int) -> None:
        self._forget_writer(fd)
        watcher = self._readers.pop(fd, None)
        if watcher is not None and not watcher.active:  # the greenlet that waits with it closes it
            watcher.close()

    def _forget_writer(self, fd: int) -> None:
        watcher = self._writers.pop(fd, None)
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def run_aside(self, function: Callable[[], None]) -> None:
        from gevent import spawn

        spawn(function)

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        from gevent import spawn

        Context().run(spawn, run, coroutine)

    async def call_blocking(self, function: Callable[[], T]) -> T:
        from gevent.monkey import is_module_patched

        if is_module_patched("socket"):
            return function()
        result: Future[T] = Future()
        self._hub.threadpool.apply(settle, (result, function))  # gevent would also print what the function raises
        return result.result()

    def run_every(self, interval: float, tick: Tick) -> None:
        from gevent import spawn

        spawn(self._run, interval, tick)  # the greenlet refers to this loop and keeps it alive

    def _run(self, interval: float, tick: Tick) -> None:
        from gevent import sleep

        delay: float | None = interval
        while delay is not None:
            sleep(delay)
            delay = tick()


def is_in_gevent() -> bool:
    """Return whether the caller is a greenlet of gevent."""
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(gevent.getcurrent(), gevent.Greenlet)


@cache
def warn_if_unpatched() -> None:
    from gevent.monkey import is_module_patched

    if not is_module_patched("socket"):
        logger.warning(
            "gevent serves this process, but the standard library is not patched: any other blocking call in a handler "
            "blocks all connections. Start uwsgi with --gevent-early-monkey-patch. On another server, call "
            "gevent.monkey.patch_all() before anything else."
        )
