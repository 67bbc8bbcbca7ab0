"""Hooks and listeners: their kinds, their decorators, and the order in which they run.

A hook may refuse or change a connection; a listener is called with its events. A new kind needs an entry in
:data:`KINDS` and a decorator method of :class:`Registrar`. A new kind of hook also needs a decorator method of
:class:`AppRegistrar`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from blinker import NamedSignal
from flask.typing import AfterRequestCallable, BeforeRequestCallable, TeardownCallable

from .signals import (
    websocket_closed,
    websocket_connected,
    websocket_error,
    websocket_message,
    websocket_pong,
    websocket_rejected,
    websocket_sent,
)

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

# Hooks have the same parameters and return values as Flask's.
Before = TypeVar("Before", bound=BeforeRequestCallable)
After = TypeVar("After", bound=AfterRequestCallable[Any])
Teardown = TypeVar("Teardown", bound=TeardownCallable)


@dataclass(frozen=True)
class Kind:
    """A kind of hooks, or a kind of listeners.

    :param signal: the signal whose receivers are called after the listeners of this kind; None for hooks.
    :param inside_out: whether the functions of the innermost blueprint run first and the app's functions last, like
        Flask's ``after_request`` functions. Otherwise the app's functions run first.
    :param cancellable: whether the event is part of a call of the application, such as ``receive()``, so that a
        ``CancelledError`` may mean the cancellation of this call. Otherwise it is a failure of the function.
    """

    signal: NamedSignal | None = None
    inside_out: bool = False
    cancellable: bool = True


#: The kinds, by name.
KINDS: Mapping[str, Kind] = {
    # Hooks
    "before": Kind(),
    "after": Kind(inside_out=True),
    "teardown": Kind(inside_out=True),
    # Listeners
    "connect": Kind(websocket_connected),
    "message": Kind(websocket_message),
    "pong": Kind(websocket_pong, cancellable=False),
    "close": Kind(websocket_closed, cancellable=False),
    "error": Kind(websocket_error, cancellable=False),
    # Kinds without a decorator, which have only the receivers of their signal.
    "sent": Kind(websocket_sent),
    "rejected": Kind(websocket_rejected, cancellable=False),
}


class Hooks:
    """The hooks and listeners that one app and its blueprints have registered."""

    def __init__(self) -> None:
        # By kind, then by the full name of the blueprint, or None for the app.
        self._functions: dict[str, defaultdict[str | None, list[Function]]] = {
            kind: defaultdict(list) for kind in KINDS
        }

    def add(self, kind: str, blueprint: str | None, function: Function) -> None:
        """Register a function.

        :param kind: a name in :data:`KINDS`.
        :param blueprint: the full name of the blueprint for whose connections the function is; None for the whole app.
        """
        self._functions[kind][blueprint].append(function)

    def functions(self, blueprints: Sequence[str]) -> Mapping[str, tuple[Function, ...]]:
        """Return the functions of each kind, in the order in which they run.

        :param blueprints: the full names of the blueprints of a connection, the innermost first.
        """
        inwards = (None, *reversed(blueprints))
        functions = {}
        for name, kind in KINDS.items():
            found = [function for owner in inwards for function in self._functions[name].get(owner, ())]
            functions[name] = tuple(reversed(found) if kind.inside_out else found)
        return MappingProxyType(functions)


class Registrar:
    """The decorators of the extension, for all connections of its apps, and of a blueprint, for its own connections."""

    def before_websocket(self, function: Before) -> Before:
        """Call *function* before each handler. A value that it returns is the HTTP response, without a handshake.

        It may also ``abort()``. Hooks of the app run first, then hooks of blueprints, from the outermost inwards.
        """
        return self._add("before", function)

    def after_websocket(self, function: After) -> After:
        """Call *function* with the 101 response of each handshake. It returns this response or another one.

        It may add headers. If it raises, the handshake is refused. Hooks of inner blueprints run first, and hooks of
        the app last.
        """
        return self._add("after", function)

    def teardown_websocket(self, function: Teardown) -> Teardown:
        """Call *function* at the end of each connection, with the exception that the handler raised, or None."""
        return self._add("teardown", function)

    def on_connect(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_connected``: ``function(app, ws, **extra)``."""
        return self._add("connect", function)

    def on_message(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_message``: ``function(app, ws, message, **extra)``."""
        return self._add("message", function)

    def on_pong(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_pong``: ``function(app, ws, latency, **extra)``."""
        return self._add("pong", function)

    def on_close(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_closed``: ``function(app, ws, code, reason, **extra)``."""
        return self._add("close", function)

    def on_error(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_error``: ``function(app, ws, exception, **extra)``."""
        return self._add("error", function)

    def _add(self, kind: str, function: F) -> F:
        raise NotImplementedError


class AppRegistrar(Registrar):
    """The decorators of a blueprint, which may also register hooks for all connections of the app."""

    def before_app_websocket(self, function: Before) -> Before:
        """Like :meth:`before_websocket`, for all connections of the app."""
        return self._add_for_app("before", function)

    def after_app_websocket(self, function: After) -> After:
        """Like :meth:`after_websocket`, for all connections of the app."""
        return self._add_for_app("after", function)

    def teardown_app_websocket(self, function: Teardown) -> Teardown:
        """Like :meth:`teardown_websocket`, for all connections of the app."""
        return self._add_for_app("teardown", function)

    def _add_for_app(self, kind: str, function: F) -> F:
        raise NotImplementedError
