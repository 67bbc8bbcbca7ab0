"""The client of blocking handlers, in threads and in gevent's greenlets."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any

from ..exceptions import ConnectionClosed
from ..loops.base import BlockingLoop, run
from ..loops.current import current_blocker, current_blocking_loop
from ..signals import websocket_message, websocket_sent
from .base import BaseClient
from .channel import RUN_LENGTH

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class WebSocketClient(BaseClient):
    """What a handler gets: one WebSocket connection.

    The handshake is sent by the first call that needs it: until then the handler may still refuse the connection
    with an HTTP response. Every call may be made from any thread or greenlet; only one may receive at a time.
    """

    make_loop = staticmethod(current_blocking_loop)
    _current_blocker = staticmethod(current_blocker)
    loop: BlockingLoop

    def accept(self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send the handshake now (RFC 6455 section 4.2.2). Once it is sent, this does nothing.

        ``after_websocket`` hooks may add headers to its response, and the session's cookie is set if it has changed.

        :param subprotocol: the one to agree on instead of the one chosen from the route's list; the client must
            have offered it.
        :param headers: more headers for the 101 response.
        :raises ValueError: when the client has not offered it, or a header cannot be sent.
        :raises RuntimeError: when the handshake was sent before, so that these come too late.
        :raises ConnectionClosed: when the handshake was refused.
        """
        run(self._accept(subprotocol, headers))

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Wait for the next message.

        :param timeout: how many seconds to wait at most; None waits as long as the connection lasts.
        :returns: ``str`` for a text message, ``bytes`` for a binary one; None, once, when the connection has
            closed.
        :raises TimeoutError: when the time has passed. No message is lost by it.
        :raises ConnectionClosed: when it is called again after the end.
        :raises ConcurrencyError: when somebody else is receiving.
        """
        transport = self._transport
        if timeout is None and transport.accepted and not websocket_message.receivers and not self._message_listeners:
            # As _receive() does, without its coroutines, which cost time.
            return transport.receive_blocking(self.loop)
        return run(self._receive(timeout))

    recv = receive

    def __iter__(self) -> Iterator[str | bytes]:
        """Receive messages until the connection closes."""
        try:
            while (message := self.receive()) is not None:
                yield message
        except ConnectionClosed:
            return

    def messages(self) -> Iterator[str | bytes]:
        """Receive messages until the connection closes, each in its own :meth:`message_context`.

        An idle connection thus holds no database connection.
        """
        for message in self:
            with self.message_context():
                yield message

    def send(self, message: str | ReadableBuffer, binary: bool | None = None, *, timeout: float | None = None) -> None:
        """Send a message: ``str`` as text, bytes as binary.

        While more than ``WEBSOCKET_SEND_BUFFER`` bytes wait for the peer to read them, this waits too.

        :param binary: as in 0.6.1: True sends binary and False sends text, whatever the message is.
        :param timeout: the most seconds to wait; then the peer is dropped. Unless given, it is dropped only when it
            reads nothing for ``WEBSOCKET_SEND_TIMEOUT``.
        :raises ConnectionClosed: when the connection has closed, or was dropped.
        :raises TypeError: when the message is neither.
        :raises ValueError: when it has lone surrogates, or is to be sent as text and not UTF-8.
        """
        # As in _send(), but without a coroutine for what happens all the time.
        transport = self._transport
        if not transport.accepted:
            run(self._ensure_accepted())
        if not transport.put(message, binary):
            run(self._send_when_possible(message, binary, timeout))
        if transport.work >= RUN_LENGTH or websocket_sent.receivers:
            run(self._after_send(message))

    def send_binary(self, message: str | ReadableBuffer, *, timeout: float | None = None) -> None:
        """Send a message as binary, whatever it is. See :meth:`send`."""
        run(self._send(message, True, timeout=timeout))

    def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send *value* as JSON in a text message, written by ``app.json``. See :meth:`send`."""
        run(self._send(self._app.json.dumps(value), timeout=timeout))

    def receive_json(self, timeout: float | None = None) -> Any:
        """Receive a message and read it as JSON, with ``app.json``. See :meth:`receive`.

        :raises ConnectionClosed: when the connection has closed: None would be a JSON null.
        :raises ValueError: when the message is not JSON.
        """
        return run(self._receive_json(timeout))

    def send_from_sharedarea(self, id: int, pos: int) -> None:
        """Send what uWSGI's shared area *id* holds from *pos* on, as text.

        :raises RuntimeError: outside of uWSGI. Otherwise as :meth:`send`.
        """
        run(self._send_from_sharedarea(id, pos, binary=False))

    def send_binary_from_sharedarea(self, id: int, pos: int) -> None:
        """Send what uWSGI's shared area *id* holds from *pos* on, as binary.

        :raises RuntimeError: outside of uWSGI. Otherwise as :meth:`send`.
        """
        run(self._send_from_sharedarea(id, pos, binary=True))

    def ping(self) -> None:
        """Send a Ping; :attr:`.latency` has its round trip once the answer is read (RFC 6455 section 5.5.2).

        :raises ConnectionClosed: when the connection has closed.
        """
        run(self._ping())

    def close(self, code: int = 1000, reason: str = "", *, wait: bool = True) -> None:
        """Close the connection and wait, at most ``WEBSOCKET_CLOSE_TIMEOUT``, until the peer has agreed.

        Harmless when it is closed already. A handshake that was not sent yet is sent first, and with the session's
        cookie only if the connection's own handler calls this.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
        :param reason: at most 123 bytes of UTF-8.
        :param wait: False comes back at once, for whoever closes many.
        :raises ValueError: when they are not that.
        """
        run(self._close(code, reason, wait=wait))

    def serve(self, handler: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run *handler* to the end of the connection. Called by the extension."""

        async def call() -> Any:
            return handler(self, **kwargs)

        return self.drive(self._serve(call))

    async def _call(self, context: Context | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        function = self._app.ensure_sync(function)
        return function(*args, **kwargs) if context is None else context.run(function, *args, **kwargs)

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run one of the connection's coroutines to its end, from the thread or greenlet of the request."""
        return run(coroutine)

    _run_aside = drive


class GeventWebSocketClient(WebSocketClient):
    """The client of :class:`GeventWebSocket`: a :class:`WebSocketClient` that waits in gevent's hub."""
