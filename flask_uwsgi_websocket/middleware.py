"""WSGI middleware that marks upgrade requests for a WebSocket.

The layers between the middleware and the view may change the environ, or send a response themselves. Flask matches the
rule and calls the view, which is in ``dispatch.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from werkzeug.wsgi import ClosingIterator

from .connection.aio import AsyncioWebSocketClient
from .connection.base import SERVED_KEY
from .connection.blocking import GeventWebSocketClient, WebSocketClient
from .dispatch import CLASS_KEY, ENDS_KEY
from .protocol.handshake import is_upgrade

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class WebSocketMiddleware:
    """Marks the environ of every upgrade request for a WebSocket.

    :param wsgi_app: the WSGI application to call.
    :param websocket: the extension that has installed the middleware.
    """

    #: The class of the clients that handlers get. A subclass may set its own.
    client: type[Any] = WebSocketClient

    def __init__(self, wsgi_app: WSGIApplication, websocket: object) -> None:
        self.wsgi_app = wsgi_app
        self.websocket = websocket

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request on."""
        environ[SERVED_KEY] = True
        if "HTTP_UPGRADE" in environ and is_upgrade(environ):
            environ = dict(environ)  # uWSGI fills its own again for another request, and a connection may last longer
            if environ.get("UWSGI_ROUTER") != "http":
                # Werkzeug accepts Upgrade only without other tokens. uWSGI's router does, too, and drops the frames of
                # other clients, so behind the router such a request stays an error.
                environ["HTTP_UPGRADE"] = "websocket"
            environ[CLASS_KEY] = self.client
            ends: list[Callable[[], None]] = []
            environ[ENDS_KEY] = ends
            try:
                response = self.wsgi_app(environ, start_response)
            except BaseException:
                _end(ends)
                raise
            if not ends:  # the app may run later, when the response is iterated, as with a debugger
                return ClosingIterator(response, partial(_end, ends))
            _end(ends)
            return response
        return self.wsgi_app(environ, start_response)


def _end(ends: list[Callable[[], None]]) -> None:
    while ends:
        ends.pop()()


class GeventWebSocketMiddleware(WebSocketMiddleware):
    """The middleware of :class:`GeventWebSocket`."""

    client = GeventWebSocketClient


class AsyncioWebSocketMiddleware(WebSocketMiddleware):
    """The middleware of :class:`AsyncioWebSocket`."""

    client = AsyncioWebSocketClient
