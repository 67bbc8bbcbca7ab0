"""The life of a connection in its application: hooks, the handshake, messages, signals, the end.

Here the connection meets Flask. Every method that may wait is a coroutine, as in ``transport.py``. The two kinds of
clients give these coroutines their public names.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from asyncio import CancelledError
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any
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
from ..protocol.protocol import SharedMessage, check_close
from ..signals import (
    websocket_message,
    websocket_pong,
    websocket_sent,
)
from ..state import Route
from ..worker.stats import Counts
from .channel import REENTERED, RUN_LENGTH
from .session import current_session, forget_changes, forget_mere_refresh, forget_session, save_session
from .transport import Answered, Transport

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from _typeshed.wsgi import WSGIEnvironment
    from flask.ctx import AppContext

#: Seconds between two looks at what another thread, greenlet or task is about to finish.
PATIENCE = 0.005

#: Seconds after which the log reports that a handler waits for the peer of another connection.
LONG_WAIT = 1.0

#: Where the environ has the client of its request.
ENVIRON_KEY = "flask_uwsgi_websocket.client"

#: What ends a handler, a hook or a listener and no more. An exit belongs to these, as it would cost uWSGI a thread, or
#: hang a worker; and what awaiting a cancelled task raises, which would end a worker of gunicorn.
_FAILURES = (Exception, SystemExit, CancelledError)

logger = logging.getLogger("flask_uwsgi_websocket")

_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

# The connection whose handshake is being prepared here.
_preparing: ContextVar[BaseClient | None] = ContextVar("_preparing", default=None)


class NotBegun(CancelledError):
    """A call of the application's functions was cancelled before the function could begin."""


