"""Flask-SocketIO on gevent, with its message queue in Redis: python flask_socketio_app.py PORT."""

from __future__ import annotations

import os
import sys

from gevent import monkey

monkey.patch_all()

from flask import Flask, request  # noqa: E402
from flask_socketio import SocketIO, join_room  # noqa: E402

app = Flask(__name__)
socketio = SocketIO(app, message_queue=os.environ["REDIS"], async_mode="gevent")


@socketio.on("connect")
def connect() -> None:
    if request.args.get("role") == "receive":
        join_room("benchmark")


@socketio.on("m")
def publish(message: str) -> None:
    socketio.emit("m", message, to="benchmark")


socketio.run(app, "127.0.0.1", int(sys.argv[1]), log_output=False)
