"""The application of the live tests of blueprints, built like a large one: by a factory, with the usual extensions.

As in ``live_app.py``, handlers, hooks and receivers are coroutine functions, written once for all modes, and write
their events to the journal.
"""

import os
import random
from contextlib import suppress

from flask import Blueprint, Flask, abort, current_app, g, request, session, url_for
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user, logout_user
from flask_sqlalchemy import SQLAlchemy
from live_app import PINGED, Deliberate, followed, for_mode, journal, make_live, push, receive, sleep, watch
from sqlalchemy import func, select
from sqlalchemy.pool import QueuePool

import flask_uwsgi_websocket
from flask_uwsgi_websocket import (
    ConnectionClosed,
    WebSocketBlueprint,
    uwsgi,
    websocket_closed,
    websocket_connected,
    websocket_error,
    websocket_message,
    websocket_rejected,
    websocket_sent,
)

websocket = getattr(flask_uwsgi_websocket, os.environ["LIVE_CLASS"])(ping_interval=None)
db = SQLAlchemy()
login_manager = LoginManager()


def handler(blueprint, rule, *decorators, **options):
    """Declare the handler of a URL in a blueprint."""

    def decorator(coroutine):
        function = followed(coroutine)
        for each in decorators:
            function = each(function)
        blueprint.add_websocket_rule(rule, options.pop("endpoint", coroutine.__name__), function, **options)
        return coroutine

    return decorator


# Identity: the values that a connection sees wherever the application is called


def who(ws=None):
    environ = request.environ if ws is None else ws.environ
    return {
        "ws": environ["QUERY_STRING"].partition("n=")[2].partition("&")[0],
        "app": current_app.name,
        "path": request.path,
        "n": request.args["n"],
        "cookie": request.cookies["flavour"],
        "user": session["user"],
        "g": g.name,
        "view_args": request.view_args,
        "blueprint": request.blueprint,
        "endpoint": request.endpoint,
        "address": url_for(request.endpoint, **request.view_args, _external=True),
    }


async def see(place, ws=None):
    """Record the values twice, and let other connections run in between."""
    if "n" in request.args:
        g.seen.append((place, who(ws)))
        await sleep(0.001)
        g.seen.append((place, who(ws)))


async def note(place, ws=None):
    """Record the values once more, when no message can be sent any more."""
    if "n" in request.args:
        await see(place, ws)
        journal("seen", place=place, n=request.args["n"], seen=take(g.seen))


def take(seen):
    """Empty a list to which another thread may append."""
    return [seen.pop(0) for _ in range(len(seen))]


def begin():
    g.seen = []
    if "n" in request.args:
        g.name = f"g{request.args['n']}"
        g.seen.append(("before_request", who()))


def end(error):
    if "n" in request.args:
        journal("seen", place="teardown_request", n=request.args["n"], seen=[("teardown_request", who())])


present = []


async def exchange(ws, **view_args):
    """Answer with all records. This handler also sends a message, maybe the first one, to the other connections."""
    seen = g.seen
    present.append(ws)
    try:
        await see("handler", ws)
        await sleep(random.choice([0, 0.1]))
        async for message in ws:
            with suppress(ConnectionClosed):
                await random.choice(present).send("hello")
            await see("handler", ws)
            with ws.message_context():
                assert "name" not in g
                g.seen = seen
                g.name = f"g{request.args.get('n')}"
                await see("message_context", ws)
            await ws.send_json({"message": message, "view_args": view_args, "seen": take(seen)})
    finally:
        present.remove(ws)


def note_each(registrar, name):
    """Record the values in each hook and listener of a blueprint, or of the whole app."""

    @registrar.before_websocket
    @for_mode
    async def before():
        await see(f"{name} before_websocket")

    @registrar.after_websocket
    @for_mode
    async def after(response):
        await see(f"{name} after_websocket")
        return response

    @registrar.teardown_websocket
    @for_mode
    async def teardown(error):
        await note(f"{name} teardown_websocket")

    @registrar.on_connect
    @for_mode
    async def connected(app, ws, **extra):
        await see(f"{name} on_connect", ws)

    @registrar.on_message
    @for_mode
    async def received(app, ws, **extra):
        await see(f"{name} on_message", ws)

    @registrar.on_close
    @for_mode
    async def closed(app, ws, **extra):
        await note(f"{name} on_close", ws)


