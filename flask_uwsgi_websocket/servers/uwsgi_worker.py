"""What a uWSGI worker needs around its connections: an event loop of its own, and a proper end.

uWSGI ends its workers by signals: SIGHUP to reload, SIGINT to stop, SIGTERM to reload brutally (or to stop, without a
master). Clients are then told so, and handlers get a little time. How to hear of the signal before the worker is gone
depends on uWSGI's loop engine:

* gevent: by watchers beside uWSGI's own. ``uwsgi.atexit`` holds the exit up.
* asyncio: by handlers of the event loop, in place of uWSGI's, which exit at once.
* threads: the signals are blocked in the main thread, as uWSGI blocks them in all others, and one more thread waits
  for them. With threads turned off in uWSGI there is nothing that could wait.

A worker that has served ``max-requests``, or is too old or too large, gets no signal: uWSGI decides that inside the
worker, at the end of a request, and then waits for the others, to kill them at last. So the same is worked out here,
once a second, and the worker sends itself the SIGHUP.
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

#: The variable with the lines that the terminal gets when the application is loaded.
BLOCK_VARIABLE = "WEBSOCKET_START_BLOCK"

#: Seconds for which these lines wait, so that they come after the last ones of uWSGI's start.
BLOCK_DELAY = 0.3

#: Seconds between two looks whether uWSGI wants a worker to end that gets no signal.
CHECK_INTERVAL = 1.0

#: Seconds that uWSGI's asyncio engine, which would wait for none, gives to the other requests of a worker that reloads.
REQUEST_TIME = 5.0

_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)

#: The options with which a worker ends by itself.
_LIMITS = frozenset({"max-requests", "max-worker-lifetime", "reload-on-rss", "reload-on-as"})

# The exit codes of uWSGI's workers (uwsgi.h). After the first, its master starts another worker without a complaint.
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
            with suppress(ValueError):  # only the main thread of the main interpreter may
                signal.signal(signum, _end_starting_worker)
    if uwsgi.worker_id() > 0:  # the app is loaded after the fork
        _after_fork([])


def _load_decorators() -> Callable[[], object] | None:
    """Import ``uwsgidecorators``, which puts its hook in the place of what is there, before ours is; return that."""
    spooler = getattr(uwsgi, "spooler", None)
    with suppress(Exception):  # it is not installed, or there is no master
        importlib.import_module("uwsgidecorators")
    if spooler is not None:  # another thing that it replaces
        uwsgi.spooler = spooler
    hook: Callable[[], object] | None = getattr(uwsgi, "post_fork_hook", None)
    return hook


def _end_starting_worker(signum: int, frame: FrameType | None) -> None:
    """Handle a signal until uWSGI sets its own handlers, at the end of a worker's start.

    Until then uWSGI ignores SIGHUP and SIGTERM, and drops the KeyboardInterrupt that Python makes of SIGINT.
    """
    if uwsgi.worker_id() > 0:
        os._exit(_QUIET_CODE if signum == signal.SIGHUP else _END_CODE)
    if signum == signal.SIGINT:
        signal.default_int_handler(signum, frame)


def _after_fork(hooks: Iterable[Callable[[], object]]) -> None:
    is_worker = uwsgi.worker_id() > 0  # a mule or a spooler, whose signals are its own, is forked, too
    if is_worker:
        _prepare_worker()
    try:
        for hook in hooks:
            hook()
    finally:
        if is_worker and uwsgi.loop == b"gevent":
            from gevent import spawn

            spawn(handle_signals_in_gevent)  # which runs when the engine does, and has set its own


_block = ""  # what BLOCK_VARIABLE had


def _prepare_worker() -> None:
    if uwsgi.loop == b"asyncio":
        # The engine calls asyncio.get_event_loop(), which from Python 3.12 on makes none; and a loop from before the
        # fork would be shared by all workers.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.call_soon(_handle_signals_in_asyncio, loop)  # by when uWSGI has set its own
    elif uwsgi.loop != b"gevent" and uwsgi.has_threads:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        threading.Thread(target=_wait_for_signal, name="flask-uwsgi-websocket-shutdown", daemon=True).start()
        _start_timers(ThreadLoop)
    elif uwsgi.loop != b"gevent" and _is_first():
        click.echo(_block)


def make_shutdown(signum: int, loop: Loop) -> Shutdown:
    """Return the end of this worker, which from now on takes only connections for which uWSGI will wait.

    :param signum: what uWSGI has sent. SIGHUP lets other requests end, and some may yet become connections.
    """
    if signum != signal.SIGHUP:
        refuse_connections()
    restarts = signum != signal.SIGINT and uwsgi.masterpid() > 0
    return Shutdown(loop, connections, restarts=restarts, mercy=number_option(uwsgi.opt, "worker-reload-mercy", 60))


def _exit(signum: int) -> NoReturn:
    """End the worker as uWSGI's handlers do, which skip what Python has to do at its exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_QUIET_CODE if signum == signal.SIGHUP else _END_CODE)


# What uWSGI tells nobody


def _start_timers(make_loop: Callable[[], Loop]) -> None:
    """Show the terminal what has started, and end this worker properly when uWSGI wants it to, without a signal."""
    if _is_first():
        make_loop().run_every(BLOCK_DELAY, partial(click.echo, _block))
    if uwsgi.opt.keys() & _LIMITS:
        make_loop().run_every(CHECK_INTERVAL, _go_on_or_end)


def _is_first() -> bool:
    """Return whether the terminal is to get a block from this worker: the first one, at its first start."""
    return bool(_block) and uwsgi.worker_id() == 1 and uwsgi.workers()[0]["respawn_count"] == 0


def _go_on_or_end() -> float | None:
    if not is_worn_out():
        return CHECK_INTERVAL
    os.kill(os.getpid(), signal.SIGHUP)
    return None


def is_worn_out() -> bool:
    """Return whether uWSGI lets this worker end after its next request, or has done so after the last one (utils.c)."""
    others = uwsgi.worker_id() - 1  # before this one
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
    """Return whether any request of this worker has not ended."""
    status: bytes = uwsgi.workers()[uwsgi.worker_id() - 1]["status"]
    return status == b"busy"


# Threads


def _wait_for_signal() -> None:
    signum = signal.sigwait(_SIGNALS)
    if signum == signal.SIGHUP:  # uWSGI's handler accepts no more, and lets the worker go after its last request
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.kill(os.getpid(), signum)
    shutdown = make_shutdown(signum, ThreadLoop())
    while run(shutdown.finish()) and signum == signal.SIGHUP:  # a request may yet become a connection
        time.sleep(INTERVAL)
    # uWSGI would do the same, but not in this thread.
    getattr(uwsgi, "atexit", lambda: None)()
    atexit._run_exitfuncs()
    _exit(signum)


# gevent


@cache
def handle_signals_in_gevent() -> None:
    """Prepare the end of uWSGI's gevent engine, once it runs.

    It is called with each connection, too, as an application may have replaced the ``post_fork_hook``.
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
        """Look after requests that become connections yet, while uWSGI waits for them."""
        while in_time:
            sleep(INTERVAL)
            in_time = run(shutdown.finish())
        _exit(signal.SIGHUP)  # uWSGI would wait for its mercy

    def at_exit() -> None:
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
            for fd in uwsgi.sockets:  # accept no more: whoever comes now, waits for another worker
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
