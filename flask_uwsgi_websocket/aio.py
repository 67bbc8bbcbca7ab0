"""The client of coroutine handlers, in uWSGI's asyncio mode.

uWSGI serves each request in a greenlet whose parent runs the event loop. The handler runs in a task; the request's
greenlet gives way to the loop until the task is done.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from .connection import Connection
from .exceptions import AsyncioNotAvailable, ConnectionClosed
from .loops import Loop, current_asyncio_loop
from .servers import uwsgi

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from flask.ctx import AppContext


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

    def messages(self) -> AsyncIterator[str | bytes]:
        """Receive messages, each in an application context of its own. See :meth:`WebSocketClient.messages`."""
        return _Messages(self)

    async def send_binary(self, message: str | ReadableBuffer, *, timeout: float | None = None) -> None:
        """Send a message as binary, whatever it is. See :meth:`send`."""
        await self._send(message, True, timeout=timeout)

    async def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send *value* as JSON in a text message, written by ``app.json``. See :meth:`send`."""
        await self._send(self._app.json.dumps(value), timeout=timeout)

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

        async def call() -> Any:
            # A decorator that knows no coroutines may have answered instead of the handler.
            value = handler(self, **kwargs)
            return await value if inspect.isawaitable(value) else value

        greenlet = getcurrent()
        parent = greenlet.parent
        assert parent is not None  # it runs the loop, as _make_loop() has checked
        task = asyncio.get_running_loop().create_task(self._serve(call, report), name=f"WebSocket {self.id}")
        if not task.done():  # an eager task may be
            task.add_done_callback(lambda task: greenlet.switch())
            while not task.done():
                parent.switch()
        return task.result()


class _Messages:
    """The iterator of :meth:`AsyncioWebSocketClient.messages`.

    An async generator that is left by ``break`` is closed later, and in another task, which cannot pop the context.
    """

    def __init__(self, client: AsyncioWebSocketClient) -> None:
        self._messages = aiter(client)
        self._app = client._app
        self._context: AppContext | None = None

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> str | bytes:
        self._pop()
        message = await anext(self._messages)
        self._context = self._app.app_context()
        self._context.push()
        return message

    def _pop(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.pop()

    __del__ = _pop
