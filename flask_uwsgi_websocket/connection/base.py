"""The life of a connection in its application: hooks, the handshake, messages, signals, the end.

This module connects the transport with Flask. Every method that may wait is a coroutine, as in ``transport.py``. The
two kinds of clients give these coroutines their public names.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from math import inf
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from flask import Flask, Response, got_request_exception, has_request_context, request
from flask.globals import app_ctx
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from .._uwsgi import uwsgi
from ..exceptions import ConcurrencyError, ConnectionClosed
from ..hooks import KINDS, Function
from ..loops.base import Loop
from ..loops.current import current_blocking_loop
from ..protocol.handshake import Handshake
from ..protocol.protocol import INTERNAL_ERROR, NORMAL_CLOSURE, Close, SharedMessage, check_close
from ..signals import (
    websocket_message,
    websocket_pong,
    websocket_sent,
)
from ..state import Route
from .channel import REENTERED, RUN_LENGTH
from .session import current_session, forget_changes, forget_mere_refresh, forget_session, is_changed, save_session
from .transport import Answered, Transport, put_frame_to_all

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from _typeshed.wsgi import WSGIEnvironment
    from flask.ctx import AppContext, _AppCtxGlobals

#: Seconds between two checks of something that another thread, greenlet or task is about to finish.
PATIENCE = 0.005

#: Seconds after which the log reports that a handler waits for the peer of another connection.
LONG_WAIT = 1.0

#: Seconds after which the log reports that a method of a parked view still runs.
LONG_RUN = 10.0

#: The code and the reason with which a member of a room is closed that does not read fast enough: it may come back.
SLOW_CLOSE = 1013, "messages were sent faster than they were read"

#: The key of the client in the environ of its request.
ENVIRON_KEY = "flask_uwsgi_websocket.client"

#: The key in the environ of every request that a server or a test client has made.
SERVED_KEY = "flask_uwsgi_websocket.served"

#: Exceptions that end a handler, a hook or a listener, and nothing else. A SystemExit that went on to the server would
#: cost uWSGI a thread, or hang a worker. A CancelledError, from awaiting a cancelled task, would end a gunicorn worker.
_FAILURES = (Exception, SystemExit, CancelledError)

logger = logging.getLogger("flask_uwsgi_websocket")

_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

# The connection whose handshake is being prepared in this context.
_preparing: ContextVar[BaseClient | None] = ContextVar("_preparing", default=None)


class Membership(Protocol):
    """What a connection belongs to, such as a room. It is told when the connection ends."""

    def discard(self, client: BaseClient) -> None:
        """Forget the connection."""


#: The handshake of a request that has none, or needs it no more.
NO_HANDSHAKE = Handshake("", (), None, None)


class View(Protocol):
    """A view that may outlive its request. The methods may be coroutine functions."""

    def on_message(self, ws: Any, message: str | bytes) -> Any:
        """Handle a message."""

    def on_close(self, ws: Any, code: int, reason: str) -> Any:
        """Handle the end of the connection."""


class NotBegun(CancelledError):
    """A call of a function of the application was cancelled before the function began."""


class BaseClient:
    """A connection in its application, from its upgrade request to its end: the base class of all clients.

    Applications get one of its subclasses, such as :class:`WebSocketClient`. A client has a transport, and is complete
    when it exists.

    :param environ: the WSGI environ of the upgrade request.
    :param app: the application.
    :param route: what all connections of the endpoint have in common.
    :param transport: the socket, with its buffers.
    :param handshake: the valid upgrade request.
    """

    #: The id of the user, which the function of :meth:`.WebSocket.user_id` has returned, as text; None without one.
    user_id: str | None = None
    #: The rooms of the connection. They change it, with a lock of theirs.
    memberships: tuple[Membership, ...] = ()
    #: Whether a view may outlive the request, as the server and the route know.
    may_park = False
    #: The view that outlives the request, or None.
    parked_view: View | None = None
    #: The ``g`` of the request that the view outlives.
    request_g: _AppCtxGlobals
    # How many messages its last call came after, and when that was noticed, on the monotonic clock.
    _last_run: tuple[int, float] = (-1, 0.0)
    # What rooms have sent before the handshake. Changed with the write lock.
    _early: deque[SharedMessage | Close] | None = None

    def __init__(
        self, environ: WSGIEnvironment, app: Flask, route: Route, transport: Transport, handshake: Handshake
    ) -> None:
        #: Unique among all connections.
        self.id: str = os.urandom(16).hex()
        #: The WSGI environ of the upgrade request.
        self.environ: WSGIEnvironment = environ
        #: The negotiated subprotocol (RFC 6455 section 1.9), or None.
        self.subprotocol: str | None = handshake.subprotocol
        self._app = app
        self._route = route
        self._transport = transport
        transport.owner = ref(self)
        #: The loop in which the connection waits.
        self.loop: Loop = transport.loop
        self.message_listeners: tuple[Function, ...] = route.functions["message"]  # looked up for every message
        self._handshake = handshake
        #: The application context of the request.
        self.request_context: AppContext = app_ctx._get_current_object()  # type: ignore[attr-defined]
        #: The context variables of the functions that are called for the connection.
        self.handler_context: Context = copy_context()
        # For the log: the rule, because the path may contain a token.
        asked = request._get_current_object()  # type: ignore[attr-defined]
        self._rule = str(asked.url_rule or "-")
        self._peer = asked.remote_addr
        # The first caller that needs the handshake claims it, with the write lock. The transport knows its outcome.
        self._claimed = False
        self._claimant: object = None
        self._is_notifying = False  # websocket_connected is being sent
        self._has_notified_closed = False
        # A message whose delivery was cancelled, and the functions that were not called with it.
        self._undelivered: tuple[str | bytes, deque[Function]] | None = None
        # When the client began to wait for the handshake, on the monotonic clock.
        self._waits_since = time.monotonic()

    @classmethod
    def refused(cls, environ: WSGIEnvironment, app: Flask, route: Route) -> BaseClient:
        """Return the client of a request that was refused before it had a handshake, for ``websocket_rejected``."""
        transport = Transport(None, lambda: None, current_blocking_loop(), route.settings)
        return cls(environ, app, route, transport, NO_HANDSHAKE)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self._rule}>"

    # State

    @property
    def app(self) -> Flask:
        """The app that serves the connection."""
        return self._app

    @property
    def fd(self) -> int:
        """The file descriptor of the connection; -1 once the connection is closed."""
        return self._transport.fd

    @property
    def has_ended(self) -> bool:
        """Whether the handler has ended, so that the connection does not belong to anything any more."""
        return self._transport.fd < 0

    @property
    def connected(self) -> bool:
        """Whether messages can be exchanged: the handshake was not refused and neither side has closed."""
        return self._transport.is_open

    @property
    def latency(self) -> float | None:
        """The round trip of the last answered ping, in seconds; None before the first one."""
        return self._transport.latency

    @property
    def timeout(self) -> float | None:
        """The ``ping_interval`` in seconds, under its name of 0.6.1; None when pings are off."""
        return self._route.settings.ping_interval

    @property
    def close_code(self) -> int | None:
        """The code of the Close frame, of either side, that ended the connection; None while the connection is open.

        1005 means a Close frame without a code; 1006 means no Close frame (RFC 6455 section 7.1.5).
        """
        closed = self._transport.protocol.closed
        return None if closed is None else closed.code

    @property
    def close_reason(self) -> str | None:
        """The reason that came with :attr:`close_code`."""
        closed = self._transport.protocol.closed
        return None if closed is None else closed.reason

    @property
    def was_accepted(self) -> bool:
        """Whether the handshake was sent."""
        return self._transport.accepted

    # Calls of the application's functions

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of this connection to its end, in the thread or greenlet that serves the request."""
        raise NotImplementedError

    def perform(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end for a caller that may block, or return it for a caller that awaits it."""
        raise NotImplementedError

    def _current_blocker(self) -> object:
        """Return what a waiting call blocks, such as the thread; None where the call suspends instead."""
        return None

    async def _call(self, context: Context | None, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the application, and wait for it if it is a coroutine function.

        :param context: the context to run it in; None for the current one.
        """
        raise NotImplementedError

    def _run_aside(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run *coroutine* for a caller that cannot wait: now if it does not wait either, otherwise a little later."""
        raise NotImplementedError

    async def _notify(self, kind: str, **kwargs: Any) -> None:
        """Call the listeners of a kind, then the receivers of its signal, each in the connection's contexts.

        Each call gets a copy of the contexts: calls may run at the same time in several threads, greenlets or tasks.
        """
        if pending := self._listeners(kind):
            await self._notify_each(pending, kind, **kwargs)

    def _listeners(self, kind: str) -> deque[Function]:
        pending = deque(self._route.functions[kind])
        signal = KINDS[kind].signal
        if signal is not None and signal.receivers and not signal.is_muted:
            pending.extend(signal.receivers_for(self._app))
        return pending

    async def _notify_each(self, pending: deque[Function], kind: str, **kwargs: Any) -> None:
        """Call the functions in *pending*, and remove each one: an interruption leaves the others there."""
        signal = KINDS[kind].signal
        while pending:
            function = pending.popleft()
            try:
                await self._call(
                    self.handler_context.copy(), self._in_event_context(function), self._app, ws=self, **kwargs
                )
            except _FAILURES as error:
                if isinstance(error, CancelledError) and KINDS[kind].cancellable:
                    if isinstance(error, NotBegun):
                        pending.appendleft(function)
                    raise
                self._app.logger.exception("%r failed on the signal %s of %r", function, signal and signal.name, self)

    def on_event(self, event: Answered) -> None:
        """Handle an event of the transport, without a lock: in the caller of receive(), or beside the housekeeper."""
        if websocket_pong.receivers or self._route.functions["pong"]:
            self._run_aside(self._notify("pong", latency=event.latency))

    def message_context(self) -> AppContext:
        """Return a new application context, for a ``with`` statement in the handler or a receiver.

        ``teardown_appcontext`` functions run at its end, so that, for example, a database connection is returned to its
        pool. ``request`` and ``session`` stay the same, and ``g`` is new. On Flask 3.2, where the application and
        request context are one, ``teardown_request`` functions run, too.
        """
        copy = getattr(self.request_context, "copy", self._app.app_context)
        context: AppContext = copy()
        return context

    def event_context(self) -> AppContext:
        """Return a new application context with the ``g`` of the request, for what happens after the request."""
        context = self.message_context()
        context.g = self.request_g
        return context

    def _in_event_context(self, function: Function) -> Function:
        """Return *function*, or after the request a function that calls it in an application context of its own."""
        if self.parked_view is None:
            return function

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.event_context():
                return function(*args, **kwargs)

        async def call_coroutine(*args: Any, **kwargs: Any) -> Any:
            with self.event_context():
                return await function(*args, **kwargs)

        return call_coroutine if inspect.iscoroutinefunction(function) else call

    # The handshake

    async def _accept(self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send the handshake now (RFC 6455 section 4.2.2). Does nothing when the handshake was sent before.

        ``after_websocket`` hooks may add headers to the 101 response. It sets the session's cookie if the session has
        changed.

        :param subprotocol: the subprotocol to select, instead of the client's first choice among those of the route.
            The client must have offered it.
        :param headers: more headers for the 101 response.
        :raises ValueError: when the client has not offered *subprotocol*, or a header cannot be sent.
        :raises RuntimeError: when there are *headers* or another *subprotocol* after the handshake was sent.
        :raises ConnectionClosed: when the handshake was refused.
        """
        headers = list(headers)
        if self._claimed and (headers or subprotocol not in {None, self.subprotocol}):
            raise RuntimeError("the handshake has been sent: call accept() before anything is sent or received")
        if subprotocol not in {None, self.subprotocol, *self._handshake.offered_subprotocols}:
            raise ValueError(f"the client has not offered the subprotocol {subprotocol!r}")
        if headers:
            self._handshake.response(subprotocol, headers)  # refuses what cannot be sent
        await self.ensure_accepted(subprotocol, headers)

    async def ensure_accepted(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = (), *, saves_session: bool = True
    ) -> None:
        """Send the handshake unless it was sent; see :meth:`_accept`.

        :raises ConnectionClosed: when the handshake was refused.
        """
        if self._transport.refused:
            raise self._transport.refused_error()
        blocker = self._current_blocker()
        with self._transport.write_lock:
            is_mine = not self._claimed
            if is_mine:
                self._claimed, self._claimant = True, blocker
        if not is_mine:
            if _preparing.get() is self:
                raise RuntimeError("an after_websocket hook runs before the handshake: it cannot send or receive")
            if not self._transport.accepted and blocker is not None and blocker == self._claimant:
                raise ConcurrencyError(REENTERED)  # the call would wait for itself
            while not self._transport.accepted and not self._transport.refused:
                await self.loop.sleep(PATIENCE)
            if self._transport.refused:
                raise self._transport.refused_error()
            return
        try:
            more = await self._prepare(headers, saves_session)
            self.subprotocol = subprotocol or self.subprotocol
            response = self._handshake.response(self.subprotocol, more)
        except BaseException as error:
            # _serve() raises it for the handler of this connection. This caller may be another handler, in a broadcast.
            error = _as_exception(error)
            is_interrupt = not isinstance(error, Exception)
            self._transport.handshake_error = RuntimeError("the handshake was interrupted") if is_interrupt else error
            self._transport.refuse()
            if is_interrupt:
                raise
            self._transport.refusal = f"the handshake was refused: {error!r}"
            raise self._transport.refused_error() from error
        self._is_notifying = True
        try:
            self._transport.start(response)
            self._claimant = None  # a greenlet that may end now
            self._send_early()
            self._route.stats.on_open(self._transport)
            logger.info("WebSocket %s connected: %s from %s", self.id, self._rule, self._peer)
            await self._notify("connect")
        finally:
            self._is_notifying = False

    async def _prepare(self, headers: Iterable[tuple[str, str]], saves_session: bool) -> Iterable[tuple[str, str]]:
        """Return the headers of the 101 response, with those that the hooks and the session add."""
        hooks = self._route.functions["after"]
        context = self.handler_context.copy()
        if not hooks and not context.run(is_changed):
            return headers
        response = self._app.response_class(status=101)
        response.headers = Headers(headers)
        context.run(_preparing.set, self)
        for hook in hooks:
            response = await self._call(context, hook, response)
            if not isinstance(response, Response):
                raise TypeError(f"the after_websocket hook {hook!r} must return the response, not {response!r}")
        if saves_session:
            context.run(save_session, self._app, response)
        else:
            context.run(forget_changes)
        return response.headers

    @property
    def channel(self) -> Transport:
        """What the housekeeper looks at."""
        return self._transport

    def tick(self, *, read_ahead: bool = True) -> None:
        """Do what is due, without waiting. Before the handshake, check whether the client still waits for it."""
        if self._transport.accepted:
            self._transport.tick(read_ahead=read_ahead)
            if self.parked_view is not None and not self._transport.is_receiving:
                self._watch_view(time.monotonic())
        elif not self._transport.refused:
            self._watch_handshake(time.monotonic() - self._waits_since)

    def _watch_handshake(self, age: float) -> None:
        """Refuse the handshake when the client has left, or has waited too long.

        The handler goes on, because nothing can interrupt its wait. It still counts as a connection.
        """
        timeout = self._route.settings.handshake_timeout
        if self._transport.has_left():
            gone = Response(status="499 Client Closed Request")  # nginx logs this status; no client reads it
            if self._transport.refuse_unasked(
                "the client has left before the handshake was sent", HTTPException(response=gone)
            ):
                logger.info(
                    "WebSocket %s: the client has left before the handshake was sent, %s from %s, %.1f s",
                    self.id,
                    self._rule,
                    self._peer,
                    age,
                )
        elif timeout is not None and age > timeout:
            error = ServiceUnavailable("The handshake was not sent in time.")
            if self._transport.refuse_unasked(f"the handshake was not sent within {timeout:g} s", error, _UNAVAILABLE):
                logger.warning(
                    "WebSocket %s: the handler of %s has not sent the handshake within %g s, and the client got 503. "
                    "If the handler waits for something else first, call ws.accept() before that, or give the route "
                    'accept="early". The limit is WEBSOCKET_HANDSHAKE_TIMEOUT.',
                    self.id,
                    self._rule,
                    timeout,
                )

    # Messages

    async def _receive(self, timeout: float | None = None) -> str | bytes | None:
        """Wait for the next message.

        :param timeout: the most seconds to wait; None waits as long as the connection lasts.
        :returns: ``str`` for a text message, ``bytes`` for a binary message; None, once, when the connection has
            closed.
        :raises TimeoutError: when the time has passed. No message is lost.
        :raises ConnectionClosed: when it is called again after it has returned None.
        :raises ConcurrencyError: when another thread, greenlet or task is receiving.
        """
        if not self._transport.accepted:
            await self.ensure_accepted()
        message = await self._transport.receive(timeout)
        if message is not None:
            await self.announce_message(message)
        return message

    async def announce_message(self, message: str | bytes) -> None:
        """Call the listeners and receivers of a message, before the handler gets it."""
        if websocket_message.receivers or self.message_listeners:
            with self._delivery(message) as notification:
                await notification

    @contextmanager
    def _delivery(self, message: str | bytes) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield the coroutine that calls the listeners and receivers of a message before the handler gets it.

        If the caller is cancelled meanwhile, the next call delivers the message, and no listener gets it twice.
        """
        if self._undelivered is not None and self._undelivered[0] is message:
            pending = self._undelivered[1]
        else:
            pending = self._listeners("message")
        self._undelivered = None
        try:
            yield self._notify_each(pending, "message", message=message)
        except BaseException:
            self._undelivered = message, pending
            self._transport.give_back(message)
            raise

    async def _receive_json(self, timeout: float | None = None) -> Any:
        """Receive a message and parse it as JSON, with ``app.json``. See :meth:`receive`.

        :raises ConnectionClosed: when the connection has closed, because None means a JSON null.
        :raises ValueError: when the message is not JSON.
        """
        message = await self._receive(timeout)
        if message is None:
            raise self.end_error()
        try:
            return self._app.json.loads(message)
        except RecursionError:
            raise ValueError("the message is not JSON: it is nested too deeply") from None

    def recv_nb(self) -> str | bytes | None:
        """Return a message that has arrived already, or None, without waiting.

        :raises ConnectionClosed: when the connection has closed.
        :raises ConcurrencyError: when another thread, greenlet or task is receiving.
        """
        if not self._transport.accepted:
            self._run_aside(self.ensure_accepted())
            if not self._transport.accepted:
                return None
        message = self._transport.receive_now()
        if (websocket_message.receivers or self.message_listeners) and message is not None:
            with self._delivery(message) as notification:
                self._run_aside(notification)
        return message

    async def _send(
        self, message: str | ReadableBuffer, binary: bool | None = None, *, timeout: float | None = None
    ) -> None:
        """Send a message: ``str`` as text, bytes as binary.

        It waits while more than ``WEBSOCKET_SEND_BUFFER`` bytes wait for the peer to read them.

        :param binary: as in 0.6.1: True sends binary and False sends text, for both types of *message*.
        :param timeout: the most seconds to wait before the connection is dropped. Without it, the connection is dropped
            when the peer reads nothing for ``WEBSOCKET_SEND_TIMEOUT``, or less than ``WEBSOCKET_MIN_READ_RATE``.
        :raises ConnectionClosed: when the connection has closed, or was dropped.
        :raises TypeError: when *message* is neither ``str`` nor bytes.
        :raises ValueError: when *message* has lone surrogates, or is bytes to be sent as text and not UTF-8.
        """
        if not self._transport.accepted:
            await self.ensure_accepted()
        if not self._transport.put(message, binary):
            await self._send_when_possible(message, binary, timeout)
        if self._transport.work >= RUN_LENGTH or websocket_sent.receivers:
            await self._after_send(message)

    async def _send_when_possible(
        self, message: str | ReadableBuffer, binary: bool | None, timeout: float | None
    ) -> None:
        began = time.monotonic()
        try:
            await self._transport.send_when_possible(message, binary, timeout)
        finally:
            if timeout is None and (waited := time.monotonic() - began) > LONG_WAIT:
                self._warn_of_wait(waited)

    def _warn_of_wait(self, seconds: float) -> None:
        """Log, once, that the handler of another connection has waited for this connection's peer."""
        sender = current_client()
        if sender not in {None, self} and self._route.warned.is_first_time("wait"):
            self._app.logger.warning(
                "%r has waited %.1f s to send to %r, whose client does not read. To send to other connections, use "
                "broadcast(), which does not wait, send(timeout=), or a queue for each handler. This warning is logged "
                "once.",
                sender,
                seconds,
                self,
            )

    async def _send_from_sharedarea(self, id: int, pos: int, *, binary: bool) -> None:
        """Send the content of uWSGI's shared area *id* from *pos* on, as a binary or text message.

        :raises RuntimeError: outside of uWSGI.
        """
        if uwsgi is None:
            raise RuntimeError("only uWSGI has shared areas: run the app in uWSGI, with its option sharedarea")
        await self._send(uwsgi.sharedarea_read(id, pos), binary)

    async def _after_send(self, message: str | ReadableBuffer) -> None:
        if self._transport.work >= RUN_LENGTH:
            self._transport.work = 0
            await self.loop.sleep(0)
        if websocket_sent.receivers:
            await self._notify("sent", message=message)

    def offer(self, shared: SharedMessage) -> bool:
        """Send a message of a broadcast without waiting; return False, having sent nothing, when the output is full.

        :raises ConnectionClosed: when the connection has closed.
        """
        message = shared.message
        if not self._transport.accepted:
            self._run_aside(self._send(message))
            return True
        whole = None if self._route.settings.text_as_bytes else self._transport.protocol.shared_frame(shared)
        was_sent = self._transport.put(message) if whole is None else self._transport.put_frame(whole)
        if was_sent and websocket_sent.receivers:
            self._run_aside(self._notify("sent", message=message))
        return was_sent

    def deliver(self, shared: SharedMessage) -> bool:
        """Send a message of a room, like :meth:`offer`, but keep it until the handshake is sent by somebody else.

        One thread, greenlet or task at a time calls this for the rooms of the connection.

        :raises ConnectionClosed: when the connection has closed.
        """
        if self._transport.accepted and not self._early:
            return self.offer(shared)
        return self._keep_early(shared) or (not self._early and self.offer(shared))

    def _keep_early(self, item: SharedMessage | Close) -> bool:
        """Keep something that comes before the handshake, or while what came before it is being sent.

        :returns: whether it is kept. It is not when too much is kept already.
        """
        if self._transport.accepted and not self._early:
            return False
        with self._transport.write_lock:
            if self._transport.accepted and not self._early:
                return False
            if self._early is None:
                self._early = deque()
            if len(self._early) >= self._route.settings.max_queue and not isinstance(item, Close):
                return False
            self._early.append(item)
            return True

    def _send_early(self) -> None:
        """Send what was kept until the handshake. Each item stays until it is sent: later ones come after it."""
        while self._early:
            item = self._early[0]
            with suppress(ConnectionClosed):
                if isinstance(item, Close):
                    self._transport.begin_close(*item)
                elif not self.offer(item):
                    self._transport.begin_close(*SLOW_CLOSE)
            with self._transport.write_lock:
                self._early.popleft()

    async def send_message(self, message: str | bytes) -> None:
        """Send a message, as a coroutine in every mode; see :meth:`_send`."""
        await self._send(message)

    async def _ping(self) -> None:
        """Send a Ping. :attr:`.latency` has the round trip once the Pong is read (RFC 6455 section 5.5.2).

        :raises ConnectionClosed: when the connection has closed.
        """
        if not self._transport.accepted:
            await self.ensure_accepted()
        self._transport.ping()

    async def _close(self, code: int = 1000, reason: str = "", *, wait: bool = True) -> None:
        """Close the connection, and wait for the peer's Close frame, at most ``WEBSOCKET_CLOSE_TIMEOUT``.

        Does nothing when the connection is closed already. If the handshake was not sent yet, it is sent first, and
        with the session's cookie only if the connection's own handler calls this.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
        :param reason: at most 123 bytes of UTF-8.
        :param wait: False returns at once, for example to close many connections.
        :raises ValueError: when *code* or *reason* is not valid.
        """
        check_close(code, reason)
        if not self._transport.refused:
            if not self._transport.accepted:
                # A caller from outside, such as a logout, may just have ended the session, too.
                await self.ensure_accepted(saves_session=current_client() is self)
            self._transport.begin_close(code, reason)
            if wait:
                await self._transport.finish_close()

    def begin_close(self, code: int, reason: str) -> None:
        """Begin to close the connection, without waiting. Before the handshake, this waits for it."""
        if not self._keep_early(Close(code, reason)):
            self._transport.begin_close(code, reason)

    def end_error(self) -> ConnectionClosed:
        """Return what a call raises on a connection that has closed."""
        return self._transport.end_error()

    # The handler

    async def _serve(self, handler: Callable[[], Awaitable[Any]]) -> Any:
        """Run the hooks and *handler*, and then close the connection, also after an exception.

        :returns: the value that a hook or the handler returned before the handshake: it becomes the HTTP response.
        """
        failure: BaseException | None = None
        goes_on = False
        try:
            try:
                value = await self._call_before_hooks()
                if value is None:
                    self.handler_context = copy_context()
                    if self._route.settings.accept == "early":
                        await self.ensure_accepted()
                    value = await handler()
            except BaseException as error:
                if self._transport.refuse():
                    failure = _as_exception(error)
                    if self.is_end(error) and self._transport.handshake_error is not None:
                        failure = self._transport.handshake_error
                    raise failure from failure.__cause__
                failure = error
                if self.parked_view is not None:  # a decorator of the view has raised
                    failure = error = await self.end_view(error) or error
                    self.parked_view = None  # the connection ends in its request
                await self.report_failure(error)
            else:
                goes_on = self.parked_view is not None
                if goes_on:
                    return None
                if value is not None and self._transport.refuse() and self._transport.handshake_error is None:
                    return value
            if not (self._transport.accepted and self._transport.is_done()):
                with suppress(ConnectionClosed):  # close() sends the handshake if need be, which a hook may refuse
                    await self._close()
            if self._transport.handshake_error is not None:
                failure = self._transport.handshake_error
                raise failure
            return None
        finally:
            if not goes_on:
                await self.end_connection(failure)

    def park(self, view: View) -> bool:
        """Let *view* outlive the request, if the server and the route allow that; return whether they do.

        When the handler has returned, the view gets the messages and the end of the connection. Called by the handler,
        after the handshake.
        """
        if self.may_park:
            self.handler_context = copy_context()
            self.request_g = self.request_context.g
            self._handshake = NO_HANDSHAKE
            self.parked_view = view
        return self.may_park

    def wait_for_thread(self) -> None:
        """Note that the view waits for a thread, and that its last method does not run any more."""
        self._last_run = self._transport.messages_received, inf

    def _watch_view(self, now: float) -> None:
        """Log once that a method of the view runs for long, which no other thread, greenlet or task would notice."""
        messages, since = self._last_run
        if messages != self._transport.messages_received:
            self._last_run = self._transport.messages_received, now
        elif now - since > LONG_RUN:
            self._last_run = messages, inf
            logger.warning(
                "%r has been in a method of its view for %d s, and handles no other message meanwhile%s",
                self,
                now - since,
                self.loop.lot().usage,
            )

    async def end_view(self, error: BaseException | None) -> BaseException | None:
        """Tell the view of the end of the connection; return the exception that has ended the view in the end.

        :param error: the exception that has ended the view, or None.
        """
        assert self.parked_view is not None
        self._last_run = -1, 0.0
        try:
            with self.event_context():
                value = self.parked_view.on_close(self, *self.end_after(error))
                if inspect.isawaitable(value):
                    await value
        except BaseException as another:
            return another
        return error

    async def end_connection(self, failure: BaseException | None) -> None:
        """Give the socket back, send the signals of the end, and run the hooks of the end.

        :param failure: the exception that has ended the handler or the view.
        """
        self.detach()
        for membership in self.memberships:
            membership.discard(self)
        if self._transport.accepted:
            await self._notify_closed()
            self._check_session()
        else:
            forget_mere_refresh(self._app)
            if self._transport.is_answered or not current_session().modified:
                forget_session(self._app)
        if isinstance(failure, HTTPException) or self.is_end(failure):
            failure = None  # an HTTP response or the end of the connection, not a failure
        for hook in self._route.functions["teardown"]:
            try:
                await self._call(None, self._in_event_context(hook), failure)
            except _FAILURES:
                self._app.logger.exception("the teardown_websocket hook %r failed", hook)

    def detach(self) -> None:
        """Return the socket to the server. Does nothing the second time."""
        self._transport.detach()

    def forget_request(self) -> None:
        """Let the request go, which refers to this client."""
        self.environ.pop(ENVIRON_KEY, None)

    def is_end(self, error: BaseException | None) -> bool:
        """Return whether *error* means the end of this connection. That of another one is a failure of the handler."""
        return isinstance(error, ConnectionClosed) and (error.connection is None or error.connection is self)

    def end_after(self, error: BaseException | None) -> tuple[int, str]:
        """Return the code and the reason of the end, for a view that *error* may have ended."""
        closed = self._transport.protocol.closed
        if closed is not None:
            return closed.code, closed.reason
        return (NORMAL_CLOSURE, "") if error is None or self.is_end(error) else closing_of(error)

    async def _call_before_hooks(self) -> Any:
        for hook in self._route.functions["before"]:
            value = await self._call(None, hook)
            if value is not None:
                return value
        return None

    async def report_failure(self, error: BaseException) -> None:
        """Begin to close the connection after an exception of the handler, and report the exception.

        :raises BaseException: *error* itself, when it is no failure of the handler, such as a KeyboardInterrupt.
        """
        if self.is_end(error):
            self._transport.begin_close(NORMAL_CLOSURE, "")
        elif isinstance(error, HTTPException):
            self._transport.begin_close(*closing_of(error))
        else:
            self._transport.begin_close(*closing_of(error), "error")
            if not _is_failure(error):
                raise error
            got_request_exception.send(self._app, exception=error)
            hint = ""
            if isinstance(error, ConnectionClosed):
                hint = f": {self!r} does not handle the end of {error.connection!r}, to which it sends. Catch "
                hint += "ConnectionClosed around that send(), or use broadcast()"
            self._app.logger.error("Exception on %r [WebSocket]%s", request.path, hint, exc_info=error)
            await self._notify("error", exception=error)

    # The end of the worker

    @property
    def shutdown_timeout(self) -> float:
        """The seconds that the handler may take to end when the worker ends."""
        return self._route.settings.shutdown_timeout

    def begin_shutdown(self, code: int, reason: str) -> None:
        """Begin to close the connection because the worker ends. Does nothing before the handshake."""
        if self._transport.accepted:
            self._transport.begin_close(code, reason, "shutdown")

    def end_if_silent(self) -> None:
        """End TCP although the client has not answered the Close frame, because the handler may wait for the answer.

        The system still delivers what was sent, with the Close frame, so that a slow client does not get 1006.
        """
        if self._transport.accepted and not self._transport.is_done():
            with self._transport.write_lock:
                self._transport.lose()

    async def abandon(self) -> None:
        """Drop the connection, and send its signals, because its handler has not ended in time and the process ends."""
        if self._transport.accepted:
            self._transport.abort("the server has ended")
            self._is_notifying = False  # a receiver of websocket_connected may hang
            await self._notify_closed()

    async def _notify_closed(self) -> None:
        with self._transport.write_lock:
            was_notified, self._has_notified_closed = self._has_notified_closed, True
        if was_notified:
            return
        while self._is_notifying:  # websocket_connected comes before websocket_closed
            await self.loop.sleep(PATIENCE)
        closed = self._transport.protocol.closed
        assert closed is not None
        initiator = self._transport.who_ended()
        duration = time.monotonic() - self._transport.started_at
        self._route.stats.on_close(self._transport, closed.code)
        logger.info(
            "WebSocket %s closed: %s %r by %s, %s from %s, %.1f s, %d messages received, %d sent",
            self.id,
            closed.code,
            closed.reason,  # quoted, because the peer chooses it and could forge a line
            initiator,
            self._rule,
            self._peer,
            duration,
            self._transport.messages_received,
            self._transport.messages_sent,
        )
        await self._notify(
            "close",
            code=closed.code,
            reason=closed.reason,
            initiator=initiator,
            duration=duration,
            messages_received=self._transport.messages_received,
            messages_sent=self._transport.messages_sent,
        )

    def _check_session(self) -> None:
        """Warn once that changes of the session after the handshake are lost, because no response carries them."""
        current = current_session()
        if (
            current.modified
            and not self._app.session_interface.is_null_session(current)
            and self._route.warned.is_first_time("session")
        ):
            self._app.logger.warning(
                "The session was changed in %r after the handshake, and is not saved: change it before the first "
                "receive() or send(), or in an HTTP view.",
                request.path,
            )

    async def notify_rejected(self, response: Response) -> None:
        """Send ``websocket_rejected``: Flask answers the upgrade request with *response*."""
        self._route.stats.on_rejection()
        await self._notify("rejected", response=response)


def send_to_all(
    clients: Sequence[BaseClient], shared: SharedMessage, send: Callable[[BaseClient], bool]
) -> list[BaseClient]:
    """Send a message to many connections without waiting. Skip those that have closed.

    :param send: sends it to one connection, and returns whether there was room for it. It is called for the connections
        that need more than the plain frame.
    :returns: the connections that did not get it.
    """
    rest = clients
    if not websocket_sent.receivers:
        ready = [client for client in clients if not client._early]
        others = put_frame_to_all([client._transport for client in ready], shared.plain_frame)
        rest = [ready[index] for index in others]
        if len(ready) < len(clients):
            rest += [client for client in clients if client._early]
    slow = []
    for client in rest:
        try:
            if not send(client):
                slow.append(client)
        except ConnectionClosed:
            continue
    return slow


def current_client() -> BaseClient | None:
    """Return the connection whose handler, hook or listener runs in this context, or None."""
    return request.environ.get(ENVIRON_KEY) if has_request_context() else None


def _is_failure(error: BaseException) -> bool:
    """Return whether *error* is a failure of a handler. Others, such as KeyboardInterrupt, go on to the server."""
    gevent = sys.modules.get("gevent")  # its Timeout derives from BaseException
    return isinstance(error, _FAILURES) or (gevent is not None and isinstance(error, gevent.Timeout))


def _as_exception(error: BaseException) -> BaseException:
    """Return a failure before the handshake as an Exception, because Flask handles nothing else."""
    if isinstance(error, Exception) or not _is_failure(error):
        return error
    failure = RuntimeError(f"a handler or hook of a WebSocket raised {error!r} before its handshake")
    failure.__cause__ = error
    return failure


def closing_of(error: BaseException) -> tuple[int, str]:
    """Return the code and the reason with which an exception of a handler closes its connection."""
    if isinstance(error, HTTPException):
        status = error.code or error.get_response().status_code
        if status < 1000:
            return 4000 + status, error.name if error.code else ""
    return INTERNAL_ERROR, "internal error"
