"""The application of the live tests of rooms.

A member gets what is published in its room as text messages. It sends orders, which are lists in JSON, and gets the
answer to each as a binary message.
"""

import asyncio
import os
import time

from flask import request
from live_app import IS_ASYNCIO, Awaitable, app, followed, for_mode, handler, journal, websocket

from flask_uwsgi_websocket import WebSocketBlueprint, WebSocketView, websocket_gap
from flask_uwsgi_websocket.rooms import exchange, questions
from flask_uwsgi_websocket.rooms.brokers import redis_roster

exchange.SUBSCRIBE_TIME = questions.ANSWER_TIME = 30  # the machine may be busy
redis_roster.LEASE, redis_roster.PROLONG_AFTER, redis_roster.SILENT_AFTER = 6, 1, 3  # so that the tests wait less
app.config["WEBSOCKET_BROKER"] = os.environ["LIVE_BROKER"]

chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
rooms = chat.rooms()


def plain(ws):
    return ws._ws if isinstance(ws, Awaitable) else ws


async def join(room, ws, **options):
    joining = room.join(plain(ws), **options)
    return await joining if IS_ASYNCIO else joining


async def answer(ws, value):
    await ws.send(app.json.dumps(value).encode())


async def count(room):
    return await asyncio.to_thread(room.count) if IS_ASYNCIO else room.count()


def stats():
    """Return the counters of the rooms in this worker, and what the worker uses."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return {
        **websocket.stats()["rooms"],
        "pid": os.getpid(),
        "files": len(os.listdir("/proc/self/fd")),
        "kilobytes": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
    }


async def obey(ws, room, name, *values):
    """Do what a client orders, and return the answer."""
    if name == "publish":
        text, is_excluded = values
        room.publish(text, exclude=[plain(ws)] if is_excluded else ())
    elif name == "publish in":
        name, text = values
        websocket.room(name).publish(text)
    elif name == "publish kept":
        history, name, publisher, start, length, size = values
        for number in range(start, start + length):
            text = f"{publisher} {number} {size * 'x'}".rstrip()
            HISTORIES[history][name].publish_json({"text": text}, stamp="id")
    elif name == "publish to user":
        user, text = values
        websocket.user(user).publish(text)
    elif name == "close":
        code, reason, user = values
        room.close(code, reason, user=user)
    elif name == "join":
        await join(websocket.room(*values), ws)
    elif name == "leave":
        websocket.room(*values).leave(plain(ws))
    elif name == "count":
        return await count(room)
    return None


@handler("/member")
async def member(ws):
    """Join the app's room of the query string, and obey. A client that is only a visitor does not join."""
    room = websocket.room(request.args["room"])
    if "visitor" not in request.args:
        await join(room, ws)
    await answer(ws, {"pid": os.getpid()})
    farewells = []
    try:
        async for order in ws:
            name, *values = app.json.loads(order)
            if name == "farewell":
                farewells.append(values)
                await answer(ws, None)
            else:
                await answer(ws, await obey(ws, room, name, *values))
    finally:
        for publisher, count in farewells:
            for number in range(count):
                room.publish(f"{publisher} {number}")


@rooms.before_join
@for_mode
async def refuse(room, ws):
    return request.args.get("ticket") == "valid"


async def talk(ws, name):
    """Publish each message in a room of the blueprint."""
    if "late" in request.args:
        await ws.accept()
    await join(rooms[name], ws)
    await answer(ws, {"pid": os.getpid()})
    async for message in ws:
        rooms[name].publish(message)


chat.add_websocket_rule("/handler/<name>", "handler", followed(talk))


class Talk(WebSocketView):
    """The same as a class."""

    @for_mode
    async def on_connect(self, ws, name):
        self.room = rooms[name]
        await join(self.room, ws)
        await answer(ws, {"pid": os.getpid()})

    @for_mode
    async def on_message(self, ws, message):
        self.room.publish(message)


chat.add_websocket_rule("/view/<name>", handler=Talk.as_view("view"))


# Rooms with a history. What they send in text frames is JSON: messages with their positions, and snapshots.

kept = WebSocketBlueprint("kept", __name__, url_prefix="/kept")
HISTORIES = {"long": kept.rooms("long", history=5000, history_size=64 * 2**20), "short": kept.rooms("short", history=5)}


async def come_back(ws):
    """Join the room of the query string with what the client has missed. A snapshot may wait for the client."""

    @for_mode
    async def snapshot(position):
        await ws.send_json({"snapshot": position})
        if "waits" in request.args:
            await ws.receive()

    room = HISTORIES[request.args["history"]][request.args["room"]]
    is_whole = await join(room, ws, since=request.args.get("since"), snapshot=snapshot)
    await answer(ws, {"pid": os.getpid(), "is_whole": is_whole})


@handler("/kept/handler")
async def resume(ws):
    await come_back(ws)
    async for _ in ws:
        pass


class Resume(WebSocketView):
    """The same as a class."""

    @for_mode
    async def on_connect(self, ws):
        await come_back(ws)


kept.add_websocket_rule("/view", handler=Resume.as_view("view"))


# Rooms with presence. Who comes and goes is in the journal, and all workers list their members over HTTP.

present = WebSocketBlueprint("present", __name__, url_prefix="/present")
GRACES = {
    "brief": present.rooms("brief", presence=True, presence_grace=0.2),
    "default": present.rooms("default", presence=True),
}


def present_room():
    return GRACES[request.args["grace"]][request.args["room"]]


@handler("/present")
async def attend(ws):
    """Join the room of the query string."""
    await join(present_room(), ws, info=request.args["user"])
    await answer(ws, {"pid": os.getpid()})
    async for _ in ws:
        pass


@present.get("/members")
def list_members():
    room = present_room()
    return {"members": [[member.user_id, member.info] for member in room.members()], "count": room.count()}


@for_mode
async def note_join(room, member):
    journal("join", room=room.name, user=member.user_id)


@for_mode
async def note_leave(room, member):
    journal("leave", room=room.name, user=member.user_id)


for each in GRACES.values():
    each.on_join(note_join)
    each.on_leave(note_leave)


@chat.post("/announce/<name>")
def announce(name):
    rooms[name].publish(request.get_data(as_text=True))
    return {"pid": os.getpid()}


@chat.get("/count/<name>")
def count_members(name):
    return {"count": rooms[name].count()}


app.register_blueprint(chat)
app.register_blueprint(kept)
app.register_blueprint(present)
app.add_url_rule("/stats", view_func=stats)


@websocket.user_id
@for_mode
async def user_id():
    return request.args.get("user")


@websocket_gap.connect
def note_gap(app, room, missed, **extra):
    journal("gap", room=room.name, missed=missed, at=time.monotonic())
