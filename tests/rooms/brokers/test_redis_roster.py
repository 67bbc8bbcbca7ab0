"""The roster of the Redis broker, on real servers."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest

from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers import redis_roster as module
from flask_uwsgi_websocket.rooms.brokers.base import Attendance, Lease, Presence, Roster
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker
from support.inprocess import DEADLINE, wait_until
from support.redis_brokers import opened, threads
from support.redis_server import RedisServer, StartServer
from support.tcp_proxy import TcpProxy

GRACE = 100.0


@pytest.fixture
def broker(server: RedisServer) -> Iterator[RedisBroker]:
    with opened(server.unix_url) as broker:
        yield broker


#: Makes the roster of another process, which is closed at the end.
MakeRoster = Callable[[], Roster]


@pytest.fixture
def make_roster(broker: RedisBroker) -> Iterator[MakeRoster]:
    with ExitStack() as stack:

        def make() -> Roster:
            roster = broker.roster()
            stack.callback(roster.close)
            return roster

        yield make


@pytest.fixture
def roster(make_roster: MakeRoster) -> Roster:
    return make_roster()


@contextmanager
def dying() -> Iterator[None]:
    """Leases that are taken or renewed in a ``with`` statement end at once, as those of dead processes do later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEASE", 0.0)
        yield


def attend(
    member: str, connection: str = "", *, room: str = "room", grace: float = GRACE, data: str = ""
) -> Attendance:
    return Attendance(room, member, connection or f"of {member}", data.encode(), grace)


def names(presences: Sequence[Presence]) -> list[str]:
    return [each.member for each in presences]


def sweep_all(roster: Roster) -> list[Presence]:
    """Sweep until nothing is left to be swept."""
    left: list[Presence] = []
    while some := roster.sweep():
        left += some
    return left


def sweep_until(roster: Roster, members: Sequence[str]) -> None:
    """Sweep until some members have left, and nobody else."""
    left: list[str] = []

    def have_left() -> bool:
        left.extend(names(roster.sweep()))
        return len(left) >= len(members)

    wait_until(have_left)
    assert sorted(left) == sorted(members)


def put_forward(server: RedisServer, seconds: float) -> None:
    """Let all times in a roster be earlier, as if Redis' clock was put forward."""
    for key in server.run("KEYS", "*"):
        name = key.split(b":")[3:4]
        if name in ([b"owners"], [b"dead"], [b"gone"], [b"leaving"]):
            for member in server.run("ZRANGE", key, 0, -1):
                server.run("ZINCRBY", key, -1000 * seconds, member)
        elif name == [b"heard"]:
            server.run("SET", key, int(server.run("GET", key)) - int(1000 * seconds))


# Members


def test_members_are_in_the_order_in_which_they_came(make_roster: MakeRoster) -> None:
    one, other = make_roster(), make_roster()
    expected: list[str] = []
    for start in range(0, 600, 150):
        for offset, roster in ((0, one), (75, other)):
            some = [f"{number}" for number in range(start + offset, start + offset + 75)]
            assert names(roster.enter([attend(each) for each in some])) == some
            expected += some
    members = one.members("room")
    assert names(members) == expected
    assert other.members("room") == members
    assert one.count("room") == len(expected)
    times = [each.since for each in members]
    assert sorted(set(times)) == times
    assert abs(times[0] - time.time()) < 100


def test_a_member_has_connections_in_several_processes(make_roster: MakeRoster) -> None:
    one, other = make_roster(), make_roster()
    (came,) = one.enter([attend("m", "1", data="first")])
    assert came == Presence("room", "m", came.since, b"first")
    assert other.enter([attend("m", "1", data="second"), attend("m", "2", grace=0)]) == []
    assert one.enter([attend("m", "3", data="third")]) == []
    assert one.members("room") == [came._replace(data=b"third")]
    one.leave([attend("m", "1"), attend("m", "3"), attend("m", "unknown")])
    other.leave([attend("m", "1")])
    assert sweep_all(one) == []
    assert other.members("room") == [came._replace(data=b"third")]
    other.leave([attend("m", "2")])  # with the grace that it has entered with
    assert other.members("room") == []
    assert other.count("room") == 0
    wait_until(lambda: one.sweep() == [came._replace(data=b"third")])


