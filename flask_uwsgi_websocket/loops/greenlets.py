"""The loop for gevent: greenlets wait in the hub."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context, copy_context
from functools import cache
from typing import TYPE_CHECKING, Any

from ..protocol.speedups import COMPILED
from .base import T, Tick, run, settle
from .parking import GeventLot
from .readers import wait_in_hub

if COMPILED:
    from ._readers import GeventReader
else:
    from .readers import GeventReader

if TYPE_CHECKING:
    from gevent import Greenlet
    from gevent.event import Event
    from gevent.hub import Hub


logger = logging.getLogger("flask_uwsgi_websocket")


class GeventLoop:
    """Waits in gevent's hub. A native thread may wait, too, in a hub of its own."""

    gives_way = True

    def __init__(self, hub: Hub) -> None:
        from gevent import get_hub

        self._hub = hub
        self._get_hub = get_hub
        self._lot: GeventLot | None = None
        # Only the hub's thread closes a reader, and uses the writers: io watchers.
        self._readers: dict[int, GeventReader] = {}
        self._writers: dict[int, Any] = {}

    async def wait_readable(self, fd: int, timeout: float | None) -> bool:
        return self.reader(fd).wait(timeout)

    def reader(self, fd: int) -> GeventReader:
        reader = self._readers.get(fd)
        if reader is None:
            reader = self._readers[fd] = GeventReader(self._hub, fd)
        return reader

    def watch(self, fd: int, interval: float) -> GeventWatch:
        return GeventWatch(self._get_hub(), fd, interval)

    async def wait_writable(self, fd: int, timeout: float | None) -> bool:
        from gevent.socket import wait_write

        return wait_in_hub(wait_write, fd, timeout)

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
        if self._lot is not None:
            self._lot.remove(fd)
        reader = self._readers.pop(fd, None)
        if reader is not None:
            reader.close()

    def _forget_writer(self, fd: int) -> None:
        watcher = self._writers.pop(fd, None)
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def lot(self, threads: int = 0) -> GeventLot:
        if self._lot is None:
            self._lot = GeventLot(self._hub, self)
        return self._lot

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._hub.loop.run_callback(callback)

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


class GeventWatch:
    """Waits for a descriptor with one watcher and one timer. Only the thread of its hub uses it."""

    def __init__(self, hub: Hub, fd: int, interval: float) -> None:
        from gevent import getcurrent

        self._hub = hub
        self._getcurrent = getcurrent
        self._watcher = hub.loop.io(fd, 1)
        self._is_due = False
        self._waiting: Callable[[bool], object] | None = None
        self._timer = hub.loop.timer(interval, interval)
        self._timer.start(self._tick)

    async def wait(self) -> bool:
        if not self._is_due:
            self._waiting = self._getcurrent().switch
            try:
                self._watcher.start(self._waiting, True)
                is_readable = bool(self._hub.switch())
            finally:
                self._watcher.stop()
                self._waiting = None
            if is_readable:
                return True
        self._is_due = False
        return False

    def _tick(self) -> None:
        self._is_due = True
        if self._waiting is not None:
            self._waiting(False)

    def close(self) -> None:
        self._timer.stop()
        self._timer.close()
        self._watcher.close()


def is_in_gevent() -> bool:
    """Return whether the caller is a greenlet of gevent."""
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(gevent.getcurrent(), gevent.Greenlet)


def new_event() -> Event:
    """Return an event for greenlets of one hub."""
    from gevent.event import Event

    return Event()


def run_apart(
    function: Callable[[], object], over: Event, grace: float, note_failure: Callable[[BaseException], None]
) -> Greenlet[..., Any] | None:
    """Run *function* in a greenlet of its own, and wait until it ends, or *grace* seconds after *over* is set.

    :param note_failure: called with what *function* raises when nobody waits for it any more.
    :returns: the greenlet, if the function goes on; None if it has ended.
    :raises BaseException: what *function* raises, except for ``GreenletExit``.
    """
    from gevent import GreenletExit, spawn, wait

    is_awaited = True

    def call() -> BaseException | None:  # gevent would print an exception
        try:
            function()
        except GreenletExit:
            return None
        except BaseException as error:
            if not is_awaited:
                note_failure(error)
            return error
        return None

    greenlet = spawn(copy_context().run, call)
    try:
        either: list[Any] = [greenlet, over]
        wait(either, count=1)
        greenlet.join(grace)
    finally:
        is_awaited = False
    if not greenlet.ready():
        return greenlet
    if greenlet.value is not None:
        raise greenlet.value
    return None


def patch_library(*, aggressive: bool) -> None:
    """Let the blocking calls of the standard library wait in the hub, unless they do already."""
    from gevent.monkey import is_module_patched, patch_all

    if not is_module_patched("socket"):
        patch_all(aggressive=aggressive)


@cache
def warn_if_unpatched() -> None:
    from gevent.monkey import is_module_patched

    if not is_module_patched("socket"):
        logger.warning(
            "gevent serves this process, but the standard library is not patched: any other blocking call in a handler "
            "blocks all connections. Start uwsgi with --gevent-early-monkey-patch. On another server, call "
            "gevent.monkey.patch_all() before anything else."
        )
