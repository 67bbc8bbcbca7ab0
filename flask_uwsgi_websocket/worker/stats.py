"""Counters of an app's connections in this worker, for operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from .._uwsgi import uwsgi
from ..loops.base import allocate_lock


class Counts(NamedTuple):
    """What one connection has moved, from its handshake on."""

    messages_received: int = 0
    messages_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0


class Counted(Protocol):
    """A connection, as far as it is counted."""

    #: Whether it was dropped because the peer read too slowly.
    was_slow: bool
    # Attributes, as a call for each of thousands of connections would hold up the loop.
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int


class Stats:
    """The counters of one app. Any thread may count."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # held around what follows
        self._open: set[Counted] = set()
        self._totals: Counter[str] = Counter()
        self._moved = Counts()  # by those that have closed
        self._closes: Counter[int] = Counter()
        self._published: Counter[str] = Counter()
        _all.add(self)

    def on_open(self, connection: Counted) -> None:
        """Count a handshake."""
        with self._lock:
            self._open.add(connection)
            self._totals["total"] += 1

    def on_close(self, connection: Counted, code: int) -> None:
        """Count the end of a connection, and what it has moved."""
        with self._lock:
            self._open.discard(connection)
            self._moved = _sum(self._moved, [connection])
            self._totals["slow_consumers"] += connection.was_slow
            self._closes[code] += 1
        self._publish_if_idle()

    def on_rejection(self) -> None:
        """Count an upgrade request that has got another answer."""
        with self._lock:
            self._totals["rejected"] += 1
        self._publish_if_idle()

    def snapshot(self) -> dict[str, Any]:
        """Return all counters; see :meth:`.WebSocket.stats`."""
        with self._lock:
            return {**self._flat(), "closes": dict(self._closes)}

    def publish(self) -> None:
        """Add what is new to uWSGI's metrics of the names ``websocket.open`` and so on, if it has these."""
        with self._lock:
            flat = self._flat()
            # Not subtract(): what has sunk, like the number of open connections, is published, too.
            news = {name: count - self._published[name] for name, count in flat.items()}
            self._published.update(news)
        for name, change in news.items():
            if change:
                uwsgi.metric_inc(f"websocket.{name}", change)

    def _publish_if_idle(self) -> None:
        """Publish what the housekeeper may not: it runs beside connections only, and a worker may end with the last."""
        if not self._open:
            publish_all()

    def _flat(self) -> dict[str, int]:
        known = {**self._totals, **_sum(self._moved, self._open)._asdict(), "open": len(self._open)}
        return {name: known.get(name, 0) for name in NAMES}


def _sum(counts: Counts, connections: Iterable[Counted]) -> Counts:
    """Return *counts* with those of connections added."""
    received, sent, bytes_received, bytes_sent = counts
    for each in connections:
        received += each.messages_received
        sent += each.messages_sent
        bytes_received += each.bytes_received
        bytes_sent += each.bytes_sent
    return Counts(received, sent, bytes_received, bytes_sent)


#: The counters.
NAMES = ("open", "total", *Counts._fields, "rejected", "slow_consumers")

_all: WeakSet[Stats] = WeakSet()


def publish_all() -> None:
    """Publish the counters of all apps as uWSGI's metrics, if it has been given any: to count takes time."""
    if uwsgi is not None and "metric" in uwsgi.opt:
        for stats in list(_all):
            stats.publish()