def test_who_comes_twice_in_one_call_comes_once(roster: Roster) -> None:
    (came,) = roster.enter([attend("m", "1", data="one"), attend("m", "2", data="two")])
    assert came.data == b"two"
    assert roster.members("room") == [came]


def test_a_member_who_returns_within_the_grace_was_there(server: RedisServer, roster: Roster) -> None:
    (came,) = roster.enter([attend("m", "1")])
    roster.leave([attend("m", "1")])
    put_forward(server, GRACE - 20)
    assert sweep_all(roster) == []
    assert roster.members("room") == [came]
    assert roster.enter([attend("m", "2", data="new")]) == []
    put_forward(server, GRACE)
    assert sweep_all(roster) == []
    assert roster.members("room") == [came._replace(data=b"new")]


def test_a_member_who_returns_after_the_grace_and_before_a_sweep_was_there(server: RedisServer, roster: Roster) -> None:
    (came,) = roster.enter([attend("m", "1", grace=0)])
    roster.leave([attend("m", "1")])
    assert roster.members("room") == []
    assert roster.enter([attend("m", "1")]) == []
    assert roster.members("room") == [came]
    assert sweep_all(roster) == []


TEXTS = ["", ":", "1:2:", "a\r\nb", "\0", "%s", "größe 部屋", "\ud800", "x" * 5000, "0", "-1", "inf"]


def test_any_text_is_a_name(roster: Roster) -> None:
    attendances = [
        Attendance(room, member, connection, data.encode("utf-8", "surrogatepass"), 0)
        for room in TEXTS
        for member, connection, data in zip(TEXTS, reversed(TEXTS), TEXTS[3:] + TEXTS[:3], strict=True)
    ]
    came = roster.enter(attendances)
    assert [(each.room, each.member, each.data) for each in came] == [
        (each.room, each.member, each.data) for each in attendances
    ]
    for room in TEXTS:
        assert roster.members(room) == [each for each in came if each.room == room]
        assert roster.count(room) == len(TEXTS)
    roster.leave(attendances)
    left: list[Presence] = []
    wait_until(lambda: left.extend(roster.sweep()) or len(left) == len(came))
    assert sorted(left) == sorted(came)
    assert roster.count("") == 0


def test_names_that_look_alike_are_apart(roster: Roster) -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("a:b", "c"), ("a", "b:c"), ("", "abc"), ("abc", "")]
    roster.enter([Attendance(room, member, "", b"", GRACE) for room, member in pairs])
    roster.enter([Attendance(room, "d", member, b"", GRACE) for room, member in pairs])
    roster.leave([Attendance("a", "d", "bc", b"", GRACE), Attendance("ab", "c", "", b"", GRACE)])
    for room in {room for room, _ in pairs}:
        assert sorted(names(roster.members(room))) == sorted([name for each, name in pairs if each == room] + ["d"])


def test_other_threads_look_while_one_enters(server: RedisServer, roster: Roster) -> None:
    ended = threading.Event()
    counts: list[int] = []

    def look() -> None:
        while not ended.is_set():
            before = roster.count("room")
            members = roster.members("room")
            assert before <= len(members) == len({each.member for each in members})
            counts.append(before)

    with threads(*[look] * 4):
        try:
            for start in range(0, 3000, 100):
                roster.enter([attend(str(number)) for number in range(start, start + 100)])
                roster.renew()
                roster.sweep()
            wait_until(lambda: counts[-1:] == [3000])
        finally:
            ended.set()
    assert roster.count("room") == 3000


# Leases


def test_a_lease_is_unknown_until_it_is_taken(roster: Roster) -> None:
    assert roster.renew() is Lease.UNKNOWN
    assert roster.enter([]) == []
    assert [roster.renew() for _ in range(3)] == [Lease.HELD] * 3


