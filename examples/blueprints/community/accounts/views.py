"""The pages of accounts. This plain blueprint has no WebSockets, but closes those of a user who logs out."""

import re

from flask import Blueprint, Flask, abort, flash, redirect, render_template, request, session, url_for
from flask_login import current_user, login_required, login_user, logout_user
from sqlalchemy.exc import IntegrityError
from werkzeug.wrappers import Response

from flask_uwsgi_websocket import WebSocketClient

from ..extensions import db, login_manager, websocket
from .models import User

accounts = Blueprint("accounts", __name__, template_folder="templates")


@accounts.get("/login")
def login() -> str:
    return render_template("accounts/login.html")


@accounts.post("/login")
def log_in() -> Response | tuple[str, int]:
    user = db.session.scalar(db.select(User).filter_by(name=request.form["name"].strip()))
    if user is None or not user.has_password(request.form["password"]):
        flash("There is no such name with this password.")
        return render_template("accounts/login.html"), 403
    return begin_session(user)


@accounts.get("/signup")
def signup() -> str:
    return render_template("accounts/signup.html")


@accounts.post("/signup")
def sign_up() -> Response | tuple[str, int]:
    user = User(name=request.form["name"].strip())
    user.set_password(request.form["password"])
    if not re.fullmatch(r"[\w.-]{1,32}", user.name):
        flash("A name has up to 32 letters, digits, dots, - and _.")
    elif len(request.form["password"]) < 8:
        flash("A password has at least 8 characters.")
    else:
        db.session.add(user)
        try:
            db.session.commit()
        except IntegrityError:
            db.session.rollback()
            flash("This name is taken.")
        else:
            return begin_session(user)
    return render_template("accounts/signup.html"), 400


def begin_session(user: User) -> Response:
    session.clear()  # somebody else may know the session from before the login
    login_user(user)
    room = request.args.get("room")
    return redirect(url_for("chat.conversation.room", room=room) if room else url_for("chat.rooms"))


@accounts.post("/logout")
@login_required
def log_out() -> Response:
    """End all sessions of the user and close their WebSockets, which would not notice the logout."""
    everywhere = websocket.user(current_user.id)
    current_user.log_out_everywhere()
    db.session.commit()
    logout_user()
    session.clear()
    everywhere.close(4401, "logged out")
    return redirect(url_for("accounts.login"))


@login_manager.unauthorized_handler
def unauthorized() -> Response:
    """Answer for ``@login_required``. A page redirects to the login and back; a WebSocket cannot be redirected."""
    if request.url_rule is not None and request.url_rule.websocket:
        abort(401)
    return redirect(url_for("accounts.login", room=(request.view_args or {}).get("room")))


@websocket.user_id
def user_id() -> int | None:
    """Return whose WebSocket this is, so that ``websocket.user()`` has all of the user's WebSockets."""
    return current_user.id if current_user.is_authenticated else None


@websocket.on_connect
def check_login(app: Flask, ws: WebSocketClient, **extra: object) -> None:
    """Close a WebSocket whose user has logged out during the handshake, before it was one of the user's."""
    if ws.user_id is None:
        return
    with ws.message_context():  # looks current_user up again
        is_still_logged_in = current_user.is_authenticated
    if not is_still_logged_in:
        ws.close(4401, "logged out", wait=False)
