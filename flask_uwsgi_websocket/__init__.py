"""WebSockets for Flask applications served by uWSGI."""

from .aio import AsyncioWebSocketClient
from .client import GeventWebSocketClient, WebSocketClient
from .deflate import Compression
from .exceptions import (
    AsyncioNotAvailable,
    ConcurrencyError,
    ConnectionClosed,
    GeventNotInstalled,
    UwsgiNotFound,
    WebSocketError,
)
from .extension import AsyncioWebSocket, GeventWebSocket, WebSocket
from .middleware import AsyncioWebSocketMiddleware, GeventWebSocketMiddleware, WebSocketMiddleware
from .runner import find_uwsgi, run_uwsgi
from .servers import uwsgi

__version__ = "0.7.0"

__all__ = [
    "AsyncioNotAvailable",
    "AsyncioWebSocket",
    "AsyncioWebSocketClient",
    "AsyncioWebSocketMiddleware",
    "Compression",
    "ConcurrencyError",
    "ConnectionClosed",
    "GeventNotInstalled",
    "GeventWebSocket",
    "GeventWebSocketClient",
    "GeventWebSocketMiddleware",
    "UwsgiNotFound",
    "WebSocket",
    "WebSocketClient",
    "WebSocketError",
    "WebSocketMiddleware",
    "find_uwsgi",
    "run_uwsgi",
    "uwsgi",
]
