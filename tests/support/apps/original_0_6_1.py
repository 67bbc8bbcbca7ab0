"""The programs on version 0.6.1 itself, with what it lacks for Flask 2.1 and Python 3.11.

Werkzeug has to know which rules are for WebSockets, ``asyncio.coroutine`` has moved, and blueprints do more than add
their rules.
"""

import asyncio
import types

asyncio.coroutine = types.coroutine
asyncio.iscoroutinefunction = lambda function: True

from werkzeug.routing import Rule  # noqa: E402

import flask_uwsgi_websocket  # noqa: E402
from flask_uwsgi_websocket import websocket  # noqa: E402

assert flask_uwsgi_websocket.__version__ == "0.6.1", flask_uwsgi_websocket.__file__


def register_blueprint(self, blueprint, **options):
    state = blueprint.make_setup_state(self, options)
    for function in blueprint.deferred_functions:
        function(state)


def make_rule(rule, provide_automatic_options=False, **options):
    return Rule(rule, **options, websocket=True)


websocket.Rule = make_rule
websocket.WebSocket.register_blueprint = register_blueprint

from programs_0_6_1 import app  # noqa: E402, F401
