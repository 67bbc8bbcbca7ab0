"""The application of the tests of reloads. The journal has the beginning and the end of each connection."""

from flask import request
from live_app import app, for_mode, handler, journal, sleep, websocket

__all__ = ["app"]


@handler("/ledger")
async def ledger(ws):
    """Write each message into the journal, and answer after that."""
    async for message in ws:
        journal("message", message=message)
        await sleep(0.002)  # the worker may end meanwhile
        await ws.send(message)


@handler("/stubborn", shutdown_timeout=0.5)
async def never_end(ws):
    await ws.accept()
    while True:
        await sleep(0.02)


@websocket.on_connect
@for_mode
async def note_connected(app, ws, **extra):
    journal("connected", id=ws.id, token=request.args["token"])


@websocket.on_close
@for_mode
async def note_closed(app, ws, **details):
    journal("closed", id=ws.id, token=request.args["token"], **details)


@websocket.teardown_websocket
@for_mode
async def note_torn_down(error):
    journal("torn down", token=request.args["token"])
