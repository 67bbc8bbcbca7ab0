"""The application behind the fronts: ``/srv/chat/app.py`` of the files in ``deploy``, in each mode."""

from __future__ import annotations

from typing import Any

from flask import Flask, request, url_for
from werkzeug.middleware.proxy_fix import ProxyFix

import flask_uwsgi_websocket
from flask_uwsgi_websocket import WebSocket, uwsgi, websocket_closed

EXTENSIONS = {"gevent": "GeventWebSocket", "asyncio": "AsyncioWebSocket", "threads": "WebSocket"}
MODE = next(mode for mode in EXTENSIONS if mode in uwsgi.opt)

app = Flask(__name__)
# The application believes all forwarding headers, so the tests see whether a front passes on any of a client's own.
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_port=1, x_prefix=1)  # type: ignore[method-assign]
websocket: WebSocket = getattr(flask_uwsgi_websocket, EXTENSIONS[MODE])(app)

closings: dict[str, tuple[int, str]] = {}


@websocket_closed.connect
def note_closing(app: Flask, code: int, reason: str, **extra: Any) -> None:
    """Note how a connection was closed."""
    closings[request.args.get("token", "")] = code, reason


def what_is_seen() -> dict[str, str]:
    """Return the data of the client that the application sees."""
    return {"client": str(request.remote_addr), "url": url_for("seen", _external=True)}


def add_coroutines() -> None:
    """Add the handlers as coroutine functions."""

    @websocket.route("/echo")
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    @websocket.route("/pinged", endpoint="pinged")
    @websocket.route("/silent", endpoint="silent", ping_interval=None)
    async def idle(ws: Any) -> None:
        async for _ in ws:
            await ws.send("silent" if ws.latency is None else "pinged")

    @websocket.route("/close/<int:code>/<reason>")
    async def close(ws: Any, code: int, reason: str) -> None:
        await ws.close(code, reason)

    @websocket.route("/seen")
    async def seen(ws: Any) -> None:
        await ws.send_json(what_is_seen())


def add_functions() -> None:
    """Add the handlers as functions."""

    @websocket.route("/echo")
    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    @websocket.route("/pinged", endpoint="pinged")
    @websocket.route("/silent", endpoint="silent", ping_interval=None)
    def idle(ws: Any) -> None:
        for _ in ws:
            ws.send("silent" if ws.latency is None else "pinged")

    @websocket.route("/close/<int:code>/<reason>")
    def close(ws: Any, code: int, reason: str) -> None:
        ws.close(code, reason)

    @websocket.route("/seen")
    def seen(ws: Any) -> None:
        ws.send_json(what_is_seen())


if MODE == "asyncio":
    add_coroutines()
else:
    add_functions()


@app.route("/")
def index() -> dict[str, str]:
    """A page."""
    return {"mode": MODE, **what_is_seen()}


@app.route("/closing/<token>")
def closing(token: str) -> dict[str, Any]:
    """Return how a connection was closed."""
    return {"closing": closings.get(token)}
