"""websockets on asyncio: python websockets_app.py PORT."""

from __future__ import annotations

import asyncio
import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve

receivers: set[ServerConnection] = set()


async def handle(ws: ServerConnection) -> None:
    assert ws.request is not None
    if ws.request.path == "/receive":
        receivers.add(ws)
        await ws.wait_closed()
        receivers.discard(ws)
    elif ws.request.path == "/publish":
        async for message in ws:
            broadcast(receivers, message)
    else:
        async for message in ws:
            await ws.send(message)


async def main() -> None:
    async with serve(handle, "127.0.0.1", int(sys.argv[1]), compression=None) as server:
        await server.serve_forever()


asyncio.run(main())
