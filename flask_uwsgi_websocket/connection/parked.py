"""A connection whose request has ended: its view runs when something happens, and nothing of the server waits for it.

The loop's parking lot (``loops/parking.py``) calls :meth:`ParkedConnection.serve`, or ``serve_now()`` where callers
block, in the connection's contexts, in one thread, greenlet or task at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from flask import Flask
from flask.ctx import AppContext
from flask.globals import _cv_app

from ..exceptions import ConcurrencyError
from ..loops.base import run
from ..protocol.protocol import NORMAL_CLOSURE
from ..protocol.speedups import COMPILED
from ..worker.housekeeper import housekeeper_of
from .base import BaseClient
from .channel import WAIT
from .session import remember_session
from .transport import Transport
from .view_calls import HAS_ONE_CONTEXT, MessageContext

if COMPILED:
    from ._view_calls import ViewCalls
else:
    from .view_calls import ViewCalls

#: The most reads of one run while the closing handshake goes on.
_MOST_READS = 16


class ParkedConnection(ViewCalls):
    """What happens on a connection after its request.

    :param client: the connection, whose handshake was sent, and whose view outlives the request.
    :param ends: called at the end of the connection.
    """

    def __init__(self, client: BaseClient, ends: tuple[Callable[[], None], ...]) -> None:
        assert client.parked_view is not None
        super().__init__()
        self.client = client
        self.channel: Transport = client.channel
        self.app = client.app
        self.on_message = client.parked_view.on_message
        self.request_context = client.request_context
        self.context = client.handler_context
        self._ends = ends
        self.is_closing = self._is_over = False
        self.is_special = HAS_ONE_CONTEXT or not _is_flasks(self.app, "app_context", "do_teardown_appcontext")
        self._failure: BaseException | None = None  # what has ended the view

    def begin(self, threads: int) -> None:
        """Wait for the client from now on. Called when the request has ended.

        :param threads: how many threads may run views.
        """
        client, transport = self.client, self.channel
        self.context.run(remember_session)
        try:
            lot = transport.loop.lot(threads)
            transport.begin_receive()
            with transport.read_lock:  # the housekeeper may just be reading ahead, and nobody reports what it has read
                transport.drained = False
                has_work = bool(transport.inbox) or transport.has_rest or transport.is_over or transport.has_events
            lot.add(transport.fd, self, is_ready=has_work)
        except (OSError, ConcurrencyError) as error:  # no more descriptors, or somebody is in receive()
            self._failure = error
            self.context.run(client.drive, self._end_now())
        else:
            housekeeper_of(client.loop).lot = lot

    async def _end_now(self) -> None:
        """End the connection, which cannot be parked."""
        try:
            await self._close()
            await self.channel.finish_close()
        finally:
            await self._end()

    def leave_to_housekeeper(self) -> None:
        self.client.wait_for_thread()
        self.channel.is_receiving = False

    def serve_slowly(self) -> bool:
        return run(self.serve())

    def close_now(self, error: BaseException | None) -> bool:
        self._failure = error
        return run(self._close_and_finish())

    async def serve(self) -> bool:
        if self._is_over:
            return False
        if self.is_closing:
            return await self._finish()
        has_ended = True
        try:
            if not self.channel.is_receiving:  # the housekeeper may have read a part of what was reported
                self.channel.begin_receive()
                with self.channel.read_lock:
                    self.channel.drained = False
            has_ended = await self._hand_over()
        except BaseException as error:
            self._failure = error
        if has_ended:
            return await self._close_and_finish()
        if self.channel.is_on_a_run():
            self.channel.drained = False  # more may have arrived since, which is not reported again
            return True
        return self.read_on()

    async def _hand_over(self) -> bool:
        """Hand what has arrived to listeners and the view, which may have coroutine functions.

        :returns: whether the connection has ended.
        """
        client, transport = self.client, self.channel
        unobserved = None if self.is_observed() else _Unobserved(self.request_context)
        while (message := transport.take()) is not WAIT or transport.has_events:
            if message is WAIT:
                transport.deliver()
                continue
            if message is None:
                return True
            transport.is_receiving = False
            try:
                await client.announce_message(message)
                with unobserved or client.message_context():
                    value = self.on_message(client, message)
                    if inspect.isawaitable(value):
                        await value
            finally:
                transport.begin_receive()
        return False

    def read_on(self) -> bool:
        transport = self.channel
        if self.reads_to_the_end:
            transport.drained = False
        has_more = transport.pump()  # does nothing after a short read; another read may end in the middle of a message
        transport.drained = False
        return has_more

    async def _close_and_finish(self) -> bool:
        await self._close()
        return await self._finish()

    async def _close(self) -> None:
        """Tell the view of the end, and begin the closing handshake."""
        self.is_closing = True
        self.channel.is_receiving = False
        self._failure = await self.client.end_view(self._failure)
        self.channel.is_receiving = True
        if self._failure is None:
            self.channel.begin_close(NORMAL_CLOSURE, "")
        else:
            await self.client.report_failure(self._failure)

    async def _finish(self) -> bool:
        """End the connection if the closing handshake is over; return whether there is more to read for it."""
        transport = self.channel
        for _ in range(_MOST_READS):
            if transport.is_done():
                break
            transport.drained = False  # what has arrived may be followed by the end
            if not transport.pump():
                return False
        else:
            return True
        await self._end()
        return False

    async def _end(self) -> None:
        client, self._is_over = self.client, True
        try:
            await client.end_connection(self._failure)
        finally:
            self._failure = None  # its traceback refers to this connection
            housekeeper_of(client.loop).remove(client)
            client.detach()
            client.forget_request()
            for end in self._ends:
                end()


class _Unobserved:
    """The application contexts of messages in ``with`` statements, without ``push()`` and ``pop()``, which are noticed.

    :param request_context: the application context of the request.
    """

    __slots__ = ("_request_context", "_token")

    def __init__(self, request_context: AppContext) -> None:
        self._request_context = request_context

    def __enter__(self) -> None:
        self._token = _cv_app.set(MessageContext(self._request_context))

    def __exit__(self, *exc_info: object) -> None:
        _cv_app.reset(self._token)


def _is_flasks(app: Flask, *methods: str) -> bool:
    """Return whether an app has methods of Flask itself."""
    return all(getattr(getattr(app, name), "__func__", None) is getattr(Flask, name) for name in methods)
