"""The types of handlers, for type checkers: a plain function or a coroutine function, and its own client.

A decorated handler keeps its signature. Its client may be annotated as a subclass, which the ``client`` of a
:class:`WebSocketMiddleware` may be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar, overload

from flask.typing import ResponseReturnValue

from .connection.aio import AsyncioWebSocketClient
from .connection.blocking import WebSocketClient

#: The variables of the URL.
P = ParamSpec("P")

#: What a handler returns: nothing, or before the handshake an HTTP response. A coroutine function is none of these.
R = TypeVar("R", bound="ResponseReturnValue | None")
AwaitableR = TypeVar("AwaitableR", bound="Awaitable[ResponseReturnValue | None]")

Client = TypeVar("Client", bound=WebSocketClient)
AsyncioClient = TypeVar("AsyncioClient", bound=AsyncioWebSocketClient)

Handler = Callable[Concatenate[Client, P], R]
AsyncioHandler = Callable[Concatenate[AsyncioClient, P], AwaitableR]


class HandlerDecorator(Protocol):
    """Takes both kinds of handlers."""

    @overload
    def __call__(self, handler: Handler[Client, P, R], /) -> Handler[Client, P, R]: ...
    @overload
    def __call__(
        self, handler: AsyncioHandler[AsyncioClient, P, AwaitableR], /
    ) -> AsyncioHandler[AsyncioClient, P, AwaitableR]: ...
