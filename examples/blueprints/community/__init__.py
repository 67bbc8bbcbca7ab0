"""The application factory: extensions, then one blueprint for each part of the site."""

from pathlib import Path
from typing import Any

from flask import Flask, redirect, url_for
from werkzeug.wrappers import Response

from . import protection
from .accounts import accounts
from .chat import chat
from .chat.models import open_first_room
from .extensions import db, login_manager, websocket


def create_app(**config: Any) -> Flask:
    """Make the application.

    :param config: configuration for this app. It overrides environment variables such as ``COMMUNITY_SECRET_KEY``.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        SESSION_COOKIE_SAMESITE="Lax",
        SQLALCHEMY_DATABASE_URI="sqlite:///community.sqlite",  # in the directory "instance"
        MAX_CONTENT_LENGTH=2**16,
    )
    app.config.from_prefixed_env("COMMUNITY")
    app.config.update(config)
    if app.config["SECRET_KEY"] is None:
        app.config["SECRET_KEY"] = protection.secret_key(Path(app.instance_path))

    db.init_app(app)
    login_manager.init_app(app)
    websocket.init_app(app)
    protection.init_app(app)

    app.register_blueprint(accounts)
    app.register_blueprint(chat)  # and conversation, which is nested in it

    with app.app_context():
        db.create_all()
        open_first_room()
        db.engine.dispose()  # uWSGI forks next, and a fork must not share a database connection

    @app.get("/")
    def index() -> Response:
        return redirect(url_for("chat.rooms"))

    return app
