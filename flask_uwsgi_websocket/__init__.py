"""WebSockets for Flask applications served by uWSGI."""

from ._uwsgi import uwsgi
from .blueprints import WebSocketBlueprint
from .cli.runner import find_uwsgi, run_uwsgi
from .connection.aio import AsyncioWebSocketClient
from .connection.blocking import GeventWebSocketClient, WebSocketClient
from .connection.blocking import WebSocketClient as AsyncWebSocketClient
from .exceptions import (
    AsyncioNotAvailable,
    BadRoomName,
    BrokerUnavailable,
    ConcurrencyError,
    ConnectionClosed,
    GeventNotInstalled,
    HandshakeRejected,
    UwsgiNotFound,
    WebSocketError,
)
from .extension import AsyncioWebSocket, GeventWebSocket, WebSocket
from .extension import WebSocket as AsyncWebSocket
from .middleware import AsyncioWebSocketMiddleware, GeventWebSocketMiddleware, WebSocketMiddleware
from .middleware import WebSocketMiddleware as AsyncWebSocketMiddleware
from .protocol.deflate import Compression
from .rooms.brokers.base import Broker
from .rooms.presence import Member
from .rooms.rooms import Room, Rooms
from .settings import RateLimit
from .signals import (
    websocket_closed,
    websocket_connected,
    websocket_error,
    websocket_gap,
    websocket_joined,
    websocket_left,
    websocket_message,
    websocket_pong,
    websocket_rejected,
    websocket_sent,
)
from .testing import WebSocketTestClient, WebSocketTestConnection
from .views import WebSocketView

__version__ = "0.7.0"

__all__ = [
    "AsyncWebSocket",
    "AsyncWebSocketClient",
    "AsyncWebSocketMiddleware",
    "AsyncioNotAvailable",
    "AsyncioWebSocket",
    "AsyncioWebSocketClient",
    "AsyncioWebSocketMiddleware",
    "BadRoomName",
    "Broker",
    "BrokerUnavailable",
    "Compression",
    "ConcurrencyError",
    "ConnectionClosed",
    "GeventNotInstalled",
    "GeventWebSocket",
    "GeventWebSocketClient",
    "GeventWebSocketMiddleware",
    "HandshakeRejected",
    "Member",
    "RateLimit",
    "Room",
    "Rooms",
    "UwsgiNotFound",
    "WebSocket",
    "WebSocketBlueprint",
    "WebSocketClient",
    "WebSocketError",
    "WebSocketMiddleware",
    "WebSocketTestClient",
    "WebSocketTestConnection",
    "WebSocketView",
    "find_uwsgi",
    "run_uwsgi",
    "uwsgi",
    "websocket_closed",
    "websocket_connected",
    "websocket_error",
    "websocket_gap",
    "websocket_joined",
    "websocket_left",
    "websocket_message",
    "websocket_pong",
    "websocket_rejected",
    "websocket_sent",
]