def test_a_lease_that_nobody_has_ended_is_held_again(make_roster: MakeRoster) -> None:
    roster = make_roster()
    with dying():
        roster.enter([attend("m")])
    assert roster.renew() is Lease.HELD
    other = make_roster()
    assert sweep_all(other) == []
    assert names(other.members("room")) == ["m"]


def test_a_lease_is_prolonged_only_now_and_then(
    server: RedisServer, roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster.enter([attend("m")])
    (owners,) = server.run("KEYS", "*:owners")
    ends = set()
    for _ in range(100):
        assert roster.renew() is Lease.HELD
        ends.add(server.run("ZRANGE", owners, 0, -1, "WITHSCORES")[1])
    assert len(ends) == 1
    monkeypatch.setattr(module, "monotonic", lambda: time.monotonic() + module.PROLONG_AFTER)
    assert roster.renew() is Lease.HELD
    assert server.run("ZRANGE", owners, 0, -1, "WITHSCORES")[1] not in ends


@pytest.mark.parametrize("look", ["sweep", "members", "count"])
def test_a_process_that_was_cut_off_enters_its_connections_again(make_roster: MakeRoster, look: str) -> None:
    cut_off, other = make_roster(), make_roster()
    with dying():
        (came,) = cut_off.enter([attend("m")])
    other.enter([attend("other")])
    _look(other, look)
    assert [cut_off.renew() for _ in range(2)] == [Lease.LOST] * 2
    assert cut_off.enter([attend("m")]) == []  # within the grace
    assert cut_off.renew() is Lease.HELD
    assert sweep_all(other) == []
    assert other.members("room")[0] == came
    assert (cut_off.reaped, other.reaped) == (0, 1)


def _look(roster: Roster, how: str) -> None:
    if how == "sweep":
        assert sweep_all(roster) == []
    elif how == "members":
        assert len(roster.members("room")) == 2
    else:
        assert roster.count("room") == 2


def test_a_process_that_enters_before_it_knows_that_it_was_cut_off_learns_it(make_roster: MakeRoster) -> None:
    cut_off, other = make_roster(), make_roster()
    with dying():
        cut_off.enter([attend("m", grace=0)])
    sweep_until(other, ["m"])
    assert names(cut_off.enter([attend("n")])) == ["n"]
    assert cut_off.renew() is Lease.LOST
    assert names(cut_off.enter([attend("m"), attend("n")])) == ["m"]
    assert [cut_off.renew() for _ in range(3)] == [Lease.HELD] * 3
    assert names(other.members("room")) == ["n", "m"]


def test_what_a_process_removes_after_it_was_cut_off_does_not_matter(make_roster: MakeRoster) -> None:
    cut_off, other = make_roster(), make_roster()
    with dying():
        cut_off.enter([attend("m")])
    other.enter([attend("m", "another")])
    sweep_all(other)
    cut_off.leave([attend("m")])
    assert names(other.members("room")) == ["m"]
    other.leave([attend("m", "another")])
    assert names(other.members("room")) == ["m"]


def test_members_of_a_dead_process_leave_after_their_grace(server: RedisServer, make_roster: MakeRoster) -> None:
    dead, other = make_roster(), make_roster()
    with dying():
        dead.enter([attend("short", grace=12), attend("long", grace=1000)])
    other.enter([attend("long", "another", grace=2000)])
    assert names(other.members("room")) == ["short", "long"]
    put_forward(server, module.PROLONG_AFTER)
    assert names(other.members("room")) == ["long"]
    assert other.count("room") == 1
    assert names(sweep_all(other)) == ["short"]
    other.leave([attend("long", "another")])
    put_forward(server, 1990)
    assert sweep_all(other) == []
    put_forward(server, 20)
    assert names(sweep_all(other)) == ["long"]


@pytest.mark.parametrize("grace", [0, 5, 10, 30])
def test_the_grace_begins_when_the_lease_should_have_been_prolonged(
    server: RedisServer, make_roster: MakeRoster, grace: float
) -> None:
    dead, other = make_roster(), make_roster()
    dead.enter([attend("m", grace=grace)])
    end = max(module.LEASE, module.PROLONG_AFTER + grace)
    put_forward(server, end - 10)
    assert names(other.members("room")) == ["m"]
    assert other.sweep() == []
    put_forward(server, 3)
    assert other.sweep() == []
    put_forward(server, 3)
    assert other.sweep() == []
    put_forward(server, 4)
    assert other.members("room") == []
    assert names(sweep_all(other)) == ["m"]


SCRIPT = """
import sys, time
from flask_uwsgi_websocket.rooms.brokers import redis_roster
from flask_uwsgi_websocket.rooms.brokers.base import Attendance
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker
redis_roster.PROLONG_AFTER = 0.0
roster = RedisBroker(sys.argv[1]).roster()
roster.enter([Attendance("room", str(number), "", b"", 0.2) for number in range(500)])
print("here", flush=True)
while True:
    assert roster.renew().value == "held"
    time.sleep(0.02)
"""


def test_members_of_a_killed_process_leave_once(server: RedisServer, make_roster: MakeRoster) -> None:
    left: list[Presence] = []
    ended = threading.Event()

    def sweep_on() -> None:
        roster = make_roster()
        while not ended.is_set():
            left.extend(roster.sweep())
            time.sleep(0.02)

    def shorten_lease(share: float) -> None:
        """Let a part of the lease pass at once, and wait until it is prolonged."""
        (owners,) = server.run("KEYS", "*:owners")
        (owner,) = server.run("ZRANGE", owners, 0, -1)
        end = float(server.run("ZINCRBY", owners, -1000 * module.LEASE * share, owner))
        if process.poll() is None:
            wait_until(lambda: float(server.run("ZSCORE", owners, owner)) > end)

    process = subprocess.Popen([sys.executable, "-c", SCRIPT, server.unix_url], stdout=subprocess.PIPE, text=True)
    with process, threads(*[sweep_on] * 3):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            for _ in range(5):
                shorten_lease(0.5)  # which it does not survive if it does not prolong it
            assert make_roster().count("room") == 500
            assert left == []
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE)
            shorten_lease(1.0)
            wait_until(lambda: len(left) >= 500)
        finally:
            process.kill()
            ended.set()
    assert sorted(map(int, names(left))) == list(range(500))
    assert make_roster().members("room") == []


