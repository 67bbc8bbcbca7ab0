"""What one app knows of its WebSockets: its mode, settings and routes, its counters, and the warnings it has logged.

It is in ``app.extensions["uwsgi_websocket"]``. The first registration makes it, of a blueprint or of the extension.
After the first connection, no setting, hook or listener changes any more.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask.sansio.app import App

from .hooks import Function, Hooks
from .settings import Settings, resolve
from .worker.stats import Stats

#: The key of an app's :class:`State` in ``app.extensions``.
EXTENSION_KEY = "uwsgi_websocket"


class Warned:
    """The warnings that the log has, so that each one is logged once. The worst of a race is a second line."""

    def __init__(self) -> None:
        self._subjects: defaultdict[str, set[str]] = defaultdict(set)

    def is_first_time(self, warning: str, subject: str = "", at_most: int | None = None) -> bool:
        """Return whether a warning is to be logged now: once for each of its subjects.

        :param warning: the name of the warning.
        :param subject: what it warns of.
        :param at_most: for how many subjects it is logged, where they come from clients; None for any number.
        """
        subjects = self._subjects[warning]
        if subject in subjects or (at_most is not None and len(subjects) >= at_most):
            return False
        subjects.add(subject)
        return True


@dataclass(frozen=True)
class Route:
    """What the connections of one endpoint have in common.

    :param settings: their settings.
    :param functions: the hooks and listeners of each kind in :data:`~.hooks.KINDS`, in the order in which they run.
    :param stats: the counters of the app.
    :param warned: the warnings that the app has logged.
    """

    settings: Settings
    functions: Mapping[str, tuple[Function, ...]]
    stats: Stats
    warned: Warned


class State:
    """What one app knows of its WebSockets."""

    def __init__(self) -> None:
        #: Whether handlers are coroutine functions; None before ``init_app()`` was called.
        self.coroutines: bool | None = None
        self.stats = Stats()
        self.warned = Warned()
        #: uWSGI's options for the extension's mode.
        self.run_options: Mapping[str, Any] = {}
        self._options: Mapping[str, Any] = {}
        self._handlers: list[Function] = []
        self._hooks = Hooks()
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

    def add(self, kind: str, blueprint: str | None, function: Function) -> None:
        """Register a hook or a listener.

        :param blueprint: the full name of the blueprint whose connections it is for, or None for all of the app.
        :raises AssertionError: when connections were served without it.
        """
        if self._routes:
            raise AssertionError(
                f"{function!r} comes too late: the app has served WebSockets without it. Register it before, next to "
                "the blueprints."
            )
        self._hooks.add(kind, blueprint, function)

    def route(self, endpoint: str, blueprints: Sequence[str], config: Mapping[str, Any], options: Any) -> Route:
        """Return what an endpoint's connections have in common.

        :param blueprints: the full names of the blueprints it is in, the innermost first.
        :param config: the app's configuration, final once the first request has come.
        :param options: the settings of the rule.
        """
        route = self._routes.get(endpoint)
        if route is None:
            settings = resolve(config, self._options, options)
            route = Route(settings, self._hooks.functions(blueprints), self.stats, self.warned)
            self._routes[endpoint] = route
        return route


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
