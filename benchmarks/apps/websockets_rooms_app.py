"""A room by hand: websockets on uvloop, and a task that reads from Redis: python websockets_rooms_app.py PORT."""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop
from redis.asyncio import Redis
from websockets.asyncio.server import ServerConnection, broadcast, serve

redis = Redis.from_url(os.environ["REDIS"])
receivers: set[ServerConnection] = set()


async def handle(ws: ServerConnection) -> None:
    assert ws.request is not None
    if ws.request.path == "/publish":
        async for message in ws:
            await redis.publish("benchmark", message)
    else:
        receivers.add(ws)
        await ws.wait_closed()
        receivers.discard(ws)


async def main() -> None:
    async with serve(handle, "127.0.0.1", int(sys.argv[1]), compression=None), redis.pubsub() as pubsub:
        await pubsub.subscribe("benchmark")
        async for message in pubsub.listen():
            if message["type"] == "message":
                broadcast(receivers, message["data"].decode())


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