def test_closing_is_as_dying(make_roster: MakeRoster) -> None:
    one, other = make_roster(), make_roster()
    one.enter([attend("short", grace=0), attend("long"), attend("both", "1")])
    other.enter([attend("both", "2")])
    one.close()
    one.close()
    assert names(other.members("room")) == ["long", "both"]
    sweep_until(other, ["short"])
    assert one.renew() is Lease.UNKNOWN
    assert one.enter([attend("long")]) == []  # as a new one
    assert one.renew() is Lease.HELD


def test_closing_ends_the_connection(server: RedisServer, broker: RedisBroker) -> None:
    roster = broker.roster()
    roster.enter([attend("m")])
    assert server.run("CLIENT", "LIST").count(b"\n") == 2  # with the one that asks
    roster.close()
    wait_until(lambda: server.run("CLIENT", "LIST").count(b"\n") == 1)


def test_closing_does_not_fail_when_redis_is_away(server: RedisServer, make_roster: MakeRoster) -> None:
    roster = make_roster()
    roster.enter([attend("m")])
    server.kill()
    roster.close()


# Sweeping


def test_each_member_leaves_in_one_process(server: RedisServer, make_roster: MakeRoster) -> None:
    rosters = [make_roster() for _ in range(4)]
    expected = []
    for number, roster in enumerate(rosters):
        some = [attend(f"{number}/{each}", room=f"room {each % 7}", grace=0.0) for each in range(500)]
        roster.enter(some)
        expected += [(each.room, each.member) for each in some]
        if number % 2:
            roster.leave(some)
        else:
            roster.close()
    swept: list[list[Presence]] = []
    makers = [make_roster() for _ in range(4)]

    def sweep(roster: Roster) -> None:
        left: list[Presence] = []
        swept.append(left)
        deadline = time.monotonic() + DEADLINE
        while sum(map(len, swept)) < len(expected) and time.monotonic() < deadline:
            some = roster.sweep()
            assert len(some) <= 500
            left += some

    with threads(*(partial(sweep, roster) for roster in makers)):
        pass
    assert sorted((each.room, each.member) for left in swept for each in left) == sorted(expected)
    assert sum(roster.reaped for roster in makers) == 1000
    assert all(makers[0].count(f"room {each}") == 0 for each in range(7))


