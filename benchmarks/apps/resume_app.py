"""Rooms with history and presence, for ``benchmarks/resume.py``. The variable BROKER is the setting."""

from __future__ import annotations

import os
from typing import Any

from flask import request
from package_app import app

from flask_uwsgi_websocket import Member, Room, WebSocketBlueprint

app.config["WEBSOCKET_BROKER"] = os.environ["BROKER"]

benchmark = WebSocketBlueprint("resume", __name__)
kept = benchmark.rooms("kept", history=100)["room"]
plain = benchmark.rooms("plain")["room"]
rooms = benchmark.rooms("attended", presence=True)
attended = rooms["room"]
announced = 0


@rooms.on_join
def count(room: Room, member: Member) -> None:
    global announced
    announced += 1


@benchmark.websocket("/resume")
def resume(ws: Any) -> None:
    """Send what was published after ``since``, or the position."""
    kept.join(ws, since=request.args.get("since"), snapshot=ws.send)
    for _ in ws:
        pass


@benchmark.websocket("/plain")
def join(ws: Any) -> None:
    plain.join(ws)
    for _ in ws:
        pass


@benchmark.websocket("/attend")
def attend(ws: Any) -> None:
    attended.join(ws)
    for _ in ws:
        pass


@benchmark.get("/publish")
def publish() -> str:
    """Publish some messages, of which each is a JSON object with its position."""
    for number in range(int(request.args["count"])):
        kept.publish_json({"number": number, "text": "x" * 100}, stamp="id")
    return ""


@benchmark.get("/attendance")
def attendance() -> dict[str, int]:
    return {"members": attended.count(), "announced": announced}


app.register_blueprint(benchmark, name="resume")
