"""Who is in a room: members with all their connections, what they say of themselves, and who comes and goes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from flask import Flask, current_app, request

from flask_uwsgi_websocket import (
    Member,
    Room,
    WebSocketBlueprint,
    websocket_closed,
    websocket_joined,
    websocket_left,
)
from flask_uwsgi_websocket.rooms import presence
from flask_uwsgi_websocket.rooms.brokers.base import Attendance, Lease, Presence, Roster
from flask_uwsgi_websocket.rooms.brokers.memory import MemoryBroker
from flask_uwsgi_websocket.rooms.exchange import exchange_of
from flask_uwsgi_websocket.rooms.rooms import LONGEST_INFO
from support.inprocess import DEADLINE, Site, join, wait_until


class Club:
    """A site with rooms with presence, and what was announced."""

    def __init__(self, site: Site, **options: Any) -> None:
        self.site = site
        blueprint = WebSocketBlueprint("club", __name__)
        self.rooms = blueprint.rooms(**{"presence": True, "presence_grace": 0, **options})
        #: What was announced: "+" or "-", and the id of the member.
        self.announced: list[str] = []

        @site.websocket.user_id
        def user_id() -> str | None:
            return request.args.get("user")

        async def handler(ws: Any, name: str) -> None:
            await join(self.rooms[name], ws, info=request.args.get("info"))
            await ws.send(getattr(ws, "blocking", ws).id)
            async for _ in ws:
                pass

        blueprint.websocket("/<name>")(site.mode.handler(handler))
        site.app.register_blueprint(blueprint)

    def listen(self) -> None:
        @self.rooms.on_join
        def joined(room: Room, member: Member) -> None:
            self.announced.append(f"+{member.id}")

        @self.rooms.on_leave
        def left(room: Room, member: Member) -> None:
            self.announced.append(f"-{member.id}")

    def enter(self, path: str) -> Any:
        """Connect a client, and wait until it has joined. It has the id of its connection."""
        client: Any = self.site.connect(path)
        client.connection_id = client.recv()
        return client

    def ids(self, name: str = "bar") -> list[str]:
        return [member.id for member in self.rooms[name].members()]

    def wait_for(self, *announced: str) -> None:
        wait_until(lambda: self.announced == list(announced), lambda: f"{self.announced}, not {list(announced)}")


@pytest.fixture
def make_club(site: Site) -> Callable[..., Club]:
    return lambda **options: Club(site, **options)


def test_members_are_users_with_all_their_connections_and_connections_without_a_user(
    make_club: Callable[..., Club],
) -> None:
    club = make_club()
    nobody = club.enter("/bar")
    clients = [club.enter(f"/bar?user=ann&info={info}") for info in ("first", "second")]
    other = club.enter("/other?user=bob")
    assert club.rooms["bar"].count() == 2
    members = club.rooms["bar"].members()
    assert [(each.id, each.user_id, each.info) for each in members] == [
        (nobody.connection_id, None, None),
        ("ann", "ann", "second"),
    ]
    assert members[0].since <= members[1].since
    assert club.ids("other") == ["bob"]
    assert club.ids("empty") == []
    clients[0].close()
    nobody.close()
    wait_until(lambda: club.ids() == ["ann"])
    clients[1].close()
    wait_until(lambda: club.ids() == [])
    assert club.rooms["bar"].count() == 0
    other.close()


def test_a_member_is_announced_once_when_it_comes_and_once_when_it_goes(make_club: Callable[..., Club]) -> None:
    club = make_club()
    club.listen()
    one = club.enter("/bar?user=ann")
    club.wait_for("+ann")
    two = club.enter("/bar?user=ann")
    three = club.enter("/bar?user=bob")
    club.wait_for("+ann", "+bob")
    one.close()
    three.close()
    club.wait_for("+ann", "+bob", "-bob")
    two.close()
    club.wait_for("+ann", "+bob", "-bob", "-ann")


def test_members_are_announced_in_the_app_whose_members_they_are(site: Site, make_club: Callable[..., Club]) -> None:
    club = make_club()
    club.listen()
    other_app = Flask("other")
    for blueprint in site.app.blueprints.values():
        other_app.register_blueprint(blueprint)
    club.enter("/bar?user=ann").close()
    club.wait_for("+ann", "-ann")


def test_signals_have_the_room_and_the_member_in_an_app_context(site: Site, make_club: Callable[..., Club]) -> None:
    club, heard = make_club(), []

    def note(app: Flask, room: Room, member: Member, **extra: Any) -> None:
        heard.append((app, current_app.name, room, member.id, member.info))

    with websocket_joined.connected_to(note, site.app), websocket_left.connected_to(note, site.app):
        client = club.enter("/bar?user=ann&info=here")
        expected = (site.app, site.app.name, club.rooms["bar"], "ann", "here")
        wait_until(lambda: heard == [expected])
        client.close()
        wait_until(lambda: heard == [expected] * 2)


def test_a_member_that_comes_back_within_the_grace_was_never_gone(make_club: Callable[..., Club]) -> None:
    club = make_club(presence_grace=DEADLINE)
    club.listen()
    client = club.enter("/bar?user=ann&info=old")
    (before,) = club.rooms["bar"].members()
    client.close()
    wait_until(lambda: not club.rooms["bar"].local_members)
    assert club.ids() == ["ann"]
    club.enter("/bar?user=ann&info=new")
    (after,) = club.rooms["bar"].members()
    assert (after.since, after.info) == (before.since, "new")
    club.enter("/bar?user=bob")
    club.wait_for("+ann", "+bob")


def test_a_member_is_gone_after_the_grace(make_club: Callable[..., Club]) -> None:
    club = make_club(presence_grace=0.3)
    club.listen()
    club.enter("/bar?user=ann").close()
    club.wait_for("+ann", "-ann")
    assert club.ids() == []


def test_leaving_a_room_is_no_end_of_the_connection(site: Site, make_club: Callable[..., Club]) -> None:
    club = make_club()

    @site.route("/move")
    async def handler(ws: Any) -> None:
        plain = getattr(ws, "blocking", ws)
        await join(club.rooms["bar"], ws)
        async for name in ws:
            club.rooms["bar"].leave(plain)
            await join(club.rooms[name], ws, info={"from": "bar"})
            await ws.send("moved")

    client = site.connect("/move?user=ann")
    wait_until(lambda: club.ids() == ["ann"])
    client.send("garden")
    assert client.recv() == "moved"
    wait_until(lambda: club.ids() == [])
    assert [each.info for each in club.rooms["garden"].members()] == [{"from": "bar"}]


def test_whoever_is_refused_was_never_there(site: Site, make_club: Callable[..., Club]) -> None:
    club = make_club()
    club.listen()

    @club.rooms.before_join
    def check(room: Room, ws: Any) -> bool:
        return "user" in request.args

    with pytest.raises(Exception, match="403"):
        site.connect("/bar")
    club.enter("/bar?user=ann").close()
    club.wait_for("+ann", "-ann")


def test_a_member_sees_itself_in_its_handler_and_not_when_its_end_is_reported(
    site: Site, make_club: Callable[..., Club]
) -> None:
    club, seen = make_club(), []

    def closed(app: Flask, ws: Any, **extra: Any) -> None:
        seen.append(ws.memberships)

    with websocket_closed.connected_to(closed, site.app):
        client = club.enter("/bar?user=ann")
        assert club.ids() == ["ann"]
        client.close()
        wait_until(lambda: seen == [()])


def test_a_process_without_connections_announces_whom_another_one_has_left_behind(
    site: Site, make_club: Callable[..., Club]
) -> None:
    club = make_club()

    async def left_later(room: Room, member: Member) -> None:
        club.announced.append(f"-{member.id}")

    def left(room: Room, member: Member) -> None:
        club.announced.append(f"-{member.id}")

    club.rooms.on_leave(left_later if site.mode.name == "asyncio" else left)
    site.app.config["WEBSOCKET_BROKER"] = "memory://"
    exchange = exchange_of(site.app)
    other = exchange.broker().roster()
    attendances = [Attendance(club.rooms["bar"].key, "uann", "connection", b"[null, null]", 0)]
    other.enter(attendances)
    other.leave(attendances)
    exchange._keeper.wake()
    club.wait_for("-ann")


def test_functions_that_fail_or_hang_harm_neither_the_others_nor_the_members(
    site: Site, make_club: Callable[..., Club]
) -> None:
    club = make_club()
    may_go_on = threading.Event()

    @club.rooms.on_join
    def fail(room: Room, member: Member) -> None:
        assert may_go_on.wait(DEADLINE)
        raise RuntimeError("the database is away")

    club.listen()
    clients = [club.enter(f"/bar?user={number}") for number in range(3)]
    assert club.ids() == ["0", "1", "2"]
    clients[0].close()
    wait_until(lambda: club.ids() == ["1", "2"])
    assert club.announced == []
    may_go_on.set()
    club.wait_for("+0", "+1", "+2", "-0")
    for _ in range(3):
        assert "failed on the join of a member" in site.logged().getMessage()


def test_rooms_may_announce_nobody(site: Site, make_club: Callable[..., Club]) -> None:
    club, heard = make_club(announce=False), []

    def note(app: Flask, **extra: Any) -> None:
        heard.append(extra)

    with pytest.raises(RuntimeError, match="announce nobody"):
        club.listen()
    with websocket_joined.connected_to(note, site.app), websocket_left.connected_to(note, site.app):
        client = club.enter("/bar?user=ann")
        assert club.ids() == ["ann"]
        client.close()
        wait_until(lambda: club.ids() == [])
    assert heard == []


def test_rooms_without_presence_say_so(site: Site) -> None:
    rooms = WebSocketBlueprint("plain", __name__).rooms()
    with pytest.raises(RuntimeError, match="presence=True"):
        rooms["bar"].members()
    for register in (rooms.on_join, rooms.on_leave):
        with pytest.raises(RuntimeError, match="presence=True"):
            register(lambda room, member: None)

    @site.route("/")
    async def handler(ws: Any) -> None:
        with pytest.raises(RuntimeError, match="presence=True"):
            await join(site.websocket.room("news"), ws, info=1)
        site.note("raised")

    site.connect()
    assert site.noted() == "raised"


@pytest.mark.parametrize(
    "options",
    [
        {"history": -1}, {"history": 10_001}, {"history": 1, "history_ttl": 0}, {"history": 1, "history_ttl": 100_000},
        {"history": 1, "history_size": 0}, {"presence_grace": -1}, {"presence_grace": 4000},
    ],
)  # fmt: skip
def test_numbers_out_of_their_range_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        WebSocketBlueprint("rooms", __name__).rooms(**options)


def test_information_that_is_too_long_is_refused(site: Site, make_club: Callable[..., Club]) -> None:
    club = make_club()

    @site.route("/long")
    async def handler(ws: Any) -> None:
        with pytest.raises(ValueError, match="4,096 bytes"):
            await join(club.rooms["bar"], ws, info="x" * LONGEST_INFO)
        site.note("raised")

    club.enter("/bar?user=ann")
    site.connect("/long?user=bob")
    assert site.noted() == "raised"
    assert club.ids() == ["ann"]


def test_the_keeper_ends_some_time_after_the_last_member(
    site: Site, make_club: Callable[..., Club], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "LINGER", 0.1)
    club = make_club()
    club.enter("/bar").close()
    keeper = exchange_of(site.app)._keeper
    wait_until(lambda: not keeper._is_running)
    club.enter("/bar")
    assert len(club.ids()) == 1


def test_an_announcement_that_is_made_before_its_thread_has_reported_its_start_is_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start_and_finish(function: Callable[[], None], name: str) -> bool:
        thread = threading.Thread(target=function, name=name)
        thread.start()
        thread.join()
        return True

    monkeypatch.setattr(presence, "_start", start_and_finish)
    announced: list[str] = []
    announcer = presence.Announcer(lambda kind, each: announced.append(f"{kind} {each.member}"))
    for member in ("ann", "bob"):
        announcer.put("join", [Presence("bar", member, 1.0, b"")])
    assert announced == ["join ann", "join bob"]


class ForgetfulRoster(Roster):
    """A roster of one process. What it has entered may be forgotten before the next call of :meth:`enter`."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.lease = Lease.HELD
        self.is_forgotten = False
        self.renewals = 0

    def enter(self, attendances: Sequence[Attendance]) -> Sequence[Presence]:
        if self.is_forgotten:
            self.is_forgotten, self.lease = False, Lease.UNKNOWN
            self.there.clear()
        arrived = [Presence(each.room, each.member, 1.0, b"") for each in attendances if each.member not in self.there]
        self.there.update(each.member for each in arrived)
        return arrived

    def renew(self) -> Lease:
        lease, self.lease = self.lease, Lease.HELD
        self.renewals += 1
        return lease

    def leave(self, attendances: Sequence[Attendance]) -> None:
        self.there.difference_update(each.member for each in attendances)

    def sweep(self) -> Sequence[Presence]:
        return []

    def members(self, room: str) -> Sequence[Presence]:
        raise NotImplementedError

    def count(self, room: str) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self.there.clear()


