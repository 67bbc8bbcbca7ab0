"""Flask-Sockets' ``Sockets``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from itertools import count
from typing import Any, TypeVar
from weakref import WeakSet

from flask import Blueprint, Flask, request
from werkzeug.routing import Map

from ..blueprints import register_handlers
from ..connection.blocking import WebSocketClient
from ..dispatch import RULE_OPTIONS, make_view
from ..state import RouteOptions, state_of
from .gevent_websocket import EXCEPTIONS, Connection, WebSocketError
from .shared import DEFAULTS, SETTINGS, kin, prepare

F = TypeVar("F", bound=Callable[..., Any])

#: Numbers for endpoints: the names of Flask-Sockets' handlers need not differ from those of views.
_numbers = count(1)


class Sockets:
    """Flask-Sockets' extension.

    :param app: the app, unless :meth:`init_app` is called later.
    """

    def __init__(self, app: Flask | None = None) -> None:
        #: The rules of the app. Before :meth:`init_app`, a map that only takes converters.
        self.url_map = Map()
        self.blueprints: dict[str, Blueprint] = {}
        self._views: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._registrations: list[Callable[[Flask], object]] = []
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve the routes on *app*."""
        prepare(app, "Flask-Sockets")
        state_of(app).add("before", None, _check_server)
        converters = self.url_map.converters.items() - Map.default_converters.items()
        app.url_map.converters.update(converters)
        self.url_map = app.url_map
        for register in self._registrations:
            register(app)
        self._apps.add(app)

    def route(self, rule: str, **options: Any) -> Callable[[F], F]:
        """Declare the handler of a URL. It gets a :class:`Connection`, and the variables of the URL.

        :param options: no option has an effect.
        """

        def decorator(f: F) -> F:
            self.add_url_rule(rule, None, f, **options)
            return f

        return decorator

    def add_url_rule(self, rule: str, _: object, f: Callable[..., Any], **options: Any) -> None:
        """Declare the handler of a URL; see :meth:`route`."""
        endpoint = f"{getattr(f, '__name__', 'socket')} {next(_numbers)}"
        view, rule_options = self._make_view(endpoint, f, options)
        self._register(lambda app: app.add_url_rule(rule, endpoint, view, **rule_options))

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Register a blueprint, whose views become handlers.

        :param options: the options of :meth:`flask.Flask.register_blueprint`.
        """
        self.blueprints[blueprint.name] = blueprint
        self._register(lambda app: register_handlers(app, blueprint, self._make_view, **options))

    def _register(self, register: Callable[[Flask], object]) -> None:
        for app in list(self._apps):
            register(app)
        self._registrations.append(register)

    def _make_view(
        self, endpoint: str, f: Callable[..., Any], options: Mapping[str, Any]
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return the view of a handler, which is one for all of its rules, and the options of its rule."""
        if f not in self._views:
            self._views[f] = make_view(_make_handler(f), RouteOptions(SETTINGS, lambda config: DEFAULTS))
        return self._views[f], dict(RULE_OPTIONS)


def _make_handler(f: Callable[..., Any]) -> Callable[..., None]:
    @wraps(f)
    def handler(connection: WebSocketClient, **values: Any) -> None:
        ws = Connection(connection)
        try:
            with ws.handler:
                f(ws, **values)
        except kin(WebSocketError, EXCEPTIONS):
            if connection.connected:  # that of another connection
                raise

    return handler


def _check_server() -> None:
    """Check that the handshake was not made by gevent-websocket, whose frames would mix with those of this package."""
    if "wsgi.websocket" in request.environ:
        raise RuntimeError(
            "gevent-websocket serves this WebSocket already: leave out handler_class=WebSocketHandler, and start "
            "gunicorn with -k gevent"
        )
