"""The examples of 0.6.1, with unchanged handlers. Only their URLs differ, because they share one app here.

https://github.com/zeekay/flask-uwsgi-websocket/tree/master/examples, and the first example of its README.
"""

from collections import deque
from types import coroutine  # the examples import it from asyncio, which lacks it since Python 3.11

from flask import Blueprint
from live_app import IS_ASYNCIO, app, websocket

import legacy_chatty
from legacy_chatty import Users

app.config["WEBSOCKET_TEXT_AS_BYTES"] = True
ws = Blueprint("legacy", __name__, url_prefix="/legacy")

users = Users()
backlog = deque(maxlen=10)


if IS_ASYNCIO:
    # examples/echo-asyncio
    @ws.route('/echo')
    @coroutine
    def echo(ws):
        while True:
            msg = yield from ws.receive()
            if msg is not None:
                yield from ws.send(msg)
            else: return

    # examples/chat-asyncio
    @ws.route('/chat')
    @coroutine
    def chat(ws):
        users[ws.id] = ws

        for msg in backlog:
            yield from ws.send(msg)

        while True:
            msg = yield from ws.receive()
            if msg is not None:
                backlog.append(msg)
                for id in users:
                    if id != ws.id:
                        yield from users[id].send(msg)
            else:
                break

        del users[ws.id]

else:
    # README.rst
    @ws.route('/readme')
    def readme(ws):
        while True:
            msg = ws.receive()
            ws.send(msg)

    # examples/echo
    @ws.route('/echo')
    def echo(ws):
        while True:
            msg = ws.receive()
            if not msg: return
            ws.send(msg)

    # examples/echo-gevent
    @ws.route('/echo-gevent')
    def echo_gevent(ws):
        while True:
            msg = ws.receive()
            if msg is not None:
                ws.send(msg)
            else: return

    # examples/chat-gevent
    @ws.route('/chat')
    def chat(ws):
        users[ws.id] = ws

        for msg in backlog:
            ws.send(msg)

        while True:
            msg = ws.receive()
            if msg is not None:
                backlog.append(msg)
                for id in users:
                    if id != ws.id:
                        users[id].send(msg)
            else:
                break

        del users[ws.id]


websocket.register_blueprint(ws)
if not IS_ASYNCIO:
    websocket.register_blueprint(legacy_chatty.ws)