class ForgetfulBroker(MemoryBroker):
    """A broker with one roster."""

    def __init__(self, roster: Roster) -> None:
        super().__init__()
        self._roster = roster

    def roster(self) -> Roster:
        return self._roster


def test_members_who_enter_again_are_not_announced_when_the_broker_has_just_lost_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(presence, "RENEW_INTERVAL", 0.02)
    monkeypatch.setattr(presence, "LINGER", 0.02)
    announced: list[str] = []
    roster = ForgetfulRoster()
    broker = ForgetfulBroker(roster)
    keeper = presence.Keeper(lambda: broker, lambda kind, each: announced.append(f"{kind} {each.member}"))
    keeper.enter(Attendance("bar", "ann", "1", b"", 0))
    wait_until(lambda: announced == ["join ann"])
    roster.is_forgotten = True
    roster.lease = Lease.LOST  # so that all enter again
    wait_until(lambda: not roster.is_forgotten and roster.there)
    renewals = roster.renewals
    wait_until(lambda: roster.renewals > renewals + 1)
    keeper.enter(Attendance("bar", "bob", "2", b"", 0))
    wait_until(lambda: "join bob" in announced)
    assert announced == ["join ann", "join bob"]
    for connection in ("1", "2"):
        keeper.leave("bar", connection)
    wait_until(lambda: not keeper._is_running)
