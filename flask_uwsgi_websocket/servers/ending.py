"""The end of a process whose server is written in Python: its connections are closed while the interpreter exits.

The threads and greenlets of handlers run until all functions registered with ``atexit`` have returned. So such a
function closes the connections. A server that knows earlier that its process ends calls
:func:`close_connections` itself.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError  # Python 3.10 has two classes of this name
from functools import cache
from math import inf

from ..loops.base import run
from ..loops.tasks import AsyncioLoop
from ..worker.housekeeper import housekeepers, refuse_connections
from ..worker.shutdown import LONGEST_SPREAD, Shutdown

#: Seconds of grace for an event loop that has not closed its connections. After them, it counts as blocked.
BLOCKED_TIME = 2.0

logger = logging.getLogger("flask_uwsgi_websocket")


@cache
def close_at_exit(restarts: Callable[[], bool] = lambda: False) -> None:
    """Close all connections of this process when the interpreter exits.

    Call this when a connection is served, not when an app is loaded: a fork may follow the load.

    :param restarts: returns whether another process takes the place of this one. Called at the exit.
    """
    atexit.register(_end_process, os.getpid(), restarts)


def _end_process(pid: int, restarts: Callable[[], bool]) -> None:
    if os.getpid() == pid:  # a forked process inherits the function and the descriptors
        close_connections(restarts=restarts())


def close_connections(*, restarts: bool, mercy: float = inf) -> None:
    """Refuse new connections, close all connections of this process, and wait for their handlers.

    :param restarts: whether another process takes the place of this one; see :class:`.Shutdown`.
    :param mercy: the seconds after which the server kills this process.
    """
    refuse_connections()
    atexit.unregister(_end_process)  # to close the connections again would not help
    for loop, housekeeper in housekeepers():
        shutdown = Shutdown(loop, housekeeper.connections, restarts=restarts, mercy=mercy)
        if not isinstance(loop, AsyncioLoop):
            run(shutdown.finish())
            continue
        longest = max((each.shutdown_timeout for each in housekeeper.connections()), default=0) + LONGEST_SPREAD
        try:
            loop.submit(shutdown.finish()).result(longest + BLOCKED_TIME)
        except FutureTimeoutError:
            logger.error(
                "a coroutine blocks the event loop, so its connections are not closed properly: run blocking calls in "
                "asyncio.to_thread()"
            )