def make_talk(name, prefix):
    blueprint = WebSocketBlueprint(name, __name__, url_prefix=prefix)
    handler(blueprint, "/<name>/exchange")(exchange)
    note_each(blueprint, name)
    blueprint.route("/<name>/exchange")(page)
    return blueprint


def page(name, **others):
    """The page at the URL of the WebSocket. Its script gets the address of the WebSocket."""
    query = request.args.to_dict()
    return {
        "address": url_for(".exchange", name=name, _external=True, **others, **query),
        "blueprint": request.blueprint,
    }


rooms = make_talk("rooms", "/rooms")

building = Blueprint("building", __name__, url_prefix="/building/<int:floor>")
building.register_blueprint(make_talk("offices", "/offices"))

campus = make_talk("campus", "/campus")
house = make_talk("house", "/house")
house.register_blueprint(make_talk("flat", "/flat"))
campus.register_blueprint(house)

plain = Blueprint("plain", __name__)
plain.add_url_rule("/<path:name>/exchange", "exchange", followed(exchange))


# The session and the headers of the 101 response

visits = WebSocketBlueprint("visits", __name__, url_prefix="/visits")


@handler(visits, "/early")
async def early(ws):
    session["visits"] = session.get("visits", 0) + 1
    await ws.send(str(session["visits"]))


@handler(visits, "/late")
async def late(ws):
    await ws.accept()
    session["visits"] = "too late"


@visits.after_websocket
@for_mode
async def add_headers(response):
    response.headers["X-Visits"] = str(session.get("visits"))
    response.headers.add("X-Via", "one")
    response.headers.add("X-Via", "two")
    response.set_cookie("taste", "sweet", path="/visits")
    return response


@visits.route("/")
def count_visits():
    return {"visits": session.get("visits")}


# Logins

account = WebSocketBlueprint("account", __name__, url_prefix="/account")
members = WebSocketBlueprint("members", __name__, url_prefix="/members")


class User(UserMixin):
    def __init__(self, id):
        self.id = id


login_manager.user_loader(User)


@account.route("/login/<name>", methods=["POST"])
def login(name):
    login_user(User(name))
    return {}


@account.route("/logout", methods=["POST"])
def logout():
    logout_user()
    return {}


@handler(account, "/news", login_required)
@handler(members, "/news")
async def news(ws):
    await ws.send(f"hello {current_user.id}")
    async for message in ws.messages():
        await sleep(0.001)
        await ws.send(f"{current_user.id}: {message}")


@members.before_request
@login_required
def require_login():
    """Let only members in, to pages and WebSockets alike."""


@account.on_close
@for_mode
async def left(app, ws, **extra):
    journal("left", token=request.args["token"], user=current_user.id)


account.register_blueprint(members)


# A database

store = WebSocketBlueprint("store", __name__, url_prefix="/store")


class Visit(db.Model):
    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String, nullable=False)


def visit(name):
    """Store a row, and count all rows. After that, the session holds a database connection."""
    db.session.add(Visit(name=name))
    db.session.commit()
    count_visits_to(name)


def count_visits_to(name):
    return db.session.scalar(select(func.count()).where(Visit.name == name))


# A handler that holds the database connection must not await. In modes with one thread, the next handler that asks for
# a connection would block all of them.


@handler(store, "/<name>/messages")
async def visit_by_message(ws, name):
    async for message in ws.messages():
        await ws.send(f"{message} seen")
        visit(name)


@handler(store, "/<name>/connection")
async def visit_by_connection(ws, name):
    async for message in ws:
        await ws.send(f"{message} seen")
        visit(name)


@store.route("/<name>")
def visits_to(name):
    return {"count": count_visits_to(name)}


@store.route("/pool")
def pool():
    return {"pid": os.getpid(), "size": db.engine.pool.size(), "taken": db.engine.pool.checkedout()}


# Ends

ends = WebSocketBlueprint("ends", __name__, url_prefix="/ends")

handler(ends, "/receive")(receive)
handler(ends, "/push")(push)
handler(ends, "/watch")(watch)
handler(ends, "/pinged/receive", endpoint="pinged_receive", **PINGED)(receive)
handler(ends, "/pinged/push", endpoint="pinged_push", **PINGED)(push)
handler(ends, "/pinged/watch", endpoint="pinged_watch", **PINGED)(watch)


