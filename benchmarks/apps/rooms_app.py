"""Rooms of this package. The variable MODE names the concurrency, and REDIS the Redis if there is one."""

from __future__ import annotations

import os
import time
from collections import deque
from statistics import median
from typing import Any

from package_app import MODE, app, websocket

app.config["WEBSOCKET_BROKER"] = os.environ.get("REDIS", "auto")

room = websocket.room("benchmark")

#: The rooms that a connection to ``/crowd`` joins.
CROWD = [websocket.room(f"benchmark {number}") for number in range(100)]


#: The CPU seconds that the latest calls of ``publish()`` took until they returned.
costs: deque[float] = deque(maxlen=1000)


@app.route("/cost")
def cost() -> str:
    return str(median(costs))


def publish_to_room(message: str) -> None:
    begin = time.thread_time()
    room.publish(message)
    costs.append(time.thread_time() - begin)


if MODE == "asyncio":

    @websocket.route("/member")
    async def member(ws: Any) -> None:
        await room.join(ws)
        async for _ in ws:
            pass

    @websocket.route("/room")
    async def publish(ws: Any) -> None:
        async for message in ws:
            publish_to_room(message)

    @websocket.route("/broadcast")
    async def broadcast(ws: Any) -> None:
        async for message in ws:
            websocket.broadcast(message, room.local_members)

    @websocket.route("/crowd")
    async def crowd(ws: Any) -> None:
        for each in CROWD:
            await each.join(ws)
        async for message in ws:
            await ws.send(message)

else:

    @websocket.route("/member")
    def member(ws: Any) -> None:
        room.join(ws)
        for _ in ws:
            pass

    @websocket.route("/room")
    def publish(ws: Any) -> None:
        for message in ws:
            publish_to_room(message)

    @websocket.route("/broadcast")
    def broadcast(ws: Any) -> None:
        for message in ws:
            websocket.broadcast(message, room.local_members)

    @websocket.route("/crowd")
    def crowd(ws: Any) -> None:
        for each in CROWD:
            each.join(ws)
        for message in ws:
            ws.send(message)


__all__ = ["app"]
