"""The application of `make soak`: echoes, and handlers that raise, hang and exit. The variable MODE names the mode."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from typing import Any

from flask import Flask, Response
from greenlet import greenlet

import flask_uwsgi_websocket
from flask_uwsgi_websocket.protocol import speedups
from flask_uwsgi_websocket.worker import housekeeper

MODE = os.environ["MODE"]

#: Seconds that a handler hangs, which is longer than its client stays. A handler without end would keep one of uWSGI's
#: cores for ever, which would look like a leak.
HANG = 20

EXITS: dict[str, Any] = {"os._exit": os._exit, "sys.exit": sys.exit}


class Deliberate(Exception):
    """The exception that handlers raise on purpose. Any other traceback in the log is a failure."""


app = Flask(__name__)
app.config.update(WEBSOCKET_PING_INTERVAL=5, WEBSOCKET_PING_TIMEOUT=10, WEBSOCKET_SEND_TIMEOUT=15)
websocket: Any = {
    "gevent": flask_uwsgi_websocket.GeventWebSocket,
    "threads": flask_uwsgi_websocket.WebSocket,
    "asyncio": flask_uwsgi_websocket.AsyncioWebSocket,
}[MODE](app)
route = websocket.route

if MODE == "asyncio":

    @route("/echo")
    @route("/compressed", endpoint="compressed", compression=True)
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    @route("/brief")
    async def brief(ws: Any) -> None:
        await ws.send(await ws.receive())

    @route("/raise")
    async def fail(ws: Any) -> None:
        await ws.receive()
        raise Deliberate

    @route("/hang")
    async def hang(ws: Any) -> None:
        await ws.accept()
        await asyncio.sleep(HANG)

    @route("/exit/<how>")
    async def leave(ws: Any, how: str) -> None:
        await ws.receive()
        EXITS[how](3)

else:

    @route("/echo")
    @route("/compressed", endpoint="compressed", compression=True)
    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    @route("/brief")
    def brief(ws: Any) -> None:
        ws.send(ws.receive())

    @route("/raise")
    def fail(ws: Any) -> None:
        ws.receive()
        raise Deliberate

    @route("/hang")
    def hang(ws: Any) -> None:
        ws.accept()
        threading.Event().wait(HANG)

    @route("/exit/<how>")
    def leave(ws: Any, how: str) -> None:
        ws.receive()
        EXITS[how](3)


@websocket.after_websocket
def name_worker(response: Response) -> Response:
    response.headers["X-Worker"] = str(os.getpid())
    return response


@app.route("/page/<int:number>")
def page(number: int) -> str:
    return f"page {number} " * 100


@app.route("/status")
def status() -> dict[str, object]:
    gc.collect()
    return {
        "pid": os.getpid(),
        "functions": "compiled" if speedups.COMPILED else "pure Python",
        "connections": len(housekeeper.connections()),
        "greenlets": 0 if MODE == "threads" else count_greenlets(),
        "blocks": sys.getallocatedblocks(),
    }


def count_greenlets() -> int:
    # No other thread may run meanwhile: uWSGI keeps a tuple for the arguments of each core, and cannot fill it while
    # the list of all objects refers to it.
    return sum(issubclass(type(each), greenlet) for each in gc.get_objects())
