"""The housekeeper: looks after connections whose handlers are doing something else.

Each loop of a worker has one. It starts with the first connection and ends after the last one: a thread, a greenlet, or
a timer of the event loop. Once a second it calls ``tick()`` of every connection that has something to do, and publishes
the counters to uWSGI. It works for a millisecond at a time, so that thousands of connections do not delay the handlers.
"""

from __future__ import annotations

import logging
import time
from random import randrange
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from werkzeug.exceptions import ServiceUnavailable

from ..loops.base import Loop, Lot, allocate_lock
from .stats import publish_all

#: Seconds between two rounds. A deadline may be missed by this much.
INTERVAL = 1.0

#: Seconds for which the housekeeper works at a time, and for which it then lets others run. The pause is longer,
#: because clients answer the pings of a slice at once, and to read so many Pongs takes longer than to send the pings.
SLICE = 0.001
PAUSE = 0.005

#: The number of parts into which the connections are split. The housekeeper looks at one part at a time, because to
#: touch thousands of objects that have been idle for a second takes milliseconds.
PARTS = 256

#: The number of slices in a round in which the housekeeper also reads for handlers that do not receive.
READ_AHEAD = 50

logger = logging.getLogger("flask_uwsgi_websocket")

_is_closed = False


C = TypeVar("C")


class Channel(Protocol):
    """The part of a connection that shows whether the connection has something to do."""

    @staticmethod
    def find_due(connections: dict[Any, C]) -> list[C]:
        """Return the connections that need a ``tick()`` now, of a dictionary that has them by their channels.

        It never waits, and does not touch the others: they have been idle for a second, and are in no cache.
        """


class Connection(Protocol):
    """What a worker asks of each of its connections."""

    id: str

    @property
    def channel(self) -> Channel:
        """The channel of the connection, which never changes. All channels of a process have the same class."""

    def tick(self, *, read_ahead: bool) -> None:
        """Do what is due, without waiting.

        :param read_ahead: whether to read for a handler that is not receiving.
        """

    @property
    def shutdown_timeout(self) -> float:
        """The seconds that the handler has to end when the worker ends."""

    def begin_shutdown(self, code: int, reason: str) -> None:
        """Begin to close, because the worker ends."""

    def end_if_silent(self) -> None:
        """End TCP if the client has not answered the Close frame."""

    async def abandon(self) -> None:
        """Report the end of a connection whose handler has not ended in time."""


class Housekeeper:
    """Looks after the connections of one loop, in rounds."""

    #: The parking lot of the loop, if any connection was parked there.
    lot: Lot | None = None

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards the following attributes against other threads
        self._parts: list[dict[Channel, Connection]] = [{} for _ in range(PARTS)]
        self._running = False
        # The current round: the parts and connections to come, and the number of slices so far. Only _round() uses it.
        self._rest_of_parts: list[dict[Channel, Connection]] = []
        self._rest: list[Connection] = []
        self._slices = 0

    def add(self, connection: Connection, loop: Loop) -> None:
        """Look after *connection* from now on, in rounds that *loop* runs.

        :raises ServiceUnavailable: when the worker is about to end.
        """
        with self._lock:
            if _is_closed:
                raise ServiceUnavailable("The server is about to end.", retry_after=1)
            self._part_of(connection)[connection.channel] = connection
            start = not self._running
            self._running = True
        if start:
            try:
                loop.run_every(INTERVAL, self._round)
            except BaseException:  # no more threads
                with self._lock:
                    self._part_of(connection).pop(connection.channel, None)
                    self._running = False
                raise

    def remove(self, connection: Connection) -> None:
        """Stop looking after *connection*. Does nothing when it is unknown."""
        with self._lock:
            self._part_of(connection).pop(connection.channel, None)

    def _part_of(self, connection: Connection) -> dict[Channel, Connection]:
        return self._parts[hash(connection) % PARTS]

    def connections(self) -> list[Connection]:
        """Return the connections that this housekeeper looks after."""
        with self._lock:
            return [connection for part in self._parts for connection in part.values()]

    def _round(self) -> float | None:
        """Do a slice of a round; return the seconds until the next slice, or None when there are no connections."""
        if not self._rest and not self._rest_of_parts:
            with self._lock:
                # The random start lets each connection be read in some round, even if many peers flood.
                turn = randrange(PARTS)
                self._rest_of_parts = [part for part in self._parts[turn:] + self._parts[:turn] if part]
                self._running = bool(self._rest_of_parts)
            if not self._rest_of_parts:
                publish_all()
                return None
            self._slices = 0
            if self.lot is not None:
                self.lot.look_after()
        self._slices += 1
        end = time.monotonic() + SLICE
        while self._rest or self._rest_of_parts:
            if time.monotonic() > end:
                return PAUSE
            if not self._rest:
                part = self._rest_of_parts.pop()
                with self._lock:
                    self._rest = next(iter(part)).find_due(part) if part else []
                continue
            connection = self._rest.pop()
            try:
                connection.tick(read_ahead=self._slices <= READ_AHEAD)
            except Exception:  # a failure of one connection must not end the pings of others
                logger.exception("looking after WebSocket %s failed", connection.id)
        publish_all()
        return INTERVAL


_housekeepers: WeakKeyDictionary[Loop, Housekeeper] = WeakKeyDictionary()


def housekeeper_of(loop: Loop) -> Housekeeper:
    """Return the housekeeper of *loop*."""
    housekeeper = _housekeepers.get(loop)
    if housekeeper is None:
        # setdefault(), because two threads may get here at once: both use the first one that is stored.
        housekeeper = _housekeepers.setdefault(loop, Housekeeper())
    return housekeeper


def connections() -> list[Connection]:
    """Return all connections of this worker."""
    return [connection for housekeeper in list(_housekeepers.values()) for connection in housekeeper.connections()]


def housekeepers() -> list[tuple[Loop, Housekeeper]]:
    """Return the loops of this process that have connections, with their housekeepers."""
    return [(loop, housekeeper) for loop, housekeeper in list(_housekeepers.items()) if housekeeper.connections()]


def refuse_connections() -> None:
    """Refuse every new connection from now on, because the worker ends.

    From then on, :func:`connections` can only shrink.
    """
    global _is_closed
    _is_closed = True
