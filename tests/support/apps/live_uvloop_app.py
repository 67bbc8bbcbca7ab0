"""The application of the live tests, with the event loop of uvloop."""

import asyncio

import uvloop

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

from live_app import app  # noqa: E402 - makes the extension


@app.get("/event-loop")
def event_loop():
    return type(asyncio.get_running_loop()).__module__
