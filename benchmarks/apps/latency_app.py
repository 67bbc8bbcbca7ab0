"""The handlers whose latency ``latency.py`` measures. The environment variable MODE names the concurrency mode."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import gevent
from package_app import MODE, app, websocket

#: Seconds between two looks at the clock.
INTERVAL = 0.001


class Lag:
    """The longest delay of the loop: in CPU time of its thread, because the machine may be busy."""

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
        watching = gevent.spawn(_watch, lag) if MODE == "gevent" else None  # threads delay each other by 5 ms
        ws.receive()
        if watching is not None:
            watching.kill()
        ws.send(str(lag.longest))


__all__ = ["app"]
