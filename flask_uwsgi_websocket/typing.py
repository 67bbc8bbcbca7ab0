"""The types of handlers, for type checkers: a plain function or a coroutine function, each with its own client.

A decorated handler keeps its signature. Its client may be annotated as a subclass, because the ``client`` of a
:class:`WebSocketMiddleware` may be a subclass.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar, overload

from flask.typing import ResponseReturnValue

from .connection.aio import AsyncioWebSocketClient
from .connection.blocking import WebSocketClient

#: The variables of the URL.
P = ParamSpec("P")

#: The return value of a handler: None, or before the handshake an HTTP response. A coroutine function returns neither.
R = TypeVar("R", bound="ResponseReturnValue | None")
AwaitableR = TypeVar("AwaitableR", bound="Awaitable[ResponseReturnValue | None]")

Client = TypeVar("Client", bound=WebSocketClient)
AsyncioClient = TypeVar("AsyncioClient", bound=AsyncioWebSocketClient)

Handler = Callable[Concatenate[Client, P], R]
AsyncioHandler = Callable[Concatenate[AsyncioClient, P], AwaitableR]


class HandlerDecorator(Protocol):
    """A decorator for both kinds of handlers."""

    @overload
    def __call__(self, handler: Handler[Client, P, R], /) -> Handler[Client, P, R]: ...
    @overload
    def __call__(
        self, handler: AsyncioHandler[AsyncioClient, P, AwaitableR], /
    ) -> AsyncioHandler[AsyncioClient, P, AwaitableR]: ...
