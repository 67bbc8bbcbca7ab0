"""The page of a room and the WebSocket of each page, in one blueprint."""

import json
import os
from functools import partial
from typing import ClassVar

from flask import abort, render_template, request
from flask_login import current_user, login_required

from flask_uwsgi_websocket import Member, WebSocketBlueprint, WebSocketClient, WebSocketView
from flask_uwsgi_websocket import Room as JoinedRoom

from ...extensions import db
from ..models import Room
from .models import last_messages, last_visits, store_message, store_visit

conversation = WebSocketBlueprint("conversation", __name__, url_prefix="/<string(maxlength=32):room>")

MAX_LENGTH = 2000  # characters of a message

#: The WebSockets in each room, in all workers. For five minutes, a page that has lost its connection gets what it has
#: missed. members() are the users who are there.
conversations = conversation.rooms(history=200, history_ttl=300, presence=True)


@conversations.before_join
def check_exists(joined: JoinedRoom, ws: WebSocketClient) -> None:
    """Answer with 404 for a room that nobody has opened: join() comes before the handshake."""
    db.get_or_404(Room, request.view_args["room"])


@conversation.get("")
@login_required
def room(room: str) -> str:
    db.get_or_404(Room, room)
    return render_template("chat/room.html", room=room, max_length=MAX_LENGTH)


class Talk(WebSocketView):
    """A window that takes part in the conversation of a room. While it waits, it needs no greenlet."""

    decorators: ClassVar = [login_required]

    def on_connect(self, ws: WebSocketClient, room: str) -> None:
        self.room = room
        # A page that comes back names the last position that it has. It gets what came after it, or the state.
        since = request.args.get("since")
        info = {"name": current_user.name}
        conversations[room].join(ws, since=since, snapshot=partial(send_state, ws, room), info=info)
        ws.send_json({"type": "ready", "process": os.getpid()})

    def on_message(self, ws: WebSocketClient, message: str | bytes) -> None:
        if not current_user.is_authenticated:  # looked up for each message, as the user may have logged out
            abort(401)  # after the handshake, this closes with 4401
        try:
            text = text_of(message)
        except ValueError as error:
            ws.send_json({"type": "error", "text": str(error)})
        else:
            stored = store_message(self.room, current_user.id, text)
            conversations[self.room].publish_json({"type": "message", **stored}, stamp="position")


conversation.add_websocket_rule("", handler=Talk.as_view("talk"), max_message_size=2**14)  # the page's URL, with ws:


def send_state(ws: WebSocketClient, room: str, position: str) -> None:
    """Send the state of the room to a page that has none, or was away for too long."""
    with ws.message_context():  # holds no database connection while it sends
        state = {"messages": last_messages(room), "earlier": last_visits(room)}
    here = {member.info["name"]: member.since for member in conversations[room].members()}
    ws.send_json({"type": "state", "position": position, "here": here, **state})


def text_of(message: str | bytes) -> str:
    """Return the text in a client's message, which may contain anything.

    :raises ValueError: when the message is not one that our page sends.
    """
    try:
        value = json.loads(message)
        text = value["text"].strip()
        text.encode()  # "\ud800" is valid JSON, but not text
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise ValueError('A message is JSON such as {"text": "hello"}.') from None
    if not 0 < len(text) <= MAX_LENGTH:
        raise ValueError(f"A message has 1 to {MAX_LENGTH} characters.")
    return text


@conversations.on_join
def came(joined: JoinedRoom, member: Member) -> None:
    """Publish that a user has come: once, whatever the number of the user's windows and of our workers."""
    event = {"type": "came", "name": member.info["name"], "since": member.since}
    joined.publish_json(event, stamp="position")


@conversations.on_leave
def left(joined: JoinedRoom, member: Member) -> None:
    """Publish that a user is gone: all windows were closed or lost, and none has come back within ten seconds."""
    at = store_visit(joined.local_name, int(member.user_id))
    # "since" tells one stay from another: the user may have come back meanwhile.
    event = {"type": "left", "name": member.info["name"], "since": member.since, "at": at}
    joined.publish_json(event, stamp="position")


def names_in(room: str) -> list[str]:
    """Return the names of the users who are in a room."""
    return sorted(member.info["name"] for member in conversations[room].members())
