"""Views of this package that are parked between two messages.

The environment variable MODE names the concurrency mode. The views of all modes do the same. Each one is written twice:
with methods and with coroutine methods.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flask import Flask

import flask_uwsgi_websocket
from flask_uwsgi_websocket import WebSocketView

MODE = os.environ["MODE"]

app = Flask(__name__)
websocket: Any = {
    "gevent": flask_uwsgi_websocket.GeventWebSocket,
    "threads": flask_uwsgi_websocket.WebSocket,
    "asyncio": flask_uwsgi_websocket.AsyncioWebSocket,
}[MODE](app)
room = websocket.room("benchmark")


class Echo(WebSocketView):
    def on_message(self, ws: Any, message: str | bytes) -> None:
        ws.send(message)


class CoroutineEcho(WebSocketView):
    async def on_message(self, ws: Any, message: str | bytes) -> None:
        await ws.send(message)


class Member(WebSocketView):
    def on_connect(self, ws: Any) -> None:
        room.join(ws)


class CoroutineMember(WebSocketView):
    async def on_connect(self, ws: Any) -> None:
        await room.join(ws)


class Publisher(WebSocketView):
    def __init__(self, publish: Callable[[Any], object]) -> None:
        self.publish = publish

    def on_message(self, ws: Any, message: str | bytes) -> None:
        self.publish(message)


class CoroutinePublisher(Publisher):
    async def on_message(self, ws: Any, message: str | bytes) -> None:
        self.publish(message)


def broadcast(message: str | bytes) -> None:
    websocket.broadcast(message, room.local_members)


views: tuple[type[WebSocketView], ...] = (Echo, Member, Publisher)
if MODE == "asyncio":
    views = (CoroutineEcho, CoroutineMember, CoroutinePublisher)
echo, member, publisher = views
websocket.route("/echo")(echo.as_view("echo"))
websocket.route("/member")(member.as_view("member"))
websocket.route("/room")(publisher.as_view("room", room.publish))
websocket.route("/broadcast")(publisher.as_view("broadcast", broadcast))


@app.route("/page")
def page() -> str:
    return "Hello"
