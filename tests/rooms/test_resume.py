"""A connection that joins with a position first gets what it has missed, and then what is published meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from flask import request
from websockets.exceptions import ConnectionClosed

from flask_uwsgi_websocket import Rooms, WebSocketBlueprint
from flask_uwsgi_websocket.rooms import replay
from flask_uwsgi_websocket.rooms.brokers.base import Delivered, Event, History, Position, Retention
from flask_uwsgi_websocket.rooms.brokers.memory import MemoryBroker
from support.inprocess import Site, join, run, wait_at_gate, wait_until


@pytest.fixture
def make_chat(site: Site) -> Callable[..., Rooms]:
    """Makes a blueprint with a handler that joins the room of its path, with what the query says."""

    def make(**options: Any) -> Rooms:
        chat = WebSocketBlueprint("chat", __name__)
        rooms = chat.rooms(**{"history": 100, **options})

        async def handler(ws: Any, name: str) -> None:
            room = rooms[name]

            def snapshot(position: str) -> Any:
                return ws.send(json.dumps({"snapshot": position}))

            since = request.args.get("since")
            is_whole = await join(room, ws, since=since, snapshot=None if "plain" in request.args else snapshot)
            await ws.send(json.dumps({"whole": is_whole}))
            async for text in ws:
                room.publish_json({"text": text}, stamp="id")

        chat.websocket("/<name>")(site.mode.handler(handler))
        site.app.register_blueprint(chat)
        return rooms

    return make


def get(client: Any) -> Any:
    return json.loads(client.recv())


def texts(client: Any, count: int) -> list[str]:
    return [get(client)["text"] for _ in range(count)]


def publish(rooms: Rooms, *texts: str, name: str = "lobby") -> None:
    for text in texts:
        rooms[name].publish_json({"text": text}, stamp="id")


def test_a_client_that_comes_back_gets_what_it_has_missed_and_then_what_is_published(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    rooms = make_chat()
    client = site.connect("/lobby")
    assert "snapshot" in get(client)
    assert get(client) == {"whole": False}
    client.send("one")
    last = get(client)["id"]
    client.close()
    publish(rooms, "two", "three")
    client = site.connect(f"/lobby?since={last}")
    assert texts(client, 2) == ["two", "three"]
    assert get(client) == {"whole": True}
    publish(rooms, "four")
    assert texts(client, 1) == ["four"]
    stats = site.websocket.stats()["rooms"]
    assert (stats["resumed"], stats["snapshots"]) == (1, 1)


def test_the_position_of_a_snapshot_is_the_one_before_the_messages_that_follow(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    rooms = make_chat()
    with site.connect("/lobby") as first:
        get(first), get(first)
        publish(rooms, "one")
        one = get(first)
    client = site.connect("/lobby?since=unknown")
    assert get(client) == {"snapshot": one["id"]}
    assert get(client) == {"whole": False}
    publish(rooms, "two")
    assert texts(client, 1) == ["two"]
    with site.connect(f"/lobby?since={one['id']}") as again:
        assert texts(again, 1) == ["two"]


def test_the_stamp_replaces_a_member_of_the_object_and_stands_in_an_empty_one(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    room = make_chat()["lobby"]
    client = site.connect("/lobby")
    get(client), get(client)
    for value in ({}, {"id": None}, {"a": "}"}, {'"': 1}):
        room.publish_json(value, stamp="id")
        received = get(client)
        assert isinstance(received.pop("id"), str)
        value.pop("id", None)
        assert received == value
    room.publish_json({}, stamp='a "name"')
    assert list(get(client)) == ['a "name"']
    for no_object in ([1], "text", None, 7):
        with pytest.raises(TypeError, match="publish a dictionary"):
            room.publish_json(no_object, stamp="id")


def test_what_is_published_while_a_member_gets_the_snapshot_follows_once(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    rooms = make_chat()
    room = rooms["lobby"]

    @site.route("/slow")
    async def handler(ws: Any) -> None:
        async def wait() -> None:
            await ws.send("state")
            await wait_at_gate(site)

        def wait_blocking(position: str) -> Any:
            return wait() if site.mode.name == "asyncio" else run(wait())

        await join(room, ws, since=None, snapshot=wait_blocking)
        async for _ in ws:
            pass

    with site.connect("/lobby") as other, site.connect("/slow") as client:
        get(other), get(other)
        assert client.recv() == "state"
        gate = site.noted()
        publish(rooms, *map(str, range(50)))
        assert texts(other, 50) == [str(number) for number in range(50)]
        gate.open()
        assert texts(client, 50) == [str(number) for number in range(50)]
        publish(rooms, "live")
        assert texts(client, 1) == ["live"]


def test_a_member_for_which_too_much_waits_is_closed_and_may_come_back(
    site: Site, make_chat: Callable[..., Rooms], monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = make_chat()
    monkeypatch.setattr(replay, "MOST_HELD", 10)

    @site.route("/slow")
    async def handler(ws: Any) -> None:
        async def wait() -> None:
            await ws.send("state")
            await wait_at_gate(site)

        def wait_blocking(position: str) -> Any:
            return wait() if site.mode.name == "asyncio" else run(wait())

        await join(rooms["lobby"], ws, snapshot=wait_blocking)
        async for _ in ws:
            pass

    client = site.connect("/slow")
    assert client.recv() == "state"
    gate = site.noted()
    publish(rooms, *map(str, range(11)))
    with pytest.raises(ConnectionClosed) as closed:
        client.recv()
    gate.open()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013
    wait_until(lambda: not rooms["lobby"].local_members)
    assert site.websocket.stats()["rooms"]["slow"] == 1


@pytest.mark.parametrize("options", [{"history": 2}, {"history_size": 100}])
def test_a_client_that_has_missed_more_than_is_kept_gets_the_state(
    site: Site, make_chat: Callable[..., Rooms], options: Any
) -> None:
    rooms = make_chat(**options)
    with site.connect("/lobby") as client:
        get(client), get(client)
        publish(rooms, "one")
        one = get(client)["id"]
    publish(rooms, "two", "three", "four")
    with site.connect(f"/lobby?since={one}") as client:
        snapshot = get(client)["snapshot"]
    with site.connect(f"/lobby?since={snapshot}") as client:
        assert get(client) == {"whole": True}


def test_rooms_without_history_have_positions_and_nothing_else(site: Site, make_chat: Callable[..., Rooms]) -> None:
    rooms = make_chat(history=0)
    with site.connect("/lobby") as member, site.connect("/lobby") as client:
        for each in (member, client):
            get(each), get(each)
        publish(rooms, "one")
        one = get(client)["id"]
        client.close()
        publish(rooms, "two")
        assert texts(member, 2) == ["one", "two"]
        with site.connect(f"/lobby?since={one}") as again:
            assert "snapshot" in get(again)
            assert get(again) == {"whole": False}


def test_without_a_snapshot_function_a_client_only_learns_that_it_has_missed_something(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    rooms = make_chat()
    with site.connect("/lobby?plain=1&since=unknown") as client:
        assert get(client) == {"whole": False}
        publish(rooms, "live")
        assert texts(client, 1) == ["live"]


def test_a_member_may_resume_again(site: Site, make_chat: Callable[..., Rooms]) -> None:
    rooms = make_chat()

    @site.route("/")
    async def handler(ws: Any) -> None:
        await join(rooms["lobby"], ws)
        async for since in ws:
            await join(rooms["lobby"], ws, since=since)

    client = site.connect()
    publish(rooms, "one", "two")
    one = get(client)["id"]
    assert texts(client, 1) == ["two"]
    client.send(one)
    assert texts(client, 1) == ["two"]
    publish(rooms, "three")
    assert texts(client, 1) == ["three"]
    assert len(rooms["lobby"].local_members) == 1


def test_orders_to_close_are_not_repeated_to_members_that_come_back(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    rooms = make_chat()
    client = site.connect("/lobby")
    get(client), get(client)
    publish(rooms, "one")
    one = get(client)["id"]
    rooms["lobby"].close(4000, "out")
    with pytest.raises(ConnectionClosed):
        client.recv()
    publish(rooms, "two")
    with site.connect(f"/lobby?since={one}") as client:
        assert texts(client, 1) == ["two"]
        assert get(client) == {"whole": True}


def test_what_left_a_member_out_reaches_its_next_connection(site: Site, make_chat: Callable[..., Rooms]) -> None:
    rooms = make_chat()
    with site.connect("/lobby") as client:
        get(client), get(client)
        publish(rooms, "one")
        one = get(client)["id"]
        rooms["lobby"].publish_json({"text": "two"}, exclude=rooms["lobby"].local_members, stamp="id")
        publish(rooms, "three")
        assert texts(client, 1) == ["three"]
    with site.connect(f"/lobby?since={one}") as client:
        assert texts(client, 2) == ["two", "three"]


def test_the_first_message_of_a_room_may_leave_out_a_client_that_is_getting_the_snapshot(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    room = make_chat()["lobby"]

    @site.route("/slow")
    async def handler(ws: Any) -> None:
        async def wait() -> None:
            await ws.send("state")
            await wait_at_gate(site)

        await join(room, ws, snapshot=lambda position: wait() if site.mode.name == "asyncio" else run(wait()))
        async for _ in ws:
            pass

    client = site.connect("/slow")
    assert client.recv() == "state"
    gate = site.noted()
    other = site.connect("/lobby?plain")
    assert get(other) == {"whole": False}
    _, left_out = room.local_members  # those that are getting the snapshot come last
    for text, exclude in (("for others", [left_out]), ("for all", [])):
        room.publish_json({"text": text}, exclude, stamp="id")
    assert texts(other, 2) == ["for others", "for all"]
    gate.open()
    assert texts(client, 1) == ["for all"]


class NewerHistory(MemoryBroker):
    """A broker whose history has lost its memory, which its subscriptions do not know yet."""

    def history(self, room: str, after: Position | None, retention: Retention) -> History:
        return History(Position("newer", 7), [])


def test_a_member_that_has_a_newer_epoch_gets_no_message_of_the_older_one_and_has_to_resume(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    site.app.config["WEBSOCKET_BROKER"] = NewerHistory
    rooms = make_chat()
    client = site.connect("/lobby")
    assert get(client)["snapshot"].startswith("7.newer.")
    assert get(client) == {"whole": False}
    publish(rooms, "old")
    with pytest.raises(ConnectionClosed) as closed:
        client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013


def test_a_client_gets_no_message_of_an_older_epoch_that_has_arrived_while_it_resumed(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    site.app.config["WEBSOCKET_BROKER"] = NewerHistory
    rooms = make_chat()
    room = rooms["lobby"]

    @site.route("/slow")
    async def handler(ws: Any) -> None:
        async def wait() -> None:
            await ws.send("state")
            await wait_at_gate(site)

        await join(room, ws, snapshot=lambda position: wait() if site.mode.name == "asyncio" else run(wait()))

    @site.route("/live")
    async def live(ws: Any) -> None:
        await join(room, ws)
        async for _ in ws:
            pass

    client, other = site.connect("/slow"), site.connect("/live")
    assert client.recv() == "state"
    gate = site.noted()
    publish(rooms, "old")
    assert texts(other, 1) == ["old"]  # now the message waits for the client
    gate.open()
    with pytest.raises(ConnectionClosed) as closed:
        client.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013


class LossyBroker(MemoryBroker):
    """A broker that loses messages on their way, as a subscription does that is opened again."""

    loses = False
    lost = 0

    def take(self, subscription: Any) -> Sequence[Event]:
        events = super().take(subscription)
        if not self.loses:
            return events
        rest = [event for event in events if not isinstance(event, Delivered)]
        self.lost += len(events) - len(rest)
        return rest


def test_members_of_two_rooms_get_what_both_have_missed_of_one_publisher(
    site: Site, make_chat: Callable[..., Rooms]
) -> None:
    broker = LossyBroker()
    site.app.config["WEBSOCKET_BROKER"] = lambda: broker
    rooms = make_chat()
    clients = [site.connect(f"/{name}?plain") for name in ("one", "two")]
    for client, name in zip(clients, ("one", "two"), strict=True):
        assert get(client) == {"whole": False}
        publish(rooms, "first", name=name)
        assert texts(client, 1) == ["first"]
    broker.loses = True
    for text in ("second", "third"):
        for name in ("one", "two"):
            publish(rooms, text, name=name)
    wait_until(lambda: broker.lost == 4)
    broker.loses = False
    for client, name in zip(clients, ("one", "two"), strict=True):
        publish(rooms, "fourth", name=name)
        assert texts(client, 3) == ["second", "third", "fourth"]
    assert site.websocket.stats()["rooms"]["filled"] == 2
