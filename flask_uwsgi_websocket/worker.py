"""What a uWSGI worker needs around its connections: an event loop of its own, and a proper end.

uWSGI ends its workers by signals: SIGHUP to reload, SIGINT to stop, SIGTERM to reload brutally (or to stop, without a
master). Clients are then told so, and handlers get a little time. How to hear of the signal before the worker is gone
depends on uWSGI's loop engine:

* gevent: by watchers beside uWSGI's own. ``uwsgi.atexit`` holds the exit up.
* asyncio: by handlers of the event loop, in place of uWSGI's, which exit at once.
* threads: the signals are blocked in the main thread, as uWSGI blocks them in all others, and one more thread waits
  for them. With threads turned off in uWSGI there is nothing that could wait.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache, partial
from time import monotonic

from .keepalive import connections
from .loops import Loop, ThreadLoop, current_asyncio_loop, current_blocking_loop, run
from .servers import uwsgi

#: Seconds between two looks whether all handlers have ended.
INTERVAL = 0.05

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

# The exit codes of uWSGI's workers (uwsgi.h).
_RELOAD_CODE = 17
_END_CODE = 30


def prepare_workers() -> None:
    """Prepare every worker, after its fork. Called when an app is initialised."""
    if uwsgi is None:
        return
    previous = getattr(uwsgi, "post_fork_hook", None)
    if getattr(previous, "func", None) is _after_fork:
        return
    uwsgi.post_fork_hook = partial(_after_fork, previous)
    if uwsgi.worker_id() > 0:  # the app is loaded after the fork
        _after_fork(None)


def _after_fork(previous: Callable[[], object] | None) -> None:
    if uwsgi.loop == b"asyncio":
        # The engine calls asyncio.get_event_loop(), which from Python 3.12 on makes none; and a loop from before the
        # fork would be shared by all workers.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.call_soon(_handle_signals_in_asyncio, loop)  # by when uWSGI has set its own
    elif uwsgi.loop != b"gevent" and uwsgi.has_threads:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=_wait_for_signal, name="flask-uwsgi-websocket-shutdown", daemon=True).start()
    if previous is not None:
        previous()


class Shutdown:
    """The end of this worker, carried out by one thread, greenlet or task."""

    def __init__(self, signum: int, loop: Loop) -> None:
        is_restart = signum == signal.SIGHUP or (signum == signal.SIGTERM and uwsgi.masterpid() > 0)
        self._code = 1012 if is_restart else 1001
        self._reason = "the server restarts" if is_restart else "the server stops"
        self._loop = loop
        self._began = monotonic()

    async def finish(self) -> bool:
        """Close all connections and wait for their handlers; return whether they have ended in time."""
        while self._close_connections():
            await self._loop.sleep(INTERVAL)
        late = connections()
        for connection in late:
            await connection.abandon()
        return not late

    def _close_connections(self) -> bool:
        """Begin to close what is open, and what has opened since; return whether there is still reason to wait."""
        is_waiting = False
        for connection in connections():
            connection.begin_shutdown(self._code, self._reason)
            is_waiting |= monotonic() - self._began < connection.shutdown_timeout
        return is_waiting


def _exit(signum: int) -> None:
    """End the worker as uWSGI's handlers do, which skip what Python has to do at its exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_RELOAD_CODE if signum == signal.SIGHUP else _END_CODE)


# Threads


def _wait_for_signal() -> None:
    signum = signal.sigwait(_SIGNALS)
    if signum == signal.SIGHUP:  # uWSGI's handler accepts no more, and lets the worker go after its last request
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.kill(os.getpid(), signum)
    in_time = run(Shutdown(signum, ThreadLoop()).finish())
    if signum != signal.SIGHUP or not in_time:
        # uWSGI would do the same, but not in this thread.
        getattr(uwsgi, "atexit", lambda: None)()
        atexit._run_exitfuncs()
        _exit(signum)


# gevent


@cache
def handle_signals_in_gevent() -> None:
    """Prepare the end of uWSGI's gevent engine. Called with each connection, as the engine starts after the fork."""
    if uwsgi is None or uwsgi.loop != b"gevent":
        return
    from gevent import Greenlet, get_hub, joinall

    finishing: list[Greenlet[..., None]] = []
    previous = getattr(uwsgi, "atexit", None)

    def begin(signum: int) -> None:
        if not finishing:
            finishing.append(Greenlet.spawn(finish, signum))

    def finish(signum: int) -> None:
        in_time = run(Shutdown(signum, current_blocking_loop()).finish())
        if signum == signal.SIGHUP and not in_time:  # uWSGI would wait for its mercy
            _exit(signum)

    def at_exit() -> None:
        joinall(finishing)
        if previous is not None:
            previous()

    uwsgi.atexit = at_exit
    for signum in _SIGNALS:
        get_hub().loop.signal(signum, ref=False).start(begin, signum)


# asyncio


def _handle_signals_in_asyncio(loop: asyncio.AbstractEventLoop) -> None:
    tasks: list[asyncio.Task[bool]] = []

    def begin(signum: int) -> None:
        if not tasks:
            tasks.append(loop.create_task(Shutdown(signum, current_asyncio_loop()).finish()))
            tasks[0].add_done_callback(lambda _: _exit(signum))

    for signum in _SIGNALS:
        loop.add_signal_handler(signum, begin, signum)
