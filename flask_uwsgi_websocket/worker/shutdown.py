"""How a process that ends closes its connections: clients get a Close frame, and handlers get some time to end."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import random
from time import monotonic

from ..loops.base import Loop
from ..protocol.protocol import GOING_AWAY, SERVICE_RESTART
from .housekeeper import Connection

#: Seconds between two checks of the connections, and the most of them, when a check takes long.
INTERVAL = 0.05
LONGEST_INTERVAL = 0.25

#: The Close frames are spread over so many seconds per client, up to a maximum for all, so that the clients do not all
#: connect again at once.
SPREAD = 0.01
LONGEST_SPREAD = 1.0

#: Handlers get more time while others end: at most so many seconds after each end. A loop that has to end thousands of
#: connections is busy, and no handler is late because of that.
PATIENCE = 1.0

#: Functions that return whether this process still has something to send elsewhere.
unfinished: list[Callable[[], bool]] = []

#: The most seconds for which a process that ends waits for them.
FLUSH_TIME = 2.0


class Shutdown:
    """The shutdown of this process, run by one thread, greenlet or task.

    :param loop: the loop in which it waits.
    :param connections: returns the connections to close.
    :param restarts: whether another process takes the place of this one: clients get 1012 instead of 1001.
    :param mercy: the seconds after which the server kills this process.
    """

    def __init__(
        self, loop: Loop, connections: Callable[[], list[Connection]], *, restarts: bool, mercy: float = inf
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._code = SERVICE_RESTART if restarts else GOING_AWAY
        self._reason = "the server restarts" if restarts else "the server stops"
        self._longest = mercy - min(2, mercy / 2)
        self._closing_at: dict[Connection, float] = {}
        # How many connections were left, and when the last of them has ended, on the monotonic clock.
        self._left = 0
        self._ended_at = 0.0

    async def finish(self) -> bool:
        """Close all connections and wait for their handlers; return whether all have ended in time."""
        began = monotonic()
        while self._close_connections():
            # A look at thousands of connections must not take the time that these need to end. But one that has closed
            # many of them, or has waited for the interpreter, must not keep the rest waiting.
            await self._loop.sleep(min(max(INTERVAL, 9 * (monotonic() - began)), LONGEST_INTERVAL))
            began = monotonic()
        late = self._connections()
        for connection in late:
            await connection.abandon()
        deadline = monotonic() + min(FLUSH_TIME, self._longest)
        while any(is_unfinished() for is_unfinished in unfinished) and monotonic() < deadline:
            await self._loop.sleep(INTERVAL)
        return not late

    def _close_connections(self) -> bool:
        """Begin to close all connections that are open, new ones too; return whether to wait for any of them."""
        now = monotonic()
        current = self._connections()
        new = [connection for connection in current if connection not in self._closing_at]
        spread = min(SPREAD * len(new), LONGEST_SPREAD)
        self._closing_at.update((connection, now + random() * spread) for connection in new)
        if len(current) < self._left:
            self._ended_at = now
        self._left = len(current)
        since = now - self._ended_at
        is_waiting = False
        for connection in current:
            age = now - self._closing_at[connection]
            timeout = min(connection.shutdown_timeout, self._longest)
            if age >= 0:
                connection.begin_shutdown(self._code, self._reason)
            if age >= timeout / 2:
                connection.end_if_silent()
            is_waiting |= age < timeout or (since < min(PATIENCE, timeout) and age < self._longest)
        return is_waiting
