"""Flask-uWSGI-WebSocket 0.6.1 under gevent, like its own example of an echo.

It is installed in its own directory, which uWSGI's --pythonpath puts before the current version. Three things have
changed since 0.6.1: a decorator has moved in Flask, Python 3.11 has no `asyncio.coroutine`, and Werkzeug needs to know
which rules are for WebSockets.
"""

from __future__ import annotations

import asyncio
import types
from typing import Any

import flask.app
from flask.sansio.scaffold import setupmethod

flask.app.setupmethod = setupmethod
asyncio.coroutine = types.coroutine

from flask_uwsgi_websocket import GeventWebSocket, __version__  # noqa: E402

if __version__ != "0.6.1":
    raise SystemExit(f"this is Flask-uWSGI-WebSocket {__version__}: --pythonpath does not lead to 0.6.1")

app = flask.Flask(__name__)
websocket = GeventWebSocket(app)


@websocket.route("/echo", websocket=True)
def echo(ws: Any) -> None:
    while ws.connected:
        message = ws.receive()
        if message:  # now and then it receives an empty message that no client has sent
            ws.send(message)
