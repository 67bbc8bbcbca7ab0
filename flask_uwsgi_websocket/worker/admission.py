"""Admission: how many connections a worker takes, depending on its server and on the files that it may open."""

from __future__ import annotations

import errno
import logging
import re
import resource
import socket
import sys
from collections import Counter
from math import inf
from time import monotonic
from typing import NamedTuple

from werkzeug.exceptions import ServiceUnavailable, TooManyRequests

from ..loops.base import allocate_lock

#: Seconds after which a refused client may try again (``Retry-After``, RFC 9110 section 10.2.3).
RETRY_AFTER = 10

#: The fewest seconds between two log lines which report that this process may open no more files.
SILENCE = 60.0

#: Descriptors reserved for the server, pages, files and databases, in addition to a sixteenth of the process's limit.
RESERVED_DESCRIPTORS = 32

logger = logging.getLogger("flask_uwsgi_websocket")


class Capacity(NamedTuple):
    """How many requests a process serves at once, as its server knows."""

    #: The number of requests; None when the server has no limit, or does not report it.
    cores: int | None = None
    #: How many files each core keeps open, besides those of its connection.
    descriptors_per_core: int = 0

    @property
    def own_descriptors(self) -> int:
        """How many files all cores together keep open, besides those of connections."""
        return (self.cores or 0) * self.descriptors_per_core


#: The capacity of a server that serves any number of requests.
UNLIMITED = Capacity()


class Admissions:
    """The connections of this worker, counted by address. Any thread may use it."""

    def __init__(self) -> None:
        self._has_warned = False  # a race causes at most a second line
        self._lock = allocate_lock()
        self._open: Counter[str | None] = Counter()
        self._total = 0  # to sum up thousands of addresses for each handshake would be slow

    def admit(
        self, address: str | None, most: int | None, most_per_address: int | None, capacity: Capacity = UNLIMITED
    ) -> Place:
        """Count a connection until its place is closed.

        :param address: the address of the client as the application knows it, or None.
        :param most: the most connections of the worker; None for as many as leave the server some cores for HTTP. The
            descriptors limit the connections in any case.
        :param most_per_address: the most connections of one address; None for no limit.
        :param capacity: the capacity of the server.
        :raises ServiceUnavailable: when the worker has no room for the connection (503).
        :raises TooManyRequests: when the address has too many connections already (429).
        """
        network = _network(address) if address else None
        room = self._room(most, capacity)
        with self._lock:
            if self._total >= room:
                raise ServiceUnavailable(
                    "This server has as many WebSockets as it can take (WEBSOCKET_MAX_CONNECTIONS).",
                    retry_after=RETRY_AFTER,
                )
            if network is not None and most_per_address is not None and self._open[network] >= most_per_address:
                raise TooManyRequests(
                    "Your address has too many WebSockets here (WEBSOCKET_MAX_CONNECTIONS_PER_IP).",
                    retry_after=RETRY_AFTER,
                )
            self._open[network] += 1
            self._total += 1
        return Place(self, network)

    def _leave(self, network: str | None) -> None:
        with self._lock:
            self._open[network] -= 1
            self._total -= 1
            if not self._open[network]:
                del self._open[network]

    def _room(self, most: int | None, capacity: Capacity) -> float:
        """Return the most connections of this process. Each one takes a core of the server, and descriptors."""
        descriptors = descriptor_limit()
        by_cores = inf if capacity.cores is None else most_by_cores(capacity.cores)
        wanted = by_cores if most is None else most
        by_descriptors = most_by_descriptors(descriptors, capacity.own_descriptors)
        if self._total >= by_descriptors < wanted and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "WebSockets are refused with 503: this process may open %d files, which is enough for %d WebSockets. "
                "Raise the limit: ulimit -n, or LimitNOFILE in systemd's unit. This warning is logged once.",
                descriptors,
                by_descriptors,
            )
        return min(wanted, by_descriptors)


class Place:
    """The place of a connection among those of its worker. :meth:`close` is called once.

    :param network: the key of the client's address.
    """

    __slots__ = ("_admissions", "_network")

    def __init__(self, admissions: Admissions, network: str | None) -> None:
        self._admissions = admissions
        self._network = network

    def close(self) -> None:
        """Give the place to others."""
        self._admissions._leave(self._network)


def check_files(error: OSError) -> None:
    """Refuse a connection if *error* means that this process may open no more files, and log that, once a minute.

    :raises ServiceUnavailable: in this case (503).
    """
    global _logged_at
    if error.errno not in {errno.EMFILE, errno.ENFILE}:
        return
    if monotonic() - _logged_at >= SILENCE:
        _logged_at = monotonic()  # a race causes at most a second line
        logger.error(
            "WebSockets are refused with 503: this process may open no more files (%s). Raise the limit: ulimit -n, or "
            "LimitNOFILE in systemd's unit.",
            error.strerror,
        )
    raise ServiceUnavailable("This server has too many open files.", retry_after=RETRY_AFTER) from None


_logged_at = -SILENCE

#: The connections of this worker.
admissions = Admissions()

#: Matches an address with a port, ``1.2.3.4:5`` or ``[::1]:5``, as some proxies write it into X-Forwarded-For.
_address_with_port = re.compile(r"\[([^\]]+)\](?::\d+)?|([\d.]+):\d+").fullmatch

_IPV4_IN_IPV6 = bytes(10) + b"\xff\xff"


def _network(address: str) -> str:
    """Return the key under which *address* is counted: for IPv6 its /64 network, because one customer has all of it."""
    try:
        socket.inet_pton(socket.AF_INET, address)
    except (OSError, ValueError):
        pass
    else:
        return address  # IPv4, which has only one spelling
    if match := _address_with_port(address):
        address = match[1] or match[2]
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    except (OSError, ValueError):  # IPv4 with a port, or no address at all
        return address
    if packed.startswith(_IPV4_IN_IPV6):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))


def most_by_cores(cores: int) -> int:
    """Return the most connections of a worker with *cores* cores. Each connection occupies one."""
    return max(1, cores - reserved_cores(cores))


def most_by_descriptors(limit: int, own: int) -> int:
    """Return the most connections of a process that may open *limit* files.

    Each connection takes two descriptors: the server's, and its duplicate.

    :param own: how many files the cores of the server keep open, besides those of connections.
    """
    return max(1, (limit - limit // 16 - RESERVED_DESCRIPTORS - own) // 2)


def descriptors_for(connections: int, own: int) -> int:
    """Return how many files a process must be allowed to open for *connections* connections.

    :param own: how many files the cores of the server keep open, besides those of connections.
    """
    return -(-(2 * connections + RESERVED_DESCRIPTORS + own) * 16 // 15)


def descriptor_limit() -> int:
    """Return how many files this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def reserved_cores(cores: int) -> int:
    """Return how many of a worker's cores are reserved for HTTP requests: a tenth, at least 1 and at most 20."""
    return min(max(1, cores // 10), 20)
