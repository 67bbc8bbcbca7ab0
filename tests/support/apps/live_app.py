"""The application of the live tests, which uWSGI or another server runs.

``LIVE_CLASS`` names the extension, and ``LIVE_SLEEP`` the module whose ``sleep()`` lets other connections run. Each
worker appends its events to the file ``LIVE_JOURNAL``, one JSON object in a line. The tests wait for these events.
"""

import importlib
import json
import os
import resource
import socket
import sys
import threading
from collections import defaultdict
from contextlib import suppress
from functools import wraps

from flask import Blueprint, Flask, abort, g, request, session
from flask.helpers import get_debug_flag
from werkzeug.serving import is_running_from_reloader

import flask_uwsgi_websocket
from flask_uwsgi_websocket import ConnectionClosed, WebSocketClient, uwsgi
from flask_uwsgi_websocket.servers import gunicorn
from flask_uwsgi_websocket.worker import housekeeper

housekeeper.INTERVAL = gunicorn.CHECK_INTERVAL = 0.1  # ten times as often as usual, so that the tests wait less

MODULE = importlib.import_module(os.environ["LIVE_SLEEP"])
IS_ASYNCIO = os.environ["LIVE_CLASS"] == "AsyncioWebSocket"
CALLS = {"accept", "receive", "recv", "send", "send_binary", "ping", "close", "send_json", "receive_json"}
CALLS |= {"send_from_sharedarea", "send_binary_from_sharedarea"}

_journal = os.open(os.environ["LIVE_JOURNAL"], os.O_WRONLY | os.O_APPEND)


class Deliberate(Exception):
    """The exception that handlers raise on purpose. Any other traceback in the log is a failure."""


def journal(event, **fields):
    fields.update(event=event, pid=os.getpid())
    os.write(_journal, json.dumps(fields).encode() + b"\n")


# The coverage of a worker is measured from its start, and saved when the tests ask for it.

measurement = None


def start_worker():
    global measurement
    if os.environ["LIVE_COVERAGE"]:
        import coverage

        measurement = coverage.Coverage(config_file=os.environ["LIVE_COVERAGE"], data_suffix=True)
        measurement.start()
    journal("worker")


if uwsgi is None:
    if is_running_from_reloader() or not get_debug_flag():  # otherwise the reloader starts the process that serves
        start_worker()
elif uwsgi.worker_id() > 0:  # with --lazy-apps, this runs after the fork
    start_worker()
else:
    uwsgi.post_fork_hook = lambda: uwsgi.worker_id() and start_worker()  # mules are forked, too

app = Flask(__name__)
app.secret_key = "live"
websocket = getattr(flask_uwsgi_websocket, os.environ["LIVE_CLASS"])(ping_interval=None)
websocket.init_app(app)


class Awaitable:
    """A blocking client with the calls of the asyncio client, so that each handler is written only once."""

    def __init__(self, ws):
        self._ws = ws

    def __getattr__(self, name):
        value = getattr(self._ws, name)
        if name not in CALLS:
            return value

        async def call(*args, **kwargs):
            return value(*args, **kwargs)

        return call

    async def __aiter__(self):
        for message in self._ws:
            yield message

    async def messages(self):
        for message in self._ws.messages():
            yield message


def run(coroutine):
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the coroutine has suspended")


def for_mode(function):
    """Return a coroutine function in the form for this mode: a handler, a hook, or a receiver of a signal."""
    if IS_ASYNCIO:
        return function

    def awaitable(value):
        return Awaitable(value) if isinstance(value, WebSocketClient) else value

    @wraps(function)
    def blocking(*args, **kwargs):
        return run(function(*map(awaitable, args), **{key: awaitable(value) for key, value in kwargs.items()}))

    del blocking.__wrapped__  # otherwise the extension would take it for a coroutine function
    return blocking


async def sleep(seconds):
    if IS_ASYNCIO:
        await MODULE.sleep(seconds)
    else:
        MODULE.sleep(seconds)


