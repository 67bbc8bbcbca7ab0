"""The pages of the rooms and the WebSocket of each page, in one blueprint."""

import json
import os
import re

from flask import abort, flash, redirect, render_template, request, url_for
from flask_login import current_user, login_required
from sqlalchemy.exc import IntegrityError
from werkzeug.wrappers import Response

from flask_uwsgi_websocket import Room as JoinedRoom
from flask_uwsgi_websocket import WebSocketBlueprint, WebSocketClient

from ..extensions import db
from .models import Room, last_messages, store_message
from .presence import people_by_room, presence, watchers

chat = WebSocketBlueprint("chat", __name__, url_prefix="/rooms", template_folder="templates", static_folder="static")
chat.register_blueprint(presence)

MAX_LENGTH = 2000  # characters of a message

#: The WebSockets in each room, in all workers.
conversations = chat.rooms()


@conversations.before_join
@watchers.before_join
def check_exists(joined: JoinedRoom, ws: WebSocketClient) -> None:
    """Answer with 404 for a room that nobody has opened: join() comes before the handshake."""
    db.get_or_404(Room, request.view_args["room"])


@chat.get("/")
@login_required
def rooms() -> str:
    people = people_by_room()
    names = db.session.scalars(db.select(Room.name).order_by(Room.name))
    return render_template("chat/rooms.html", rooms={name: people.get(name, []) for name in names})


@chat.post("/")
@login_required
def open_room() -> Response:
    name = request.form["name"].strip()
    if not re.fullmatch(r"[\w -]{1,32}", name):
        flash("The name of a room has up to 32 letters, digits, spaces, - and _.")
        return redirect(url_for(".rooms"))
    db.session.add(Room(name=name))
    try:
        db.session.commit()
    except IntegrityError:  # the room exists already, which is fine
        db.session.rollback()
    return redirect(url_for(".room", room=name))


@chat.get("/<string(maxlength=32):room>")
@login_required
def room(room: str) -> str:
    db.get_or_404(Room, room)
    return render_template("chat/room.html", room=room, max_length=MAX_LENGTH)


@chat.websocket("/<string(maxlength=32):room>", max_message_size=2**14)  # the page's URL, with ws: for http:
@login_required
def talk(ws: WebSocketClient, room: str) -> None:
    """Take part in the conversation of a room."""
    conversation = conversations[room]
    conversation.join(ws)  # before last_messages(): the client may get a message twice, but misses none
    with ws.message_context():
        messages = last_messages(room)
    ws.send_json({"type": "messages", "messages": messages, "worker": os.getpid()})
    for message in ws.messages():  # between messages, the handler holds no database connection
        if not current_user.is_authenticated:  # looked up for each message, as the user may have logged out
            abort(401)  # after the handshake, this closes with 4401
        try:
            text = text_of(message)
        except ValueError as error:
            ws.send_json({"type": "error", "text": str(error)})
        else:
            stored = store_message(room, current_user.id, text)
            conversation.publish_json({"type": "messages", "messages": [stored]})


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
