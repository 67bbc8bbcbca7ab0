"""Programs in the style of applications that were written for 0.6.1. They run on 0.6.1 and on the setting for it.

``PROGRAMS`` names the extension. ``/seen/<name>`` returns what the handlers of a program have noted.
"""

import os
import queue
import threading
import time
from collections import defaultdict, deque
from functools import wraps
from types import coroutine

from flask import Blueprint, Flask, jsonify, request

import flask_uwsgi_websocket

MODE = os.environ["PROGRAMS"]

app = Flask(__name__)
app.config["WEBSOCKET_COMPATIBILITY"] = "0.6.1"
websocket = getattr(flask_uwsgi_websocket, MODE)(app)

seen = defaultdict(list)


@app.route("/")
def index():
    return "index"


@app.route("/seen/<name>")
def what_was_seen(name):
    return jsonify(seen[name])


def noting(function):
    """Note the end of a handler, or the exception that ends it."""

    @wraps(function)
    def handler(ws, **kwargs):
        try:
            function(ws, **kwargs)
            seen[function.__name__].append("returned")
        except BaseException as error:
            seen[function.__name__].append("OSError" if isinstance(error, OSError) else type(error).__name__)
            raise

    return handler


# Handlers of the examples and the README


users = {}
backlog = deque(maxlen=10)

if MODE != "AsyncioWebSocket":

    @websocket.route("/readme")
    def readme(ws):
        while True:
            msg = ws.receive()
            ws.send(msg)

    @websocket.route("/echo")
    def echo(ws):
        while True:
            msg = ws.receive()
            if not msg:
                return
            ws.send(msg)

    @websocket.route("/types")
    @noting
    def types(ws):
        for _ in range(3):
            msg = ws.receive()
            while MODE == "GeventWebSocket" and not msg and msg is not None:
                msg = ws.receive()
            seen["types"].append([type(msg).__name__, msg.decode() if msg is not None else None])
        ws.send("text")
        ws.send(b"bytes")
        ws.send("é", True)
        ws.send(b"told", binary=False)
        ws.send_binary(b"binary")

    @websocket.route("/identity")
    def identity(ws):
        ws.send(str(len(ws.id)))
        ws.send("{} {} {}".format(ws.timeout, ws.connected, ws.environ["PATH_INFO"]))
        with app.request_context(ws.environ):
            ws.send(request.args["name"])

    @websocket.route("/closes")
    @noting
    def closes(ws):
        ws.send("bye")
        ws.close()
        seen["closes"].append(ws.connected)

    @websocket.route("/page")
    def page(ws):
        ws.send("the WebSocket of a page")

    @app.route("/page")
    def index_of_page():
        return "a page"

    @websocket.route("/after-the-end")
    @noting
    def after_the_end(ws):
        message = ws.receive()
        while message is not None:
            seen["after-the-end"].append(message.decode())
            message = ws.receive()
        seen["after-the-end"].append("None")
        try:
            ws.send("late")
            seen["after-the-end"].append("sent")
        except OSError:
            seen["after-the-end"].append("OSError")
        seen["after-the-end"].append("cleaned up")


if MODE == "WebSocket":

    @websocket.route("/again-and-again")
    @noting
    def again_and_again(ws):
        for _ in range(3):
            seen["again_and_again"].append(repr(ws.receive()))

    @websocket.route("/polls")
    @noting
    def polls(ws):
        polled = ws.recv_nb()
        seen["polls"].append(repr(polled))
        ws.send("polling")
        while not polled:
            time.sleep(0.01)
            polled = ws.recv_nb()
        seen["polls"].append(repr(polled))

    @websocket.route("/streams")
    @noting
    def streams(ws):
        ws.send("begins")
        try:
            while True:
                ws.send("tick")
                time.sleep(0.02)
        except OSError:
            seen["streams"].append("OSError")


