"""The names of gevent-websocket that applications of Flask-Sockets use: the connection, its handler, its exceptions."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ..connection.blocking import WebSocketClient
from ..exceptions import ConcurrencyError, ConnectionClosed
from .shared import raisable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from _typeshed.wsgi import WSGIEnvironment

#: Where gevent-websocket has its exceptions.
EXCEPTIONS = "geventwebsocket.exceptions"


class WebSocketError(OSError):
    """The connection has ended."""


class ProtocolError(WebSocketError):
    """What gevent-websocket raises for an invalid frame. Here such a frame closes the connection."""


class Client(NamedTuple):
    """An entry of ``ws.handler.server.clients``."""

    address: tuple[str, int | str]
    ws: Connection


class Connection:
    """A connection, with the interface of ``geventwebsocket.websocket.WebSocket``.

    :param connection: the connection.
    """

    OPCODE_TEXT, OPCODE_BINARY, OPCODE_PING = 0x1, 0x2, 0x9

    def __init__(self, connection: WebSocketClient) -> None:
        #: The connection with this package's own interface, for example to join a room.
        self.connection = connection
        environ = connection.environ
        self.path: str = environ.get("PATH_INFO", "")
        self.origin: str | None = environ.get("HTTP_ORIGIN")
        self.protocol: str | None = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")
        self.handler = Handler(self)
        # Whether receive() has returned None, or close() was called.
        self._has_ended = False
        # What `closed` has received.
        self._inbox: deque[str | bytes | None] = deque()

    @property
    def environ(self) -> WSGIEnvironment:
        """The WSGI environ of the request."""
        return self.connection.environ

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, and all messages that came before were received."""
        if self._has_ended or self.connection.connected or self._inbox:
            return self._has_ended
        try:
            self._inbox.append(self.connection.recv_nb())
        except ConnectionClosed:
            return True
        except ConcurrencyError:  # the one in receive() gets the rest
            pass
        return False

    def receive(self) -> str | bytearray | None:
        """Return the next message; None, once, when the connection has closed.

        :raises WebSocketError: when it is called again.
        """
        if self._has_ended:
            raise self._error("Connection is already closed")
        try:
            message = self._inbox.popleft() if self._inbox else self.connection.receive()
        except ConnectionClosed:
            raise self._error("Connection is already closed") from None
        if message is None:
            self._has_ended = True
        return bytearray(message) if isinstance(message, bytes) else message

    def send(self, message: str | ReadableBuffer | None, binary: bool | None = None) -> None:
        """Send ``str`` as text and bytes as binary, or what *binary* says.

        :raises WebSocketError: when the connection has closed.
        """
        if binary is not None and not binary and not isinstance(message, str):
            message = str(message or "")
        try:
            self.connection.send(message, binary)  # type: ignore[arg-type]  # a None that receive() has returned
        except ConnectionClosed:
            raise self._error("Socket is dead") from None

    def send_frame(self, message: str | ReadableBuffer, opcode: int) -> None:
        """Send a message or a Ping.

        :raises WebSocketError: when the connection has closed.
        :raises ValueError: for another *opcode*.
        """
        if opcode in {self.OPCODE_TEXT, self.OPCODE_BINARY}:
            return self.send(message, opcode == self.OPCODE_BINARY)
        if opcode != self.OPCODE_PING:
            raise ValueError(f"send_frame() sends messages and Pings, not the opcode {opcode}")
        try:
            self.connection.ping()
        except ConnectionClosed:
            raise self._error("Socket is dead") from None

    def close(self, code: int = 1000, message: str | bytes = b"") -> None:
        """Send a Close frame. Does nothing when the connection has closed."""
        self._has_ended = True
        self.connection.close(code, message if isinstance(message, str) else message.decode(), wait=False)

    def _error(self, text: str) -> WebSocketError:
        return raisable(WebSocketError, EXCEPTIONS)(text)


class Handler:
    """The part of gevent-websocket's ``WebSocketHandler`` that applications use. It is its own ``server``."""

    # The connections of this process, by their id. A handler changes only its own entry.
    _clients: ClassVar[dict[str, Client]] = {}

    def __init__(self, ws: Connection) -> None:
        self.websocket = ws
        port = str(ws.environ.get("REMOTE_PORT"))  # uWSGI's http-socket has none
        number = int(port) if port.isdecimal() else ws.connection.id
        self.client_address: tuple[str, int | str] = str(ws.environ.get("REMOTE_ADDR")), number
        self.active_client = Client(self.client_address, ws)
        self.server = self

    @property
    def clients(self) -> dict[tuple[str, int | str], Client]:
        """The connections of this worker. A new dictionary, because connections come and go during a loop over it."""
        return {client.address: client for client in list(self._clients.values())}

    def __enter__(self) -> None:
        self._clients[self.websocket.connection.id] = self.active_client

    def __exit__(self, *error: object) -> None:
        del self._clients[self.websocket.connection.id]
