"""The two ends of a WebSocket request's way through the application: WSGI middleware, and the view.

The middleware recognises the upgrade and puts a client that is not yet accepted into the environ. Whatever lies
between may change the environ, or answer by itself. Flask matches the rule and calls the view, which checks the
handshake and runs the handler; what it returns at last is the 101 response, which only the access log gets to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import Forbidden
from werkzeug.wsgi import ClosingIterator

from .connection.aio import AsyncioWebSocketClient
from .connection.base import ENVIRON_KEY, forget_session
from .connection.blocking import GeventWebSocketClient, WebSocketClient
from .protocol.handshake import is_upgrade, negotiate_handshake
from .servers.find import find_capacity, find_server
from .settings import NAMES, Settings
from .state import Route, State, state_of
from .worker.admission import admissions, opening_files
from .worker.housekeeper import housekeeper_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Where the middleware leaves the stack that ends with the request: it holds the request's place among the connections.
_STACK_KEY = "flask_uwsgi_websocket.stack"

#: The log names so many refused origins. More of them are an attack.
ORIGINS_TOLD = 20

#: The log names no longer ones, which no browser sends. A host has at most 253 characters.
_LONGEST_ORIGIN = 300

#: The attribute of a view with the settings of its route.
_SETTINGS_ATTRIBUTE = "websocket_settings"


class WebSocketMiddleware:
    """Puts a client into the environ of every request that asks for a WebSocket.

    :param wsgi_app: the WSGI application below.
    :param websocket: the extension that it belongs to.
    """

    #: What handlers get. A subclass may set its own.
    client: type[Any] = WebSocketClient

    def __init__(self, wsgi_app: WSGIApplication, websocket: object) -> None:
        self.wsgi_app = wsgi_app
        self.websocket = websocket

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on."""
        if "HTTP_UPGRADE" in environ and is_upgrade(environ):
            if environ.get("UWSGI_ROUTER") != "http":
                # Werkzeug takes a request for a WebSocket's only when Upgrade has no other token. So does uWSGI's
                # router, which drops what the client of another one sends: for that one it stays an error.
                environ["HTTP_UPGRADE"] = "websocket"
            environ[ENVIRON_KEY] = self.client(environ)
            stack = environ[_STACK_KEY] = ExitStack()
            try:
                response = self.wsgi_app(environ, start_response)
            except BaseException:
                stack.close()
                raise
            if _STACK_KEY in environ:  # the app may run only when the response is iterated, as below a debugger
                return ClosingIterator(response, stack.close)
            stack.close()
            return response
        return self.wsgi_app(environ, start_response)


class GeventWebSocketMiddleware(WebSocketMiddleware):
    """The middleware of :class:`GeventWebSocket`."""

    client = GeventWebSocketClient


class AsyncioWebSocketMiddleware(WebSocketMiddleware):
    """The middleware of :class:`AsyncioWebSocket`."""

    client = AsyncioWebSocketClient


class Views:
    """The views of the handlers that one blueprint or extension has registered."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Callable[..., Any], dict[str, Any], Callable[..., Any]]] = {}

    def make(
        self, endpoint: str, handler: Callable[..., Any], options: Mapping[str, Any]
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return the view of a handler, and the options of its rule.

        :param options: settings, and options of Werkzeug's rule.
        :raises TypeError: when there are ``methods`` among them, or a setting has the wrong type.
        :raises ValueError: when a setting makes no sense.
        """
        if "methods" in options:
            raise TypeError(f"a WebSocket route has no methods: its handshake is a GET (endpoint {endpoint!r})")
        settings = {name: options[name] for name in options.keys() & NAMES}
        Settings(**settings)
        rule_options = {name: options[name] for name in options.keys() - NAMES}
        rule_options.update(methods=["GET"], websocket=True, provide_automatic_options=False)
        known = self._known.get(endpoint)
        if known is not None and known[:2] == (handler, settings):
            return known[2], rule_options  # for Flask, two rules of one endpoint have one view
        view = _make_view(handler, settings)
        self._known[endpoint] = handler, settings, view
        return view, rule_options