class BaseClient:
    """A connection in its application, from its upgrade request to its end: what both kinds of clients share.

    Applications use :class:`WebSocketClient` and its relatives. A client has a transport, and is complete when it
    exists.

    :param environ: the WSGI environ of the upgrade request.
    :param app: the application.
    :param route: what the connections of its endpoint have in common.
    :param transport: the socket, with its buffers.
    :param handshake: the valid upgrade request.
    """

    def __init__(
        self, environ: WSGIEnvironment, app: Flask, route: Route, transport: Transport, handshake: Handshake
    ) -> None:
        #: Unique among all connections.
        self.id: str = uuid.uuid4().hex
        #: The WSGI environ of the upgrade request.
        self.environ: WSGIEnvironment = environ
        #: The subprotocol that was agreed on (RFC 6455 section 1.9), or None.
        self.subprotocol: str | None = handshake.subprotocol
        self._app = app
        self._route = route
        self._transport = transport
        transport.owner = ref(self)
        #: How the connection waits.
        self.loop: Loop = transport.loop
        self._message_listeners = route.functions["message"]  # looked up for every message
        self._handshake = handshake
        self._app_context: AppContext = app_ctx._get_current_object()  # type: ignore[attr-defined]
        self._context = copy_context()
        # For the log: the path may have a token in it, its rule has none.
        self._rule = str(request.url_rule or "-")
        self._peer = request.remote_addr
        # The first caller that needs the handshake claims it, with the write lock. The transport shows its end.
        self._claimed = False
        self._claimant: object = None
        self._telling = False  # websocket_connected is being sent
        self._closed_told = False
        self._untold: tuple[str | bytes, deque[Function]] | None = None
        # When the client began to wait for the handshake, on the monotonic clock.
        self._waits_since = time.monotonic()

    @classmethod
    def refused(cls, environ: WSGIEnvironment, app: Flask, route: Route) -> BaseClient:
        """Return the client of a request that was refused before it had a handshake, for ``websocket_rejected``."""
        transport = Transport(None, lambda: None, current_blocking_loop(), route.settings)
        return cls(environ, app, route, transport, Handshake("", (), None, None))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self._rule}>"

    # What can be asked

    @property
    def fd(self) -> int:
        """The descriptor of the connection; -1 once it is closed."""
        return self._transport.fd

    @property
    def connected(self) -> bool:
        """Whether messages can be exchanged: the handshake was not refused and neither side has closed."""
        return self._transport.is_open

    @property
    def latency(self) -> float | None:
        """The round trip of the last ping that was answered, in seconds, or None."""
        return self._transport.latency

    @property
    def was_slow(self) -> bool:
        """Whether the connection was dropped because the peer read too slowly."""
        return self._transport.was_slow

    @property
    def timeout(self) -> float | None:
        """The seconds between two pings, as it was in 0.6.1; None when there are none."""
        return self._route.settings.ping_interval

    @property
    def close_code(self) -> int | None:
        """The code of the Close frame that ended the connection, whoever sent it; None while it is open.

        1005: it came without a code; 1006: there was none (RFC 6455 section 7.1.5).
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

    def counts(self) -> Counts:
        """Return how many messages and bytes have come and gone so far."""
        return self._transport.counts()

    # Calls of the application's functions

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run one of the connection's coroutines to its end, from where the request is served."""
        raise NotImplementedError

    def _current_blocker(self) -> object:
        """Return what a call holds up that waits here; None where it suspends instead."""
        return None

    async def _call(self, context: Context | None, function: Function, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the application, and wait for it if it is a coroutine function.

        :param context: where to run it; None for the caller's own.
        """
        raise NotImplementedError

    def _run_aside(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run *coroutine* for a caller that cannot wait: now if it need not wait either, else a little later."""
        raise NotImplementedError

    async def _tell(self, kind: str, **kwargs: Any) -> None:
        """Call the listeners of a kind, then the receivers of its signal, each in the connection's contexts.

        Each gets a copy of the contexts: many may run at once, in whatever thread, greenlet or task.
        """
        await self._tell_each(self._listeners(kind), kind, **kwargs)

    def _listeners(self, kind: str) -> deque[Function]:
        signal = KINDS[kind].signal
        receivers = () if signal is None or signal.is_muted else signal.receivers_for(self._app)
        return deque((*self._route.functions[kind], *receivers))

    async def _tell_each(self, untold: deque[Function], kind: str, **kwargs: Any) -> None:
        """Call the functions in *untold*, and take each out of it: an interruption leaves the others."""
        signal = KINDS[kind].signal
        while untold:
            function = untold.popleft()
            try:
                await self._call(self._context.copy(), function, self._app, ws=self, **kwargs)
            except _FAILURES as error:
                if isinstance(error, CancelledError) and KINDS[kind].cancellable:
                    if isinstance(error, NotBegun):
                        untold.appendleft(function)
                    raise
                self._app.logger.exception("%r failed on the signal %s of %r", function, signal and signal.name, self)

    def on_event(self, event: Answered) -> None:
        """Take an event of the transport, without a lock: in the caller of receive(), or beside the housekeeper."""
        if websocket_pong.receivers or self._route.functions["pong"]:
            self._run_aside(self._tell("pong", latency=event.latency))

    def message_context(self) -> AppContext:
        """Return a fresh application context, to be entered by ``with`` in the handler or a receiver.

        ``teardown_appcontext`` functions run at its end, so that, for example, a database connection is given back;
        ``request`` and ``session`` stay as they are. ``g`` is a new one. On Flask 3.2, where the application and
        request context are one, ``teardown_request`` functions run, too.
        """
        copy = getattr(self._app_context, "copy", self._app.app_context)
        context: AppContext = copy()
        return context

    # The handshake

    async def _accept(self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send the handshake now (RFC 6455 section 4.2.2). Once it is sent, this does nothing.

        ``after_websocket`` hooks may add headers to its response, and the session's cookie is set if it has changed.

        :param subprotocol: the one to agree on instead of the one chosen from the route's list; the client must
            have offered it.
        :param headers: more headers for the 101 response.
        :raises ValueError: when the client has not offered it, or a header cannot be sent.
        :raises RuntimeError: when the handshake was sent before, so that these come too late.
        :raises ConnectionClosed: when the handshake was refused.
        """
        headers = list(headers)
        if self._claimed and (headers or subprotocol not in {None, self.subprotocol}):
            raise RuntimeError("the handshake has been sent: call accept() before anything is sent or received")
        if subprotocol is not None and subprotocol not in self._handshake.offered_subprotocols:
            raise ValueError(f"the client has not offered the subprotocol {subprotocol!r}")
        self._handshake.response(subprotocol, headers)  # refuses what cannot be sent
        await self._ensure_accepted(subprotocol, headers)

    async def _ensure_accepted(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = (), *, saves_session: bool = True
    ) -> None:
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
                raise ConcurrencyError(REENTERED)  # it would wait for itself
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
            # _serve() raises it for the handler that it belongs to; here may be another one's, in a broadcast.
            error = _as_exception(error)
            is_interrupt = not isinstance(error, Exception)
            self._transport.handshake_error = RuntimeError("the handshake was interrupted") if is_interrupt else error
            self._transport.refuse()
            if is_interrupt:
                raise
            self._transport.refusal = f"the handshake was refused: {error!r}"
            raise self._transport.refused_error() from error
        self._telling = True
        try:
            self._transport.start(response)
            self._route.stats.on_open(self._transport)
            logger.info("WebSocket %s connected: %s from %s", self.id, self._rule, self._peer)
            await self._tell("connect")
        finally:
            self._telling = False

    async def _prepare(self, headers: Iterable[tuple[str, str]], saves_session: bool) -> Headers:
        """Let the hooks and the session add to the headers of the 101 response, as Flask does with a response's."""
        response = self._app.response_class(status=101)
        response.headers = Headers(headers)
        context = self._context.copy()
        context.run(_preparing.set, self)
        for hook in self._route.functions["after"]:
            response = await self._call(context, hook, response)
            if not isinstance(response, Response):
                raise TypeError(f"the after_websocket hook {hook!r} must return the response, not {response!r}")
        context.run(save_session if saves_session else forget_changes, self._app, response)
        return response.headers

    def tick(self, *, read_ahead: bool = True) -> None:
        """Do what is due, without waiting. Before the handshake, check whether the client still waits for it."""
        if self._transport.accepted:
            self._transport.tick(read_ahead=read_ahead)
        elif not self._transport.refused:
            self._watch_handshake(time.monotonic() - self._waits_since)

    def _watch_handshake(self, age: float) -> None:
        """Refuse the handshake when its client has left, or has waited too long for it.

        The handler goes on, as nothing can end what it waits for, and stays counted as a connection.
        """
        timeout = self._route.settings.handshake_timeout
        if self._transport.has_left():
            gone = Response(status="499 Client Closed Request")  # as nginx calls it in its log; nobody reads it
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
                    'A handler that waits for another event calls ws.accept() first, or its route has accept="early". '
                    "The limit is WEBSOCKET_HANDSHAKE_TIMEOUT.",
                    self.id,
                    self._rule,
                    timeout,
                )

    # Messages

    async def _receive(self, timeout: float | None = None) -> str | bytes | None:
        """Wait for the next message.

        :param timeout: how many seconds to wait at most; None waits as long as the connection lasts.
        :returns: ``str`` for a text message, ``bytes`` for a binary one; None, once, when the connection has
            closed.
        :raises TimeoutError: when the time has passed. No message is lost by it.
        :raises ConnectionClosed: when it is called again after the end.
        :raises ConcurrencyError: when somebody else is receiving.
        """
        if not self._transport.accepted:
            await self._ensure_accepted()
        message = await self._transport.receive(timeout)
        if (websocket_message.receivers or self._message_listeners) and message is not None:
            with self._delivery(message) as telling:
                await telling
        return message

    @contextmanager
    def _delivery(self, message: str | bytes) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield the coroutine that tells listeners and receivers of a message that is about to be delivered.

        If the caller is cancelled meanwhile, the next call delivers the message, and no listener hears it twice.
        """
        if self._untold is not None and self._untold[0] is message:
            untold = self._untold[1]
        else:
            untold = self._listeners("message")
        self._untold = None
        try:
            yield self._tell_each(untold, "message", message=message)
        except BaseException:
            self._untold = message, untold
            self._transport.give_back(message)
            raise

    async def _receive_json(self, timeout: float | None = None) -> Any:
        """Receive a message and read it as JSON, with ``app.json``. See :meth:`receive`.

        :raises ConnectionClosed: when the connection has closed: None would be a JSON null.
        :raises ValueError: when the message is not JSON.
        """
        message = await self._receive(timeout)
        if message is None:
            raise self._transport.end_error()
        try:
            return self._app.json.loads(message)
        except RecursionError:
            raise ValueError("the message is not JSON: it is nested too deeply") from None

    def recv_nb(self) -> str | bytes | None:
        """Return a message that is here already, or None; never waits.

        :raises ConnectionClosed: when the connection has closed.
        :raises ConcurrencyError: when somebody else is receiving.
        """
        if not self._transport.accepted:
            self._run_aside(self._ensure_accepted())
            if not self._transport.accepted:
                return None
        message = self._transport.receive_now()
        if (websocket_message.receivers or self._message_listeners) and message is not None:
            with self._delivery(message) as telling:
                self._run_aside(telling)
        return message

    async def _send(
        self, message: str | ReadableBuffer, binary: bool | None = None, *, timeout: float | None = None
    ) -> None:
        """Send a message: ``str`` as text, bytes as binary.

        While more than ``WEBSOCKET_SEND_BUFFER`` bytes wait for the peer to read them, this waits too.

        :param binary: as in 0.6.1: True sends binary and False sends text, whatever the message is.
        :param timeout: the most seconds to wait; then the peer is dropped. Unless given, it is dropped only when it
            reads nothing for ``WEBSOCKET_SEND_TIMEOUT``.
        :raises ConnectionClosed: when the connection has closed, or was dropped.
        :raises TypeError: when the message is neither.
        :raises ValueError: when it has lone surrogates, or is to be sent as text and not UTF-8.
        """
        if not self._transport.accepted:
            await self._ensure_accepted()
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
                self._tell_of_wait(waited)

    def _tell_of_wait(self, seconds: float) -> None:
        """Log, once, that the handler of another connection has waited for this connection's peer."""
        sender = _current_client()
        if sender not in {None, self} and self._route.warned.is_first_time("wait"):
            self._app.logger.warning(
                "%r has waited %.1f s to send to %r, whose client does not read. To send to others, use broadcast(), "
                "which waits for nobody, send(timeout=), or a queue from which each handler sends by itself. This is "
                "not said again.",
                sender,
                seconds,
                self,
            )

    async def _send_from_sharedarea(self, id: int, pos: int, *, binary: bool) -> None:
        """Send what uWSGI's shared area *id* holds from *pos* on, as binary or text.

        :raises RuntimeError: outside of uWSGI.
        """
        if uwsgi is None:
            raise RuntimeError("the shared area is uWSGI's, with its option sharedarea: no other server has one")
        await self._send(uwsgi.sharedarea_read(id, pos), binary)

    async def _after_send(self, message: str | ReadableBuffer) -> None:
        if self._transport.work >= RUN_LENGTH:
            self._transport.work = 0
            await self.loop.sleep(0)
        if websocket_sent.receivers:
            await self._tell("sent", message=message)

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
            self._run_aside(self._tell("sent", message=message))
        return was_sent

    async def _ping(self) -> None:
        """Send a Ping; :attr:`.latency` has its round trip once the answer is read (RFC 6455 section 5.5.2).

        :raises ConnectionClosed: when the connection has closed.
        """
        if not self._transport.accepted:
            await self._ensure_accepted()
        self._transport.ping()

    async def _close(self, code: int = 1000, reason: str = "", *, wait: bool = True) -> None:
        """Close the connection and wait, at most ``WEBSOCKET_CLOSE_TIMEOUT``, until the peer has agreed.

        Harmless when it is closed already. A handshake that was not sent yet is sent first, and with the session's
        cookie only if the connection's own handler calls this.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
        :param reason: at most 123 bytes of UTF-8.
        :param wait: False comes back at once, for whoever closes many.
        :raises ValueError: when they are not that.
        """
        check_close(code, reason)
        if not self._transport.refused:
            if not self._transport.accepted:
                # A caller from outside, such as a logout, may just have ended the session, too.
                await self._ensure_accepted(saves_session=_current_client() is self)
            self._transport.begin_close(code, reason)
            if wait:
                await self._transport.finish_close()

    # The whole

    async def _serve(self, handler: Callable[[], Awaitable[Any]]) -> Any:
        """Run the hooks and *handler*, and end the connection properly, whatever they do.

        :returns: what was returned before the handshake was sent: it becomes the HTTP response.
        """
        failure: BaseException | None = None
        try:
            try:
                value = await self._call_before_hooks()
                if value is None:
                    self._context = copy_context()
                    if self._route.settings.accept == "early":
                        await self._ensure_accepted()
                    value = await handler()
            except BaseException as error:
                if self._transport.refuse():
                    failure = _as_exception(error)
                    if self.is_end(error) and self._transport.handshake_error is not None:
                        failure = self._transport.handshake_error
                    raise failure from failure.__cause__
                failure = error
                await self._fail(error)
                if not _is_failure(error):
                    raise
            else:
                if value is not None and self._transport.refuse() and self._transport.handshake_error is None:
                    return value
            with suppress(ConnectionClosed):  # the handshake is refused only now
                await self._close()
            if self._transport.handshake_error is not None:
                failure = self._transport.handshake_error
                raise failure
            return None
        finally:
            self.detach()
            if self._transport.accepted:
                await self._tell_closed()
                self._check_session()
            else:
                forget_mere_refresh(self._app)
                if self._transport.is_answered or not current_session().modified:
                    forget_session(self._app)
            if isinstance(failure, HTTPException) or self.is_end(failure):
                failure = None  # these are answers, not failures
            for hook in self._route.functions["teardown"]:
                try:
                    await self._call(None, hook, failure)
                except _FAILURES:
                    self._app.logger.exception("the teardown_websocket hook %r failed", hook)

    def detach(self) -> None:
        """Give the socket back. Harmless when that was done."""
        self._transport.detach()
        if self.environ.get(ENVIRON_KEY) is self:
            # uWSGI uses its environ again, for another request. The client in it would keep itself alive.
            self.environ = {key: value for key, value in self.environ.items() if value is not self}

    def is_end(self, error: BaseException | None) -> bool:
        """Return whether *error* is the end of this connection. The end of another one is an error of the handler."""
        return isinstance(error, ConnectionClosed) and (error.connection is None or error.connection is self)

    async def _call_before_hooks(self) -> Any:
        for hook in self._route.functions["before"]:
            value = await self._call(None, hook)
            if value is not None:
                return value
        return None

    async def _fail(self, error: BaseException) -> None:
        """Begin to close after an exception that has left the handler, and tell of it."""
        if self.is_end(error):
            self._transport.begin_close(1000, "")
        elif isinstance(error, HTTPException):
            self._transport.begin_close(*closing_of(error))
        else:
            self._transport.begin_close(*closing_of(error), "error")
            if _is_failure(error):
                got_request_exception.send(self._app, exception=error)
                hint = ""
                if isinstance(error, ConnectionClosed):
                    hint = f": {self!r} does not handle the end of {error.connection!r}, to which it sends. Catch "
                    hint += "ConnectionClosed around that send(), or use broadcast()"
                self._app.logger.error("Exception on %r [WebSocket]%s", request.path, hint, exc_info=sys.exc_info())
                await self._tell("error", exception=error)

    # The end of the worker

    @property
    def shutdown_timeout(self) -> float:
        """The seconds that the handler has when the worker ends."""
        return self._route.settings.shutdown_timeout

    def begin_shutdown(self, code: int, reason: str) -> None:
        """Begin to close, if the handshake was made, because the worker ends."""
        if self._transport.accepted:
            self._transport.begin_close(code, reason, "shutdown")

    def end_if_silent(self) -> None:
        """End TCP although the client has not answered the Close frame, as the handler may be waiting for just that.

        The system goes on to deliver what was sent, the Close frame too: a client that is only slow is not to see 1006.
        """
        if self._transport.accepted and not self._transport.is_done():
            with self._transport.write_lock:
                self._transport.lose()

    async def abandon(self) -> None:
        """Tell of the end of a connection whose handler has not ended in time, and never will."""
        if self._transport.accepted:
            self._transport.abort("the server has ended")
            self._telling = False  # it may hang just there
            await self._tell_closed()

    async def _tell_closed(self) -> None:
        with self._transport.write_lock:
            was_told, self._closed_told = self._closed_told, True
        if was_told:
            return
        while self._telling:  # first the one signal, then the other
            await self.loop.sleep(PATIENCE)
        closed = self._transport.protocol.closed
        assert closed is not None
        duration = time.monotonic() - self._transport.started_at
        self._route.stats.on_close(self._transport, closed.code)
        logger.info(
            "WebSocket %s closed: %s %r by %s, %s from %s, %.1f s, %d messages received, %d sent",
            self.id,
            closed.code,
            closed.reason,  # quoted: it is the peer's, and could forge a line
            self._transport.who_ended(),
            self._rule,
            self._peer,
            duration,
            self._transport.messages_received,
            self._transport.messages_sent,
        )
        await self._tell(
            "close",
            code=closed.code,
            reason=closed.reason,
            initiator=self._transport.who_ended(),
            duration=duration,
            messages_received=self._transport.messages_received,
            messages_sent=self._transport.messages_sent,
        )

    def _check_session(self) -> None:
        """Say once that changes of the session after the handshake are lost: no response carries them."""
        current = current_session()
        is_null = self._app.session_interface.is_null_session(current)
        if current.modified and not is_null and self._route.warned.is_first_time("session"):
            self._app.logger.warning(
                "The session was changed in %r after the handshake, and is not saved: change it before the first "
                "receive() or send(), or in an HTTP view.",
                request.path,
            )

    async def tell_rejected(self, response: Response) -> None:
        """Send ``websocket_rejected``: Flask answers the upgrade request with *response*."""
        self._route.stats.on_rejection()
        await self._tell("rejected", response=response)


def _current_client() -> BaseClient | None:
    """Return the connection whose handler, hook or listener is running here, if one is."""
    return request.environ.get(ENVIRON_KEY) if has_request_context() else None


def _is_failure(error: BaseException) -> bool:
    """Tell whether what has left a handler is the application's business, and not the server's."""
    gevent = sys.modules.get("gevent")  # whose Timeout is no Exception, so that nothing on its way takes it for its own
    return isinstance(error, _FAILURES) or (gevent is not None and isinstance(error, gevent.Timeout))


def _as_exception(error: BaseException) -> BaseException:
    """Return what has failed before the handshake as something that Flask does not pass on to the server."""
    if isinstance(error, Exception) or not _is_failure(error):
        return error
    failure = RuntimeError(f"a handler or hook of a WebSocket raised {error!r} before its handshake")
    failure.__cause__ = error
    return failure


def closing_of(error: BaseException) -> tuple[int, str]:
    """Return with which code and reason an exception that left a handler closes its connection."""
    if isinstance(error, HTTPException):
        status = error.code or error.get_response().status_code
        if status < 1000:
            return 4000 + status, error.name if error.code else ""
    return 1011, "internal error"
