"""The exceptions of this package, as a tree::

    WebSocketError
    ├── ConnectionClosed            the connection has ended: code, reason, connection
    ├── ConcurrencyError            two callers in receive() at once (also a RuntimeError)
    ├── BrokerUnavailable           the broker of the rooms cannot be reached (also a 503)
    ├── BadRoomName                 the name of a room is empty or too long (also a ValueError and a 404)
    ├── HandshakeRejected           the test client got another response than 101: response
    ├── GeventNotInstalled          (also an ImportError)
    ├── AsyncioNotAvailable         (also an ImportError)
    └── UwsgiNotFound               (also a FileNotFoundError)

Wrong arguments raise the built-in ``TypeError`` and ``ValueError``; a wait that takes too long raises the
built-in ``TimeoutError``, whose text says "timed out".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import NotFound, ServiceUnavailable

if TYPE_CHECKING:
    from werkzeug.test import TestResponse


#: The meanings of close codes (RFC 6455 section 7.4.1 and the IANA WebSocket Close Code Number Registry).
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
    """The base of every exception that this package defines."""


class ConnectionClosed(WebSocketError):
    """The connection has ended: you can neither receive from it nor send to it.

    A handler need not catch the exception of its own connection, which ends the handler without an error. The exception
    of another connection, to which the handler has sent, is an error of the handler unless it catches it.

    :param code: the close code (RFC 6455 section 7.4); 1006 when the peer vanished without a Close frame.
    :param reason: the reason in the Close frame, or what happened.
    :param connection: the connection that has ended; None in the test client.
    """

    def __init__(self, code: int = 1006, reason: str = "", *, connection: Any = None) -> None:
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
        return f"{text} {self.reason!r}" if self.reason else text  # quoted, because the peer could forge a log line


class ConcurrencyError(WebSocketError, RuntimeError):
    """Two threads, greenlets or tasks were in ``receive()`` of one connection at the same time."""


class BrokerUnavailable(WebSocketError, ServiceUnavailable):
    """The broker of the rooms cannot be reached, or has refused a command.

    Inside a worker, ``publish()`` does not raise it: the message waits for the broker. It is also the HTTP error 503: a
    view or handler that does not catch it answers with 503, or closes with 4503 after the handshake. What the client
    sees does not say why.
    """

    def __init__(self, why: str = "") -> None:
        super().__init__()
        self.why = why

    def __str__(self) -> str:
        return self.why


class BadRoomName(WebSocketError, NotFound, ValueError):
    """The name of a room is empty, or has more than 255 bytes of UTF-8.

    Names often come from URLs, so this is also the HTTP error 404: a handler that does not catch it refuses the
    handshake with 404, or closes with 4404 after it.
    """

    def __str__(self) -> str:
        return self.description or ""


class HandshakeRejected(WebSocketError):
    """The app has answered the test client's handshake with another status than 101.

    :param response: the response.
    """

    def __init__(self, response: TestResponse) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"the handshake of {self.response.request.path} was answered with {self.response.status}"


class GeventNotInstalled(WebSocketError, ImportError):
    """The app uses the gevent mode, and gevent cannot be imported."""


class AsyncioNotAvailable(WebSocketError, ImportError):
    """The app uses the asyncio mode, and greenlet or uWSGI's asyncio loop engine is missing."""


class UwsgiNotFound(WebSocketError, FileNotFoundError):
    """The application cannot run in uWSGI, because there is no uWSGI binary."""