def test_nobody_leaves_because_redis_was_frozen(server: RedisServer, make_roster: MakeRoster) -> None:
    rosters = [make_roster() for _ in range(3)]
    for number, roster in enumerate(rosters):
        roster.enter([attend(str(number), grace=0.0)])
        roster.sweep()
    put_forward(server, module.LEASE + 20)  # without a call of anybody
    assert rosters[0].count("room") == 3
    assert [roster.sweep() for roster in rosters] == [[]] * 3
    assert [roster.renew() for roster in rosters] == [Lease.HELD] * 3
    put_forward(server, 2)
    assert [roster.sweep() for roster in rosters] == [[]] * 3
    assert names(rosters[0].members("room")) == ["0", "1", "2"]


def test_those_who_do_not_come_back_after_redis_was_frozen_leave(server: RedisServer, make_roster: MakeRoster) -> None:
    alive, dead = make_roster(), make_roster()
    for roster, member in ((alive, "alive"), (dead, "dead")):
        roster.enter([attend(member, grace=0.0)])
        roster.sweep()
    put_forward(server, 60)
    left: list[Presence] = []
    for step in range(12):
        left += alive.sweep()
        assert step > 5 or names(alive.members("room")) == ["alive", "dead"]
        put_forward(server, 1.5)
        alive._prolong_at = 0.0  # type: ignore[attr-defined]
        assert alive.renew() is Lease.HELD
    assert names(left) == ["dead"]


def test_after_minutes_of_silence_all_are_dead(server: RedisServer, make_roster: MakeRoster) -> None:
    dead = make_roster()
    dead.enter([attend("dead", grace=0.0)])
    dead.sweep()
    put_forward(server, module.DEAD_AFTER + 10)
    assert make_roster().members("room") == []
    assert names(make_roster().sweep()) == ["dead"]
    assert dead.renew() is Lease.LOST


# What Redis forgets


def _enter_again(rosters: dict[str, Roster]) -> None:
    for member, roster in rosters.items():
        roster.enter([attend(member, grace=0.0)])
        assert roster.renew() is Lease.HELD


@pytest.mark.parametrize("how", ["flushed", "restarted empty", "restarted with an old snapshot"])
def test_a_server_that_has_forgotten_a_roster_gets_it_again(
    server: RedisServer, make_roster: MakeRoster, how: str
) -> None:
    rosters = {member: make_roster() for member in "abc"}
    rosters["a"].enter([attend("a", grace=0.0)])
    rosters["b"].enter([attend("b", grace=0.0), attend("gone", grace=0.0)])
    if how == "restarted with an old snapshot":
        server.save()
    rosters["b"].leave([attend("gone")])
    rosters["c"].enter([attend("c", grace=0.0)])
    if how == "flushed":
        server.run("FLUSHALL")
    else:
        server.restart()
    assert [roster.renew() for roster in rosters.values()] == [Lease.UNKNOWN] * 3
    assert rosters["a"].members("room") == []
    _enter_again(rosters)
    assert names(rosters["b"].members("room")) == ["a", "b", "c"]
    assert [sweep_all(roster) for roster in rosters.values()] == [[]] * 3
    rosters["b"].leave([attend("a"), attend("b")])
    sweep_until(rosters["a"], ["b"])


