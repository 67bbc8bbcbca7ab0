"""The interfaces of flask-sock and Flask-Sockets. An application that uses one of them changes one import.

``docs/migrating.md`` has what differs, and how to move on.
"""

from .gevent_websocket import ProtocolError, WebSocketError
from .simple_websocket import ConnectionClosed, ConnectionError, Server, SimpleWebsocketError
from .sock import Sock
from .sockets import Sockets

__all__ = [
    "ConnectionClosed",
    "ConnectionError",
    "ProtocolError",
    "Server",
    "SimpleWebsocketError",
    "Sock",
    "Sockets",
    "WebSocketError",
]