if MODE == "GeventWebSocket":
    import gevent
    import gevent.monkey
    import gevent.queue

    @websocket.route("/echo-gevent")
    def echo_gevent(ws):
        while True:
            msg = ws.receive()
            if msg is not None:
                ws.send(msg)
            else:
                return

    @websocket.route("/chat")
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

    chatters = {}

    @websocket.route("/chatty")
    def sender(ws):
        chatters[ws.id] = ws
        while True:
            for id in list(chatters):
                if id != ws.id:
                    chatters[id].send("hi")
            gevent.sleep(0.05)

    @websocket.route("/ticks")
    @noting
    def ticks(ws):
        ws.timeout = 0.5
        while True:
            msg = ws.receive()
            seen["ticks"].append(repr(msg))
            if msg is None:
                return
            ws.send(msg or b"tick")

    work = gevent.queue.Queue()

    @websocket.route("/queue")
    @noting
    def queue_between_messages(ws):
        while True:
            msg = ws.receive()
            if msg is None:
                return
            if msg:
                work.put(msg.upper())
            while not work.empty():
                ws.send(work.get())

    @app.route("/put/<item>")
    def put(item):
        work.put(item.encode())
        return "put"

    @websocket.route("/auth")
    @noting
    def auth(ws):
        token = ws.receive()
        if token != b"secret":
            ws.send("refused")
            return
        ws.send("welcome")
        ws.receive()  # the empty message that comes after every message
        command = ws.receive()
        ws.send(b"command " + command)

    registered = []

    @websocket.route("/registered")
    def register_and_sleep(ws):
        registered.append(ws)
        while True:
            gevent.sleep(0.1)

    @app.route("/push/<text>")
    def push(text):
        for ws in registered:
            ws.send(text)
        return str(len(registered))

    @websocket.route("/timeout")
    @noting
    def timeout(ws):
        while True:
            message = b""
            with gevent.Timeout(1, False):
                message = ws.receive()
                while message == b"":
                    message = ws.receive()
            if message is None:
                return
            ws.send(message or "nothing yet")

    listeners = []
    channel = gevent.queue.Queue()

    def listen():
        for item in channel:
            for ws in listeners:
                ws.send(item)

    gevent.spawn(listen)  # as a greenlet that listens to Redis does, at import

    @websocket.route("/listener")
    @noting
    def listener(ws):
        listeners.append(ws)
        while ws.connected:
            ws.receive()
        listeners.remove(ws)

    @app.route("/publish/<text>")
    def publish(text):
        channel.put(text)
        return "published"

    @app.route("/patched")
    def patched():
        return str(gevent.monkey.is_module_patched("socket"))

    jobs = queue.Queue()

    def work_off():
        while True:
            text = jobs.get()
            for ws in listeners:
                ws.send("from a thread: " + text)

    threading.Thread(target=work_off, daemon=True).start()

    @app.route("/jobs/<text>")
    def add_job(text):
        jobs.put(text)
        return "added"

    if os.environ.get("PROGRAMS_REDIS"):
        import redis

        store = redis.Redis.from_url(os.environ["PROGRAMS_REDIS"])
        subscribers = []

        def listen_to_redis():
            pubsub = store.pubsub()
            pubsub.subscribe("news")
            for item in pubsub.listen():
                if item["type"] == "message":
                    for ws in list(subscribers):
                        ws.send(item["data"])

        gevent.spawn(listen_to_redis)

        @websocket.route("/news")
        @noting
        def news(ws):
            subscribers.append(ws)
            while True:
                msg = ws.receive()
                if msg is None:
                    break
                if msg:
                    store.publish("news", msg)
            subscribers.remove(ws)

    crowd = []

    @websocket.route("/flood")
    @noting
    def flood(ws):
        crowd.append(ws)
        while True:
            msg = ws.receive()
            if msg is None:
                break
            if msg:
                for other in crowd:
                    other.send(b"x" * 2**16)
                ws.send("sent")
        crowd.remove(ws)

    @websocket.route("/burst")
    @noting
    def burst(ws):
        for _ in range(256):
            ws.send("y" * 2**16)
        ws.send("done")
        ws.receive()

    @websocket.route("/sends-to-the-dead")
    @noting
    def sends_to_the_dead(ws):
        registered_before = list(registered)
        for other in registered_before:
            other.send("anybody there?")
        ws.send("still here")


if MODE == "AsyncioWebSocket":
    import asyncio

    @websocket.route("/echo")
    @coroutine
    def echo(ws):
        while True:
            msg = yield from ws.receive()
            if msg is not None:
                yield from ws.send(msg)
            else:
                return

    @websocket.route("/chat")
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

    @websocket.route("/ends")
    @coroutine
    def ends(ws):
        yield from ws.send(repr(ws.recv_nb()))
        while True:
            message = yield from ws.a_recv()
            seen["ends"].append(repr(message))
            if message is None:
                break
        seen["ends"].append(repr((yield from ws.recv())))
        seen["ends"].append(repr(ws.recv_nb()))
        yield from ws.a_send("late")
        try:
            ws.send_nb("late")
        except ConnectionError:
            seen["ends"].append("ConnectionError")
        seen["ends"].append("cleaned up")

    @websocket.route("/closes")
    @coroutine
    def closes(ws):
        yield from ws.send("bye")
        yield from asyncio.sleep(0.3)
        ws.close()
        seen["closes"].append(repr((yield from ws.receive())))
        seen["closes"].append(ws.connected)


blueprint = Blueprint("blueprint", __name__, url_prefix="/blueprint")


if MODE != "AsyncioWebSocket":

    @blueprint.route("/hello/<name>")
    def hello(ws, name):
        ws.send("hello " + name)

    websocket.register_blueprint(blueprint)
