"""The contract of a server, and what the servers that are written in Python share."""

from __future__ import annotations

import os
import socket
from _socket import socket as RawSocket  # gevent replaces socket.socket by one whose recv() waits
from abc import ABC, abstractmethod
from contextlib import suppress
from io import BufferedReader
from typing import TYPE_CHECKING

from werkzeug.exceptions import BadRequest

from ..worker.admission import UNLIMITED, Capacity
from .ending import close_at_exit

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

EARLY_DATA = "A client must wait for the answer to its handshake (RFC 6455 section 4.1)."


class Server(ABC):
    """A WSGI server: how it lends the socket of a request, how many requests it serves, how its process ends.

    To add a server, write a subclass in a file of its own, and add the class to :data:`.find.SERVERS`. The order of the
    calls is:

    1. :meth:`prepare` of every server, when an app is initialised;
    2. :meth:`serves` of one server after the other, until one returns True for the request;
    3. :meth:`capacity` of that server, before the application sees the request;
    4. the class itself, with the environ of a handshake that is valid: each WebSocket has an instance;
    5. :meth:`watch`, and :meth:`open` for the socket;
    6. :meth:`release`, when the WebSocket has ended; not for a request that gets an ordinary response.

    A server that is written in Python and whose socket can be found is a :class:`SocketServer`.

    :param environ: the WSGI environ of the request.
    :raises RuntimeError: when the server, as it was started, cannot serve WebSockets. The text says how to start it.
    """

    @abstractmethod
    def __init__(self, environ: WSGIEnvironment) -> None: ...

    @classmethod
    @abstractmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether this server serves the request of *environ*."""

    @classmethod
    def capacity(cls) -> Capacity:
        """Return how many requests this process serves at once: any number, unless a server limits it."""
        return UNLIMITED

    @classmethod  # noqa: B027  # most servers need no preparation
    def prepare(cls) -> None:
        """Prepare the end of this process. It may be another server's, or one that forks the processes which serve."""

    @abstractmethod
    def watch(self) -> None:
        """Make sure that connections are closed when this process ends. Only the first call has anything to do.

        :raises OSError: when this process may open no more files.
        """

    @abstractmethod
    def open(self) -> RawSocket:
        """Return a duplicate of the request's socket. The caller closes it.

        The duplicate may be blocking or not: use ``MSG_DONTWAIT``.

        :raises BadRequest: when the client has sent data that the duplicate would not give.
        :raises OSError: when this process may open no more files.
        """

    @abstractmethod
    def release(self) -> None:
        """Keep the server's response, which is still to come, from the client. The duplicate is closed already."""


class SocketServer(Server):
    """A server that is written in Python: its socket is a Python object, and its process ends with the interpreter.

    :param sock: the socket of the request.
    :raises RuntimeError: when the socket carries TLS.
    """

    def __init__(self, sock: socket.socket) -> None:
        if hasattr(sock, "getpeercert"):  # the standard library's or gevent's
            raise RuntimeError(
                "this server ends TLS itself, so a WebSocket cannot use its connections: start it without a "
                "certificate, behind a proxy such as nginx that ends TLS"
            )
        self._socket = sock

    def watch(self) -> None:
        """Close the connections when the interpreter exits."""
        close_at_exit()

    def open(self) -> RawSocket:
        """Duplicate the server's socket."""
        if self._has_early_data():
            raise BadRequest(EARLY_DATA)
        fd = os.dup(self._socket.fileno())
        is_blocking = os.get_blocking(fd)  # for the server's socket, too
        sock = RawSocket(fileno=fd)
        sock.setblocking(is_blocking)  # whatever socket.setdefaulttimeout() says
        return sock

    @abstractmethod
    def _has_early_data(self) -> bool:
        """Return whether the server has read more than the request into its buffer."""

    def _has_read(self, reader: BufferedReader) -> bool:
        """Return whether there is something in the buffer of *reader*, or in the socket that it reads."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)  # an empty buffer would be filled
        try:
            return bool(reader.peek())
        except OSError:  # a reset, which the next read finds
            return False
        finally:
            self._socket.settimeout(timeout)

    def release(self) -> None:
        """Shut the connection down: the server takes its response for a client that has left."""
        with suppress(OSError):  # the client may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)
