"""The two ends of a WebSocket request's way through the application: WSGI middleware, and the view.

The middleware recognises the upgrade and puts a client that is not yet accepted into the environ. Whatever lies
between may change the environ, or answer by itself. Flask matches the rule and calls the view, which checks the
handshake and runs the handler; what it returns at last is the 101 response, which only the access log gets to see.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flask import current_app, got_request_exception, request
from werkzeug.exceptions import HTTPException

from .aio import AsyncioWebSocketClient
from .client import GeventWebSocketClient, WebSocketClient
from .exceptions import ConnectionClosed
from .handshake import is_upgrade, negotiate_handshake
from .keepalive import keepalive_of
from .servers import find_server
from .settings import Settings, resolve

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Where the middleware leaves the client for the view.
ENVIRON_KEY = "flask_uwsgi_websocket.client"
#: The key of an app's :class:`State` in ``app.extensions``.
EXTENSION_KEY = "uwsgi_websocket"

logger = logging.getLogger(__package__)


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
        return self.wsgi_app(environ, start_response)


class GeventWebSocketMiddleware(WebSocketMiddleware):
    """The middleware of :class:`GeventWebSocket`."""

    client = GeventWebSocketClient


class AsyncioWebSocketMiddleware(WebSocketMiddleware):
    """The middleware of :class:`AsyncioWebSocket`."""

    client = AsyncioWebSocketClient


class State:
    """What one app knows of its extension, in ``app.extensions["uwsgi_websocket"]``.

    :param config: the app's configuration, read for each route when its first connection comes.
    :param options: the extension's keywords.
    """

    def __init__(self, config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._config = config
        self._options = options
        self._settings: dict[Callable[..., Any], Settings] = {}

    def settings_of(self, view: Callable[..., Any], options: Mapping[str, Any]) -> Settings:
        """Return the settings of a route; the app's configuration is final once the first request has come."""
        settings = self._settings.get(view)
        if settings is None:
            settings = self._settings[view] = resolve(self._config, self._options, options)
        return settings


def make_view(handler: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the Flask view that runs a WebSocket *handler*.

    :param options: the settings of its route.
    """

    def view(**kwargs: Any) -> Any:
        client: Any = request.environ.pop(ENVIRON_KEY, None)  # get() would leave a reference cycle
        state = current_app.extensions.get(EXTENSION_KEY)
        if client is None or state is None:
            raise RuntimeError(
                f"the WebSocket route {request.path} was reached past the middleware: call "
                "websocket.init_app(app), and leave the middleware in app.wsgi_app"
            )
        settings: Settings = state.settings_of(view, options)
        handshake = negotiate_handshake(
            request.environ,
            host=request.host,
            secure=request.is_secure,
            origins=settings.origins,
            subprotocols=settings.subprotocols,
            compression=settings.compression,
        )
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        server = find_server(request.environ)
        loop = client.make_loop()
        keepalive = keepalive_of(loop)
        keepalive.add(client, loop)
        try:
            client.attach(app, server, loop, settings, handshake)
            response = client.serve(handler, kwargs, _report)
        finally:
            keepalive.remove(client)
        if response is not None:
            return response
        # The reason is the peer's, and could forge a line.
        logger.info("WebSocket %s closed: %s %r", client.id, client.close_code, client.close_reason)
        return current_app.response_class(status=101)

    # Flask names the endpoint after the view, and debuggers show it.
    for name in ("__name__", "__doc__", "__module__"):
        setattr(view, name, getattr(handler, name, None) or getattr(view, name))  # a partial has no name
    return view


def _report(error: BaseException) -> None:
    """Tell what left a handler after the handshake. It cannot become an HTTP response any more."""
    if isinstance(error, ConnectionClosed):
        logger.info("the handler of %r ended: %r", request.path, error)
    elif isinstance(error, Exception) and not isinstance(error, HTTPException):
        app = current_app._get_current_object()  # type: ignore[attr-defined]
        got_request_exception.send(app, exception=error)
        app.logger.error("Exception on %r [WebSocket]", request.path, exc_info=sys.exc_info())
