"""The calls that hand messages to a parked view, for a caller that blocks.

This is the pure-Python twin. The compiled one, in ``_view_calls.pyx``, makes the same calls on the channel without the
interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Token
from typing import Any

from flask import Flask, appcontext_popped, appcontext_pushed, appcontext_tearing_down
from flask.ctx import AppContext
from flask.globals import _cv_app

from ..loops.ready import Parked
from ..signals import websocket_message
from .base import BaseClient
from .channel import WAIT, Channel

#: Whether the application context and the request context are one, as in Flask 3.2.
HAS_ONE_CONTEXT = hasattr(AppContext, "copy")


class MessageContext(AppContext):
    """The application context of a message: that of the request, but with a ``g`` of its own.

    It does what Flask's constructor does, except for the URL adapter, which takes longer than all the rest.
    """

    def __init__(self, request_context: AppContext) -> None:
        self.app = request_context.app
        self.url_adapter = request_context.url_adapter
        self.g = self.app.app_ctx_globals_class()
        self._cv_tokens = []


class ViewCalls(Parked):
    """The calls. A subclass does the rest."""

    client: BaseClient
    channel: Channel
    app: Flask
    #: The view's.
    on_message: Callable[[Any, Any], object]
    #: The application context of the request.
    request_context: AppContext
    #: Whether the view has been told of the end.
    is_closing: bool
    #: Whether the app or Flask has application contexts of its own kind.
    is_special: bool

    def serve_now(self) -> bool:
        """Hand over what has arrived; see :meth:`.Parked.serve_now`."""
        channel = self.channel
        if self.is_closing or websocket_message.receivers or self.client.message_listeners or not channel.is_receiving:
            return self.serve_slowly()
        is_observed = self.is_observed()
        error: BaseException | None = None
        token: Token[AppContext] | None = None
        try:
            while (message := channel.take()) is not WAIT and message is not None:
                channel.is_receiving = False
                try:
                    if is_observed:
                        with self.client.message_context():
                            self.on_message(self.client, message)
                    else:
                        # Nobody notices that this context is neither pushed nor popped, but replaced by the next one.
                        last = _cv_app.set(MessageContext(self.request_context))
                        token = token or last
                        self.on_message(self.client, message)
                finally:
                    channel.begin_receive()
        except BaseException as failure:
            error, message = failure, None
        if token is not None:
            _cv_app.reset(token)
        if message is None:
            try:
                return self.close_now(error)
            finally:
                error = None  # its traceback refers to this frame
        if channel.has_events:
            return self.serve_slowly()
        is_on_a_run = channel.is_on_a_run()
        if is_on_a_run or (channel.drained and not self.reads_to_the_end):
            channel.drained = False  # more may have arrived since, which is not reported again
            return is_on_a_run
        return self.read_on()

    def is_observed(self) -> bool:
        """Return whether anybody notices when an application context begins or ends."""
        return bool(
            self.app.teardown_appcontext_funcs
            or appcontext_tearing_down.receivers
            or appcontext_popped.receivers
            or appcontext_pushed.receivers
            or self.is_special
        )

    def serve_slowly(self) -> bool:
        """Do the work of :meth:`serve_now` in any case."""
        raise NotImplementedError

    def close_now(self, error: BaseException | None) -> bool:
        """End the connection, at its end or because of *error*; return whether there is more to read."""
        raise NotImplementedError

    def read_on(self) -> bool:
        """Read once more unless nothing can be left; return whether there was something."""
        raise NotImplementedError
