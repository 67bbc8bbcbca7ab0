"""Rooms in one process: who is in them, what members get, and who is refused."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import pytest
from flask import Flask, abort, request

from flask_uwsgi_websocket import Room, WebSocket, WebSocketBlueprint, websocket_closed
from flask_uwsgi_websocket.loops.current import wait_for
from flask_uwsgi_websocket.rooms.exchange import exchange_of
from flask_uwsgi_websocket.rooms.rooms import room_named
from support.inprocess import Site, join, wait_until
from support.wire import BINARY, CLOSE, TEXT


@pytest.fixture
def chat(site: Site) -> Any:
    """A blueprint with a handler that joins the room of its path and publishes all that it receives."""
    chat = WebSocketBlueprint("chat", __name__)
    rooms = chat.rooms()

    async def handler(ws: Any, name: str) -> None:
        await join(rooms[name], ws)
        await ws.send("joined")
        async for message in ws:
            rooms[name].publish(message, exclude=[getattr(ws, "blocking", ws)] if "exclude" in request.args else ())

    chat.websocket("/<name>")(site.mode.handler(handler))
    site.app.register_blueprint(chat)
    return rooms


def enter(site: Site, path: str) -> Any:
    """Connect a client, and wait until it has joined."""
    client = site.connect(path)
    assert client.recv() == "joined"
    return client


def test_members_get_what_any_of_them_publishes_text_as_text_and_binary_as_binary(site: Site, chat: Any) -> None:
    clients = [enter(site, "/lobby") for _ in range(3)]
    other = enter(site, "/other")
    for message in ("text", b"\xff\x00", "", b"", "ü" * 1000):
        clients[0].send(message)
        assert [client.recv() for client in clients] == [message] * 3
    other.send("only here")
    assert other.recv() == "only here"


def test_a_publisher_may_leave_itself_out(site: Site, chat: Any) -> None:
    one, two = enter(site, "/lobby?exclude=1"), enter(site, "/lobby")
    one.send("for two")
    assert two.recv() == "for two"
    two.send("for both")
    assert one.recv() == two.recv() == "for both"


def test_a_single_connection_is_refused_as_the_collection_to_leave_out(site: Site, chat: Any) -> None:
    assert enter(site, "/lobby")
    room = chat["lobby"]
    (member,) = room.local_members
    for publish in (
        partial(room.publish, ""),
        partial(room.publish_json, {}),
        partial(room.publish_json, {}, stamp="id"),
    ):
        with pytest.raises(TypeError, match="exclude takes many connections, not one"):
            publish(exclude=member)


def test_messages_of_many_publishers_have_one_order_for_all(site: Site, chat: Any) -> None:
    clients = [enter(site, "/lobby") for _ in range(4)]
    for number in range(25):
        for index, client in enumerate(clients):
            client.send(f"{index} {number}")
    received = [[client.recv() for _ in range(100)] for client in clients]
    assert all(each == received[0] for each in received)
    for index in range(4):
        assert [each for each in received[0] if each.startswith(f"{index} ")] == [f"{index} {n}" for n in range(25)]


def test_a_view_publishes_json_by_the_provider_of_the_app(site: Site, chat: Any) -> None:
    client = enter(site, "/lobby")
    with site.app.app_context():
        chat["lobby"].publish_json({"b": 1, "a": "ü"})
    assert json.loads(client.recv()) == {"a": "ü", "b": 1}


def test_outside_of_a_context_the_only_app_is_meant(site: Site, chat: Any) -> None:
    client = enter(site, "/lobby")
    chat["lobby"].publish("here")
    assert client.recv() == "here"


def test_a_connection_that_ends_leaves_before_its_end_is_reported(site: Site, chat: Any) -> None:
    counts = []

    def closed(app: Any, ws: Any, **extra: Any) -> None:
        counts.append((ws.memberships, len(chat["lobby"].local_members)))

    with websocket_closed.connected_to(closed, site.app):
        one, two = enter(site, "/lobby"), enter(site, "/lobby")
        assert len(chat["lobby"].local_members) == 2
        one.close()
        wait_until(lambda: counts == [((), 1)])
        two.send("still here")
        assert two.recv() == "still here"


def test_a_connection_may_leave_and_join_again(site: Site) -> None:
    @site.route("/")
    async def handler(ws: Any) -> None:
        room = site.websocket.room("news")
        plain = getattr(ws, "blocking", ws)
        await join(room, ws)
        await join(room, ws)
        assert room.local_members == (plain,)
        room.leave(plain)
        room.leave(plain)
        assert room.local_members == plain.memberships == ()
        await join(room, ws)
        room.publish("heard")
        await ws.receive()

    client = site.connect()
    assert client.recv() == "heard"
    client.send("enough")


def test_a_room_is_closed_with_a_code_and_a_reason(site: Site, chat: Any) -> None:
    clients = [enter(site, "/lobby") for _ in range(2)]
    other = enter(site, "/other")
    chat["lobby"].close(4000, "over")
    for client in clients:
        with pytest.raises(Exception, match="4000"):
            client.recv()
        assert (client.close_code, client.close_reason) == (4000, "over")
    other.send("open")
    assert other.recv() == "open"


def test_before_join_refuses_by_http_before_the_handshake_and_by_a_close_code_after_it(site: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    rooms = chat.rooms()

    def refuse(room: Room, ws: Any) -> Any:
        site.note(room.name)
        if request.args["how"] == "abort":
            abort(401)
        return request.args["how"] != "false"

    async def refuse_later(room: Room, ws: Any) -> Any:
        return refuse(room, ws)

    rooms.before_join(refuse_later if site.mode.name == "asyncio" else refuse)

    async def handler(ws: Any) -> None:
        if "late" in request.args:
            await ws.accept()
        await join(rooms["lobby"], ws)
        await ws.send("in")

    chat.websocket("/")(site.mode.handler(handler))
    site.app.register_blueprint(chat)
    assert site.refusal("/?how=abort").status == 401
    assert site.refusal("/?how=false").status == 403
    for how, code in [("abort", 4401), ("false", 4403)]:
        client = site.connect(f"/?late=1&how={how}")
        with pytest.raises(Exception, match=str(code)):
            client.recv()
    assert site.connect("/?how=yes").recv() == "in"
    assert [site.noted() for _ in range(5)] == ["chat:lobby"] * 5
    wait_until(lambda: rooms["lobby"].local_members == ())


def test_the_connections_of_a_user_form_a_room(site: Site) -> None:
    def user_id() -> Any:
        return request.args.get("user")

    async def user_id_later() -> Any:
        return user_id()

    site.websocket.user_id(user_id_later if site.mode.name == "asyncio" else user_id)

    @site.route("/")
    async def handler(ws: Any) -> None:
        await ws.send(str(getattr(ws, "blocking", ws).user_id))
        async for _ in ws:
            pass

    clients = [site.connect("/?user=7"), site.connect("/?user=7"), site.connect("/?user=8"), site.connect("/")]
    assert [client.recv() for client in clients] == ["7", "7", "8", "None"]
    with site.app.app_context():
        site.websocket.user(7).publish("for you")
        assert [client.recv() for client in clients[:2]] == ["for you"] * 2
        site.websocket.user(7).close(4401, "logged out")
        site.websocket.user(8).publish("you stay")
    for client in clients[:2]:
        with pytest.raises(Exception, match="4401"):
            client.recv()
    assert clients[2].recv() == "you stay"


def test_no_name_of_a_room_reaches_a_room_of_another_kind() -> None:
    websocket = WebSocket()
    keys = [
        websocket.room("chat:lobby").key,
        WebSocketBlueprint("chat", __name__).rooms()["lobby"].key,
        WebSocketBlueprint("chat:lobby", __name__).rooms()["x"].key,
        WebSocketBlueprint("chat", __name__).rooms()["lobby:x"].key,
        websocket.user("chat:lobby").key,
        websocket.room("u:chat:lobby").key,
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["", "x" * 256, "ü" * 128, "\ud800", 7, None])
def test_a_name_that_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        WebSocket().room(name)


def test_a_member_that_does_not_read_is_closed_with_a_code_that_invites_it_back(site: Site) -> None:
    big = b"x" * 100_000

    @site.route("/", send_buffer=1000)
    async def handler(ws: Any) -> None:
        await join(site.websocket.room("news"), ws)
        site.note("in")
        async for _ in ws:
            pass

    slow, fast = site.upgrade(), site.connect()
    assert [site.noted(), site.noted()] == ["in", "in"]
    room = site.websocket.room("news")
    sent = 0
    while len(room.local_members) == 2:
        room.publish(big)
        assert fast.recv() == big
        sent += 1
    got = 0
    while (frame := slow.read_frame()) and frame[0] == BINARY:
        got += 1
    assert frame is not None
    assert frame[1][:2] == (1013).to_bytes(2, "big")
    assert got < sent
    room.publish("the others go on")
    assert fast.recv() == "the others go on"
    assert site.websocket.stats()["rooms"]["slow"] == 1
    slow.close()


def test_a_room_may_skip_messages_for_slow_members(site: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    rooms = chat.rooms(slow="skip")

    async def handler(ws: Any) -> None:
        await join(rooms["lobby"], ws)
        site.note("in")
        async for _ in ws:
            pass

    chat.websocket("/", send_buffer=1000)(site.mode.handler(handler))
    site.app.register_blueprint(chat)
    slow = site.upgrade()
    assert site.noted() == "in"
    stats = site.websocket.stats
    while not stats()["rooms"]["slow"]:
        rooms["lobby"].publish(b"x" * 100_000)
        wait_until(lambda: stats()["rooms"]["delivered"] == stats()["rooms"]["published"])
    lost = stats()["rooms"]["slow"]
    for _ in range(stats()["rooms"]["published"] - lost):
        assert slow.read_frame() == (BINARY, b"x" * 100_000)
    rooms["lobby"].publish("again")
    assert slow.read_frame() == (TEXT, b"again")


def test_members_are_counted_over_all_workers(site: Site, chat: Any) -> None:
    assert [enter(site, "/lobby") for _ in range(3)]
    assert (chat["lobby"].count(), chat["empty"].count()) == (3, 0)


def test_processes_are_asked_for_their_rooms(site: Site, chat: Any) -> None:
    clients = [enter(site, path) for path in ("/lobby", "/lobby", "/other")]
    exchange = exchange_of(site.app)

    def ask() -> list[dict[str, Any]]:
        return wait_for(lambda loop: exchange.ask(None, loop))

    (answer,) = ask()
    assert answer == {
        "pid": os.getpid(),
        "count": 2,
        "rooms": [
            {"key": "b:chat:lobby", "name": "chat:lobby", "count": 2},
            {"key": "b:chat:other", "name": "chat:other", "count": 1},
        ],
    }
    for client in clients:
        client.close()
    wait_until(lambda: ask() == [{"pid": os.getpid(), "count": 0, "rooms": []}])
    assert enter(site, "/again")
    assert [each["count"] for each in ask()] == [1]


def test_a_room_is_found_by_its_name() -> None:
    app = Flask(__name__)
    websocket = WebSocket(app)
    chat, old = (WebSocketBlueprint(name, __name__) for name in ("chat", "chat:old"))
    rooms, old_rooms = chat.rooms(), old.rooms()
    app.register_blueprint(chat)
    app.register_blueprint(old)
    assert room_named(app, "chat:lobby") == rooms["lobby"]
    assert room_named(app, "chat:lobby:1") == rooms["lobby:1"]
    assert room_named(app, "chat:old:1") == old_rooms["1"]
    for name in ("chat", "lobby", "news:chat:lobby", "chats:lobby", "user 7"):
        assert room_named(app, name) == websocket.room(name)
    for name in ("", "chat:", "x" * 256):
        with pytest.raises(ValueError, match="1 to 255 bytes"):
            room_named(app, name)


def test_a_client_that_sees_the_handshake_is_a_member(site: Site) -> None:
    room = site.websocket.room("news")

    @site.route("/")
    async def handler(ws: Any) -> None:
        await join(room, ws)
        async for _ in ws:
            pass

    for number in range(30):
        with site.connect() as client:
            room.publish(str(number))
            assert client.recv() == str(number)


def test_what_is_published_before_the_handshake_comes_after_it_in_order(site: Site) -> None:
    gate = site.mode.gate()
    site.websocket.user_id(user_seven if site.mode.name == "asyncio" else lambda: "7")

    @site.route("/", send_buffer=2**20)
    async def handler(ws: Any) -> None:
        site.note("waits")
        await gate.passed()
        await ws.accept()
        site.websocket.user(7).publish("after")
        async for _ in ws:
            pass

    client = site.raw()
    client.request()
    assert site.noted() == "waits"
    delivered = site.websocket.stats
    for number in range(50):
        site.websocket.user(7).publish(str(number))
    wait_until(lambda: delivered()["rooms"]["delivered"] == 50)
    gate.open()
    assert client.response().status == 101
    assert [client.read_frame() for _ in range(51)] == [
        *((TEXT, b"%d" % number) for number in range(50)),
        (TEXT, b"after"),
    ]


async def user_seven() -> str:
    return "7"


def test_a_user_who_is_closed_before_the_handshake_gets_the_code_after_it(site: Site) -> None:
    gate = site.mode.gate()
    site.websocket.user_id(user_seven if site.mode.name == "asyncio" else lambda: "7")

    @site.route("/")
    async def handler(ws: Any) -> None:
        site.note("waits")
        await gate.passed()
        await ws.receive()

    client = site.raw()
    client.request()
    assert site.noted() == "waits"
    site.websocket.user(7).close(4401, "logged out")
    assert site.websocket.user(7).count() == 1  # asked after it
    gate.open()
    assert client.response().status == 101
    assert client.read_frame() == (CLOSE, b"\x11\x31logged out")


def test_before_join_knows_the_user(site: Site) -> None:
    site.websocket.user_id(user_seven if site.mode.name == "asyncio" else lambda: "7")
    chat = WebSocketBlueprint("chat", __name__)
    rooms = chat.rooms()
    rooms.before_join(lambda room, ws: ws.user_id == room.local_name)

    async def handler(ws: Any, name: str) -> None:
        await join(rooms[name], ws)
        await ws.send("in")

    chat.websocket("/<name>")(site.mode.handler(handler))
    site.app.register_blueprint(chat)
    assert site.connect("/7").recv() == "in"
    assert site.refusal("/8").status == 403


def test_a_user_id_function_that_raises_refuses_the_connection(site: Site) -> None:
    def fails() -> str:
        raise ZeroDivisionError("deliberate")

    async def fails_later() -> str:
        return fails()

    site.websocket.user_id(fails_later if site.mode.name == "asyncio" else fails)

    @site.route("/")
    async def handler(ws: Any) -> None:
        await ws.send("never")

    assert site.refusal("/").status == 500
    assert "Exception on /" in site.logged().getMessage()


def test_a_name_from_a_url_that_is_too_long_is_not_found(site: Site, chat: Any) -> None:
    assert site.refusal("/" + "x" * 256).status == 404
    assert enter(site, "/" + "x" * 255)
