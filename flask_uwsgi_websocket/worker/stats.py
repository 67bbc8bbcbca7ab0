"""Counters of an app's connections in this worker, for operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from .._uwsgi import uwsgi
from ..loops.base import allocate_lock


class Counts(NamedTuple):
    """How much connections have received and sent since their handshakes."""

    messages_received: int = 0
    messages_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0


class Counted(Protocol):
    """The attributes of a connection that are counted."""

    #: Whether it was dropped because the peer read too slowly.
    was_slow: bool
    # Attributes, because one call for each of thousands of connections would delay the loop.
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int


class Metrics(ABC):
    """Counters that become metrics of uWSGI, to which all workers add theirs. Any thread may use them.

    A subclass calls ``__init__()`` last, because the housekeeper may use the counters from then on.
    """

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards the counters, and the following attribute
        self._in_uwsgi: Counter[str] = Counter()
        _all.add(self)

    @abstractmethod
    def _flat(self) -> Mapping[str, int]:
        """Return the counters by their names. Called with the lock."""

    def add_to_uwsgi(self) -> None:
        """Add the changes since the last call to uWSGI's metrics ``websocket.open`` and so on, where they exist."""
        with self._lock:
            flat = self._flat()
            # Not subtract(), because counters that sink, such as open, are published, too.
            news = {name: count - self._in_uwsgi[name] for name, count in flat.items()}
            self._in_uwsgi.update(news)
        for name, change in news.items():
            if change:
                uwsgi.metric_inc(f"websocket.{name}", change)


class Stats(Metrics):
    """The counters of one app's connections."""

    def __init__(self) -> None:
        self._open: set[Counted] = set()
        self._totals: Counter[str] = Counter()
        self._moved = Counts()  # of closed connections
        self._closes: Counter[int] = Counter()
        super().__init__()

    def on_open(self, connection: Counted) -> None:
        """Count a handshake."""
        with self._lock:
            self._open.add(connection)
            self._totals["total"] += 1

    def on_close(self, connection: Counted, code: int) -> None:
        """Count the end of a connection, and its messages and bytes."""
        with self._lock:
            self._open.discard(connection)
            self._moved = _sum(self._moved, [connection])
            self._totals["slow_consumers"] += connection.was_slow
            self._closes[code] += 1
        self._publish_if_idle()

    def on_rejection(self) -> None:
        """Count an upgrade request that got another response than 101."""
        with self._lock:
            self._totals["rejected"] += 1
        self._publish_if_idle()

    def snapshot(self) -> dict[str, Any]:
        """Return all counters; see :meth:`.WebSocket.stats`."""
        with self._lock:
            return {**self._flat(), "closes": dict(self._closes)}

    def _publish_if_idle(self) -> None:
        """Publish when no connection is open: the housekeeper runs only while there are connections."""
        if not self._open:
            publish_all()

    def _flat(self) -> dict[str, int]:
        known = {**self._totals, **_sum(self._moved, self._open)._asdict(), "open": len(self._open)}
        return {name: known.get(name, 0) for name in NAMES}


def _sum(counts: Counts, connections: Iterable[Counted]) -> Counts:
    """Return the sum of *counts* and the counts of *connections*."""
    received, sent, bytes_received, bytes_sent = counts
    for each in connections:
        received += each.messages_received
        sent += each.messages_sent
        bytes_received += each.bytes_received
        bytes_sent += each.bytes_sent
    return Counts(received, sent, bytes_received, bytes_sent)


#: The names of the counters.
NAMES = ("open", "total", *Counts._fields, "rejected", "slow_consumers")

_all: WeakSet[Metrics] = WeakSet()


def publish_all() -> None:
    """Publish the counters of all apps as uWSGI's metrics. Does nothing if uWSGI has none, because it takes time."""
    if uwsgi is not None and "metric" in uwsgi.opt:
        for metrics in list(_all):
            metrics.add_to_uwsgi()
