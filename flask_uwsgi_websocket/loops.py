"""How a connection waits in each concurrency mode: a thread, a greenlet of gevent, a task of asyncio.

A loop is what a connection needs of its mode, and no more: wait until a descriptor can be read or written, call
back when one can be written, run something now and then, and let others run. Nothing here knows WebSockets.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from gevent.hub import Hub

T = TypeVar("T")

logger = logging.getLogger(__package__)

#: The most milliseconds that poll(2) takes: 24 days.
_LONGEST_POLL = 2**31 - 1

#: A function to run now and then. It returns the seconds until its next run, or None for no more.
Tick = Callable[[], "float | None"]


class Loop(Protocol):
    """What every mode can do.

    What is awaited, waits. In asyncio it suspends its task; in threads and greenlets it never suspends but blocks
    its caller, so that :func:`run` can run them to their end. All else may be called from any thread.
    """

    #: Whether callbacks run whenever a handler waits, for whatever it is.
    gives_way: bool

    def wait_readable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        """Wait until *fd* can be read or has ended; return False when *timeout* seconds have passed."""

    def wait_writable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        """Wait until *fd* takes more or has ended; return False when *timeout* seconds have passed."""

    async def sleep(self, seconds: float) -> None:
        """Let the other connections of this worker run, and come back after *seconds*, which may be 0."""

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        """Call *callback* whenever *fd* takes more, until it returns False."""

    def forget(self, fd: int) -> None:
        """Drop the callback for *fd*. It is not closed while somebody waits for it."""

    def run_every(self, interval: float, tick: Tick) -> None:
        """Call *tick* in *interval* seconds, and again whenever it says."""


class BlockingLoop(Loop, Protocol):
    """What the modes that block can do, besides."""

    def block_until_readable(self, fd: int) -> None:
        """Wait until *fd* can be read or has ended."""


class ThreadLoop:
    """Waits with poll(2) in the caller's thread; one background thread does the rest while there is any."""

    gives_way = False

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held around what follows
        self._writers: dict[int, Callable[[], bool]] = {}
        self._wake: socket.socket | None = None

    async def wait_readable(self, fd: int, timeout: float | None) -> bool:
        return _poll(fd, select.POLLIN, timeout)

    def block_until_readable(self, fd: int) -> None:
        _poll(fd, select.POLLIN, None)

    async def wait_writable(self, fd: int, timeout: float | None) -> bool:
        return _poll(fd, select.POLLOUT, timeout)

    async def sleep(self, seconds: float) -> None:
        if seconds:  # the interpreter switches threads by itself
            time.sleep(seconds)

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        with self._lock:
            self._writers[fd] = callback
            if self._wake is not None:
                with suppress(BlockingIOError):  # it is full of wake-ups already
                    self._wake.send(b"\0")

    def forget(self, fd: int) -> None:
        with self._lock:
            self._writers.pop(fd, None)

    def run_every(self, interval: float, tick: Tick) -> None:
        pair = socket.socketpair()  # not in the thread: its caller is to hear that there are no more descriptors
        try:
            arguments = (interval, tick, *pair)
            threading.Thread(target=self._run, args=arguments, name="flask-uwsgi-websocket", daemon=True).start()
        except BaseException:
            for each in pair:
                each.close()
            raise

    def _run(self, interval: float, tick: Tick, woken: socket.socket, wake: socket.socket) -> None:
        wake.setblocking(False)
        with self._lock:
            self._wake = wake
        try:
            delay: float | None = interval
            while delay is not None:
                self._write_until(woken, delay)
                delay = tick()
        finally:
            with self._lock:
                if self._wake is wake:  # a successor may have started
                    self._wake = None
            woken.close()
            wake.close()

    def _write_until(self, woken: socket.socket, interval: float) -> None:
        deadline = time.monotonic() + interval
        while (remaining := deadline - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(woken, select.POLLIN)
            with self._lock:
                writers = dict(self._writers)
            for fd in writers:
                poll.register(fd, select.POLLOUT)
            for fd, _ in poll.poll(remaining * 1000):
                if fd == woken.fileno():
                    woken.recv(4096)
                elif not writers[fd]():
                    with self._lock:
                        if self._writers.get(fd) is writers[fd]:
                            del self._writers[fd]


def _poll(fd: int, event: int, timeout: float | None) -> bool:
    poll = select.poll()  # not select(2), which ends at descriptor 1,023
    poll.register(fd, event)
    return bool(poll.poll(None if timeout is None else min(max(0.0, timeout) * 1000, _LONGEST_POLL)))


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

    def run_every(self, interval: float, tick: Tick) -> None:
        from gevent import spawn

        spawn(self._run, interval, tick)  # it refers to this loop, which thus lives as long as it

    def _run(self, interval: float, tick: Tick) -> None:
        from gevent import sleep

        delay: float | None = interval
        while delay is not None:
            sleep(delay)
            delay = tick()


class AsyncioLoop:
    """Waits in an asyncio event loop, to whose thread waiting and :meth:`forget` belong."""

    gives_way = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # asyncio keeps one reader and one writer for a descriptor; here any number may wait. A reader stays with its
        # descriptor until it is called and nobody waits, as most often somebody soon waits again.
        self._readers: dict[int, list[asyncio.Future[bool]]] = {}
        self._writers: dict[int, list[asyncio.Future[bool]]] = {}
        self._callbacks: dict[int, Callable[[], bool]] = {}

    def wait_readable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        if fd not in self._readers:
            self._loop.add_reader(fd, self._readable, fd)
            self._readers[fd] = []
        return self._wait(self._readers[fd], timeout)

    def wait_writable(self, fd: int, timeout: float | None) -> Awaitable[bool]:
        self._loop.add_writer(fd, self._writable, fd)
        return self._wait(self._writers.setdefault(fd, []), timeout)

    def _wait(self, waiting: list[asyncio.Future[bool]], timeout: float | None) -> Awaitable[bool]:
        """Return what ends a wait. A bare future, where it can be: a coroutine around it would cost as much again."""
        if waiting:  # by others, or once by tasks that were cancelled
            waiting[:] = [future for future in waiting if not future.done()]
        future = self._loop.create_future()
        waiting.append(future)
        return future if timeout is None else self._wait_at_most(future, timeout)

    async def _wait_at_most(self, future: asyncio.Future[bool], timeout: float) -> bool:
        timer = self._loop.call_later(timeout, _set_result, future, False)
        try:
            return await future
        finally:
            timer.cancel()

    def _readable(self, fd: int) -> None:
        waiting = self._readers[fd]
        if not waiting:
            self._forget_reader(fd)
        for future in waiting:
            _set_result(future, True)
        waiting.clear()

    def _forget_reader(self, fd: int) -> None:
        if fd in self._readers:
            self._loop.remove_reader(fd)
            for future in self._readers.pop(fd):
                _set_result(future, True)

    def _writable(self, fd: int) -> None:
        for future in self._writers.pop(fd, ()):
            _set_result(future, True)
        callback = self._callbacks.get(fd)
        if callback is None or not callback():
            self._callbacks.pop(fd, None)
            self._loop.remove_writer(fd)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        self._loop.call_soon_threadsafe(self._watch, fd, callback)

    def _watch(self, fd: int, callback: Callable[[], bool]) -> None:
        if not callback():  # in the meantime it may have been closed, and the number be another's
            return
        self._callbacks[fd] = callback
        self._loop.add_writer(fd, self._writable, fd)

    def forget(self, fd: int) -> None:
        self._callbacks.pop(fd, None)
        self._loop.remove_writer(fd)
        self._forget_reader(fd)
        for future in self._writers.pop(fd, ()):
            _set_result(future, True)

    def run_every(self, interval: float, tick: Tick) -> None:
        self._loop.call_soon_threadsafe(self._loop.call_later, interval, self._run, tick)

    def _run(self, tick: Tick) -> None:
        delay = tick()
        if delay is not None:
            self._loop.call_later(delay, self._run, tick)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in a task, which sees the caller's context variables; from any thread.

        What it raises is the caller's alone: a SystemExit would end the event loop.
        """
        result: Future[T] = Future()

        async def run() -> None:
            try:
                result.set_result(await coroutine)
            except BaseException as error:
                result.set_exception(error)

        asyncio.run_coroutine_threadsafe(run(), self._loop)
        return result


def _set_result(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)


_thread_loop = ThreadLoop()
# By the id() of gevent's hub or asyncio's loop, which cannot be another's as long as the value refers to it.
_gevent_loops: WeakValueDictionary[int, GeventLoop] = WeakValueDictionary()
_asyncio_loops: WeakValueDictionary[int, AsyncioLoop] = WeakValueDictionary()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that blocks instead of suspending, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise RuntimeError("a coroutine that should block has suspended")  # pragma: no cover


def is_in_gevent() -> bool:
    """Tell whether the caller is one of gevent's greenlets."""
    gevent = sys.modules.get("gevent")
    return gevent is not None and isinstance(gevent.getcurrent(), gevent.Greenlet)


def current_blocker() -> object:
    """Return what a blocking call holds up here: the greenlet of gevent, or else the thread."""
    return sys.modules["gevent"].getcurrent() if is_in_gevent() else threading.get_ident()


def current_blocking_loop() -> BlockingLoop:
    """Return the loop for the caller: gevent's inside one of its greenlets, else the one for threads."""
    if not is_in_gevent():
        return _thread_loop
    from gevent import get_hub

    hub = get_hub()
    _warn_if_unpatched()
    loop = _gevent_loops.get(id(hub))
    if loop is None:
        loop = _gevent_loops[id(hub)] = GeventLoop(hub)
    return loop


@cache
def _warn_if_unpatched() -> None:
    from gevent.monkey import is_module_patched

    if not is_module_patched("socket"):
        logger.warning(
            "gevent serves this process, but the standard library is not patched: whatever else waits in a handler "
            "holds up all connections. Start uwsgi with --gevent-early-monkey-patch; elsewhere, begin with "
            "gevent.monkey.patch_all()."
        )


def current_asyncio_loop() -> AsyncioLoop:
    """Return the loop for the event loop that is running in this thread.

    :raises RuntimeError: when there is none.
    """
    return _asyncio_loop(asyncio.get_running_loop())


def background_asyncio_loop() -> AsyncioLoop:
    """Return the loop for coroutines of a server that has none: one for all its threads, in a thread of its own.

    It lives as long as the process, as what coroutines share, such as a queue, belongs to the loop.
    """
    global _background
    with _starting:
        if _background is None or not _background[0].is_alive():  # a fork has left it behind
            loop = asyncio.new_event_loop()
            thread = threading.Thread(
                target=_keep_running, args=(loop,), name="flask-uwsgi-websocket-asyncio", daemon=True
            )
            thread.start()
            _background = thread, _asyncio_loop(loop)
        return _background[1]


def _keep_running(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop of all handlers whatever one of their tasks does: an exit, or ``stop()``, would end it for all."""
    while True:
        try:
            loop.run_forever()
        except BaseException:
            logger.exception("a task would have ended the event loop of all coroutine handlers")


_background: tuple[threading.Thread, AsyncioLoop] | None = None
_starting = threading.Lock()  # of two threads that are the first, each would start its own


def _asyncio_loop(running: asyncio.AbstractEventLoop) -> AsyncioLoop:
    loop = _asyncio_loops.get(id(running))
    if loop is None:
        loop = _asyncio_loops[id(running)] = AsyncioLoop(running)
    return loop


def allocate_lock() -> threading.Lock:
    """Return a lock of the interpreter, also where gevent has replaced them.

    It is for sections that never wait, so that no greenlet ever has to wait for another one's.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return threading.Lock()
    lock: threading.Lock = monkey.get_original("_thread", "allocate_lock")()
    return lock


def allocate_rlock() -> threading.RLock:
    """Return a lock as :func:`allocate_lock` does, which the thread that holds it may take again."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return threading.RLock()
    lock: threading.RLock = monkey.get_original("_thread", "RLock")()
    return lock
