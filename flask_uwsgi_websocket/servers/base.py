"""The contract of a server, and the base class of the servers that are written in Python."""

from __future__ import annotations

import os
import socket
from _socket import socket as RawSocket  # gevent replaces socket.socket by a class whose recv() waits
from abc import ABC, abstractmethod
from contextlib import suppress
from io import BufferedReader
from typing import TYPE_CHECKING

from werkzeug.exceptions import BadRequest

from ..worker.admission import UNLIMITED, Capacity
from .ending import close_at_exit

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

EARLY_DATA = "A client must wait for the response to its handshake (RFC 6455 section 4.1)."


class Server(ABC):
    """A WSGI server: how it lends the socket of a request, how many requests it serves, how its process ends.

    To add a server, write a subclass in a file of its own, and add the class to :data:`.find.SERVERS`. The order of the
    calls is:

    1. :meth:`prepare` of every server, when an app is initialised;
    2. :meth:`serves` of one server after the other, until one returns True for the request;
    3. :meth:`capacity` of that server, before the application sees the request;
    4. the constructor, with the environ of a valid handshake: each WebSocket has an instance of its own;
    5. :meth:`watch`, and :meth:`open` for the socket;
    6. :meth:`release`, when the WebSocket has ended, unless the request gets an ordinary response.

    A server that is written in Python and has a Python socket is a :class:`SocketServer`.

    :param environ: the WSGI environ of the request.
    :raises RuntimeError: when the server was started so that it cannot serve WebSockets. The text says how to start it.
    """

    @abstractmethod
    def __init__(self, environ: WSGIEnvironment) -> None: ...

    @classmethod
    @abstractmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether this server serves the request of *environ*."""

    @classmethod
    def capacity(cls) -> Capacity:
        """Return how many requests this process serves at once. Without an override, there is no limit.

        If it says that connections may outlive their requests, :meth:`release` is called at the end of such a request,
        and not at the end of its connection.
        """
        return UNLIMITED

    @classmethod  # noqa: B027  # most servers need no preparation
    def prepare(cls) -> None:
        """Prepare the end of this process.

        The process may belong to another server, or may be the parent that forks the processes which serve requests.
        """

    @classmethod  # noqa: B027  # only uWSGI parks connections
    def prepare_parking(cls) -> None:
        """Prepare the end of this process for a connection that outlives its request."""

    @abstractmethod
    def watch(self) -> None:
        """Make sure that connections are closed when this process ends. Calls after the first one do nothing.

        :raises OSError: when this process may open no more files.
        """

    @abstractmethod
    def open(self) -> RawSocket:
        """Return a duplicate of the request's socket. The caller closes it.

        The duplicate may be blocking or not, so use ``MSG_DONTWAIT``.

        :raises BadRequest: when the client has sent data that cannot be read from the duplicate.
        :raises OSError: when this process may open no more files.
        """

    @abstractmethod
    def release(self) -> None:
        """Keep the server from sending its response to the client. The duplicate is closed already."""


class SocketServer(Server):
    """A server that is written in Python: it has a Python socket, and its process ends with the interpreter.

    :param sock: the socket of the request.
    :raises RuntimeError: when the socket carries TLS.
    """

    def __init__(self, sock: socket.socket) -> None:
        if hasattr(sock, "getpeercert"):  # a TLS socket of the standard library or of gevent
            raise RuntimeError(
                "this server terminates TLS itself, so a WebSocket cannot use its connections: start it without a "
                "certificate, behind a proxy such as nginx that terminates TLS"
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
        is_blocking = os.get_blocking(fd)  # a flag that the server's socket shares
        sock = RawSocket(fileno=fd)
        sock.setblocking(is_blocking)  # socket.setdefaulttimeout() may have changed it
        return sock

    @abstractmethod
    def _has_early_data(self) -> bool:
        """Return whether the server's buffer has data beyond the request."""

    def _has_read(self, reader: BufferedReader) -> bool:
        """Return whether the buffer of *reader*, or the socket that it reads, has data."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)  # peek() reads the socket if the buffer is empty
        try:
            return bool(reader.peek())
        except OSError:  # a reset, which the next read finds
            return False
        finally:
            self._socket.settimeout(timeout)

    def release(self) -> None:
        """Shut the connection down. The server then finds that the client has left."""
        with suppress(OSError):  # the client may have closed it before
            self._socket.shutdown(socket.SHUT_RDWR)