@pytest.mark.parametrize("key", ["websocket:epoch", "websocket:roster", "owners", "owned", "members"])
def test_a_key_that_is_evicted_is_noticed_by_those_who_need_it(
    server: RedisServer, make_roster: MakeRoster, key: str
) -> None:
    rosters = {member: make_roster() for member in "abc"}
    _enter_again(rosters)
    keys = [key.encode()] if key.startswith("websocket") else server.run("KEYS", f"websocket:roster:*:{key}*")
    assert server.run("DEL", keys[0]) == 1

    def renew() -> list[Lease]:
        for roster in rosters.values():
            roster._prolong_at = 0.0  # type: ignore[attr-defined]
        return [roster.renew() for roster in rosters.values()]

    leases = renew() + renew()
    assert Counter(leases) >= Counter([Lease.UNKNOWN] * 3)
    _enter_again(rosters)
    assert names(rosters["a"].members("room")) == ["a", "b", "c"]
    assert [sweep_all(roster) for roster in rosters.values()] == [[]] * 3


@pytest.mark.parametrize("key", ["owned", "members"])
@pytest.mark.parametrize("call", ["enter", "leave", "sweep"])
def test_a_key_that_is_evicted_is_noticed_by_a_call(
    server: RedisServer, make_roster: MakeRoster, key: str, call: str
) -> None:
    roster, dead = make_roster(), make_roster()
    roster.enter([attend("m")])
    assert roster.renew() is Lease.HELD  # the next call does not look for keys
    with dying():
        dead.enter([attend("dead")])
    for each in server.run("KEYS", f"websocket:roster:*:{key}*"):
        server.run("DEL", each)
    if call == "enter":
        roster.enter([attend("m")])
    elif call == "leave":
        roster.leave([attend("m")])
    else:
        roster.sweep()
    assert roster.renew() is Lease.UNKNOWN
    assert names(roster.enter([attend("m")])) in ([], ["m"])
    assert roster.renew() is Lease.HELD
    assert names(roster.members("room")) == ["m"]


def test_a_member_who_comes_after_its_room_was_evicted_does_not_leave(server: RedisServer, roster: Roster) -> None:
    roster.enter([attend("m", grace=0)])
    roster.leave([attend("m")])
    (members,) = server.run("KEYS", "websocket:roster:*:members:room")
    server.run("DEL", members)
    assert names(roster.enter([attend("m")])) == ["m"]
    assert roster.sweep() == []
    assert names(roster.members("room")) == ["m"]


def test_scripts_that_are_forgotten_are_sent_again(server: RedisServer, roster: Roster) -> None:
    for number in range(3):
        server.run("SCRIPT", "FLUSH")
        roster.enter([attend(str(number))])
        server.run("SCRIPT", "FLUSH")
        assert roster.renew() is Lease.HELD
        assert roster.sweep() == []
        assert roster.count("room") == number + 1


def test_everything_expires_a_day_after_the_last_use(server: RedisServer, make_roster: MakeRoster) -> None:
    roster, dead = make_roster(), make_roster()
    roster.enter([attend("m"), attend("n", grace=0), attend("o")])
    with dying():
        dead.enter([attend("dead")])
    roster.leave([attend("n"), attend("o")])
    assert names(sweep_all(roster)) == ["n"]
    keys = set(server.run("KEYS", "*")) - {b"websocket:epoch"}
    kinds = {key.split(b":")[3] for key in keys if key.count(b":") > 1}
    assert kinds == {b"owners", b"gone", b"owned", b"members", b"leaving", b"heard", b"swept"}
    for key in keys:
        assert 0 < server.run("TTL", key) <= 86400
    server.run("EXPIRE", b"websocket:roster", 100)
    living = [key for key in keys if key.split(b":")[-1] in (b"owners", b"room") and b"leaving" not in key]
    for key in living:
        server.run("EXPIRE", key, 100)
    roster._prolong_at = 0.0  # type: ignore[attr-defined]
    assert roster.renew() is Lease.HELD
    assert len(living) == 2
    for key in (b"websocket:roster", *living):
        assert server.run("TTL", key) > 86000


