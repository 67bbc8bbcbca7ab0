"""Ports for the servers of tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port on which only a server of the test can listen.

    A bound socket keeps the port: the system gives it to no client, and to no program that asks for any port. A server
    can bind to the same port, because both sockets have ``SO_REUSEADDR`` and only one of them listens.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])
