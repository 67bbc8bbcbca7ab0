"""Chat in rooms: one task for each member. Start it with ``python app.py``."""

import asyncio
import os
from collections import defaultdict
from contextlib import suppress

from flask import Flask, render_template, request

from flask_uwsgi_websocket import AsyncioWebSocket, ConnectionClosed

app = Flask(__name__, template_folder="../templates")
websocket = AsyncioWebSocket(app)

# The members of each room in this process. A room in several processes needs a broker such as Redis.
rooms = defaultdict(set)


@app.route("/")
def index():
    return render_template("chat.html")


@websocket.route("/chat/<room>")
async def chat(ws, room):
    name = request.args.get("name", "").strip()[:40] or "Anonymous"
    rooms[room].add(ws)
    try:
        await broadcast(room, type="join", name=name)
        async for message in ws:
            if isinstance(message, str):
                await broadcast(room, type="message", name=name, text=message[:2000])
    finally:
        rooms[room].discard(ws)
        await broadcast(room, type="leave", name=name)
        if not rooms[room]:
            del rooms[room]


async def broadcast(room, **message):
    text = app.json.dumps(message)
    await asyncio.gather(*(send(member, text) for member in rooms[room]))


async def send(member, text):
    with suppress(ConnectionClosed):  # the member has just left, and its own handler ends
        await member.send(text, timeout=1)  # a member that does not read is dropped


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    app.run(host=host, port=port, asyncio=100, greenlet=True)