def test_renewing_reaches_all_rooms_in_time(server: RedisServer, roster: Roster) -> None:
    roster.enter([attend("m", room=f"room {number}") for number in range(1000)])
    each_room = "local n = 0; for _, key in ipairs(redis.call('KEYS', '*:members:*')) do n = n + {} end; return n"
    assert server.run("EVAL", each_room.format("redis.call('EXPIRE', key, 100)"), 0) == 1000
    for _ in range(200):
        roster._prolong_at = 0.0  # type: ignore[attr-defined]
        assert roster.renew() is Lease.HELD
        if server.run("EVAL", each_room.format("(redis.call('TTL', key) > 86000 and 1 or 0)"), 0) == 1000:
            break
    else:
        pytest.fail("some rooms were not reached")


def test_an_empty_roster_leaves_little_behind(server: RedisServer, roster: Roster) -> None:
    all_of_them = [attend(str(number), room=f"room {number}", grace=0.0) for number in range(500)]
    roster.enter(all_of_them)
    roster.leave(all_of_them)
    sweep_until(roster, [each.member for each in all_of_them])
    assert len(server.run("KEYS", "*")) <= 7


# Connections that break


@contextmanager
def through_proxy(server: RedisServer) -> Iterator[tuple[TcpProxy, Roster]]:
    """A roster whose network can be broken."""
    proxy = TcpProxy(server.port)
    try:
        with opened(f"redis://127.0.0.1:{proxy.port}?socket_timeout=1") as broker:
            roster = broker.roster()
            again(roster.sweep)
            yield proxy, roster
            proxy.flow()
            proxy.cut()
            roster.close()
    finally:
        proxy.close()


def again(call: Callable[[], Sequence[Presence]]) -> list[Presence]:
    """Repeat a call until it succeeds."""
    results: list[Presence] = []

    def attempt() -> bool:
        with suppress(BrokerUnavailable):
            results.extend(call())
            return True
        return False

    wait_until(attempt)
    return results


@pytest.mark.parametrize("count", [1, 250], ids=["one call", "several calls"])
def test_an_arrival_is_not_lost_with_a_reply(server: RedisServer, roster: Roster, count: int) -> None:
    attendances = [attend(str(number)) for number in range(count)]
    with through_proxy(server) as (proxy, cut_off):
        again(lambda: cut_off.enter([attend("before")]))
        proxy.stall_after(2)
        with pytest.raises(BrokerUnavailable):
            cut_off.enter(attendances)
        assert roster.count("room") > 1  # Redis has done it
        proxy.flow()
        proxy.cut()
        assert names(again(lambda: cut_off.enter(attendances))) == [each.member for each in attendances]
        assert again(lambda: cut_off.enter(attendances)) == []
        wait_until(lambda: cut_off.renew() is Lease.HELD)
        assert roster.count("room") == count + 1


def test_a_departure_is_not_lost_with_a_reply(server: RedisServer, roster: Roster) -> None:
    attendances = [attend(str(number), grace=0.0) for number in range(150)]
    with through_proxy(server) as (proxy, cut_off):
        roster.enter(attendances)
        roster.leave(attendances)
        proxy.stall_after(2)
        with pytest.raises(BrokerUnavailable):
            cut_off.sweep()
        wait_until(lambda: roster.sweep() == [])  # Redis has done it
        proxy.flow()
        proxy.cut()
        left = again(cut_off.sweep)
        assert sorted(names(left)) == sorted(each.member for each in attendances)
        assert again(cut_off.sweep) == []


def test_calls_survive_a_killed_connection(server: RedisServer, roster: Roster) -> None:
    for number in range(5):
        assert names(roster.enter([attend(str(number), grace=0.0)])) == [str(number)]
        server.run("CLIENT", "KILL", "TYPE", "normal")
        assert roster.renew() is Lease.HELD
        server.run("CLIENT", "KILL", "TYPE", "normal")
        assert roster.count("room") == 1
        server.run("CLIENT", "KILL", "TYPE", "normal")
        roster.leave([attend(str(number))])
        sweep_until(roster, [str(number)])