def followed(coroutine):
    """Return a handler for this mode that writes its events to the journal."""

    @wraps(coroutine)
    async def follow(ws, **kwargs):
        token = request.args.get("token")
        journal("start", token=token)
        outcome = None
        try:
            return await coroutine(ws, **kwargs)
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            journal("end", token=token, outcome=outcome, code=ws.close_code, reason=ws.close_reason)

    return for_mode(follow)


def handler(rule, **options):
    """Declare the handler of a URL, in any mode. It writes its events to the journal."""

    def decorator(coroutine):
        websocket.add_url_rule(rule, rule, followed(coroutine), **options)
        return coroutine

    return decorator


# A request that arrives when no more files can be opened


@app.before_request
def use_up_descriptors():
    if request.path == "/starve":
        g.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, g.limits[1]))  # the standard streams take all three


@app.teardown_request
def give_back_descriptors(error):
    if "limits" in g:
        resource.setrlimit(resource.RLIMIT_NOFILE, g.limits)


@handler("/starve")
async def starve(ws):
    await ws.send("there is still a descriptor")


# Echoes, written in the ways of applications


if IS_ASYNCIO:

    @websocket.route("/echo")
    async def echo(ws):
        async for message in ws:
            await ws.send(message)

    @websocket.route("/old")
    async def old(ws):
        while True:
            message = await ws.a_recv()
            if message is None:
                return
            await ws.a_send(message)

else:

    @websocket.route("/echo")
    def echo(ws):
        for message in ws:
            ws.send(message)

    @websocket.route("/old")
    def old(ws):
        while True:
            message = ws.receive()
            if message is None:
                return
            ws.send(message)


@handler("/echo-subprotocol", subprotocols=["b", "a"])
async def echo_subprotocol(ws):
    await ws.send(str(ws.subprotocol))


@handler("/echo-small", max_message_size=1000)
async def echo_small(ws):
    async for message in ws:
        await ws.send(message)


@handler("/echo-compressed", compression=True)
async def echo_compressed(ws):
    async for message in ws:
        await ws.send(message)


@handler("/latency")
async def latency(ws):
    await ws.ping()
    while ws.latency is None:
        await sleep(0.01)
    await ws.send("answered")


@handler("/delay")
async def delay(ws):
    await ws.accept()
    with socket.socket(fileno=os.dup(ws.fd)) as sock:
        waits = not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await ws.send_json({"family": sock.family.name, "waits": waits})


# Refusals and ends


@handler("/silent")
async def silent(ws):
    """End without a call."""


@handler("/refuse/<int:status>")
async def refuse(ws, status):
    abort(status)


@handler("/answer")
async def answer(ws):
    return "no WebSocket today"


@handler("/raise-before")
async def raise_before(ws):
    raise Deliberate


@handler("/raise")
async def raise_after(ws):
    await ws.accept()
    raise Deliberate


@handler("/abort")
async def abort_after(ws):
    await ws.accept()
    abort(404)


@handler("/close/<int:code>/<reason>", close_timeout=3600)
@handler("/unanswered/<int:code>/<reason>", close_timeout=0.3)
async def close(ws, code, reason):
    await ws.close(code, reason)


# Handlers that receive, that only send, and that only check their connection now and then

PINGED = {"ping_interval": 0.3, "ping_timeout": 0.5}
ANSWERED = {"ping_interval": 0.3, "ping_timeout": 2}  # clients may wait for the processor before they answer


@handler("/receive")
@handler("/pinged/receive", **PINGED)
@handler("/answered/receive", **ANSWERED)
async def receive(ws):
    async for _ in ws:
        pass


@handler("/push")
@handler("/pinged/push", **PINGED)
@handler("/answered/push", **ANSWERED)
async def push(ws):
    while True:
        await ws.send("push")
        await sleep(0.02)


@handler("/watch")
@handler("/pinged/watch", **PINGED)
@handler("/answered/watch", **ANSWERED)
async def watch(ws):
    await ws.accept()
    while ws.connected:
        await sleep(0.02)


