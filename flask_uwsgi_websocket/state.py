"""What one app knows of its WebSockets, in ``app.extensions["uwsgi_websocket"]``: settings, hooks, listeners.

It is made by whatever is registered first, a blueprint or the extension. Once the first connection has come,
nothing of it changes any more.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from flask.sansio.app import App
from flask.typing import AfterRequestCallable, BeforeRequestCallable, TeardownCallable

from .settings import Settings, resolve
from .worker.stats import Stats

#: The key of an app's :class:`State` in ``app.extensions``.
EXTENSION_KEY = "uwsgi_websocket"

#: Hooks, which have a say in the connection, and listeners, which are told of it.
Kind = Literal["before", "after", "teardown", "connect", "message", "close", "error"]

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

# Hooks take and return what those of Flask do.
Before = TypeVar("Before", bound=BeforeRequestCallable)
After = TypeVar("After", bound=AfterRequestCallable[Any])
Teardown = TypeVar("Teardown", bound=TeardownCallable)


@dataclass(frozen=True)
class Route:
    """What the connections of one endpoint have in common: their settings, and the functions of each :data:`Kind`.

    ``after`` and ``teardown`` run from the inside out, the others from the app inwards: Flask's order.
    """

    settings: Settings
    before: Sequence[Function]
    after: Sequence[Function]
    teardown: Sequence[Function]
    connect: Sequence[Function]
    message: Sequence[Function]
    close: Sequence[Function]
    error: Sequence[Function]


class State:
    """The WebSocket side of one app."""

    def __init__(self) -> None:
        #: Whether handlers are coroutine functions; None before ``init_app()`` was called.
        self.coroutines: bool | None = None
        #: Whether it was said that changes of the session after the handshake are lost.
        self.told_of_session = False
        #: Whether the log has reported a handler that waits for another connection's client.
        self.told_of_wait = False
        #: The origins whose refusal the log has reported.
        self.told_of_origins: set[str] = set()
        #: The rules of pages for which the log has reported an upgrade request.
        self.told_of_pages: set[str] = set()
        self.stats = Stats()
        #: uWSGI's options for the extension's mode.
        self.run_options: Mapping[str, Any] = {}
        self._options: Mapping[str, Any] = {}
        self._handlers: list[Function] = []
        # By kind, and the full name of a blueprint or None for the app.
        self._functions: defaultdict[tuple[str, str | None], list[Function]] = defaultdict(list)
        self._routes: dict[str, Route] = {}

    def initialise(self, coroutines: bool, options: Mapping[str, Any], run_options: Mapping[str, Any]) -> None:
        """Take what the extension knows: its mode, its settings, and uWSGI's options for the mode.

        :raises TypeError: when a handler is none for this mode.
        """
        for handler in self._handlers:
            check_handler(handler, coroutines)
        self.coroutines = coroutines
        self._options = options
        self.run_options = run_options

    @property
    def engines(self) -> Collection[str]:
        """uWSGI's options that the extension is made for."""
        return self.run_options.keys() & {"gevent", "asyncio", "greenlet"}

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """Return the settings of routes that have none of their own."""
        return resolve(config, self._options)

    def add_handler(self, handler: Function) -> None:
        """Note a handler that was registered, to be checked when the mode is known."""
        if self.coroutines is None:
            self._handlers.append(handler)
        else:
            check_handler(handler, self.coroutines)

    def add(self, kind: Kind, blueprint: str | None, function: Function) -> None:
        """Register a hook or a listener.

        :param blueprint: the full name of the blueprint whose connections it is for, or None for all of the app.
        :raises AssertionError: when connections were served without it.
        """
        if self._routes:
            raise AssertionError(
                f"{function!r} comes too late: the app has served WebSockets without it. Register it before, next to "
                "the blueprints."
            )
        self._functions[kind, blueprint].append(function)

    def route(self, endpoint: str, blueprints: Sequence[str], config: Mapping[str, Any], options: Any) -> Route:
        """Return what an endpoint's connections have in common.

        :param blueprints: the full names of the blueprints it is in, the innermost first.
        :param config: the app's configuration, final once the first request has come.
        :param options: the settings of the rule.
        """
        route = self._routes.get(endpoint)
        if route is None:
            inwards = (None, *reversed(blueprints))
            functions: dict[str, list[Function]] = {
                kind: [each for name in inwards for each in self._functions.get((kind, name), ())]
                for kind in get_args(Kind)
            }
            for kind in ("after", "teardown"):
                functions[kind].reverse()
            route = Route(resolve(config, self._options, options), **functions)
            self._routes[endpoint] = route
        return route


class Registrar:
    """The decorators of hooks and listeners, which the extension has for its apps, and a blueprint for itself."""

    def before_websocket(self, function: Before) -> Before:
        """Call *function* before each handler; what it returns refuses the connection as its HTTP response.

        It may ``abort()``, too. Hooks of the app come first, then those of blueprints from the outermost inwards.
        """
        return self._add("before", function)

    def after_websocket(self, function: After) -> After:
        """Call *function* with the 101 response of each handshake, to return it with more headers, or another.

        When it raises, the connection is refused. Inner blueprints come first, and the app last.
        """
        return self._add("after", function)

    def teardown_websocket(self, function: Teardown) -> Teardown:
        """Call *function* at the end of each connection, with the exception that has left its handler, or None."""
        return self._add("teardown", function)

    def on_connect(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_connected``: ``function(app, ws, **extra)``."""
        return self._add("connect", function)

    def on_message(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_message``: ``function(app, ws, message, **extra)``."""
        return self._add("message", function)

    def on_close(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_closed``: ``function(app, ws, code, reason, **extra)``."""
        return self._add("close", function)

    def on_error(self, function: F) -> F:
        """Call *function* like a receiver of ``websocket_error``: ``function(app, ws, exception, **extra)``."""
        return self._add("error", function)

    def _add(self, kind: Kind, function: F) -> F:
        raise NotImplementedError


def state_of(app: App) -> State:
    """Return the state of *app*."""
    state: State | None = app.extensions.get(EXTENSION_KEY)
    if state is None:
        state = app.extensions[EXTENSION_KEY] = State()
    return state


def check_handler(handler: Function, coroutines: bool) -> None:
    """Check that a handler is one for its mode.

    :raises TypeError: when it is a coroutine function where none belongs, or none where one does.
    """
    function = inspect.unwrap(handler)
    name = getattr(handler, "__name__", None) or repr(handler)  # a partial or an object has no name
    is_coroutine = any(map(_is_coroutine_function, (function, getattr(function, "__call__", None))))  # noqa: B004
    if is_coroutine and not coroutines:
        raise TypeError(f"{name}() is a coroutine function: use AsyncioWebSocket, or a plain function")
    if not is_coroutine and coroutines:
        raise TypeError(f"{name}() is no coroutine function: write async def, or use WebSocket")


def _is_coroutine_function(function: object) -> bool:
    """Tell whether *function* is written with ``async def``, or with ``yield from`` below ``@types.coroutine``."""
    code = getattr(function, "__code__", None)
    return inspect.iscoroutinefunction(function) or bool(code and code.co_flags & inspect.CO_ITERABLE_COROUTINE)