def _make_view(handler: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the Flask view that runs a WebSocket *handler*.

    :param options: the settings of its route.
    """

    def view(**kwargs: Any) -> Any:
        client: Any = request.environ.get(ENVIRON_KEY)
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        state = state_of(app)
        if state.coroutines is None:
            raise RuntimeError(
                f"the app {app.name!r} has no WebSocket extension: call init_app() of one, such as GeventWebSocket"
            )
        if client is None:
            raise RuntimeError(
                f"the WebSocket route {request.path} was reached past the middleware: leave the extension's middleware "
                "in app.wsgi_app"
            )
        route = _route(app, options)
        settings = route.settings
        _admit(settings)
        try:
            handshake = negotiate_handshake(
                request.environ,
                host=request.host,
                secure=request.is_secure,
                origins=settings.origins,
                subprotocols=settings.subprotocols,
                compression=settings.compression,
            )
        except Forbidden:
            _tell_of_origin(app, state, request.environ["HTTP_ORIGIN"])
            raise
        with opening_files():
            server = find_server(request.environ)
            loop = client.make_loop()
            server.watch()
        housekeeper = housekeeper_of(loop)
        try:
            with opening_files():
                housekeeper.add(client, loop)
                client.attach(app, server, loop, route, handshake)
            response = client.serve(handler, kwargs)
        finally:
            housekeeper.remove(client)
        if response is not None:
            return response
        forget_session(app)
        return app.response_class(status=101)

    setattr(view, _SETTINGS_ATTRIBUTE, options)
    # Flask names the endpoint after the view, and debuggers show it.
    for name in ("__name__", "__doc__", "__module__"):
        setattr(view, name, getattr(handler, name, None) or getattr(view, name))  # a partial has no name
    return view


def admit(app: Flask, **extra: Any) -> None:
    """Count a request among the connections before anything of the application's sees it; for ``request_started``.

    What runs before the handler, such as a ``before_request`` function that asks a database, occupies a core, too.

    :raises ServiceUnavailable: when the worker has no room for it (503).
    :raises TooManyRequests: when its address has too many already (429).
    """
    if _STACK_KEY in request.environ and (rule := request.url_rule) is not None and rule.websocket:
        options = getattr(app.view_functions.get(rule.endpoint), _SETTINGS_ATTRIBUTE, None)
        if options is not None:  # else the application has wrapped the view, which counts the request when it is called
            _admit(_route(app, options).settings)


def _admit(settings: Settings) -> None:
    """Count the request among the connections until it ends, unless it is already."""
    stack: ExitStack | None = request.environ.pop(_STACK_KEY, None)
    if stack is not None:
        stack.enter_context(
            admissions.admit(
                request.remote_addr,
                settings.max_connections,
                settings.max_connections_per_ip,
                find_capacity(request.environ),
            )
        )


def _route(app: Flask, options: Mapping[str, Any]) -> Route:
    """Return the route of the request.

    :param options: its settings.
    """
    assert request.endpoint is not None
    return state_of(app).route(request.endpoint, request.blueprints, app.config, options)


def _tell_of_origin(app: Flask, state: State, origin: str) -> None:
    """Log once that pages of an origin are refused: a browser does not show a developer why."""
    if origin in state.told_of_origins or len(state.told_of_origins) >= ORIGINS_TOLD or len(origin) > _LONGEST_ORIGIN:
        return
    state.told_of_origins.add(origin)
    app.logger.warning(
        "The WebSocket %r answers a page of another origin with 403: page %r, app %r. If the page is yours, add "
        "WEBSOCKET_ALLOWED_ORIGINS = [%r]; if it is the app's own, behind a proxy, ProxyFix tells the app its origin.",
        str(request.url_rule),
        origin,  # quoted: it is the peer's, and could forge a line
        f"{request.scheme}://{request.host}"[:_LONGEST_ORIGIN],
        origin,
    )


def tell_of_rejection(response: Response) -> Response:
    """Send ``websocket_rejected`` for an upgrade request that has got another answer; an ``after_request`` function."""
    client: Any = request.environ.pop(ENVIRON_KEY, None)  # which refers to the environ, too
    if client is not None and not client._accepted:  # whatever other functions have made of the 101 response
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        client.drive(client.tell_rejected(app, response))
    return response