@handler(ends, "/echo")
async def echo(ws):
    async for message in ws:
        await ws.send(message)


@handler(ends, "/return")
async def end_by_return(ws):
    await ws.send("that is all")


@handler(ends, "/crash")
async def end_by_crash(ws):
    await ws.send("that is all")
    raise Deliberate


@handler(ends, "/abort")
async def end_by_abort(ws):
    await ws.send("that is all")
    abort(404)


@handler(ends, "/close")
@handler(ends, "/unanswered", endpoint="end_by_close_unanswered", close_timeout=0.3)
async def end_by_close(ws):
    await ws.close(4002, "ciao")


@handler(ends, "/stubborn", shutdown_timeout=0.5)
async def never_end(ws):
    await ws.accept()
    while True:
        await sleep(0.02)


@handler(ends, "/flood", send_buffer=2**18, send_timeout=0.3)
async def flood(ws):
    while True:
        await ws.send(bytes(2**18))


@handler(ends, "/refuse")
async def refuse(ws):
    abort(409)


@ends.teardown_websocket
@for_mode
async def torn_down(error):
    journal("torn down", token=request.args["token"], error=error and type(error).__name__)


# Listeners. The first one fails whenever the request asks for it.


@for_mode
async def fail(app, ws, **extra):
    if "fail" in request.args:
        raise Deliberate


@for_mode
async def note_connected(app, ws, **extra):
    journal("connected", id=ws.id, token=request.args.get("token"))
    await see("websocket_connected", ws)


@for_mode
async def note_message(app, ws, message, **extra):
    await see("websocket_message", ws)


@for_mode
async def note_sent(app, ws, message, **extra):
    await see("websocket_sent", ws)


@for_mode
async def note_closed(app, ws, **details):
    journal("closed", id=ws.id, token=request.args.get("token"), **details)
    await note("websocket_closed", ws)


@for_mode
async def note_rejected(app, ws, response, **extra):
    journal("rejected", id=ws.id, token=request.args.get("token"), status=response.status_code)


@for_mode
async def note_error(app, ws, exception, **extra):
    journal("error", id=ws.id, token=request.args.get("token"), exception=type(exception).__name__)


# The app


def create_app():
    app = Flask(__name__)
    app.secret_key = "live"
    app.config["REMEMBER_COOKIE_REFRESH_EACH_REQUEST"] = True  # Flask-Login writes to each session after the request
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{os.environ['LIVE_JOURNAL']}.sqlite"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "poolclass": QueuePool,
        "pool_size": 1,
        "max_overflow": 0,
        "pool_timeout": 30,  # a disk may be slow
        "connect_args": {"timeout": 30},
    }

    @app.before_request
    def refuse_all():
        if "X-Closed" in request.headers:
            abort(403)

    app.before_request(begin)
    app.teardown_request(end)

    app.register_blueprint(rooms)
    app.register_blueprint(rooms, name="halls", url_prefix="/halls")
    app.register_blueprint(building)
    websocket.init_app(app)
    login_manager.init_app(app)
    db.init_app(app)
    app.register_blueprint(campus)
    websocket.register_blueprint(plain, url_prefix="/plain")
    for blueprint in (visits, account, store, ends):
        app.register_blueprint(blueprint)
    note_each(websocket, "app")
    for signal, receiver in {
        websocket_connected: note_connected,
        websocket_message: note_message,
        websocket_sent: note_sent,
        websocket_closed: note_closed,
        websocket_rejected: note_rejected,
        websocket_error: note_error,
    }.items():
        signal.connect(fail, app)
        signal.connect(receiver, app)

    @app.route("/websockets")
    def websockets():
        """Return an address of each WebSocket route."""
        rules = [rule for rule in app.url_map.iter_rules() if rule.websocket]
        return [url_for(rule.endpoint, **dict.fromkeys(rule.arguments, "1")) for rule in rules]

    make_live(app)
    with app.app_context():
        db.create_all()
        db.engine.dispose()  # no worker may inherit the connection
    return app


app = create_app()
if uwsgi is not None and uwsgi.masterpid() > 0:  # many applications import it this late, and it replaces the hook
    import uwsgidecorators

    uwsgidecorators.postfork(lambda: journal("decorated"))
