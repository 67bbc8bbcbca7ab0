"""Chat in rooms: one greenlet for each member. Start it with ``python app.py``."""

import os

from flask import Flask, render_template, request

from flask_uwsgi_websocket import GeventWebSocket

app = Flask(__name__, template_folder="../templates")
websocket = GeventWebSocket(app)


@app.route("/")
def index():
    return render_template("chat.html")


@websocket.route("/chat/<string(maxlength=40):room>")
def chat(ws, room):
    name = request.args.get("name", "").strip()[:40] or "Anonymous"
    room = websocket.room(room)
    room.join(ws)
    room.publish_json({"type": "join", "name": name})
    try:
        for message in ws:
            if isinstance(message, str):
                room.publish_json({"type": "message", "name": name, "text": message[:2000]})
    finally:
        room.publish_json({"type": "leave", "name": name})


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    app.run(host=host, port=port, processes=2, gevent=100)
