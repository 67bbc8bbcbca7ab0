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

    The context of a WebSocket lasts as long as the WebSocket, perhaps for hours. After the handshake, handlers use the
    database in short contexts: those of ``ws.messages()`` and of ``with ws.message_context():``. Objects that were
    looked up before, such as ``current_user``, stay as they were.
    """
    db.session.remove()
    return response
