"""The end of a process that is no worker of uWSGI: of ``flask run``, of gunicorn, or with gevent's server in it.

While the interpreter exits, the threads and greenlets of handlers go on until all that is registered by ``atexit`` is
done. So their connections are closed there. Two servers tell more of their end:

* ``flask run`` exits with 3 when its reloader is to start another process.
* gunicorn's workers wait for their requests, of which each WebSocket is one, before they exit. That they are about to
  end can be asked; whether another takes their place, cannot.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from concurrent.futures import TimeoutError as FutureTimeoutError  # Python 3.10 has two
from functools import cache, partial
from math import inf
from typing import Any

import click
from flask.cli import run_command

from .._uwsgi import uwsgi
from ..loops.base import BlockingLoop, run
from ..loops.current import current_blocking_loop
from ..loops.greenlets import is_in_gevent
from ..loops.tasks import AsyncioLoop
from ..loops.threads import ThreadLoop
from ..worker.housekeeper import housekeepers, refuse_connections
from ..worker.shutdown import LONGEST_SPREAD, Shutdown
from .gunicorn import gunicorn_worker

#: Seconds between two looks whether a worker of gunicorn is to end.
CHECK_INTERVAL = 1.0

#: Seconds within which such a worker has looked, too, and accepts no more: whoever comes then, comes to another one.
ACCEPTING_TIME = 1.0

#: Seconds after which an event loop that should have closed its connections is taken to be blocked for good.
BLOCKED_TIME = 2.0

#: The exit code with which Werkzeug's reloader asks its parent for another process.
_RELOAD_CODE = 3

logger = logging.getLogger("flask_uwsgi_websocket")


def prepare_process() -> None:
    """Prepare the end of ``flask run``. Called when an app is initialised."""
    context = click.get_current_context(silent=True)
    if context is None or context.command is not run_command:
        return
    context.call_on_close(_end_command)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # which would leave no time for anything
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit())  # as Werkzeug does with its reloader


def _end_command() -> None:
    error = sys.exc_info()[1]  # that leaves the command
    close_connections(restarts=isinstance(error, SystemExit) and error.code == _RELOAD_CODE)


@cache
def watch_process() -> None:
    """Prepare the end of any other process. Called with each connection, as an app may be loaded before a fork."""
    if uwsgi is not None:
        return
    atexit.register(_end_process, os.getpid())
    worker = gunicorn_worker()
    if worker is not None:
        loop = current_blocking_loop() if is_in_gevent() else ThreadLoop()
        loop.run_every(CHECK_INTERVAL, partial(_go_on_or_end, worker, loop))


def _end_process(pid: int) -> None:
    if os.getpid() == pid:  # a process that was forked has the same descriptors
        close_connections(restarts=gunicorn_worker() is not None)


def _go_on_or_end(worker: Any, loop: BlockingLoop) -> float | None:
    if worker.alive:
        return CHECK_INTERVAL
    run(loop.sleep(ACCEPTING_TIME))
    close_connections(restarts=True, mercy=worker.cfg.graceful_timeout)
    return None


def close_connections(*, restarts: bool, mercy: float = inf) -> None:
    """Close all connections of this process, wait for their handlers, and take no more; see :class:`Shutdown`."""
    refuse_connections()
    atexit.unregister(_end_process)  # those that have not ended by then, never will
    for loop, housekeeper in housekeepers():
        shutdown = Shutdown(loop, housekeeper.connections, restarts=restarts, mercy=mercy)
        if not isinstance(loop, AsyncioLoop):
            run(shutdown.finish())
            continue
        longest = max((each.shutdown_timeout for each in housekeeper.connections()), default=0) + LONGEST_SPREAD
        try:
            loop.submit(shutdown.finish()).result(longest + BLOCKED_TIME)
        except FutureTimeoutError:
            logger.error("a coroutine blocks the event loop: its connections are not closed properly")
