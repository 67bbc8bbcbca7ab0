"""Admission: how many connections a worker takes, depending on its server and on the files that it may open."""

from __future__ import annotations

import errno
import logging
import re
import resource
import socket
import sys
from collections import Counter
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
    #: Whether a connection may outlive its request, so that it takes no core.
    parks: bool = False

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
        self._in_cores = 0  # those of them that take a core

    def admit(
        self,
        address: str | None,
        most: int | None,
        most_per_address: int | None,
        capacity: Capacity = UNLIMITED,
        *,
        takes_core: bool = True,
    ) -> Place:
        """Count a connection until its place is closed.

        :param address: the address of the client as the application knows it, or None.
        :param most: the most connections of the worker; None for as many as leave the server some cores for HTTP. The
            descriptors limit the connections in any case.
        :param most_per_address: the most connections of one address; None for no limit.
        :param capacity: the capacity of the server.
        :param takes_core: whether the connection takes a core until it ends, and not only during its request.
        :raises ServiceUnavailable: when the worker has no room for the connection (503).
        :raises TooManyRequests: when the address has too many connections already (429).
        """
        network = _network(address) if address else None
        with self._lock:
            if not self._has_room(most, capacity, takes_core):
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
            self._in_cores += takes_core
        return Place(self, network, takes_core)

    def _leave(self, network: str | None, takes_core: bool) -> None:
        with self._lock:
            self._open[network] -= 1
            self._total -= 1
            self._in_cores -= takes_core
            if not self._open[network]:
                del self._open[network]

    def _has_room(self, most: int | None, capacity: Capacity, takes_core: bool) -> bool:
        """Return whether one more connection may come. Called with the lock."""
        if most is not None:
            if self._total >= most:
                return False
        elif takes_core and capacity.cores is not None and self._in_cores >= most_by_cores(capacity.cores):
            return False
        limit = descriptor_limit()
        free = free_descriptors(limit, capacity.own_descriptors) - self._total - self._in_cores
        has_room = self._total == 0 or free >= 1 + takes_core
        if not has_room and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "WebSockets are refused with 503: this process may open %d files, which is enough for %d WebSockets. "
                "Raise the limit: ulimit -n, or LimitNOFILE in systemd's unit. This warning is logged once.",
                limit,
                self._total,
            )
        return has_room


class Place:
    """The place of a connection among those of its worker. :meth:`close` is called once.

    :param network: the key of the client's address.
    :param takes_core: whether the connection takes a core until it ends.
    """

    __slots__ = ("_admissions", "_network", "_takes_core")

    def __init__(self, admissions: Admissions, network: str | None, takes_core: bool) -> None:
        self._admissions = admissions
        self._network = network
        self._takes_core = takes_core

    def close(self) -> None:
        """Give the place to others."""
        self._admissions._leave(self._network, self._takes_core)


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


def free_descriptors(limit: int, own: int) -> int:
    """Return how many files are left for connections in a process that may open *limit* files.

    A connection takes two descriptors, the server's and its duplicate. After its request, it takes one.

    :param own: how many files the cores of the server keep open, besides those of connections.
    """
    return limit - limit // 16 - RESERVED_DESCRIPTORS - own


def most_by_descriptors(limit: int, own: int, *, takes_core: bool = True) -> int:
    """Return the most connections of a process that may open *limit* files.

    :param own: how many files the cores of the server keep open, besides those of connections.
    :param takes_core: whether a connection takes a core until it ends.
    """
    return max(1, free_descriptors(limit, own) // (1 + takes_core))


def descriptors_for(connections: int, own: int, *, takes_core: bool = True) -> int:
    """Return how many files a process must be allowed to open for *connections* connections.

    :param own: how many files the cores of the server keep open, besides those of connections.
    :param takes_core: whether a connection takes a core until it ends.
    """
    return -(-((1 + takes_core) * connections + RESERVED_DESCRIPTORS + own) * 16 // 15)


def descriptor_limit() -> int:
    """Return how many files this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def reserved_cores(cores: int) -> int:
    """Return how many of a worker's cores are reserved for HTTP requests: a tenth, at least 1 and at most 20."""
    return min(max(1, cores // 10), 20)