def test_a_server_that_is_gone_is_unavailable_until_it_is_back(server: RedisServer, roster: Roster) -> None:
    roster.enter([attend("m")])
    server.kill()
    for call in (roster.renew, roster.sweep, partial(roster.enter, [attend("n")]), partial(roster.count, "room")):
        with pytest.raises(BrokerUnavailable, match="socket, database 0"):
            call()
    server.start()
    assert roster.renew() is Lease.UNKNOWN


def test_rosters_of_databases_and_prefixes_are_apart(start_server: StartServer) -> None:
    server = start_server(tls=True, password="secret")
    with ExitStack() as stack:
        for number, change in enumerate([("?", "/0?"), ("?", "/1?"), ("?", "/0?prefix=other&")]):
            roster = stack.enter_context(opened(server.url.replace(*change))).roster()
            stack.callback(roster.close)
            assert names(roster.enter([attend(str(number))])) == [str(number)]
            assert names(roster.members("room")) == [str(number)]


# Against a model


@pytest.mark.parametrize("seed", range(6))
def test_a_roster_has_those_who_are_there(server: RedisServer, make_roster: MakeRoster, seed: int) -> None:
    """Processes enter, leave, die, are cut off, and sweep; then all rooms have those who are there.

    Of each member, joins and leaves take turns.
    """
    chance = random.Random(seed)
    processes: list[tuple[Roster, set[Attendance]]] = [(make_roster(), set()) for _ in range(4)]
    log: dict[tuple[str, str], list[str]] = {}

    def note(kind: str, presences: Sequence[Presence]) -> None:
        for each in presences:
            log.setdefault((each.room, each.member), []).append(kind)

    def some_attendance() -> Attendance:
        member, room = chance.choice("abcdef"), f"room {chance.randrange(3)}"
        return attend(member, f"{chance.randrange(3)}", room=room, grace=chance.choice([0.0, 0.002]))

    def keep(roster: Roster, here: set[Attendance]) -> None:
        if roster.renew() is not Lease.HELD and here:
            note("join", roster.enter(list(here)))

    def is_right() -> bool:
        for roster, here in processes:
            keep(roster, here)
            note("leave", roster.sweep())
        return all(
            {each.member for each in processes[0][0].members(room)} == present(room)
            and processes[0][0].count(room) == len(present(room))
            for room in ("room 0", "room 1", "room 2")
        ) and all((kinds[-1] == "join") == (member in present(room)) for (room, member), kinds in log.items())

    def present(room: str) -> set[str]:
        return {each.member for _, here in processes for each in here if each.room == room}

    for step in range(600):
        index = chance.randrange(len(processes))
        roster, here = processes[index]
        match chance.choices(["enter", "leave", "sweep", "die", "close", "cut off"], [6, 6, 3, 1, 1, 1])[0]:
            case "enter":
                entering = {each[:3]: each for each in (some_attendance() for _ in range(chance.randrange(1, 5)))}
                here.difference_update([each for each in here if each[:3] in entering])
                here.update(entering.values())
                note("join", roster.enter(list(entering.values())))
            case "leave":
                leaving = chance.sample(sorted(here), min(len(here), chance.randrange(1, 5)))
                here.difference_update(leaving)
                roster.leave(leaving)
            case "sweep":
                note("leave", roster.sweep())
            case "die":
                _end_lease(server, roster)
                processes[index] = (make_roster(), set())
            case "close":
                roster.close()
                processes[index] = (make_roster(), set())
            case "cut off":
                _end_lease(server, roster)
        keep(*processes[index])
        if step % 100 == 99:
            wait_until(is_right)
    for kinds in log.values():
        assert kinds == ["join", "leave"] * (len(kinds) // 2) + ["join"] * (len(kinds) % 2)
    assert sum(map(len, log.values())) > 50


def _end_lease(server: RedisServer, roster: Roster) -> None:
    (owners,) = server.run("KEYS", "*:owners") or [b"none"]
    server.run("ZADD", owners, "XX", 1, roster._lease()[0])  # type: ignore[attr-defined]
