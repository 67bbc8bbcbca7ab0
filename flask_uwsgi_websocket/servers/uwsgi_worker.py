"""The event loop and the end of a uWSGI worker.

uWSGI ends its workers by signals: SIGHUP to reload, SIGINT to stop, SIGTERM to reload brutally (or to stop, without a
master). Then clients get a Close frame, and handlers get some time to end. How this module handles the signals before
uWSGI ends the worker depends on uWSGI's loop engine:

* gevent: by watchers in addition to uWSGI's own. ``uwsgi.atexit`` delays the exit.
* asyncio: by handlers of the event loop. They replace uWSGI's handlers, which exit at once.
* threads: the main thread blocks the signals, as uWSGI does in all other threads, and one more thread waits for them.
  ``uwsgi.atexit`` waits for this thread if connections were parked, because uWSGI only waits for requests. If threads
  are turned off in uWSGI, nothing can wait for the signals.

A worker that has served ``max-requests``, or is too old or too large, gets no signal. uWSGI decides inside the worker,
at the end of a request, that the worker ends. It then waits for the other requests, and finally kills the worker. So
this module checks the same conditions once a second, and the worker sends itself a SIGHUP.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

import click

from .._uwsgi import number_option, uwsgi
from ..loops.base import Loop, run
from ..loops.current import current_blocking_loop
from ..loops.tasks import current_asyncio_loop
from ..loops.threads import ThreadLoop
from ..worker.housekeeper import connections, refuse_connections
from ..worker.shutdown import INTERVAL, Shutdown

if TYPE_CHECKING:
    from types import FrameType

#: The environment variable with the lines to show in the terminal when the application is loaded.
BLOCK_VARIABLE = "WEBSOCKET_START_BLOCK"

#: Seconds of delay, so that these lines come after the last lines of uWSGI's start.
BLOCK_DELAY = 0.3

#: Seconds between two checks whether uWSGI wants the worker to end without a signal.
CHECK_INTERVAL = 1.0

#: Seconds that other requests get to end when a worker with the asyncio engine reloads. uWSGI itself would not wait.
REQUEST_TIME = 5.0

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

#: The options that make a worker end by itself.
_LIMITS = frozenset({"max-requests", "max-worker-lifetime", "reload-on-rss", "reload-on-as"})

# The exit codes of uWSGI's workers (uwsgi.h). After the first one, the master starts another worker without a warning.
_QUIET_CODE = 29
_END_CODE = 30


def prepare_workers() -> None:
    """Prepare every worker, after its fork. Called when an app is initialised."""
    if uwsgi is None:
        return
    global _block
    _block = os.environ.pop(BLOCK_VARIABLE, _block)
    hook = getattr(uwsgi, "post_fork_hook", None)
    if getattr(hook, "func", None) is _after_fork:
        return
    hooks = dict.fromkeys((hook, _load_decorators()))
    uwsgi.post_fork_hook = partial(_after_fork, [each for each in hooks if each is not None])
    for signum in _SIGNALS:
        if signal.getsignal(signum) in {signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler}:
            with suppress(ValueError):  # only the main thread of the main interpreter may set handlers
                signal.signal(signum, _end_starting_worker)
    if uwsgi.worker_id() > 0:  # the app is loaded after the fork
        _after_fork([])


def _load_decorators() -> Callable[[], object] | None:
    """Import ``uwsgidecorators`` before our hook is set, because it replaces ``post_fork_hook``; return its hook."""
    spooler = getattr(uwsgi, "spooler", None)
    with suppress(Exception):  # not installed, or there is no master
        importlib.import_module("uwsgidecorators")
    if spooler is not None:  # the import replaces the spooler, too
        uwsgi.spooler = spooler
    hook: Callable[[], object] | None = getattr(uwsgi, "post_fork_hook", None)
    return hook


def _end_starting_worker(signum: int, frame: FrameType | None) -> None:
    """Handle a signal that comes before uWSGI sets its own handlers, at the end of a worker's start.

    Before that, uWSGI ignores SIGHUP and SIGTERM, and drops the KeyboardInterrupt that Python raises for SIGINT.
    """
    if uwsgi.worker_id() > 0:
        os._exit(_QUIET_CODE if signum == signal.SIGHUP else _END_CODE)
    if signum == signal.SIGINT:
        signal.default_int_handler(signum, frame)


def _after_fork(hooks: Iterable[Callable[[], object]]) -> None:
    is_worker = uwsgi.worker_id() > 0  # mules and spoolers are forked, too, and handle their own signals
    if is_worker:
        _prepare_worker()
    try:
        for hook in hooks:
            hook()
    finally:
        if is_worker and uwsgi.loop == b"gevent":
            from gevent import spawn

            spawn(handle_signals_in_gevent)  # runs after the engine has started and set its own handlers


_block = ""  # the value of BLOCK_VARIABLE


def _do_nothing() -> None:
    pass


def _prepare_worker() -> None:
    if uwsgi.loop == b"asyncio":
        # The asyncio engine calls asyncio.get_event_loop(), which makes no loop on Python 3.12 and later. All workers
        # would share a loop that was made before the fork.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.call_soon(_handle_signals_in_asyncio, loop)  # after uWSGI has set its own handlers
    elif uwsgi.loop != b"gevent" and uwsgi.has_threads:
        global _shutdown_thread
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        _shutdown_thread = threading.Thread(target=_wait_for_signal, name="flask-uwsgi-websocket-shutdown", daemon=True)
        _shutdown_thread.start()
        _start_timers(ThreadLoop)
    elif uwsgi.loop != b"gevent" and _is_first():
        click.echo(_block)


def make_shutdown(signum: int, loop: Loop) -> Shutdown:
    """Return the shutdown of this worker. From now on, the worker takes only connections for which uWSGI will wait.

    :param signum: the signal from uWSGI. After SIGHUP, other requests may go on and may still become connections.
    """
    if signum != signal.SIGHUP:
        refuse_connections()
    restarts = signum != signal.SIGINT and uwsgi.masterpid() > 0
    return Shutdown(loop, connections, restarts=restarts, mercy=number_option(uwsgi.opt, "worker-reload-mercy", 60))


def _exit(signum: int) -> NoReturn:
    """End the worker as uWSGI's handlers do, without Python's functions for the exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_QUIET_CODE if signum == signal.SIGHUP else _END_CODE)


