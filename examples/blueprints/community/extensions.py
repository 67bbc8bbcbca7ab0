"""The extensions, made without an app, so that every module can import them."""

from flask import Response
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase

from flask_uwsgi_websocket import GeventWebSocket


class Model(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Model)
login_manager = LoginManager()
websocket = GeventWebSocket()


@websocket.after_websocket
def release_database(response: Response) -> Response:
    """Give back the database connection that the checks before the handshake have used.

    After the handshake, ``on_connect()`` may wait for a slow window, to which it sends what the window has missed. On
    servers other than uWSGI, the context of the request even lasts as long as the WebSocket. So from here on, views use
    the database in short contexts: those of ``on_message()`` and of ``with ws.message_context():``.
    """
    db.session.remove()
    return response
