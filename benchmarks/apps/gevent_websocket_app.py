"""gevent-websocket in gevent's own WSGI server: python gevent_websocket_app.py PORT."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

from gevent import monkey

monkey.patch_all()

from gevent.pywsgi import WSGIServer  # noqa: E402
from geventwebsocket.handler import WebSocketHandler  # noqa: E402


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    ws = environ["wsgi.websocket"]
    ws.handler.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while (message := ws.receive()) is not None:
        ws.send(message)
    return []


WSGIServer(("127.0.0.1", int(sys.argv[1])), application, handler_class=WebSocketHandler, log=None).serve_forever()
