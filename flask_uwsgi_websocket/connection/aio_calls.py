"""The calls that a coroutine handler makes for every message: receive one, iterate over them, send one.

This class is the pure-Python twin, whose calls are the coroutines of ``base.py``. In the compiled twin, in
``_aio_calls.pyx``, a call returns an object that does the same steps without a coroutine. It leaves everything but the
common case (no listeners, no timeout, room for the output) to the coroutines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from ..exceptions import ConnectionClosed
from .base import BaseClient

__all__ = ["AsyncioCalls"]


class AsyncioCalls(BaseClient):
    """The part of :class:`.AsyncioWebSocketClient` that has a compiled twin."""

    receive = BaseClient._receive
    send = BaseClient._send

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        """Receive messages until the connection closes."""
        return MessageIterator(self)


class MessageIterator:
    """The iterator over the messages of a client. It calls the client's own ``receive()``, which may be overridden."""

    def __init__(self, client: AsyncioCalls) -> None:
        self._client = client

    def __aiter__(self) -> MessageIterator:
        return self

    async def __anext__(self) -> str | bytes:
        try:
            message = await self._client.receive()
        except ConnectionClosed:
            message = None
        if message is None:
            raise StopAsyncIteration
        return message
