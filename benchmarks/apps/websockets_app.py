"""websockets on asyncio: python websockets_app.py PORT. The environment variable LOOP may be uvloop."""

from __future__ import annotations

import asyncio
import os
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


if os.environ.get("LOOP") == "uvloop":
    import uvloop

    new_event_loop = uvloop.new_event_loop
else:
    new_event_loop = asyncio.new_event_loop

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
