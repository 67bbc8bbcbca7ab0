"""Ports for the servers of tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port on which nobody but a server that is told of it can listen.

    As long as a socket is bound to it, the system gives it to nobody who asks for any port, and to no client. A server
    can be bound to it besides, as both have ``SO_REUSEADDR`` and only one of them listens.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])
