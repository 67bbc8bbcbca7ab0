"""The client of blocking handlers, in threads and in gevent's greenlets."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any

from ..loops.base import BlockingLoop, run
from ..loops.current import current_blocker, current_blocking_loop
from ..protocol.speedups import COMPILED
from .base import BaseClient

if COMPILED:
    from ._blocking_calls import BlockingCalls
else:
    from .blocking_calls import BlockingCalls

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class WebSocketClient(BlockingCalls, BaseClient):
    """One WebSocket connection, as its handler gets it.

    The first call that needs the handshake sends it. Until then, the handler may refuse the connection with an HTTP
    response. Any thread or greenlet may call these methods; one at a time may receive.
    """

    make_loop = staticmethod(current_blocking_loop)
    _current_blocker = staticmethod(current_blocker)
    loop: BlockingLoop

    def accept(self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send the handshake now (RFC 6455 section 4.2.2). Does nothing when the handshake was sent before.

        ``after_websocket`` hooks may add headers to the 101 response. It sets the session's cookie if the session has
        changed.

        :param subprotocol: the subprotocol to select, instead of the client's first choice among those of the route.
            The client must have offered it.
        :param headers: more headers for the 101 response.
        :raises ValueError: when the client has not offered *subprotocol*, or a header cannot be sent.
        :raises RuntimeError: when there are *headers* or another *subprotocol* after the handshake was sent.
        :raises ConnectionClosed: when the handshake was refused.
        """
        run(self._accept(subprotocol, headers))

    recv = BlockingCalls.receive

    def messages(self) -> Iterator[str | bytes]:
        """Receive messages until the connection closes, each in its own :meth:`message_context`.

        So an idle connection holds no database connection.
        """
        for message in self:
            with self.message_context():
                yield message

    def send_binary(self, message: str | ReadableBuffer, *, timeout: float | None = None) -> None:
        """Send a ``str`` or bytes as a binary message. See :meth:`send`."""
        run(self._send(message, True, timeout=timeout))

    def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send *value* as JSON, by ``app.json``, in a text message. See :meth:`send`."""
        run(self._send(self._app.json.dumps(value), timeout=timeout))

    def receive_json(self, timeout: float | None = None) -> Any:
        """Receive a message and parse it as JSON, with ``app.json``. See :meth:`receive`.

        :raises ConnectionClosed: when the connection has closed, because None means a JSON null.
        :raises ValueError: when the message is not JSON.
        """
        return run(self._receive_json(timeout))

    def send_from_sharedarea(self, id: int, pos: int) -> None:
        """Send the content of uWSGI's shared area *id* from *pos* on as a text message.

        :raises RuntimeError: outside of uWSGI. It also raises what :meth:`send` raises.
        """
        run(self._send_from_sharedarea(id, pos, binary=False))

    def send_binary_from_sharedarea(self, id: int, pos: int) -> None:
        """Send the content of uWSGI's shared area *id* from *pos* on as a binary message.

        :raises RuntimeError: outside of uWSGI. It also raises what :meth:`send` raises.
        """
        run(self._send_from_sharedarea(id, pos, binary=True))

    def ping(self) -> None:
        """Send a Ping. :attr:`.latency` has the round trip once the Pong is read (RFC 6455 section 5.5.2).

        :raises ConnectionClosed: when the connection has closed.
        """
        run(self._ping())

    def close(self, code: int = 1000, reason: str = "", *, wait: bool = True) -> None:
        """Close the connection, and wait for the peer's Close frame, at most ``WEBSOCKET_CLOSE_TIMEOUT``.

        Does nothing when the connection is closed already. If the handshake was not sent yet, it is sent first, and
        with the session's cookie only if the connection's own handler calls this.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
        :param reason: at most 123 bytes of UTF-8.
        :param wait: False returns at once, for example to close many connections.
        :raises ValueError: when *code* or *reason* is not valid.
        """
        run(self._close(code, reason, wait=wait))

    def serve(self, handler: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run *handler*, and then close the connection. Called by the view."""

        async def call() -> Any:
            return handler(self, **kwargs)

        return self.drive(self._serve(call))

    async def _call(self, context: Context | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        function = self._app.ensure_sync(function)
        return function(*args, **kwargs) if context is None else context.run(function, *args, **kwargs)

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of this connection to its end, in the thread or greenlet of the request."""
        return run(coroutine)

    perform = drive
    _run_aside = drive


class GeventWebSocketClient(WebSocketClient):
    """The client of :class:`GeventWebSocket`: a :class:`WebSocketClient` that waits in gevent's hub."""
