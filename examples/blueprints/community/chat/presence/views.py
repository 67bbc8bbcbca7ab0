"""A WebSocket that reports who is in a room. A connected user is present, so the listeners below do all the work."""

from flask import Flask, request
from flask_login import current_user, login_required

from flask_uwsgi_websocket import WebSocketBlueprint, WebSocketClient

from ...extensions import db
from ...groups import Groups
from ..models import Room
from .models import last_visits, store_visit

presence = WebSocketBlueprint("presence", __name__, url_prefix="/<room>/presence")

#: The WebSockets that watch each room, by the name of the room. Their labels are the names of the users.
sockets = Groups()


def people_in(room: str) -> list[str]:
    return sockets.labels(room)


@presence.websocket("/")
@login_required
def watch(ws: WebSocketClient, room: str) -> None:
    """Make the user present in a room, and report who else is there."""
    db.get_or_404(Room, room)
    for _ in ws:  # until it closes: the client sends nothing
        pass


@presence.on_connect
def arrived(app: Flask, ws: WebSocketClient, **extra: object) -> None:
    room = request.view_args["room"]
    sockets.add(room, ws, current_user.name)
    tell(ws, room)


@presence.on_close
def left(app: Flask, ws: WebSocketClient, **extra: object) -> None:
    room, user_id = request.view_args["room"], current_user.id  # the user of the handshake
    sockets.discard(room, ws)
    with ws.message_context():  # current_user is looked up again, and anonymous after a logout
        store_visit(room, user_id)
    tell(ws, room)


def tell(ws: WebSocketClient, room: str) -> None:
    """Send the list of people to all in a room."""
    with ws.message_context():
        visits = last_visits(room)
    here = people_in(room)
    earlier = [{"name": name, "at": at} for name, at in visits if name not in here]
    sockets.send(room, type="people", here=here, earlier=earlier)
