"""The client of coroutine handlers.

uWSGI's asyncio engine serves each request in a greenlet whose parent runs the event loop. The handler runs in a task,
and the request's greenlet switches to the event loop until the task is done. On a server with threads, all tasks run in
one event loop in the background, and the thread of the request waits for its task.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any

from .._uwsgi import uwsgi
from ..exceptions import AsyncioNotAvailable
from ..loops.greenlets import is_in_gevent
from ..loops.tasks import (
    AsyncioLoop,
    background_asyncio_loop,
    current_asyncio_loop,
    is_in_loop,
    parent_greenlet,
    run_in_greenlet,
)
from ..protocol.protocol import SharedMessage, payload_of
from ..protocol.speedups import COMPILED
from .base import BaseClient, NotBegun

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from flask.ctx import AppContext


if COMPILED:
    from ._aio_calls import AsyncioCalls
else:
    from .aio_calls import AsyncioCalls


def _make_loop() -> AsyncioLoop:
    """Return the loop for the caller, which waits for its task: a greenlet of uWSGI's asyncio engine, or a thread."""
    if parent_greenlet() is not None:
        return current_asyncio_loop()
    if uwsgi is not None or is_in_gevent() or is_in_loop():
        raise AsyncioNotAvailable(
            "AsyncioWebSocket needs uWSGI's asyncio engine, or a server with threads: "
            "start uwsgi with --asyncio 100 --greenlet (docs/modes.md shows how to compile uWSGI with these options)"
        )
    return background_asyncio_loop()


class AsyncioWebSocketClient(AsyncioCalls, BaseClient):
    """One WebSocket connection, as its coroutine handler gets it: the methods of :class:`WebSocketClient`, awaitable.

    Call them in the thread of the event loop only. ``recv_nb()`` and ``send_nb()`` are not coroutines.
    """

    make_loop = staticmethod(_make_loop)
    loop: AsyncioLoop

    accept = BaseClient._accept
    receive = recv = a_recv = AsyncioCalls.receive
    receive_json = BaseClient._receive_json
    send = a_send = AsyncioCalls.send
    ping = BaseClient._ping
    close = BaseClient._close

    def messages(self) -> AsyncIterator[str | bytes]:
        """Receive messages, each in its own application context. See :meth:`WebSocketClient.messages`."""
        return _Messages(self)

    async def send_binary(self, message: str | ReadableBuffer, *, timeout: float | None = None) -> None:
        """Send a ``str`` or bytes as a binary message. See :meth:`send`."""
        await self._send(message, True, timeout=timeout)

    async def send_json(self, value: Any, *, timeout: float | None = None) -> None:
        """Send *value* as JSON, by ``app.json``, in a text message. See :meth:`send`."""
        await self._send(self._app.json.dumps(value), timeout=timeout)

    def send_nb(self, message: str | ReadableBuffer) -> None:
        """Send a message without waiting. This is not a coroutine. See :meth:`send`.

        :raises BlockingIOError: when more than ``WEBSOCKET_SEND_BUFFER`` bytes already wait for the peer.
        """
        if not self.offer(SharedMessage(payload_of(message))):
            raise BlockingIOError("the peer has not read enough, so nothing was sent: try later, or use send()")

    async def send_from_sharedarea(self, id: int, pos: int) -> None:
        """Send the content of uWSGI's shared area *id* from *pos* on as a text message.

        :raises RuntimeError: outside of uWSGI. It also raises what :meth:`send` raises.
        """
        await self._send_from_sharedarea(id, pos, binary=False)

    async def send_binary_from_sharedarea(self, id: int, pos: int) -> None:
        """Send the content of uWSGI's shared area *id* from *pos* on as a binary message.

        :raises RuntimeError: outside of uWSGI. It also raises what :meth:`send` raises.
        """
        await self._send_from_sharedarea(id, pos, binary=True)

    def serve(self, handler: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """Run the coroutine function *handler* in a task with the request's contexts. Called by the view."""

        async def call() -> Any:
            # A decorator that does not know coroutines may return a value instead of calling the handler.
            value = handler(self, **kwargs)
            return await value if inspect.isawaitable(value) else value

        return self.drive(self._serve(call))

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of this connection in a task, and wait for it in the greenlet or thread of the request."""
        if parent_greenlet() is None:
            return background_asyncio_loop().submit(coroutine).result()
        return run_in_greenlet(coroutine, f"WebSocket {self.id}")

    def perform(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Return *coroutine*, which the caller awaits."""
        return coroutine

    async def _call(self, context: Context | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if context is None:
            value = function(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        value = context.run(function, *args, **kwargs)
        if inspect.isawaitable(value):
            awaited = value
            begun: list[bool] = []
            try:
                value, leaving = await context.run(asyncio.ensure_future, _result_or_exit(awaited, begun))
            except asyncio.CancelledError as error:
                if not begun and isinstance(awaited, Coroutine):
                    awaited.close()
                    raise NotBegun(*error.args) from None
                raise
            if leaving is not None:
                raise leaving
        return value

    def _run_aside(self, coroutine: Coroutine[Any, Any, object]) -> None:
        if not is_in_loop() or current_asyncio_loop() is not self.loop:  # a broadcast from another thread
            self.loop.submit(coroutine)
            return
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        task = asyncio.get_running_loop().create_task(_finish(coroutine, awaited))
        _aside.add(task)
        task.add_done_callback(_forget)


async def _result_or_exit(awaitable: Awaitable[Any], begun: list[bool]) -> tuple[Any, SystemExit | None]:
    """Await *awaitable* as a task of its own. Return a SystemExit: outside the task, it would end the event loop.

    :param begun: gets an element when the task begins.
    """
    begun.append(True)
    try:
        return await awaitable, None
    except SystemExit as leaving:
        return None, leaving


async def _finish(coroutine: Coroutine[Any, Any, object], awaited: Any) -> None:
    await _rest(coroutine, awaited)


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, object], awaited: Any) -> Generator[Any, Any, None]:
    """Run the rest of a coroutine that was started outside of a task and now waits for *awaited*."""
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


# The event loop has only weak references to tasks.
_aside: set[asyncio.Task[object]] = set()


def _forget(task: asyncio.Task[object]) -> None:
    _aside.discard(task)
    if not task.cancelled():
        task.exception()  # mark it as retrieved: the next call on the connection raises it, too


class _Messages:
    """The iterator of :meth:`AsyncioWebSocketClient.messages`.

    It is not an async generator, because one that is left by ``break`` is closed later in another task, which cannot
    pop the context.
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