# Ends without a signal


def _start_timers(make_loop: Callable[[], Loop]) -> None:
    """Start the timers that show the start block, and that end this worker when uWSGI's limits are reached."""
    if _is_first():
        make_loop().run_every(BLOCK_DELAY, partial(click.echo, _block))
    if uwsgi.opt.keys() & _LIMITS:
        make_loop().run_every(CHECK_INTERVAL, _go_on_or_end)


def _is_first() -> bool:
    """Return whether this worker shows the start block: worker 1 does, at its first start."""
    return bool(_block) and uwsgi.worker_id() == 1 and uwsgi.workers()[0]["respawn_count"] == 0


def _go_on_or_end() -> float | None:
    if not is_worn_out():
        return CHECK_INTERVAL
    os.kill(os.getpid(), signal.SIGHUP)
    return None


def is_worn_out() -> bool:
    """Return whether one of uWSGI's limits ends this worker after its next request, or has ended it (utils.c)."""
    others = uwsgi.worker_id() - 1  # the workers before this one
    worker = uwsgi.workers()[others]
    age = time.time() - worker["last_spawn"]
    values = {
        "max-requests": worker["delta_requests"] - others * number_option(uwsgi.opt, "max-requests-delta", 0),
        "max-worker-lifetime": age - others * number_option(uwsgi.opt, "max-worker-lifetime-delta", 0),
        "reload-on-rss": worker["rss"] / 2**20,
        "reload-on-as": worker["vsz"] / 2**20,
    }
    return age >= number_option(uwsgi.opt, "min-worker-lifetime", 10) and any(
        0 < number_option(uwsgi.opt, name, 0) <= value for name, value in values.items()
    )


def _is_busy() -> bool:
    """Return whether this worker still serves a request."""
    status: bytes = uwsgi.workers()[uwsgi.worker_id() - 1]["status"]
    return status == b"busy"


