"""The Flask view around a handler: it checks the handshake, makes the client, and runs the handler with it.

The view returns the 101 response at the end of the connection. Only the server's access log sees that response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import Forbidden

from .connection.base import ENVIRON_KEY, BaseClient
from .connection.session import forget_mere_refresh, forget_session
from .connection.transport import Transport
from .protocol.deflate import Compression, Deflate
from .protocol.handshake import Handshake, negotiate_handshake
from .servers.find import find_capacity, find_server
from .settings import ROUTE_NAMES, Settings
from .state import Route, RouteOptions, State, state_of
from .worker.admission import admissions, opening_files
from .worker.housekeeper import housekeeper_of

#: The key in the environ under which the middleware puts the class of the client.
CLASS_KEY = "flask_uwsgi_websocket.class"

#: The key in the environ of the stack that ends with the request. It counts the request among the connections.
STACK_KEY = "flask_uwsgi_websocket.stack"

#: The most refused origins that are logged. More origins are an attack.
MOST_LOGGED_ORIGINS = 20

#: The longest origin that is logged. Browsers send no longer ones: a host has at most 253 characters.
_LONGEST_ORIGIN = 300

#: The options of Werkzeug's rule for a WebSocket: the handshake is a GET.
RULE_OPTIONS: Mapping[str, Any] = {"methods": ("GET",), "websocket": True, "provide_automatic_options": False}

#: The attribute of a view that has the options of its route.
_OPTIONS_ATTRIBUTE = "websocket_options"


class Views:
    """Makes the views of the handlers of one blueprint or extension."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[..., Any]]] = {}

    def make(
        self, endpoint: str, handler: Callable[..., Any], options: Mapping[str, Any]
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return the view of a handler, and the options of its rule.

        :param options: settings, and options of Werkzeug's rule.
        :raises TypeError: when *options* has ``methods``, or a setting has the wrong type.
        :raises ValueError: when a setting has an invalid value.
        """
        if "methods" in options:
            raise TypeError(f"a WebSocket route has no methods, its handshake is a GET: remove them from {endpoint!r}")
        settings = {name: options[name] for name in options.keys() & ROUTE_NAMES}
        Settings(**settings)
        rule_options = {name: options[name] for name in options.keys() - ROUTE_NAMES}
        rule_options.update(RULE_OPTIONS)
        known = self._known.get(endpoint)
        if known is not None and known[:2] == (handler, settings):
            return known[2], rule_options  # Flask requires one view for all rules of an endpoint
        view = make_view(handler, RouteOptions(settings))
        self._known[endpoint] = handler, settings, view
        return view, rule_options


def make_view(handler: Callable[..., Any], options: RouteOptions) -> Callable[..., Any]:
    """Return the Flask view that runs a WebSocket *handler*. Its rule needs :data:`RULE_OPTIONS`.

    :param options: the options of the handler's route.
    """

    def view(**kwargs: Any) -> Any:
        client_class: type[Any] | None = request.environ.get(CLASS_KEY)
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        if state_of(app).coroutines is None:
            raise RuntimeError(
                f"the app {app.name!r} has no WebSocket extension: call init_app() of one, such as GeventWebSocket"
            )
        if client_class is None:
            raise RuntimeError(
                f"a request has reached the WebSocket route {request.path} without the extension's middleware: leave "
                "the middleware in app.wsgi_app"
            )
        route = _route(app, options)
        _admit(route.settings)
        client = _make_client(client_class, app, route, _negotiate(app, route.settings))
        housekeeper = housekeeper_of(client.loop)
        try:
            with opening_files():
                housekeeper.add(client, client.loop)
            response = client.serve(handler, kwargs)
        finally:
            housekeeper.remove(client)
            client.detach()
        if response is not None:
            return response
        forget_session(app)
        return app.response_class(status=101)

    setattr(view, _OPTIONS_ATTRIBUTE, options)
    # Flask names the endpoint after the view, and debuggers show the name.
    for name in ("__name__", "__doc__", "__module__"):
        setattr(view, name, getattr(handler, name, None) or getattr(view, name))  # a functools.partial has no name
    return view


def _negotiate(app: Flask, settings: Settings) -> Handshake:
    """Return the handshake of the request.

    :raises HTTPException: when the request is not a valid handshake, or the settings do not allow it.
    """
    try:
        return negotiate_handshake(
            request.environ,
            host=request.host,
            secure=request.is_secure,
            origins=settings.origins,
            subprotocols=settings.subprotocols,
            compression=settings.compression,
        )
    except Forbidden:
        _warn_of_origin(app, state_of(app), request.environ["HTTP_ORIGIN"])
        raise


def _make_client(client_class: type[Any], app: Flask, route: Route, handshake: Handshake) -> Any:
    """Return the client of the request, with a duplicate of its socket."""
    deflate = None
    if handshake.deflate is not None:
        config = route.settings.compression
        deflate = Deflate(handshake.deflate, config if isinstance(config, Compression) else None)
    with opening_files():
        server = find_server(request.environ)
        loop = client_class.make_loop()
        server.watch()
        forget_mere_refresh(app)  # also now, because a session on the server may change until the handshake
        transport = Transport(server.open(), server.release, loop, route.settings, deflate)
    try:
        client = client_class(request.environ, app, route, transport, handshake)
    except BaseException:  # the class may be the application's own
        transport.detach()
        raise
    request.environ[ENVIRON_KEY] = client
    return client


def admit(app: Flask, **extra: Any) -> None:
    """Count a request among the connections before the application sees it. A receiver of ``request_started``.

    Functions that run before the handler, such as a ``before_request`` function with a database query, occupy a core,
    too.

    :raises ServiceUnavailable: when the worker has no room for the connection (503).
    :raises TooManyRequests: when the address has too many connections already (429).
    """
    if STACK_KEY in request.environ and (rule := request.url_rule) is not None and rule.websocket:
        options = getattr(app.view_functions.get(rule.endpoint), _OPTIONS_ATTRIBUTE, None)
        if options is not None:  # otherwise the app has wrapped the view, which then counts the request itself
            _admit(_route(app, options).settings)


def _admit(settings: Settings) -> None:
    """Count the request among the connections until it ends, unless it is counted already."""
    stack: ExitStack | None = request.environ.pop(STACK_KEY, None)
    if stack is not None:
        stack.enter_context(
            admissions.admit(
                request.remote_addr,
                settings.max_connections,
                settings.max_connections_per_ip,
                find_capacity(request.environ),
            )
        )


def _route(app: Flask, options: RouteOptions) -> Route:
    """Return the route of the request.

    :param options: the options of the route.
    """
    assert request.endpoint is not None
    return state_of(app).route(request.endpoint, request.blueprints, app.config, options)


def _warn_of_origin(app: Flask, state: State, origin: str) -> None:
    """Log, once for each origin, that its pages are refused. A browser does not show the reason to a developer."""
    if len(origin) > _LONGEST_ORIGIN or not state.warned.is_first_time("origin", origin, MOST_LOGGED_ORIGINS):
        return
    app.logger.warning(
        "The WebSocket %r refuses a page of another origin with 403: page %r, app %r. If the page is yours, set "
        "WEBSOCKET_ALLOWED_ORIGINS = [%r]. If it belongs to this app, behind a proxy, use Werkzeug's ProxyFix.",
        str(request.url_rule),
        origin,  # quoted, because the peer chooses it and could forge a line
        f"{request.scheme}://{request.host}"[:_LONGEST_ORIGIN],
        origin,
    )


def report_rejection(response: Response) -> Response:
    """Send ``websocket_rejected`` for an upgrade request that gets another response. An ``after_request`` function."""
    client: BaseClient | None = request.environ.pop(ENVIRON_KEY, None)  # the client refers to the environ, too
    client_class: type[Any] | None = request.environ.pop(CLASS_KEY, None)
    if client_class is not None and (client is None or not client.was_accepted):
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        rejected = client or client_class.refused(request.environ, app, state_of(app).no_route)
        rejected.drive(rejected.notify_rejected(response))
    return response
