"""Chat in rooms: one task for each member. Start it with ``python app.py``."""

import os

from flask import Flask, render_template, request

from flask_uwsgi_websocket import AsyncioWebSocket

app = Flask(__name__, template_folder="../templates")
websocket = AsyncioWebSocket(app)


@app.route("/")
def index():
    return render_template("chat.html")


@websocket.route("/chat/<string(maxlength=40):room>")
async def chat(ws, room):
    name = request.args.get("name", "").strip()[:40] or "Anonymous"
    room = websocket.room(room)
    await room.join(ws)
    room.publish_json({"type": "join", "name": name})
    try:
        async for message in ws:
            if isinstance(message, str):
                room.publish_json({"type": "message", "name": name, "text": message[:2000]})
    finally:
        room.publish_json({"type": "leave", "name": name})


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    app.run(host=host, port=port, processes=2, asyncio=100, greenlet=True)