@handler("/wait")
@handler("/wait-briefly", handshake_timeout=0.3)
@handler("/wait-early", accept="early")
async def wait(ws):
    """Wait for an event that never comes, and send nothing, not even the handshake."""
    while ws.connected:
        await sleep(0.02)


@handler("/flood", send_buffer=2**20, send_timeout=0.5)
async def flood(ws):
    while True:
        await ws.send(bytes(2**18))


# Several connections


async def pause_and_tell(ws, message):
    await sleep(0.001)
    await ws.send_json(
        {
            "message": message,
            "path": request.path,
            "name": request.view_args["name"],
            "n": request.args["n"],
            "cookie": request.cookies["flavour"],
            "user": session["user"],
            "g": g.name,
            "blueprint": request.blueprint,
        }
    )


if IS_ASYNCIO:

    async def context(ws, name):
        g.name = name
        async for message in ws:
            await pause_and_tell(ws, message)

else:

    def context(ws, name):
        g.name = name
        for message in ws:
            run(pause_and_tell(Awaitable(ws), message))


people = Blueprint("people", __name__)
people.route("/<name>/context")(context)
websocket.register_blueprint(people, url_prefix="/people")


rooms = defaultdict(set)
released = set()


@handler("/room/<name>")
async def room(ws, name):
    """Send each message to everybody in the room."""
    rooms[name].add(ws)
    try:
        await ws.send(str(os.getpid()))
        async for message in ws:
            for member in list(rooms[name]):
                with suppress(ConnectionClosed):  # the member is about to leave
                    await member.send(message)
            if message == "release":
                released.add(name)
    finally:
        rooms[name].discard(ws)


@handler("/late/<name>")
async def late(ws, name):
    """Stay in the room without a call of the client, until a message releases this handler."""
    rooms[name].add(ws)
    journal("in the room", token=request.args["token"])
    try:
        while name not in released:
            await sleep(0.01)
        async for message in ws:
            await ws.send(message)
    finally:
        rooms[name].discard(ws)


previous = []


@handler("/previous")
async def tell_previous(ws):
    """Send the query string of the previous connection: its value then, and its value now, after the end."""
    await ws.send_json([[query, other.environ.get("QUERY_STRING")] for query, other in previous])
    previous[:] = [(ws.environ["QUERY_STRING"], ws)]


@handler("/other-thread")
async def other_thread(ws):
    """Let a thread of the interpreter make the handshake."""

    def send():
        run(ws.send("from another thread"))

    if IS_ASYNCIO:
        await ws.send("from another thread")  # the calls belong to the thread of the loop
    else:
        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
    async for message in ws:
        await ws.send(message)


@handler("/sharedarea")
async def sharedarea(ws):
    """Send the end of the shared memory, because uWSGI reads up to the end."""
    uwsgi.sharedarea_write(0, 4096 - 8, "tür ☃".encode())
    await ws.send_from_sharedarea(0, 4096 - 8)
    await ws.send_binary_from_sharedarea(0, 4096 - 3)


# HTTP


def index():
    return "hello"


@app.route("/uwsgi")
def uwsgi_export():
    return {"version": uwsgi.version.decode(), "worker": uwsgi.worker_id(), "pid": os.getpid()}


@app.route("/peak")
def peak():
    return {"pid": os.getpid(), "kilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def save_coverage():
    if measurement is not None:
        measurement.stop()
        measurement.save()
    return {"pid": os.getpid()}


def make_live(app):
    """Add to an app the routes that all live tests need."""
    app.add_url_rule("/", view_func=index)
    app.add_url_rule("/save-coverage", view_func=save_coverage, methods=["POST"])
    wsgi_app = app.wsgi_app

    def traced(environ, start_response):
        """Trace uWSGI's own threads and greenlets, too. The interpreter does not see them start."""
        if measurement is not None and sys.gettrace() is None and threading.gettrace() is not None:
            sys.settrace(threading.gettrace())
        return wsgi_app(environ, start_response)

    app.wsgi_app = traced


make_live(app)
