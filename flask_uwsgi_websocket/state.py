"""The state of one app: its mode, settings, routes, counters and logged warnings.

The state is in ``app.extensions["uwsgi_websocket"]``. The first registration of a blueprint or of the extension makes
it. After the first connection, no setting, hook or listener changes any more.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from flask.sansio.app import App

from .hooks import Function, Hooks
from .settings import Settings, resolve
from .worker.stats import Stats

#: The key of an app's :class:`State` in ``app.extensions``.
EXTENSION_KEY = "uwsgi_websocket"


class Warned:
    """The warnings that were logged, so that each one is logged once. A race causes at most a second line."""

    def __init__(self) -> None:
        self._subjects: defaultdict[str, set[str]] = defaultdict(set)

    def is_first_time(self, warning: str, subject: str = "", at_most: int | None = None) -> bool:
        """Return whether to log a warning now. Each warning is logged once for each subject.

        :param warning: the name of the warning.
        :param subject: the subject of the warning, such as a URL rule.
        :param at_most: the most subjects for which the warning is logged; None for no limit. Use it for subjects that
            clients choose.
        """
        subjects = self._subjects[warning]
        if subject in subjects or (at_most is not None and len(subjects) >= at_most):
            return False
        subjects.add(subject)
        return True


@dataclass(frozen=True)
class Route:
    """What all connections of one endpoint have in common.

    :param settings: the settings.
    :param functions: the hooks and listeners of each kind in :data:`~.hooks.KINDS`, in the order in which they run.
    :param stats: the counters of the app.
    :param warned: the warnings that the app has logged.
    """

    settings: Settings
    functions: Mapping[str, tuple[Function, ...]]
    stats: Stats
    warned: Warned


def _no_defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


class RouteOptions(NamedTuple):
    """What the registration of a handler says about the settings of its route.

    :param settings: the settings of the route, which win over those of the app.
    :param defaults: returns, for the app's configuration, the values of settings that nobody gives.
    :param parks: whether the connections may outlive their requests.
    """

    settings: Mapping[str, Any] = MappingProxyType({})
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _no_defaults
    parks: bool = False


class State:
    """The state of one app."""

    def __init__(self) -> None:
        #: Whether handlers are coroutine functions; None before ``init_app()``.
        self.coroutines: bool | None = None
        #: The setting ``compatibility`` at ``init_app()``.
        self.compatibility: str | None = None
        self.stats = Stats()
        self.warned = Warned()
        #: The uWSGI options for the extension's mode.
        self.run_options: Mapping[str, Any] = {}
        #: The rooms of blueprints, by namespace.
        self.rooms: dict[str, Any] = {}
        self._options: Mapping[str, Any] = {}
        self._handlers: list[Function] = []
        self._hooks = Hooks()
        #: What :meth:`route` has returned, by endpoint.
        self.routes: dict[str, Route] = {}

    def initialise(self, coroutines: bool, options: Mapping[str, Any], run_options: Mapping[str, Any]) -> None:
        """Set the values of the extension.

        :param coroutines: whether handlers are coroutine functions.
        :param options: the settings of the extension.
        :param run_options: the uWSGI options for the mode.
        :raises TypeError: when a handler does not fit the mode.
        """
        for handler in self._handlers:
            check_handler(handler, coroutines)
        self.coroutines = coroutines
        self._options = options
        self.run_options = run_options

    @property
    def engines(self) -> Collection[str]:
        """The options of the uWSGI loop engine that the extension is made for."""
        return self.run_options.keys() & {"gevent", "asyncio", "greenlet"}

    @cached_property
    def no_route(self) -> Route:
        """The route of requests that are refused before they have one."""
        return Route(Settings(), Hooks().functions(()), self.stats, self.warned)

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """Return the settings of a route without options of its own."""
        return resolve(config, self._options)

    def add_handler(self, handler: Function) -> None:
        """Check a registered handler, as soon as the mode is known.

        :raises TypeError: when the mode is known, and the handler does not fit it.
        """
        if self.coroutines is None:
            self._handlers.append(handler)
        else:
            check_handler(handler, self.coroutines)

    def add_rooms(self, namespace: str, rooms: object) -> None:
        """Note the rooms of a blueprint.

        :raises ValueError: when other rooms have the namespace.
        """
        if self.rooms.setdefault(namespace, rooms) is not rooms:
            raise ValueError(f"two blueprints have rooms in the namespace {namespace!r}: pass another one to rooms()")

    def add(self, kind: str, blueprint: str | None, function: Function) -> None:
        """Register a hook or a listener.

        :param blueprint: the full name of the blueprint for whose connections the function is; None for the whole app.
        :raises AssertionError: when the app has already served connections.
        """
        if self.routes:
            raise AssertionError(
                f"{function!r} comes too late: the app has served WebSockets without it. Register it where you "
                "register the blueprints, before the first request."
            )
        self._hooks.add(kind, blueprint, function)

    def route(
        self,
        endpoint: str,
        blueprints: Sequence[str],
        config: Mapping[str, Any],
        options: RouteOptions = RouteOptions(),  # noqa: B008 - immutable
    ) -> Route:
        """Return what all connections of an endpoint have in common.

        :param blueprints: the full names of the blueprints of the endpoint, the innermost first.
        :param config: the app's configuration, which is final after the first request.
        :param options: the options of the route.
        """
        route = self.routes.get(endpoint)
        if route is None:
            settings = resolve(config, self._options, options.settings, defaults=options.defaults(config))
            if settings.compatibility != self.compatibility:
                raise RuntimeError("WEBSOCKET_COMPATIBILITY was changed after init_app(): set it before")
            route = Route(settings, self._hooks.functions(blueprints), self.stats, self.warned)
            self.routes[endpoint] = route
        return route


def state_of(app: App) -> State:
    """Return the state of *app*."""
    state: State | None = app.extensions.get(EXTENSION_KEY)
    if state is None:
        state = app.extensions[EXTENSION_KEY] = State()
    return state


def check_handler(handler: Function, coroutines: bool) -> None:
    """Check that a handler fits the mode.

    :param coroutines: whether the mode needs coroutine functions.
    :raises TypeError: when the mode needs the other kind of function.
    """
    function = inspect.unwrap(handler)
    name = getattr(handler, "__name__", None) or repr(handler)  # a functools.partial or another object has no name
    is_coroutine = any(map(_is_coroutine_function, (function, getattr(function, "__call__", None))))  # noqa: B004
    if is_coroutine and not coroutines:
        raise TypeError(f"{name}() is a coroutine function: use AsyncioWebSocket, or a plain function")
    if not is_coroutine and coroutines:
        raise TypeError(f"{name}() is not a coroutine function: write async def, or use WebSocket")


def _is_coroutine_function(function: object) -> bool:
    """Return whether *function* is written with ``async def``, or is a generator with ``@types.coroutine``."""
    code = getattr(function, "__code__", None)
    return inspect.iscoroutinefunction(function) or bool(code and code.co_flags & inspect.CO_ITERABLE_COROUTINE)
