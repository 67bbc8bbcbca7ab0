"""The page with all rooms. What happens in a room is a blueprint nested in this one."""

import re

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask_login import login_required
from sqlalchemy.exc import IntegrityError
from werkzeug.wrappers import Response

from ..extensions import db
from .conversation import conversation, names_in
from .models import Room

chat = Blueprint("chat", __name__, url_prefix="/rooms", template_folder="templates", static_folder="static")
chat.register_blueprint(conversation)


@chat.get("/")
@login_required
def rooms() -> str:
    names = db.session.scalars(db.select(Room.name).order_by(Room.name))
    return render_template("chat/rooms.html", rooms={name: names_in(name) for name in names})


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
    return redirect(url_for(".conversation.room", room=name))
