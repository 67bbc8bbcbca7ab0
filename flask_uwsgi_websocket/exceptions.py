"""The exceptions of this package, as a tree::

    WebSocketError
    ├── ConnectionClosed            the connection has ended: code, reason, connection
    ├── ConcurrencyError            two callers in receive() at once (also a RuntimeError)
    ├── HandshakeRejected           the test client was answered with something else than 101: response
    ├── GeventNotInstalled          (also an ImportError)
    ├── AsyncioNotAvailable         (also an ImportError)
    └── UwsgiNotFound               (also a FileNotFoundError)

Wrong arguments raise the built-in ``TypeError`` and ``ValueError``; a wait that takes too long raises the
built-in ``TimeoutError``, whose text says "timed out".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from werkzeug.test import TestResponse

    from .connection.base import BaseClient

#: What the close codes mean (RFC 6455 section 7.4.1 and the IANA WebSocket Close Code Number Registry).
CLOSE_CODES = {
    1000: "OK",
    1001: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    1005: "no status received",
    1006: "abnormal closure",
    1007: "invalid data",
    1008: "policy violation",
    1009: "message too big",
    1010: "mandatory extension",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
}


class WebSocketError(Exception):
    """Base of every exception that this package defines."""


class ConnectionClosed(WebSocketError):
    """The connection has ended, so there is nothing more to receive and nobody to send to.

    A handler need not catch the exception of its own connection, which ends it quietly. The exception of another
    connection, to which it has sent, is an error of the handler if it is not caught.

    :param code: close code (RFC 6455 section 7.4); 1006 when the peer vanished without a Close frame.
    :param reason: the text that came with it, or what happened.
    :param connection: the connection that has ended; None in the test client.
    """

    def __init__(self, code: int = 1006, reason: str = "", *, connection: BaseClient | None = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.connection = connection

    def __str__(self) -> str:
        if 3000 <= self.code < 5000:
            meaning = "registered" if self.code < 4000 else "private use"
        else:
            meaning = CLOSE_CODES.get(self.code, "unknown")
        text = f"the WebSocket is closed: {self.code} ({meaning})"
        return f"{text} {self.reason!r}" if self.reason else text  # quoted: it is the peer's, and could forge a line


class ConcurrencyError(WebSocketError, RuntimeError):
    """Two threads, greenlets or tasks were in ``receive()`` of one connection at the same time."""


class HandshakeRejected(WebSocketError):
    """The app has answered the test client's handshake with something else than 101.

    :param response: the answer.
    """

    def __init__(self, response: TestResponse) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"the handshake of {self.response.request.path} was answered with {self.response.status}"


class GeventNotInstalled(WebSocketError, ImportError):
    """The gevent mode is used and gevent cannot be imported."""


class AsyncioNotAvailable(WebSocketError, ImportError):
    """The asyncio mode is used and greenlet, or uWSGI's asyncio engine, is not there."""


class UwsgiNotFound(WebSocketError, FileNotFoundError):
    """The application is to be run and there is no uWSGI binary."""