# Threads


def _wait_for_signal() -> None:
    signum = signal.sigwait(_SIGNALS)
    if signum == signal.SIGHUP and not _is_exiting.is_set():
        # uWSGI's handler stops accepting, and ends the worker after its last request: it calls _at_exit(). With one
        # thread and no request, it does so in here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.kill(os.getpid(), signum)
    _end_worker(signum)


def _end_worker(signum: int) -> NoReturn:
    shutdown = make_shutdown(signum, ThreadLoop())
    while run(shutdown.finish()) and signum == signal.SIGHUP and not _is_exiting.is_set():
        _is_exiting.wait(INTERVAL)  # a request may still become a connection
    # uWSGI calls these at the exit, but not for an exit in this thread.
    _previous_at_exit()
    atexit._run_exitfuncs()
    _exit(signum)


def _at_exit() -> None:
    """Let :func:`_wait_for_signal` end the worker, which has no request any more, but may have connections."""
    _is_exiting.set()
    if threading.current_thread() is _shutdown_thread:
        _end_worker(signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)  # in case that uWSGI ends the worker without a signal
    while True:
        time.sleep(CHECK_INTERVAL)


@cache
def wait_in_threads() -> None:
    """Let a worker with threads wait for its connections at its exit. Each parked connection calls this."""
    global _previous_at_exit
    if _shutdown_thread is not None:
        _previous_at_exit = getattr(uwsgi, "atexit", _do_nothing)
        uwsgi.atexit = _at_exit


_is_exiting = threading.Event()
_shutdown_thread: threading.Thread | None = None
_previous_at_exit: Callable[[], object] = _do_nothing


# gevent


@cache
def handle_signals_in_gevent() -> None:
    """Handle the signals that end a worker with the gevent engine, once the engine runs.

    Each connection calls this, too, because the application may have replaced the ``post_fork_hook``.
    """
    if uwsgi.loop != b"gevent":
        return
    from gevent import Greenlet, get_hub, joinall, sleep

    finishing: list[Greenlet[..., None]] = []
    previous = getattr(uwsgi, "atexit", None)

    def begin(signum: int) -> None:
        if not finishing:
            finishing.append(Greenlet.spawn(finish, signum))

    def finish(signum: int) -> None:
        shutdown = make_shutdown(signum, current_blocking_loop())
        in_time = run(shutdown.finish())
        if signum == signal.SIGHUP:
            Greenlet.spawn(follow, shutdown, in_time)

    def follow(shutdown: Shutdown, in_time: bool) -> None:
        """Close connections that requests still become, while uWSGI waits for these requests."""
        while in_time:
            sleep(INTERVAL)
            in_time = run(shutdown.finish())
        _exit(signal.SIGHUP)  # uWSGI would wait until it kills the worker

    def at_exit() -> None:
        if connections():  # uWSGI ends the worker without a signal, and waits for no connection without a request
            begin(signal.SIGHUP)
        joinall(finishing)
        if previous is not None:
            previous()

    uwsgi.atexit = at_exit
    for signum in _SIGNALS:
        get_hub().loop.signal(signum, ref=False).start(begin, signum)
    _start_timers(current_blocking_loop)


# asyncio


def _handle_signals_in_asyncio(loop: asyncio.AbstractEventLoop) -> None:
    tasks: list[asyncio.Task[None]] = []

    def begin(signum: int) -> None:
        if not tasks:
            for fd in uwsgi.sockets:  # stop accepting: new clients wait for another worker
                loop.remove_reader(fd)
            tasks.append(loop.create_task(finish(signum)))

    async def finish(signum: int) -> None:
        try:
            shutdown = make_shutdown(signum, current_asyncio_loop())
            deadline = monotonic() + REQUEST_TIME
            while await shutdown.finish() and signum == signal.SIGHUP and _is_busy() and monotonic() < deadline:
                await asyncio.sleep(INTERVAL)
        finally:
            _exit(signum)

    for signum in _SIGNALS:
        loop.add_signal_handler(signum, begin, signum)
    _start_timers(current_asyncio_loop)
