"""The Flask view around a handler: it checks the handshake, makes the client, and runs the handler with it.

The view returns the 101 response at the end of the connection. Only the server's access log sees that response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from flask import Flask, Request, Response, current_app, request
from werkzeug.exceptions import Forbidden, HTTPException
from werkzeug.routing import WebsocketMismatch

from .connection.base import ENVIRON_KEY, BaseClient
from .connection.parked import ParkedConnection
from .connection.session import forget_mere_refresh, forget_session
from .connection.transport import Transport
from .protocol.deflate import Compression, Deflate
from .protocol.handshake import Handshake, UpgradeRequired, negotiate_handshake
from .servers.find import find_capacity, find_server, prepare_parking
from .settings import ROUTE_NAMES, Settings
from .state import Route, RouteOptions, State, state_of
from .worker.admission import admissions, check_files
from .worker.housekeeper import housekeeper_of

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: The key in the environ under which the middleware puts the class of the client.
CLASS_KEY = "flask_uwsgi_websocket.class"

#: The key in the environ of the list of functions that the middleware calls at the end of the request. One gives back
#: the place of the request among the connections.
ENDS_KEY = "flask_uwsgi_websocket.ends"

#: The most refused origins that are logged. More origins are an attack.
MOST_LOGGED_ORIGINS = 20

#: The longest origin that is logged. Browsers send no longer ones: a host has at most 253 characters.
_LONGEST_ORIGIN = 300

#: The options of Werkzeug's rule for a WebSocket: the handshake is a GET.
RULE_OPTIONS: Mapping[str, Any] = {"methods": ("GET",), "websocket": True, "provide_automatic_options": False}

#: The body of a request that has ended.
_NO_BODY = BytesIO()

#: The attribute of a view that has the options of its route.
_OPTIONS_ATTRIBUTE = "websocket_options"


#: Returns the request itself. Each look through the proxy costs more than a function call.
_current_request: Callable[[], Request] = request._get_current_object  # type: ignore[attr-defined]


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
        parks = getattr(getattr(handler, "view_class", None), "parked", False)
        view = make_view(handler, RouteOptions(settings, parks=parks))
        self._known[endpoint] = handler, settings, view
        return view, rule_options


def make_view(handler: Callable[..., Any], options: RouteOptions) -> Callable[..., Any]:
    """Return the Flask view that runs a WebSocket *handler*. Its rule needs :data:`RULE_OPTIONS`.

    :param options: the options of the handler's route.
    """

    def view(**kwargs: Any) -> Any:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        asked = _current_request()
        client_class: type[Any] | None = asked.environ.get(CLASS_KEY)
        if state_of(app).coroutines is None:
            raise RuntimeError(
                f"the app {app.name!r} has no WebSocket extension: call init_app() of one, such as GeventWebSocket"
            )
        if client_class is None:
            raise RuntimeError(
                f"a request has reached the WebSocket route {asked.path} without the extension's middleware: leave "
                "the middleware in app.wsgi_app"
            )
        route = _route(app, asked, options)
        _admit(asked, options, route.settings)
        handshake = _negotiate(app, asked, route.settings)
        try:
            client = _make_client(client_class, app, asked, route, handshake)
        except OSError as error:
            check_files(error)
            raise
        client.may_park = _may_park(asked, options)
        try:
            response = client.serve(handler, kwargs)
        finally:
            if client.parked_view is None:
                housekeeper_of(client.loop).remove(client)
                client.detach()
        if response is not None:
            return response
        if client.parked_view is not None:
            _park(asked, client, route.settings)
        forget_session(app)
        return app.response_class(status=101)

    setattr(view, _OPTIONS_ATTRIBUTE, options)
    # Flask names the endpoint after the view, and debuggers show the name.
    for name in ("__name__", "__doc__", "__module__"):
        setattr(view, name, getattr(handler, name, None) or getattr(view, name))  # a functools.partial has no name
    return view


def _negotiate(app: Flask, asked: Request, settings: Settings) -> Handshake:
    """Return the handshake of the request.

    :raises HTTPException: when the request is not a valid handshake, or the settings do not allow it.
    """
    try:
        return negotiate_handshake(
            asked.environ,
            host=asked.host,
            secure=asked.is_secure,
            origins=settings.origins,
            subprotocols=settings.subprotocols,
            compression=settings.compression,
        )
    except Forbidden:
        _warn_of_origin(app, state_of(app), asked.environ["HTTP_ORIGIN"])
        raise


def _make_client(client_class: type[Any], app: Flask, asked: Request, route: Route, handshake: Handshake) -> Any:
    """Return the client of the request, with a duplicate of its socket. The housekeeper looks after it.

    :raises OSError: when this process may open no more files.
    :raises ServiceUnavailable: when the worker is about to end.
    """
    deflate = None
    if handshake.deflate is not None:
        config = route.settings.compression
        deflate = Deflate(handshake.deflate, config if isinstance(config, Compression) else None)
    server = find_server(asked.environ)
    loop = client_class.make_loop()
    server.watch()
    forget_mere_refresh(app)  # also now, because a session on the server may change until the handshake
    transport = Transport(server.open(), server.release, loop, route.settings, deflate)
    try:
        client = client_class(asked.environ, app, route, transport, handshake)
        asked.environ[ENVIRON_KEY] = client
        housekeeper_of(loop).add(client, loop)
    except BaseException:  # also of the class, which may be the application's own
        transport.detach()
        raise
    return client


def watch_requests(app: Flask) -> None:
    """Do what comes before and after the application's functions in each request, in place of two methods of *app*.

    Before them, an upgrade request is counted among the connections, and a mismatch is explained. After them,
    ``websocket_rejected`` is sent. Functions in Flask's lists and receivers of its signals would cost each page several
    times as much.
    """
    original_preprocess_request, original_process_response = app.preprocess_request, app.process_response

    # Later versions of Flask pass the context, too.
    def preprocess_request(*args: Any) -> Any:
        asked = _current_request()
        if asked.routing_exception is not None or ENDS_KEY in asked.environ:
            _prepare(app, asked)
        return original_preprocess_request(*args)

    def process_response(*args: Any) -> Any:
        response = original_process_response(*args)
        environ = _current_request().environ
        if CLASS_KEY in environ:
            _report_rejection(app, environ, response)
        return response

    app.preprocess_request = preprocess_request  # type: ignore[method-assign]
    app.process_response = process_response  # type: ignore[method-assign, assignment]


def _prepare(app: Flask, asked: Request) -> None:
    mismatch = asked.routing_exception
    if mismatch is None:
        _admit_early(app, asked)
    elif isinstance(mismatch, WebsocketMismatch):
        _explain_mismatch(app, asked, mismatch)


def _admit_early(app: Flask, asked: Request) -> None:
    """Count a request among the connections before the application sees it.

    Functions that run before the handler, such as a ``before_request`` function with a database query, occupy a core,
    too.
    """
    rule = asked.url_rule
    if rule is not None and rule.websocket:
        options = _options_of(app, rule.endpoint)
        if options is not None:  # otherwise the app has wrapped the view, which then counts the request itself
            _admit(asked, options, _route(app, asked, options).settings)


def _options_of(app: Flask, endpoint: str) -> RouteOptions | None:
    """Return the options of a WebSocket route, or None if the app has wrapped its view."""
    return getattr(app.view_functions.get(endpoint), _OPTIONS_ATTRIBUTE, None)


def route_parks(app: Flask, endpoint: str) -> bool:
    """Return whether the connections of a WebSocket route may outlive their requests, on a server that allows that."""
    options = _options_of(app, endpoint)
    return options is not None and options.parks


def _explain_mismatch(app: Flask, asked: Request, mismatch: WebsocketMismatch) -> None:
    """Explain that a WebSocket was requested from the URL of a page, or a page from the URL of a WebSocket.

    Werkzeug does not say which of the two it is. This is not an error handler, so that the application's own error
    handlers get the 426.
    """
    if "websocket" not in asked.headers.get("Upgrade", "").lower():
        raise UpgradeRequired
    _explain_page(app, asked, mismatch)


def _explain_page(app: Flask, asked: Request, mismatch: WebsocketMismatch) -> None:
    """Warn, once for each rule, of an upgrade request to the URL of a page. In debug mode, the response explains it."""
    adapter = app.create_url_adapter(asked)
    try:
        rule, _ = adapter.match(return_rule=True, websocket=False) if adapter else (None, None)
    except HTTPException:  # the page is for another method, or has moved
        return
    explanation = f"{rule} is a page: did you mean @websocket.route?"
    if state_of(app).warned.is_first_time("page", str(rule)):
        app.logger.warning("An upgrade request for a WebSocket got 400: %s", explanation)
    if app.debug:
        mismatch.description = explanation


def _admit(asked: Request, options: RouteOptions, settings: Settings) -> None:
    """Count the request among the connections until it ends, unless it is counted already."""
    ends: list[Callable[[], None]] = asked.environ[ENDS_KEY]
    if not ends:
        place = admissions.admit(
            asked.remote_addr,
            settings.max_connections,
            settings.max_connections_per_ip,
            find_capacity(asked.environ),
            takes_core=not _may_park(asked, options),
        )
        ends.append(place.close)


def _may_park(asked: Request, options: RouteOptions) -> bool:
    """Return whether the connection may outlive its request."""
    return options.parks and find_capacity(asked.environ).parks


def _park(asked: Request, client: BaseClient, settings: Settings) -> None:
    """Let a connection outlive its request: it goes on when the request has ended."""
    prepare_parking(asked.environ)
    client.channel.leave_request()
    asked.environ["wsgi.input"] = _NO_BODY  # the server's object may read the body of another request by then
    ends: list[Callable[[], None]] = asked.environ[ENDS_KEY]
    threads = settings.threads or find_capacity(asked.environ).cores or 1
    ends[:] = [partial(ParkedConnection(client, tuple(ends)).begin, threads)]


def _route(app: Flask, asked: Request, options: RouteOptions) -> Route:
    """Return the route of the request.

    :param options: the options of the route.
    """
    assert asked.url_rule is not None
    state, endpoint = state_of(app), asked.url_rule.endpoint
    return state.routes.get(endpoint) or state.route(endpoint, asked.blueprints, app.config, options)


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


def _report_rejection(app: Flask, environ: WSGIEnvironment, response: Response) -> None:
    """Send ``websocket_rejected``, unless *response* is that of a connection."""
    client: BaseClient | None = environ.get(ENVIRON_KEY)
    client_class: type[Any] = environ.pop(CLASS_KEY)
    if client is not None and client.parked_view is None:
        del environ[ENVIRON_KEY]  # because the client refers to the environ, too
    if client is None or not client.was_accepted:
        rejected = client or client_class.refused(environ, app, state_of(app).no_route)
        rejected.drive(rejected.notify_rejected(response))
