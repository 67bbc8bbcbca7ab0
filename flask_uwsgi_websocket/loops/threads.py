"""The loop for threads: each thread waits in poll(2)."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

from ..protocol.speedups import COMPILED
from .base import Reader, T, Tick, run
from .parking import ThreadLot
from .readers import poll

if COMPILED:
    from ._readers import PollReader
else:
    from .readers import PollReader


class ThreadLoop:
    """Waits with poll(2) in the caller's thread. A background thread runs the callbacks and the tick until it stops."""

    gives_way = False

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held around the attributes below
        self._writers: dict[int, Callable[[], bool]] = {}
        self._wake: socket.socket | None = None
        self._lot: ThreadLot | None = None

    async def wait_readable(self, fd: int, timeout: float | None) -> bool:
        return poll(fd, select.POLLIN, timeout)

    def watch(self, fd: int, interval: float) -> ThreadWatch:
        return ThreadWatch(fd, interval)

    def reader(self, fd: int) -> Reader:
        return PollReader(fd)

    async def wait_writable(self, fd: int, timeout: float | None) -> bool:
        return poll(fd, select.POLLOUT, timeout)

    async def sleep(self, seconds: float) -> None:
        if seconds:  # the interpreter switches threads by itself
            time.sleep(seconds)

    def call_when_writable(self, fd: int, callback: Callable[[], bool]) -> None:
        with self._lock:
            self._writers[fd] = callback
            if self._wake is not None:
                with suppress(BlockingIOError):  # the socket is full of wake-ups already
                    self._wake.send(b"\0")

    def forget(self, fd: int) -> None:
        with self._lock:
            self._writers.pop(fd, None)
        if self._lot is not None:
            self._lot.remove(fd)

    def lot(self, threads: int = 0) -> ThreadLot:
        with self._lock:
            if self._lot is None:
                self._lot = ThreadLot()
        self._lot.allow(threads)
        return self._lot

    def run_aside(self, function: Callable[[], None]) -> None:
        threading.Thread(target=function, name="flask-uwsgi-websocket-aside", daemon=True).start()

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        Context().run(threading.Thread(target=run, args=(coroutine,), name=name, daemon=True).start)

    async def call_blocking(self, function: Callable[[], T]) -> T:
        return function()

    def run_every(self, interval: float, tick: Tick) -> None:
        pair = socket.socketpair()  # outside of the thread, so that the caller sees when descriptors have run out
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
                if self._wake is wake:  # a newer thread may have replaced it
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


class ThreadWatch:
    """Waits for a descriptor with poll(2)."""

    def __init__(self, fd: int, interval: float) -> None:
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._interval = interval
        self._tick_at = time.monotonic() + interval

    async def wait(self) -> bool:
        remaining = self._tick_at - time.monotonic()
        if remaining > 0 and self._poll.poll(remaining * 1000):
            return True
        self._tick_at = time.monotonic() + self._interval
        return False

    def close(self) -> None:
        """Do nothing: poll(2) leaves nothing behind."""
