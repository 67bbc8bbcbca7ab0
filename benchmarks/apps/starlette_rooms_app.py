"""A room by hand: Starlette, a set of connections, and a task that reads from Redis. For uvicorn."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

redis = Redis.from_url(os.environ["REDIS"])
receivers: set[WebSocket] = set()


async def relay() -> None:
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("benchmark")
        async for message in pubsub.listen():
            text = message["data"].decode()
            for ws in list(receivers):
                await ws.send_text(text)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    task = asyncio.create_task(relay())
    yield
    task.cancel()


async def receive(ws: WebSocket) -> None:
    await ws.accept()
    receivers.add(ws)
    async for _ in ws.iter_text():
        pass
    receivers.discard(ws)


async def publish(ws: WebSocket) -> None:
    await ws.accept()
    async for message in ws.iter_text():
        await redis.publish("benchmark", message)


app = Starlette(routes=[WebSocketRoute("/receive", receive), WebSocketRoute("/publish", publish)], lifespan=lifespan)
