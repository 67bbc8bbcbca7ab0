"""The calls that handle most messages of a blocking handler: receive, iterate, send.

This is the pure-Python twin. The compiled one, in ``_blocking_calls.pyx``, makes the same calls on the channel without
the interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..exceptions import ConnectionClosed
from ..loops.base import BlockingLoop, run
from ..signals import websocket_message, websocket_sent
from .base import BaseClient
from .channel import RUN_LENGTH

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class BlockingCalls(BaseClient):
    """The calls. The compiled twin is no :class:`.BaseClient`, which its subclass adds."""

    loop: BlockingLoop

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """Wait for the next message.

        :param timeout: the most seconds to wait; None waits as long as the connection lasts.
        :returns: ``str`` for a text message, ``bytes`` for a binary message; None, once, when the connection has
            closed.
        :raises TimeoutError: when the time has passed. No message is lost.
        :raises ConnectionClosed: when it is called again after it has returned None.
        :raises ConcurrencyError: when another thread, greenlet or task is receiving.
        """
        transport = self._transport
        if timeout is not None or websocket_message.receivers or self.message_listeners:
            return run(self._receive(timeout))
        # The same as _receive(), without its coroutines, which cost time.
        if not transport.accepted:
            run(self.ensure_accepted())
        return transport.receive_blocking(self.loop)

    def __iter__(self) -> Iterator[str | bytes]:
        """Receive messages until the connection closes."""
        try:
            while (message := self.receive()) is not None:
                yield message
        except ConnectionClosed:
            return

    def send(self, message: str | ReadableBuffer, binary: bool | None = None, *, timeout: float | None = None) -> None:
        """Send a message: ``str`` as text, bytes as binary.

        It waits while more than ``WEBSOCKET_SEND_BUFFER`` bytes wait for the peer to read them.

        :param binary: as in 0.6.1: True sends binary and False sends text, for both types of *message*.
        :param timeout: the most seconds to wait before the connection is dropped. Without it, the connection is dropped
            when the peer reads nothing for ``WEBSOCKET_SEND_TIMEOUT``, or less than ``WEBSOCKET_MIN_READ_RATE``.
        :raises ConnectionClosed: when the connection has closed, or was dropped.
        :raises TypeError: when *message* is neither ``str`` nor bytes.
        :raises ValueError: when *message* has lone surrogates, or is bytes to be sent as text and not UTF-8.
        """
        # The same as _send(), without a coroutine in the common case.
        transport = self._transport
        if not transport.accepted:
            run(self.ensure_accepted())
        if not transport.put(message, binary):
            run(self._send_when_possible(message, binary, timeout))
        if transport.work >= RUN_LENGTH or websocket_sent.receivers:
            run(self._after_send(message))
