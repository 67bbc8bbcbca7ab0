"""The loop for asyncio: tasks wait in their event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..exceptions import AsyncioNotAvailable
from .base import T, Tick, settle
from .parking import AsyncioLot

if TYPE_CHECKING:
    from greenlet import greenlet

logger = logging.getLogger("flask_uwsgi_websocket")


class AsyncioLoop:
    """Waits in an asyncio event loop. Only the thread of that event loop may wait and call :meth:`forget`."""

    gives_way = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.event_loop = loop
        # asyncio keeps one reader and one writer for a descriptor; here any number of tasks may wait. A reader stays
        # with its descriptor until it is called while no task waits, because most often a task soon waits again.
        self._readers: dict[int, list[asyncio.Future[bool]]] = {}
        self._writers: dict[int, list[asyncio.Future[bool]]] = {}
        self._forgetting: dict[int, Callable[[], None]] = {}
        # uvloop drops the reader of a socket that was reset, after one more call, and says nothing.
        self._keeps_readers = isinstance(loop, asyncio.SelectorEventLoop)
        self._callbacks: dict[int, Callable[[], bool]] = {}
        self._lot: AsyncioLot | None = None

    def wait_readable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        future = self.next_readable(fd)
        return future if timeout is None else self._wait_at_most(future, timeout)

    def next_readable(self, fd: int) -> asyncio.Future[bool]:
        """Return a future that becomes True when *fd* is readable or has ended."""
        if fd not in self._readers or not (self._keeps_readers or fd in self._forgetting):
            self._add_reader(fd, self.wake, fd)
        return self._next(self._readers.setdefault(fd, []))

    def read_with(
        self, fd: int, callback: Callable[[], None], forget: Callable[[], None]
    ) -> list[asyncio.Future[bool]]:
        """Let the event loop call *callback* whenever *fd* is readable or has ended.

        :param forget: is called when the event loop has stopped doing so.
        :returns: the futures of others that wait for *fd*. When it is readable, and there are any or nobody waits for
            it, the caller has to call :meth:`wake`.
        """
        self._add_reader(fd, callback)
        self._forgetting[fd] = forget
        return self._readers.setdefault(fd, [])

    def _add_reader(self, fd: int, callback: Callable[..., None], *args: Any) -> None:
        try:
            self.event_loop.add_reader(fd, callback, *args)
        except RuntimeError:  # uvloop keeps what is left of a reader that it has dropped
            self.event_loop.remove_reader(fd)
            self.event_loop.add_reader(fd, callback, *args)

    def watch(self, fd: int, interval: float) -> AsyncioWatch:
        return AsyncioWatch(self, fd, interval)

    def wait_writable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        self.event_loop.add_writer(fd, self._writable, fd)
        future = self._next(self._writers.setdefault(fd, []))
        return future if timeout is None else self._wait_at_most(future, timeout)

    def _next(self, waiting: list[asyncio.Future[bool]]) -> asyncio.Future[bool]:
        """Return a future for a wait. Most waits are this bare future: a coroutine around it doubles the cost."""
        if waiting:  # futures of other tasks, or of tasks that were cancelled
            waiting[:] = [future for future in waiting if not future.done()]
        future = self.event_loop.create_future()
        waiting.append(future)
        return future

    async def _wait_at_most(self, future: asyncio.Future[bool], timeout: float) -> bool:
        timer = self.event_loop.call_later(timeout, _set_result, future, False)
        try:
            return await future
        finally:
            timer.cancel()

    def wake(self, fd: int) -> None:
        """Wake all that wait for a future, or stop waiting for *fd* if nobody does."""
        waiting = self._readers[fd]
        if not waiting:
            self._forget_reader(fd)
        for future in waiting:
            _set_result(future, True)
        waiting.clear()

    def _forget_reader(self, fd: int) -> None:
        if fd in self._readers:
            self.event_loop.remove_reader(fd)
            self._forgetting.pop(fd, _do_nothing)()
            for future in self._readers.pop(fd):
                _set_result(future, True)

    def _writable(self, fd: int) -> None:
        for future in self._writers.pop(fd, ()):
            _set_result(future, True)
        callback = self._callbacks.get(fd)
        if callback is None or not callback():
            self._callbacks.pop(fd, None)
            self.event_loop.remove_writer(fd)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        self.event_loop.call_soon_threadsafe(self._watch, fd, callback)

    def _watch(self, fd: int, callback: Callable[[], bool]) -> None:
        if not callback():  # fd may have been closed meanwhile, and another connection may have its number
            return
        self._callbacks[fd] = callback
        self.event_loop.add_writer(fd, self._writable, fd)

    def forget(self, fd: int) -> None:
        self._callbacks.pop(fd, None)
        if self._lot is not None:
            self._lot.remove(fd)
        self.event_loop.remove_writer(fd)
        self._forget_reader(fd)
        for future in self._writers.pop(fd, ()):
            _set_result(future, True)

    def lot(self, threads: int = 0) -> AsyncioLot:
        with _making_lot:
            if self._lot is None:
                self._lot = AsyncioLot(self.event_loop, self)
        return self._lot

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.event_loop.call_soon(callback)

    def run_aside(self, function: Callable[[], None]) -> None:
        function()  # in the loop's thread nothing waits but tasks

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        Context().run(self.submit, coroutine)

    async def call_blocking(self, function: Callable[[], T]) -> T:
        result: Future[T] = Future()
        result.set_running_or_notify_cancel()  # so that the end of the task does not cancel it under the thread's hands
        threading.Thread(target=settle, args=(result, function), name="flask-uwsgi-websocket-call", daemon=True).start()
        return await asyncio.wrap_future(result)

    def run_every(self, interval: float, tick: Tick) -> None:
        self.event_loop.call_soon_threadsafe(self.event_loop.call_later, interval, self._run, tick)

    def _run(self, tick: Tick) -> None:
        delay = tick()
        if delay is not None:
            self.event_loop.call_later(delay, self._run, tick)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in a task that sees the caller's context variables. May be called from any thread.

        An exception goes to the future alone: raised in the task, a SystemExit would end the event loop.
        """
        result: Future[T] = Future()

        async def run() -> None:
            try:
                result.set_result(await coroutine)
            except BaseException as error:
                result.set_exception(error)

        asyncio.run_coroutine_threadsafe(run(), self.event_loop)
        return result


