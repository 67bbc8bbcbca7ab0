"""What ``WEBSOCKET_COMPATIBILITY = "0.6.1"`` turns on: clients that behave as in version 0.6.1, and its other names.

The settings that it changes are in ``settings.py``. ``docs/migrating.md`` tells how to move on.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask

from ._uwsgi import uwsgi
from .connection.aio import AsyncioWebSocketClient
from .connection.base import SLOW_CLOSE, BaseClient
from .connection.blocking import GeventWebSocketClient, WebSocketClient
from .exceptions import ConnectionClosed
from .loops.base import run
from .loops.current import current_blocker
from .loops.greenlets import is_in_gevent, new_event, patch_library, run_apart
from .protocol.protocol import SharedMessage, payload_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Seconds that a handler may go on after its connection has ended. 0.6.1 waited as long for it.
GRACE = 5.0

#: Seconds of each receive() after the end, so that a handler that ignores the end does not occupy its worker.
PAUSE = 0.1

#: The most handlers of a worker that go on after their requests. Clients could connect and leave for ever.
MOST_ORPHANS = 1000

_orphans: deque[Any] = deque()

_NOTICE = (
    'WEBSOCKET_COMPATIBILITY = "0.6.1" is on: the handshake precedes the handler, pages of any origin may connect, '
    "text is received as bytes, send() neither waits for other clients nor raises when they have left%s. To move on, "
    "read https://github.com/zeekay/flask-uwsgi-websocket/blob/HEAD/docs/migrating.md"
)


class Ended(ConnectionClosed, ConnectionError):
    """The connection has ended. It is also the ``OSError`` that handlers of 0.6.1 catch."""


class _Client(BaseClient):
    """What the clients of all modes have in common."""

    #: Whether send() of the connection's own handler raises as soon as the connection has ended.
    raises_at_once = False
    #: Seconds after which receive() of :class:`LegacyGeventClient` returns an empty message.
    timeout: float | None = None
    _current_runner: Callable[[], object] = staticmethod(current_blocker)
    _runner: object = None  # the thread, greenlet or task of the handler
    _ended_at: float | None = None  # when the handler first noticed the end

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        settings, offered = self._route.settings, self._handshake.offered_subprotocols
        self.id = str(uuid.UUID(self.id, version=4))
        self.timeout = settings.ping_interval
        if offered and not settings.subprotocols:
            self.subprotocol = offered[0]  # uWSGI accepted what the client offered

    @property
    def connected(self) -> bool:
        """Whether messages can be exchanged. Setting it to False closes the connection."""
        return self._transport.is_open

    @connected.setter
    def connected(self, value: bool) -> None:
        if not value:
            self.begin_close(1000, "")

    async def _receive(self, timeout: float | None = None) -> str | bytes | None:
        try:
            return await super()._receive(timeout)
        except ConnectionClosed as error:
            self._check_end(error, GRACE)
            await self.loop.sleep(PAUSE)
            return None

    async def _send(
        self, message: str | ReadableBuffer, binary: bool | None = None, *, timeout: float | None = None
    ) -> None:
        try:
            try:
                await super()._send(message, binary, timeout=timeout)
            except UnicodeDecodeError:  # no client could read it as text
                await super()._send(message, True, timeout=timeout)
        except ConnectionClosed as error:
            if self._runner == self._current_runner():
                self._check_end(error, 0 if self.raises_at_once else GRACE)

    async def _send_when_possible(
        self, message: str | ReadableBuffer, binary: bool | None, timeout: float | None
    ) -> None:
        if timeout is None and self._runner != self._current_runner():
            self.begin_close(*SLOW_CLOSE)
        else:
            await super()._send_when_possible(message, binary, timeout)

    def _check_end(self, error: ConnectionClosed, grace: float) -> None:
        """Raise *error* as an :exc:`OSError` if the handler has gone on for *grace* seconds after the end."""
        now = time.monotonic()
        self._ended_at = now if self._ended_at is None else self._ended_at
        if now - self._ended_at >= grace:
            raise Ended(error.code, error.reason, connection=self) from None


class LegacyClient(_Client, WebSocketClient):
    """The client of :class:`.WebSocket` as in 0.6.1."""

    raises_at_once = True

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        return run(self._receive(timeout))

    recv = receive

    def __iter__(self) -> Iterator[str | bytes]:
        with suppress(ConnectionClosed):
            while (message := run(self._receive())) is not None:  # receive() has empty messages in addition
                yield message

    def recv_nb(self) -> str | bytes | None:
        try:
            message = super().recv_nb()
        except ConnectionClosed as error:
            raise Ended(error.code, error.reason, connection=self) from None
        return b"" if message is None else message

    def send(self, message: str | ReadableBuffer, binary: bool | None = None, *, timeout: float | None = None) -> None:
        run(self._send(message, binary, timeout=timeout))

    def close(self, code: int = 1000, reason: str = "", *, wait: bool = False) -> None:
        super().close(code, reason, wait=wait)

    def serve(self, handler: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        return super().serve(partial(self._handle, handler), kwargs)

    def _handle(self, handler: Callable[..., Any], ws: Any, **kwargs: Any) -> Any:
        self._runner = current_blocker()
        try:
            return handler(ws, **kwargs)
        finally:
            self._runner = None  # another thread may get the number of this one


class LegacyGeventClient(LegacyClient, GeventWebSocketClient):
    """The client of :class:`.GeventWebSocket` as in 0.6.1.

    Its handler has a greenlet of its own, which may go on when the request has ended.
    """

    raises_at_once = False
    _is_batch_over = False  # receive() has returned the last message that was here, and an empty one comes next
    _over: Any = None  # an event: the connection has ended

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        if timeout is not None:
            return super().receive(timeout)
        if self._is_batch_over:
            self._is_batch_over = False
            return b""
        try:
            message = super().receive(self.timeout)
        except TimeoutError:
            return b""
        self._is_batch_over = bool(message) and not self._transport.has_message()
        return message

    recv = receive

    async def _send(
        self, message: str | ReadableBuffer, binary: bool | None = None, *, timeout: float | None = None
    ) -> None:
        await super()._send(message, timeout=timeout)  # everything is text

    def tick(self, *, read_ahead: bool = True) -> None:
        super().tick(read_ahead=read_ahead)
        if self._over is not None and not self.connected:
            self._over.set()

    def _handle(self, handler: Callable[..., Any], ws: Any, **kwargs: Any) -> Any:
        call = partial(super()._handle, handler, ws, **kwargs)
        if not is_in_gevent():  # on a server with threads
            return call()
        self._over = new_event()
        orphan = run_apart(call, self._over, GRACE, self._note_failure)
        if orphan is not None:
            _orphans.append(orphan)
            if len(_orphans) > MOST_ORPHANS:
                _orphans.popleft().kill(block=False)
            if self._route.warned.is_first_time("orphan", self._rule):
                self._app.logger.warning(
                    "The handler of %s goes on although its connection has ended: it should check ws.connected, or for "
                    "the None that ws.receive() returns.",
                    self._rule,
                )
        return None

    def _note_failure(self, error: BaseException) -> None:
        if not self.is_end(error):
            self._app.logger.error("The handler of %s failed after its connection", self._rule, exc_info=error)


class LegacyAsyncioClient(_Client, AsyncioWebSocketClient):
    """The client of :class:`.AsyncioWebSocket` as in 0.6.1."""

    _current_runner = staticmethod(asyncio.current_task)
    receive = recv = a_recv = _Client._receive
    send = a_send = _Client._send

    def recv_nb(self) -> str | bytes | None:
        try:
            message = super().recv_nb()
        except ConnectionClosed:
            return None
        return "" if message is None else message

    def send_nb(self, message: str | ReadableBuffer) -> None:
        try:
            if not self.offer(SharedMessage(payload_of(message))):
                self.begin_close(*SLOW_CLOSE)
        except ConnectionClosed as error:
            raise Ended(error.code, error.reason, connection=self) from None

    def close(self, code: int = 1000, reason: str = "", *, wait: bool = False) -> Any:
        """Begin to close the connection, at once. The result may be awaited."""
        self.begin_close(code, reason)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def serve(self, handler: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        def handle(ws: Any, **kwargs: Any) -> Any:
            self._runner = asyncio.current_task()
            return handler(ws, **kwargs)

        return super().serve(handle, kwargs)


def legacy_client(client: type[Any]) -> type[Any]:
    """Return the class of clients that takes the place of *client*, which may be the application's own."""
    bases = {GeventWebSocketClient: LegacyGeventClient, AsyncioWebSocketClient: LegacyAsyncioClient}
    legacy: type[Any] = next((bases[base] for base in bases if issubclass(client, base)), LegacyClient)
    return legacy if issubclass(legacy, client) else type(client.__name__, (client, legacy), {})


def set_up(websocket: Any, app: Flask, timeout: float | None, *, for_gevent: bool) -> None:
    """Do what only ``init_app()`` of 0.6.1 did, and log what the setting turns on."""
    vars(websocket).update(app=app, url_map=app.url_map, blueprints=app.blueprints, debug=app.debug)
    vars(websocket).update(routes={}, timeout=timeout)
    if uwsgi is not None and for_gevent and "gevent" in uwsgi.opt:
        patch_library(aggressive=app.config.get("UWSGI_WEBSOCKET_AGGRESSIVE_PATCH", True))
    if uwsgi is None or uwsgi.worker_id() <= 1:
        app.logger.warning(_NOTICE, ', receive() returns b"" now and then' if for_gevent else "")
