"""How the connections of a process that ends are closed: clients are told, and handlers get a little time."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import random
from time import monotonic
from typing import TYPE_CHECKING

from ..loops.base import Loop

if TYPE_CHECKING:
    from ..connection.base import BaseClient

#: Seconds between two looks at the connections.
INTERVAL = 0.05

#: Clients are told within so many seconds for each, and at most so many for all: they come back at as many moments.
SPREAD = 0.01
LONGEST_SPREAD = 1.0


class Shutdown:
    """The end of this process, carried out by one thread, greenlet or task.

    :param loop: how it waits.
    :param connections: returns those to be closed.
    :param restarts: whether another process takes the place of this one: clients get 1012 instead of 1001.
    :param mercy: the seconds after which the server would kill this process.
    """

    def __init__(
        self, loop: Loop, connections: Callable[[], list[BaseClient]], *, restarts: bool, mercy: float = inf
    ) -> None:
        self._loop = loop
        self._connections = connections
        self._code = 1012 if restarts else 1001
        self._reason = "the server restarts" if restarts else "the server stops"
        self._longest = mercy - min(2, mercy / 2)
        self._closing_at: dict[BaseClient, float] = {}

    async def finish(self) -> bool:
        """Close all connections and wait for their handlers; return whether they have ended in time."""
        while self._close_connections():
            await self._loop.sleep(INTERVAL)
        late = self._connections()
        for connection in late:
            await connection.abandon()
        return not late

    def _close_connections(self) -> bool:
        """Begin to close what is open, and what has opened since; return whether there is still reason to wait."""
        now = monotonic()
        current = self._connections()
        new = [connection for connection in current if connection not in self._closing_at]
        spread = min(SPREAD * len(new), LONGEST_SPREAD)
        self._closing_at.update((connection, now + random() * spread) for connection in new)
        is_waiting = False
        for connection in current:
            age = now - self._closing_at[connection]
            timeout = min(connection.shutdown_timeout, self._longest)
            if age >= 0:
                connection.begin_shutdown(self._code, self._reason)
            if age >= timeout / 2:
                connection.end_if_silent()
            is_waiting |= age < timeout
        return is_waiting
