"""Chat in rooms: one greenlet for each member. Start it with ``python app.py``."""

import os
from collections import defaultdict
from contextlib import suppress

from flask import Flask, render_template, request

from flask_uwsgi_websocket import ConnectionClosed, GeventWebSocket

app = Flask(__name__, template_folder="../templates")
websocket = GeventWebSocket(app)

# The members of each room in this process. A room in several processes needs a broker such as Redis.
rooms = defaultdict(set)


@app.route("/")
def index():
    return render_template("chat.html")


@websocket.route("/chat/<room>")
def chat(ws, room):
    name = request.args.get("name", "").strip()[:40] or "Anonymous"
    rooms[room].add(ws)
    try:
        broadcast(room, type="join", name=name)
        for message in ws:
            if isinstance(message, str):
                broadcast(room, type="message", name=name, text=message[:2000])
    finally:
        rooms[room].discard(ws)
        broadcast(room, type="leave", name=name)
        if not rooms[room]:
            del rooms[room]


def broadcast(room, **message):
    text = app.json.dumps(message)
    for member in list(rooms[room]):  # a copy, because members come and go during a send
        with suppress(ConnectionClosed):  # the member has just left, and its own handler ends
            member.send(text, timeout=1)  # a member that does not read is dropped, so that the others need not wait


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    app.run(host=host, port=port, gevent=100)
