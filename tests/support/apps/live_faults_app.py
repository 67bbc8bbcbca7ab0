"""The application of the live tests of faults: the usual one, and handlers with faults."""

import asyncio
import os
import sys
import threading
import time

from flask import request
from live_app import IS_ASYNCIO, app, for_mode, handler, journal, sleep, websocket

from flask_uwsgi_websocket import websocket_closed
from flask_uwsgi_websocket.worker import housekeeper


@handler("/impatient", ping_interval=0.5, ping_timeout=2.5)
async def impatient(ws):
    """Echo each message, and expect a message or a Pong within 3 s."""
    async for message in ws:
        await ws.send(message)


@handler("/hang/<where>", shutdown_timeout=0.5)
async def hang(ws, where):
    """Never end, and never call the connection again."""
    await ws.accept()
    if IS_ASYNCIO:
        await {"sleep": asyncio.Event().wait, "lock": deadlock}[where]()
    elif where == "sleep":
        time.sleep(10**6)
    else:
        lock = threading.Lock()
        with lock, lock:
            pass


async def deadlock():
    lock = asyncio.Lock()
    async with lock, lock:
        pass


@handler("/exit/<how>")
async def leave(ws, how):
    if how == "too early":
        sys.exit(3)
    await ws.send(str(os.getpid()))
    await ws.receive()
    {"sys.exit": sys.exit, "os._exit": os._exit}[how](3)


def leave_from(kind):
    """Return a hook or listener that exits if the request asks for it."""

    async def leave(*args, **kwargs):
        await sleep(0)
        if request.args.get("exit") == kind:
            sys.exit(3)
        return args[0] if kind == "after_websocket" else None

    return for_mode(leave)


for kind in ("before_websocket", "after_websocket", "teardown_websocket", "on_connect", "on_message", "on_close"):
    getattr(websocket, kind)(leave_from(kind))


@handler("/who")
async def who(ws):
    """Send the process id when the housekeeper has seen the answer to a ping, and then echo each message."""
    await ws.ping()
    while ws.latency is None:
        await sleep(0.01)
    await ws.send_json({"pid": os.getpid(), "id": ws.id})
    async for message in ws:
        await ws.send(message)


@handler("/patience")
async def patience(ws):
    """Wait a second for a message, and send how long it took."""
    await ws.send("waiting")
    began = time.monotonic()
    try:
        await ws.receive(timeout=1)
    except TimeoutError:
        await ws.send(str(time.monotonic() - began))


@websocket_closed.connect
@for_mode
async def note_closed(app, ws, code, **extra):
    journal("closed", token=request.args.get("token"), code=code)


@app.route("/connections")
def connections():
    return {"connected": [connection.connected for connection in housekeeper.connections()]}


@app.route("/clock")
def clock():
    return {"time": time.time()}
