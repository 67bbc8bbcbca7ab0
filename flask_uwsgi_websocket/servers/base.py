"""What every server does for a WebSocket, and what those that are written in Python have in common."""

from __future__ import annotations

import os
import socket
from _socket import socket as RawSocket  # gevent replaces socket.socket by one whose recv() waits
from contextlib import suppress
from io import BufferedReader
from typing import Protocol

from werkzeug.exceptions import BadRequest

EARLY_DATA = "A client must wait for the answer to its handshake (RFC 6455 section 4.1)."


class Server(Protocol):
    """How a server lends the socket of one request."""

    def open(self) -> RawSocket:
        """Return a duplicate of the request's socket, to be closed by the caller.

        It may be blocking or not: use ``MSG_DONTWAIT``.

        :raises BadRequest: when the client has sent data that the duplicate would not give.
        :raises OSError: when this process may open no more files.
        """

    def release(self) -> None:
        """Keep the response that is still to come from the client; the duplicate is closed already."""


class SocketServer:
    """What the servers that are written in Python have in common: the socket itself, with its buffers.

    :param sock: the socket of the request.
    :raises RuntimeError: when it carries TLS.
    """

    def __init__(self, sock: socket.socket) -> None:
        if hasattr(sock, "getpeercert"):  # the standard library's or gevent's
            raise RuntimeError(
                "this server ends TLS itself, so a WebSocket cannot use its connections: start it without a "
                "certificate, behind a proxy such as nginx that ends TLS"
            )
        self._socket = sock

    def open(self) -> RawSocket:
        """Duplicate the server's socket."""
        if self._has_early_data():
            raise BadRequest(EARLY_DATA)
        fd = os.dup(self._socket.fileno())
        is_blocking = os.get_blocking(fd)  # for the server's socket, too
        sock = RawSocket(fileno=fd)
        sock.setblocking(is_blocking)  # whatever socket.setdefaulttimeout() says
        return sock

    def _has_early_data(self) -> bool:
        """Tell whether the server has read more than the request into its buffer."""
        raise NotImplementedError

    def _has_read(self, reader: BufferedReader) -> bool:
        """Tell whether there is something in the buffer of *reader*, or in the socket that it reads."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)  # an empty buffer would be filled
        try:
            return bool(reader.peek())
        except OSError:  # a reset, which whoever reads will find
            return False
        finally:
            self._socket.settimeout(timeout)

    def release(self) -> None:
        """Shut the connection down: the server takes its response for a client that has left."""
        with suppress(OSError):  # the client may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)
