"""Handlers whose latency ``latency.py`` measures; the environment variable MODE names the concurrency."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import gevent
from package_app import MODE, app, websocket

#: Seconds between two looks at the clock.
INTERVAL = 0.001


class Lag:
    """The longest time for which the loop was held up: CPU time of its thread, as the machine may be busy."""

    longest = 0.0

    def __init__(self) -> None:
        self._last = time.thread_time()

    def look(self) -> None:
        now = time.thread_time()
        self.longest, self._last = max(self.longest, now - self._last), now


def _watch(lag: Lag) -> None:
    while True:
        gevent.sleep(INTERVAL)
        lag.look()


if MODE == "asyncio":

    @websocket.route("/pair")
    async def pair(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)
            await ws.send(message)

    @websocket.route("/lag")
    async def lag(ws: Any) -> None:
        lag = Lag()

        async def watch() -> None:
            while True:
                await asyncio.sleep(INTERVAL)
                lag.look()

        task = asyncio.create_task(watch())
        await ws.receive()
        task.cancel()
        await ws.send(str(lag.longest))

else:

    @websocket.route("/pair")
    def pair(ws: Any) -> None:
        for message in ws:
            ws.send(message)
            ws.send(message)

    @websocket.route("/lag")
    def lag(ws: Any) -> None:
        lag = Lag()
        watching = gevent.spawn(_watch, lag) if MODE == "gevent" else None  # threads hold each other up for 5 ms
        ws.receive()
        if watching is not None:
            watching.kill()
        ws.send(str(lag.longest))


__all__ = ["app"]
