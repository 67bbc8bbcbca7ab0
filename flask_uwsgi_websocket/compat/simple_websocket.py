"""The names of simple-websocket that applications of flask-sock use: the connection and its exceptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import exceptions
from ..connection.blocking import WebSocketClient
from .shared import raisable

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: The close code of a Close frame without a code, and with simple-websocket also of a connection without a Close frame.
NO_STATUS = 1005

#: Close codes that are never in a Close frame (RFC 6455 section 7.4.1).
_LOCAL_CODES = {NO_STATUS, 1006, 1015}

#: The most bytes of the reason in a Close frame.
_MAX_REASON = 123


class SimpleWebsocketError(RuntimeError):
    """The base of simple-websocket's exceptions."""


class ConnectionError(SimpleWebsocketError):
    """What simple-websocket raises when it cannot connect. Nothing here raises it."""


class ConnectionClosed(SimpleWebsocketError):
    """The connection has ended.

    :param reason: the close code.
    :param message: the reason in the Close frame, or None.
    """

    def __init__(self, reason: int = NO_STATUS, message: str | None = None) -> None:
        # Not super(), which in a subclass may be the other package's exception.
        RuntimeError.__init__(self, f"Connection closed: {reason} {message or ''}")
        self.reason = reason
        self.message = message


class Server:
    """A connection, with the interface of ``simple_websocket.Server``.

    :param connection: the connection.
    """

    def __init__(self, connection: WebSocketClient) -> None:
        #: The connection with this package's own interface, for example to join a room.
        self.connection = connection
        self.subprotocol = connection.subprotocol

    @property
    def environ(self) -> WSGIEnvironment:
        """The WSGI environ of the request."""
        return self.connection.environ

    @property
    def connected(self) -> bool:
        """Whether neither side has closed the connection."""
        return self.connection.connected

    @property
    def close_reason(self) -> int:
        """The close code; 1005 also while the connection is open, and after one without a Close frame."""
        code = self.connection.close_code
        return NO_STATUS if code is None or code in _LOCAL_CODES else code

    @property
    def close_message(self) -> str | None:
        """The reason in the Close frame, or None."""
        return None if self.close_reason == NO_STATUS else self.connection.close_reason

    def send(self, data: object) -> None:
        """Send bytes as a binary message, and anything else as text.

        :raises ConnectionClosed: when the connection has closed.
        """
        try:
            self.connection.send(data if isinstance(data, bytes) else str(data))
        except exceptions.ConnectionClosed:
            raise self._end() from None

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Return the next message, or None when there was none for *timeout* seconds.

        :raises ConnectionClosed: when the connection has closed.
        """
        try:
            message = self.connection.receive(timeout)
        except TimeoutError:
            return None
        except exceptions.ConnectionClosed:
            message = None
        if message is None:
            raise self._end()
        return message

    def close(self, reason: int | None = None, message: str | None = None) -> None:
        """Send a Close frame.

        :param reason: the close code, 1000 if there is none.
        :param message: the reason, of which 123 bytes are sent.
        :raises ConnectionClosed: when the connection has closed.
        :raises ValueError: when RFC 6455 does not allow the close code.
        """
        if not self.connected:
            raise self._end()
        code = 1000 if not reason or reason in _LOCAL_CODES else reason
        text = (message or "").encode()[:_MAX_REASON].decode(errors="ignore")
        self.connection.close(code, text, wait=False)

    def _end(self) -> ConnectionClosed:
        return raisable(ConnectionClosed, "simple_websocket")(self.close_reason, self.close_message)
