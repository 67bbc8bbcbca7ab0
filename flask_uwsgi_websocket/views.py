"""WebSocketView: a handler written as a class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from .loops.base import run


class WebSocketView:
    """A WebSocket handler as a class with a method for each event. Each connection gets a new instance.

    ::

        class Talk(WebSocketView):
            def on_connect(self, ws, room):
                self.room = room

            def on_message(self, ws, message):
                ws.send(f"{self.room}: {message}")

        chat.add_websocket_rule("/<room>", handler=Talk.as_view("talk"))

    In the asyncio mode the methods are coroutine functions.

    On uWSGI on Linux, a connection is *parked* while it waits for its client: it needs no thread, greenlet or core of
    uWSGI. Its request ends when :meth:`on_connect` is done. Then the methods run in a pool of ``WEBSOCKET_THREADS``
    threads, in greenlets or in tasks: those of one connection one after the other, those of different connections side
    by side. A method that waits holds its thread, also in ``ws.send()`` to a client that reads slowly.
    """

    #: Decorators for the handler that :meth:`as_view` returns, applied in this order, as in :class:`flask.views.View`.
    decorators: ClassVar[list[Callable[..., Any]]] = []

    #: Whether a connection that waits for its client is parked. This works on uWSGI on Linux, with ``gevent``,
    #: ``asyncio``, ``threads`` or ``enable-threads``. Elsewhere, and with False, the view runs inside its request, as a
    #: function does, and takes a core for as long as the connection lasts.
    parked: ClassVar[bool] = True

    def on_connect(self, ws: Any, *_: Any, **view_args: Any) -> Any:  # for type checkers, the same as (ws, ...)
        """Handle a new connection before its handshake. The method may still ``abort()`` or return a response.

        It runs in the request. The request ends after it, unless the view runs inside its request.

        :param view_args: the variables of the URL.
        """

    def on_message(self, ws: Any, message: str | bytes) -> Any:
        """Handle a message, in a :meth:`~WebSocketClient.message_context` of its own.

        Further messages wait while it runs. Beyond ``WEBSOCKET_MAX_QUEUE`` messages or ``WEBSOCKET_MAX_MESSAGE_SIZE``
        bytes they stay in the kernel, so that the client soon cannot send any more.
        """

    def on_close(self, ws: Any, code: int, reason: str) -> Any:
        """Handle the end of an accepted connection. It is called once, also when another method has raised.

        It has the ``g`` of the request.
        """

    @classmethod
    def as_view(cls, name: str, *class_args: Any, **class_kwargs: Any) -> Callable[..., Any]:
        """Return a handler for ``websocket()`` or ``add_websocket_rule()``.

        :param name: the name of the handler, and of the endpoint unless you give one.
        :param class_args: arguments of the constructor, as are *class_kwargs*.
        """
        view: Callable[..., Any]
        if any(map(inspect.iscoroutinefunction, (cls.on_connect, cls.on_message, cls.on_close))):

            async def view(ws: Any, **view_args: Any) -> Any:
                return await cls(*class_args, **class_kwargs)._serve(ws, view_args)
        else:

            def view(ws: Any, **view_args: Any) -> Any:
                return run(cls(*class_args, **class_kwargs)._serve(ws, view_args))

        view.view_class = cls  # type: ignore[union-attr]  # as Flask's own views have it
        view.__name__ = name
        view.__doc__ = cls.__doc__
        view.__module__ = cls.__module__
        for decorator in cls.decorators:
            view = decorator(view)
        return view

    async def _serve(self, ws: Any, view_args: dict[str, Any]) -> Any:
        response = await _value(self.on_connect(ws, **view_args))
        if response is not None:
            return response
        await ws._accept()
        if ws.park(self):
            return None
        failure: BaseException | None = None
        try:
            while (message := await ws._receive()) is not None:
                with ws.message_context():
                    await _value(self.on_message(ws, message))
        except BaseException as error:
            failure = error
            if not ws.is_end(error):
                raise
        finally:
            await _value(self.on_close(ws, *ws.end_after(failure)))
        return None


async def _value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
