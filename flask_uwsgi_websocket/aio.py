"""The client of coroutine handlers, in uWSGI's asyncio mode.

uWSGI serves each request in a greenlet whose parent runs the event loop. The handler runs in a task; the request's
greenlet gives way to the loop until the task is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from flask import current_app

from .connection import Connection
from .exceptions import AsyncioNotAvailable, ConnectionClosed
from .loops import Loop, current_asyncio_loop
from .servers import uwsgi

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def _make_loop() -> Loop:
    """Return the running event loop, if the caller is a greenlet that can give way to it."""
    try:
        from greenlet import getcurrent
    except ImportError:
        raise AsyncioNotAvailable(
            "AsyncioWebSocket needs greenlet: pip install Flask-uWSGI-WebSocket[asyncio]"
        ) from None
    try:
        loop = current_asyncio_loop()
    except RuntimeError:
        loop = None
    if loop is None or getcurrent().parent is None:
        raise AsyncioNotAvailable(
            "AsyncioWebSocket needs uWSGI's asyncio engine: start uwsgi with --asyncio 100 --greenlet"
        )
    return loop


class AsyncioWebSocketClient(Connection):
    """What a coroutine handler gets: the calls of :class:`WebSocketClient`, to be awaited.

    All of them belong to the thread of the event loop; ``recv_nb()`` alone is no coroutine.
    """

    make_loop = staticmethod(_make_loop)

    accept = Connection._accept
    receive = recv = a_recv = Connection._receive
    receive_json = Connection._receive_json
    send = a_send = Connection._send
    ping = Connection._ping
    close = Connection._close

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        """Receive messages until the connection closes."""
        try:
            while (message := await self._receive()) is not None:
                yield message
        except ConnectionClosed:
            return

    async def messages(self) -> AsyncIterator[str | bytes]:
        """Receive messages, each in an application context of its own. See :meth:`WebSocketClient.messages`."""
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        async for message in self:
            with app.app_context():
                yield message

    async def send_binary(self, message: str | ReadableBuffer, *, timeout: float | None = None) -> None:
        """Send a message as binary, whatever it is. See :meth:`send`."""
        await self._send(message, True, timeout=timeout)

    async def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send *value* as JSON in a text message, written by ``app.json``. See :meth:`send`."""
        await self._send(current_app.json.dumps(value), timeout=timeout)

    async def send_from_sharedarea(self, id: int, pos: int) -> None:
        """Send what uWSGI's shared area *id* holds from *pos* on, as text."""
        await self._send(uwsgi.sharedarea_read(id, pos), False)

    async def send_binary_from_sharedarea(self, id: int, pos: int) -> None:
        """Send what uWSGI's shared area *id* holds from *pos* on, as binary."""
        await self._send(uwsgi.sharedarea_read(id, pos), True)

    def serve(
        self, handler: Callable[..., Any], kwargs: dict[str, Any], report: Callable[[BaseException], None]
    ) -> Any:
        """Run the coroutine *handler* in a task, which sees the request's contexts. Called by the extension."""
        from greenlet import getcurrent

        greenlet = getcurrent()
        parent = greenlet.parent
        assert parent is not None  # it runs the loop, as _make_loop() has checked
        task = asyncio.get_running_loop().create_task(
            self._serve(lambda: handler(self, **kwargs), report), name=f"WebSocket {self.id}"
        )
        if not task.done():  # an eager task may be
            task.add_done_callback(lambda task: greenlet.switch())
            while not task.done():
                parent.switch()
        return task.result()
