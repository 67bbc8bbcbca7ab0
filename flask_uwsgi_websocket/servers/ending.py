"""The end of a process whose server is written in Python: its connections are closed while the interpreter exits.

The threads and greenlets of handlers go on until all functions that are registered by ``atexit`` have returned, so the
connections are closed in such a function. A server that knows earlier that its process ends calls
:func:`close_connections` itself.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError  # Python 3.10 has two
from functools import cache
from math import inf

from ..loops.base import run
from ..loops.tasks import AsyncioLoop
from ..worker.housekeeper import housekeepers, refuse_connections
from ..worker.shutdown import LONGEST_SPREAD, Shutdown

#: Seconds after which an event loop that should have closed its connections is taken to be blocked for good.
BLOCKED_TIME = 2.0

logger = logging.getLogger("flask_uwsgi_websocket")


@cache
def close_at_exit(restarts: Callable[[], bool] = lambda: False) -> None:
    """Close all connections of this process when the interpreter exits.

    Call it with the connections, as an app may be loaded before a fork.

    :param restarts: returns whether another process takes the place of this one. It is called at the exit.
    """
    atexit.register(_end_process, os.getpid(), restarts)


def _end_process(pid: int, restarts: Callable[[], bool]) -> None:
    if os.getpid() == pid:  # a process that was forked has the same descriptors
        close_connections(restarts=restarts())


def close_connections(*, restarts: bool, mercy: float = inf) -> None:
    """Close all connections of this process, wait for their handlers, and take no more.

    :param restarts: whether another process takes the place of this one; see :class:`.Shutdown`.
    :param mercy: the seconds after which the server would kill this process.
    """
    refuse_connections()
    atexit.unregister(_end_process)  # connections that have not ended by then, never will
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
