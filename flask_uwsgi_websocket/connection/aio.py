"""The client of coroutine handlers.

uWSGI's asyncio engine serves each request in a greenlet whose parent runs the event loop. The handler runs in a task;
the request's greenlet gives way to the loop until the task is done. On a server with threads, all tasks run in one
event loop in the background, and the request's thread waits for its task.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any

from .._uwsgi import uwsgi
from ..exceptions import AsyncioNotAvailable, ConnectionClosed
from ..loops.greenlets import is_in_gevent
from ..loops.tasks import AsyncioLoop, background_asyncio_loop, current_asyncio_loop
from ..protocol.protocol import SharedMessage, payload_of
from .base import BaseClient, NotBegun

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from flask.ctx import AppContext
    from greenlet import greenlet


def _make_loop() -> AsyncioLoop:
    """Return the event loop for a caller that can wait for its tasks: a greenlet of uWSGI's engine, or a thread."""
    if _parent() is not None:
        return current_asyncio_loop()
    if uwsgi is not None or is_in_gevent() or _is_in_loop():
        raise AsyncioNotAvailable(
            "AsyncioWebSocket needs uWSGI's asyncio engine, or a server with threads: "
            "start uwsgi with --asyncio 100 --greenlet (docs/modes.md says how to compile one that has them)"
        )
    return background_asyncio_loop()


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _parent() -> greenlet | None:
    """Return the greenlet that runs this thread's event loop, if the caller is one that can give way to it."""
    if not _is_in_loop():
        return None
    try:
        from greenlet import getcurrent
    except ImportError:
        raise AsyncioNotAvailable("AsyncioWebSocket needs greenlet: pip install greenlet") from None
    return getcurrent().parent


class AsyncioWebSocketClient(BaseClient):
    """What a coroutine handler gets: the calls of :class:`WebSocketClient`, to be awaited.

    All of them belong to the thread of the event loop; ``recv_nb()`` and ``send_nb()`` alone are no coroutines.
    """

    make_loop = staticmethod(_make_loop)
    loop: AsyncioLoop

    accept = BaseClient._accept
    receive = recv = a_recv = BaseClient._receive
    receive_json = BaseClient._receive_json
    send = a_send = BaseClient._send
    ping = BaseClient._ping
    close = BaseClient._close

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

    def send_nb(self, message: str | ReadableBuffer) -> None:
        """Send a message without waiting; it is no coroutine. See :meth:`send`.

        :raises BlockingIOError: when more than ``WEBSOCKET_SEND_BUFFER`` bytes already wait for the peer.
        """
        if not self.offer(SharedMessage(payload_of(message))):
            raise BlockingIOError("the peer has not read what was sent before: nothing more was sent")

    async def send_from_sharedarea(self, id: int, pos: int) -> None:
        """Send what uWSGI's shared area *id* holds from *pos* on, as text.

        :raises RuntimeError: outside of uWSGI. Otherwise as :meth:`send`.
        """
        await self._send_from_sharedarea(id, pos, binary=False)

    async def send_binary_from_sharedarea(self, id: int, pos: int) -> None:
        """Send what uWSGI's shared area *id* holds from *pos* on, as binary.

        :raises RuntimeError: outside of uWSGI. Otherwise as :meth:`send`.
        """
        await self._send_from_sharedarea(id, pos, binary=True)

    def serve(self, handler: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run the coroutine *handler* in a task, which sees the request's contexts. Called by the extension."""

        async def call() -> Any:
            # A decorator that knows no coroutines may have answered instead of the handler.
            value = handler(self, **kwargs)
            return await value if inspect.isawaitable(value) else value

        return self.drive(self._serve(call))

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run one of the connection's coroutines in a task, from the greenlet or thread of the request."""
        parent = _parent()
        if parent is None:
            return background_asyncio_loop().submit(coroutine).result()
        from greenlet import getcurrent

        current = getcurrent()
        task = asyncio.get_running_loop().create_task(coroutine, name=f"WebSocket {self.id}")
        if not task.done():  # an eager task may be
            task.add_done_callback(lambda task: current.switch())
            while not task.done():
                parent.switch()
        return task.result()

    async def _call(self, context: Context | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if context is None:
            value = function(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        value = context.run(function, *args, **kwargs)
        if inspect.isawaitable(value):
            awaited = value
            try:
                value, leaving = await context.run(asyncio.ensure_future, _result_or_exit(awaited))
            except asyncio.CancelledError as error:
                if inspect.iscoroutine(awaited) and inspect.getcoroutinestate(awaited) == inspect.CORO_CREATED:
                    awaited.close()
                    raise NotBegun(*error.args) from None
                raise
            if leaving is not None:
                raise leaving
        return value

    def _run_aside(self, coroutine: Coroutine[Any, Any, object]) -> None:
        if not _is_in_loop() or current_asyncio_loop() is not self.loop:  # a broadcast from another thread
            self.loop.submit(coroutine)
            return
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        task = asyncio.get_running_loop().create_task(_finish(coroutine, awaited))
        _aside.add(task)
        task.add_done_callback(_forget)


async def _result_or_exit(awaitable: Awaitable[Any]) -> tuple[Any, SystemExit | None]:
    """Wait in a task of its own. An exit that left the task would end the event loop."""
    try:
        return await awaitable, None
    except SystemExit as leaving:
        return None, leaving


async def _finish(coroutine: Coroutine[Any, Any, object], awaited: Any) -> None:
    await _rest(coroutine, awaited)


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, object], awaited: Any) -> Generator[Any, Any, None]:
    """Run the rest of a coroutine that has come to wait for *awaited* outside of its task."""
    try:
        while True:
            try:
                value = yield awaited
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(value)
    except StopIteration:
        return


# The event loop itself refers to tasks weakly only.
_aside: set[asyncio.Task[object]] = set()


def _forget(task: asyncio.Task[object]) -> None:
    _aside.discard(task)
    if not task.cancelled():
        task.exception()  # the next call on the connection raises it, too


class _Messages:
    """The iterator of :meth:`AsyncioWebSocketClient.messages`.

    An async generator that is left by ``break`` is closed later, and in another task, which cannot pop the context.
    """

    def __init__(self, client: AsyncioWebSocketClient) -> None:
        self._messages = aiter(client)
        self._client = client
        self._context: AppContext | None = None

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> str | bytes:
        self._pop()
        message = await anext(self._messages)
        self._context = self._client.message_context()
        self._context.push()
        return message

    def _pop(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.pop()

    __del__ = _pop