class AsyncioWatch:
    """Waits for a descriptor, in the thread of an event loop."""

    def __init__(self, loop: AsyncioLoop, fd: int, interval: float) -> None:
        self._loop = loop
        self._fd = fd
        self._interval = interval
        self._is_due = False
        self._waiting: asyncio.Future[bool] | None = None
        self._timer = loop.event_loop.call_later(interval, self._tick)

    def wait(self) -> asyncio.Future[bool]:
        if self._is_due:
            self._is_due = False
            self._waiting = self._loop.event_loop.create_future()
            self._waiting.set_result(False)
        else:
            self._waiting = self._loop.next_readable(self._fd)
        return self._waiting

    def _tick(self) -> None:
        self._timer = self._loop.event_loop.call_later(self._interval, self._tick)
        if self._waiting is None or self._waiting.done():
            self._is_due = True
        else:
            self._waiting.set_result(False)

    def close(self) -> None:
        self._timer.cancel()
        self._loop.forget(self._fd)


def _do_nothing() -> None:
    pass


def _set_result(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)


_asyncio_loops: WeakValueDictionary[int, AsyncioLoop] = WeakValueDictionary()


def current_asyncio_loop() -> AsyncioLoop:
    """Return the loop for the event loop that is running in this thread.

    :raises RuntimeError: when no event loop is running.
    """
    return _asyncio_loop(asyncio.get_running_loop())


def served_asyncio_loop() -> AsyncioLoop | None:
    """Return the loop for the event loop that is running in this thread, if connections or tasks already use it."""
    running = asyncio._get_running_loop()  # which does not raise
    return None if running is None else _asyncio_loops.get(id(running))


def background_asyncio_loop() -> AsyncioLoop:
    """Return the loop for coroutines on a server without an event loop. All its threads share this one.

    The loop runs in a thread of its own. It lives as long as the process, because objects that coroutines share, such
    as a queue, belong to one event loop.
    """
    global _background
    with _starting:
        if _background is None or not _background[0].is_alive():  # the thread did not survive a fork
            loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=_keep_running, args=(loop,), name="flask-uwsgi-websocket-asyncio", daemon=True
            )
            thread.start()
            _background = thread, _asyncio_loop(loop)
        return _background[1]


def _keep_running(loop: asyncio.AbstractEventLoop) -> None:
    """Run the event loop of all handlers, and run it again when a task ends it by an exit or ``stop()``."""
    while True:
        try:
            loop.run_forever()
        except BaseException:
            logger.exception("a task would have ended the event loop of all coroutine handlers")


_background: tuple[threading.Thread, AsyncioLoop] | None = None
_starting = threading.Lock()  # keeps two threads from starting a loop each
_making_lot = threading.Lock()  # and from making a parking lot each


def _asyncio_loop(running: asyncio.AbstractEventLoop) -> AsyncioLoop:
    loop = _asyncio_loops.get(id(running))
    if loop is None:
        loop = _asyncio_loops[id(running)] = AsyncioLoop(running)
    return loop


def is_in_loop() -> bool:
    """Return whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def parent_greenlet() -> greenlet | None:
    """Return the greenlet that runs the event loop, if the caller runs in a child greenlet of it; otherwise None.

    :raises AsyncioNotAvailable: when an event loop is running, and greenlet is not installed.
    """
    if not is_in_loop():
        return None
    try:
        from greenlet import getcurrent
    except ImportError:
        raise AsyncioNotAvailable("AsyncioWebSocket needs greenlet: pip install greenlet") from None
    return getcurrent().parent


def run_in_greenlet(coroutine: Coroutine[Any, Any, T], name: str) -> T:
    """Run a coroutine in a task, and let the event loop run until the task is done.

    The caller is a child greenlet of the one that runs the event loop, as each request is in uWSGI's asyncio engine.
    """
    from greenlet import getcurrent

    parent, current = parent_greenlet(), getcurrent()
    assert parent is not None
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    if not task.done():  # an eager task may be done already
        task.add_done_callback(lambda task: current.switch())
        while not task.done():
            parent.switch()
    return task.result()
