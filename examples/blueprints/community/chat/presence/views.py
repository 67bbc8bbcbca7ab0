"""A WebSocket that reports who is in a room. A connected user is present."""

from flask import Flask, request
from flask_login import current_user, login_required

from flask_uwsgi_websocket import WebSocketBlueprint, WebSocketClient

from .models import begin_stay, end_lost_stays, end_stay, people_in, renew_stay

presence = WebSocketBlueprint("presence", __name__, url_prefix="/<string(maxlength=32):room>/presence")

#: The WebSockets that watch each room, in all workers.
watchers = presence.rooms()


@presence.websocket("/")
@login_required
def watch(ws: WebSocketClient, room: str) -> None:
    """Make the user present in a room while the WebSocket is open, and report who else is there."""
    watchers[room].join(ws)  # before tell(), which is for this client, too
    with ws.message_context():
        begin_stay(ws.id, room, current_user.id)
    tell(ws, room)
    for _ in ws:  # until it closes: the client sends nothing
        pass


@presence.on_pong
def answered(app: Flask, ws: WebSocketClient, **extra: object) -> None:
    """Note that the window is still open, and look for those whose worker was killed."""
    room = request.view_args["room"]
    with ws.message_context():
        is_open, are_some_lost = renew_stay(ws.id), end_lost_stays(room)
    if are_some_lost:
        tell(ws, room)
    if not is_open:  # it was taken for lost, for example while the server was suspended
        ws.close(1013, "connect again", wait=False)


@presence.on_close
def left(app: Flask, ws: WebSocketClient, **extra: object) -> None:
    with ws.message_context():
        end_stay(ws.id)
    tell(ws, request.view_args["room"])


def tell(ws: WebSocketClient, room: str) -> None:
    """Send the list of people to all in a room."""
    with ws.message_context():
        people = people_in(room)
    watchers[room].publish_json({"type": "people", **people})
