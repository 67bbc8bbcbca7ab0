"""This package, through the whole Flask stack.

The environment variable MODE names the concurrency mode. In asyncio mode, LOOP may be uvloop. The handlers of all modes
do the same. Each one is written twice: as a function and as a coroutine function.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from flask import Flask

import flask_uwsgi_websocket

MODE = os.environ["MODE"]

if os.environ.get("LOOP") == "uvloop":
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())  # uWSGI's engine asks for its loop after the import

websocket: Any = {
    "gevent": flask_uwsgi_websocket.GeventWebSocket,
    "threads": flask_uwsgi_websocket.WebSocket,
    "asyncio": flask_uwsgi_websocket.AsyncioWebSocket,
}[MODE]()
blueprint = flask_uwsgi_websocket.WebSocketBlueprint("benchmark", __name__)
route = blueprint.websocket

receivers: set[Any] = set()

if MODE == "asyncio":

    @route("/echo")
    @route("/compressed", endpoint="compressed", compression=True)
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    @route("/receive")
    async def receive(ws: Any) -> None:
        receivers.add(ws)
        async for _ in ws:
            pass
        receivers.discard(ws)

    @route("/publish")
    async def publish(ws: Any) -> None:
        async for message in ws:
            websocket.broadcast(message, receivers)

else:

    @route("/echo")
    @route("/compressed", endpoint="compressed", compression=True)
    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    @route("/receive")
    def receive(ws: Any) -> None:
        receivers.add(ws)
        for _ in ws:
            pass
        receivers.discard(ws)

    @route("/publish")
    def publish(ws: Any) -> None:
        for message in ws:
            websocket.broadcast(message, receivers)


app = Flask(__name__)
websocket.init_app(app)
app.register_blueprint(blueprint)


@app.route("/page")
def page() -> str:
    return "Hello"
