"""The tests of flask-sock 0.7.0, on the drop-in.

They are from ``tests/test_flask_sock.py`` of its source distribution: copyright 2021 Miguel Grinberg, MIT licence.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import unittest
from typing import Any

import flask_sock as original
from flask import Blueprint, Flask

from flask_uwsgi_websocket import compat as flask_sock


class FlaskSockTestCase(unittest.TestCase):
    def test_create_direct(self) -> None:
        app = Flask(__name__, static_folder=None)
        sock = flask_sock.Sock(app)

        @sock.route("/ws")
        def ws(ws: Any) -> None:
            pass

        assert sock.app == app
        assert sock.bp is None
        assert app.url_map._rules[0].rule == "/ws"
        assert app.url_map._rules[0].websocket is True

    def test_create_indirect(self) -> None:
        app = Flask(__name__, static_folder=None)
        sock = flask_sock.Sock()

        @sock.route("/ws")
        def ws(ws: Any) -> None:
            pass

        assert sock.app is None
        assert sock.bp is not None

        sock.init_app(app)

        assert sock.app is not None
        assert sock.bp is not None
        assert app.url_map._rules[0].rule == "/ws"
        assert app.url_map._rules[0].websocket is True

    def test_create_blueprint(self) -> None:
        app = Flask(__name__, static_folder=None)
        bp = Blueprint("bp", __name__)

        sock = flask_sock.Sock()

        @sock.route("/ws", bp=bp)
        def ws(ws: Any) -> None:
            pass

        assert sock.app is None
        assert sock.bp is None

        sock.init_app(app)
        app.register_blueprint(bp, url_prefix="/bp")

        assert sock.app is not None
        assert sock.bp is None

        @sock.route("/ws")
        def ws2(ws: Any) -> None:
            pass

        assert app.url_map._rules[0].rule == "/bp/ws"
        assert app.url_map._rules[0].websocket is True
        assert app.url_map._rules[1].rule == "/ws"
        assert app.url_map._rules[1].websocket is True


def test_these_are_the_tests_of_the_newest_flask_sock() -> None:
    assert importlib.metadata.version("flask-sock") == "0.7.0"


def test_the_calls_of_flask_sock_have_the_same_parameters() -> None:
    for name in ("__init__", "init_app", "route"):
        theirs = inspect.signature(getattr(original.Sock, name)).parameters
        assert [*inspect.signature(getattr(flask_sock.Sock, name)).parameters] == [*theirs]
    for name in ("send", "receive", "close"):
        theirs = inspect.signature(getattr(original.Server, name)).parameters
        assert [*inspect.signature(getattr(flask_sock.Server, name)).parameters] == [*theirs]
