"""Who is in which room, in all brokers: members, their connections, leases, and what the death of a process does."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

import flask_uwsgi_websocket
from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers import local_roster, memory_roster
from flask_uwsgi_websocket.rooms.brokers.base import Attendance, Broker, Lease, Outgoing, Presence, Roster
from flask_uwsgi_websocket.rooms.brokers.local import LocalBroker
from flask_uwsgi_websocket.rooms.brokers.local_log import Log
from flask_uwsgi_websocket.rooms.brokers.memory import MemoryBroker
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker
from support.inprocess import DEADLINE, wait_until
from support.redis_server import RedisServer

#: The brokers that have a roster. Each has a fixture of its name that makes it.
BROKERS = ["memory", "local", "redis"]

#: A grace that is never over in a test.
LONG = 1000.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short."""
    with tempfile.TemporaryDirectory(prefix="broker-") as name:
        yield Path(name).resolve() / "rooms"


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Broker:
    broker: Broker = request.getfixturevalue(f"{request.param}_broker")
    return broker


@pytest.fixture
def memory_broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def local_broker(directory: Path) -> Iterator[LocalBroker]:
    with closing(LocalBroker(directory)) as broker:
        yield broker


@pytest.fixture
def redis_broker(server: RedisServer) -> Iterator[RedisBroker]:
    with closing(RedisBroker(server.unix_url)) as broker:
        yield broker


#: Returns the roster of another user of the broker.
MakeRoster = Callable[[], Roster]


def rosters_of(broker: Broker) -> Iterator[MakeRoster]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(broker.roster()))


@pytest.fixture
def make_roster(broker: Broker) -> Iterator[MakeRoster]:
    yield from rosters_of(broker)


@pytest.fixture
def make_local(local_broker: LocalBroker) -> Iterator[MakeRoster]:
    yield from rosters_of(local_broker)


@pytest.fixture
def roster(make_roster: MakeRoster) -> Roster:
    return make_roster()


def attend(
    member: str, connection: str = "", *, room: str = "room", data: bytes = b"", grace: float = LONG
) -> Attendance:
    return Attendance(room, member, connection or f"of {member}", data, grace)


def names(presences: Sequence[Presence]) -> list[str]:
    return [presence.member for presence in presences]


def check_members(roster: Roster, *members: str, room: str = "room") -> None:
    assert names(roster.members(room)) == list(members)
    assert roster.count(room) == len(members)


def sweep_all(roster: Roster) -> list[str]:
    """Sweep until nobody is left to go."""
    gone: list[str] = []
    while some := names(roster.sweep()):
        gone += some
    return gone


def test_members_are_in_the_order_in_which_they_came(make_roster: MakeRoster) -> None:
    rosters = [make_roster(), make_roster()]
    check_members(rosters[0])
    expected: list[str] = []
    for number in range(30):
        member = f"{number * 7 % 30}"
        expected.append(member)
        assert names(rosters[number % 2].enter([attend(member)])) == [member]
    for roster in rosters:
        check_members(roster, *expected)


def test_entering_returns_who_was_not_there(roster: Roster) -> None:
    before = time.time()
    arrived = roster.enter([attend("a", data=b"1"), attend("b", data=b"2"), attend("a", room="other", data=b"3")])
    assert [(each.room, each.member, each.data) for each in arrived] == [
        ("room", "a", b"1"),
        ("room", "b", b"2"),
        ("other", "a", b"3"),
    ]
    assert all(before - 1 < each.since < time.time() + 1 for each in arrived)
    assert roster.members("room") == arrived[:2]
    assert roster.members("other") == arrived[2:]
    assert roster.enter([attend("a", "another"), attend("c"), attend("b")]) == roster.members("room")[2:]
    assert roster.enter([]) == []
    check_members(roster, "a", "b", "c")


def test_a_connection_that_is_entered_again_changes_only_the_data(roster: Roster) -> None:
    (arrived,) = roster.enter([attend("a", data=b"1")])
    assert roster.enter([attend("a", data=b"2")]) == []
    assert roster.members("room") == [arrived._replace(data=b"2")]
    roster.leave([attend("a", grace=0.0)])  # the grace is that with which it was entered
    check_members(roster, "a")


def test_the_data_is_that_of_the_connection_that_has_entered_last(roster: Roster) -> None:
    (arrived,) = roster.enter([attend("a", "1", data=b"1"), attend("a", "2", data=b"2")])
    assert arrived.data == b"2"
    assert roster.enter([attend("a", "3", data=bytes(range(256)) * 20)]) == []
    roster.leave([attend("a", "1")])
    assert roster.members("room") == [arrived._replace(data=bytes(range(256)) * 20)]


def test_a_member_leaves_with_its_last_connection(make_roster: MakeRoster) -> None:
    one, other = make_roster(), make_roster()
    first, second, third = (attend("a", connection, grace=0.0) for connection in "123")
    assert names(one.enter([first, second])) == ["a"]
    assert other.enter([third]) == []
    one.leave([first])
    other.leave([third])
    assert one.sweep() == other.sweep() == []
    check_members(other, "a")
    one.leave([second])
    check_members(other)
    (gone,) = other.sweep()
    assert (gone.room, gone.member) == ("room", "a")
    assert one.sweep() == other.sweep() == []
    assert names(one.enter([second])) == ["a"]


def test_a_member_stays_for_its_grace(roster: Roster) -> None:
    (arrived,) = roster.enter([attend("a", data=b"1")])
    roster.leave([attend("a")])
    assert roster.sweep() == []
    assert roster.members("room") == [arrived]
    assert roster.count("room") == 1


def test_a_member_that_returns_within_the_grace_was_there(make_roster: MakeRoster) -> None:
    one, other = make_roster(), make_roster()
    (arrived,) = one.enter([attend("a", data=b"1")])
    one.leave([attend("a")])
    assert other.enter([attend("a", "another", data=b"2", grace=0.0)]) == []
    assert one.members("room") == [arrived._replace(data=b"2")]
    other.leave([attend("a", "another")])
    assert names(one.sweep()) == ["a"]


def test_a_member_that_returns_before_a_sweep_was_there(roster: Roster) -> None:
    (arrived,) = roster.enter([attend("a", grace=0.0)])
    roster.leave([attend("a")])
    check_members(roster)
    assert roster.enter([attend("a", grace=0.0)]) == []
    assert roster.sweep() == []
    assert roster.members("room") == [arrived]


def test_the_grace_is_that_of_the_connection_that_has_left_last(roster: Roster) -> None:
    connections = [attend("a", "short", grace=0.0), attend("a", "long")]
    roster.enter(connections)
    roster.leave(connections)
    check_members(roster, "a")
    roster.enter(connections)
    roster.leave(connections[::-1])
    assert names(roster.sweep()) == ["a"]


def test_a_grace_ends_by_itself(roster: Roster) -> None:
    roster.enter([attend("a", grace=0.2), attend("b", grace=0.1), attend("c")])
    roster.leave([attend("a"), attend("b"), attend("c")])
    gone: list[str] = []

    def sweep() -> bool:
        gone.extend(names(roster.sweep()))
        return len(gone) == 2

    wait_until(sweep)
    assert sorted(gone) == ["a", "b"]
    check_members(roster, "c")


def test_connections_that_are_unknown_do_not_matter(make_roster: MakeRoster) -> None:
    roster = make_roster()
    roster.leave([attend("a"), attend("b", room="unknown")])
    roster.enter([attend("a", grace=0.0)])
    roster.leave([attend("a", "unknown"), attend("b", "of a"), attend("a", room="unknown")])
    roster.leave([])
    check_members(roster, "a")
    roster.leave([attend("a"), attend("a")])
    roster.leave([attend("a")])
    assert sweep_all(roster) == ["a"]


def test_members_of_many_rooms_are_apart(roster: Roster) -> None:
    texts = ["", "a", "A", "a ", "\0", "a\0", "'; DROP TABLE members; --", "%", "ø 部屋 🚪", "x" * 1000]
    everybody = [
        attend(member, room=room, data=f"{room} {member}".encode(), grace=0.0) for room in texts for member in texts
    ]
    assert len(roster.enter(everybody)) == len(texts) ** 2
    for room in texts:
        check_members(roster, *texts, room=room)
        assert [each.data for each in roster.members(room)] == [f"{room} {member}".encode() for member in texts]
    roster.leave([each for each in everybody if each.room == "a"])
    assert sorted(sweep_all(roster)) == sorted(texts)
    check_members(roster, room="a")
    check_members(roster, *texts, room="A")


def test_thousands_come_and_go_in_a_room(roster: Roster) -> None:
    everybody = [attend(f"{number:04}", grace=0.0) for number in range(2000)]
    assert names(roster.enter(everybody)) == [each.member for each in everybody]
    check_members(roster, *[each.member for each in everybody])
    roster.leave(everybody)
    assert roster.count("room") == 0
    sizes = []
    gone: list[str] = []
    while some := names(roster.sweep()):
        sizes.append(len(some))
        gone += some
    assert max(sizes) < 1000
    assert sorted(gone) == [each.member for each in everybody]


def test_a_lease_is_unknown_until_something_is_entered(make_roster: MakeRoster) -> None:
    roster = make_roster()
    assert roster.renew() is Lease.UNKNOWN
    roster.members("room")
    roster.leave([attend("a")])
    assert roster.renew() is Lease.UNKNOWN
    roster.enter([attend("a")])
    assert roster.renew() is roster.renew() is Lease.HELD
    roster.leave([attend("a")])
    assert roster.renew() is Lease.HELD


def test_the_connections_of_a_closed_roster_leave(make_roster: MakeRoster) -> None:
    one, other = make_roster(), make_roster()
    one.enter([attend("a", "1", grace=0.0), attend("b", grace=0.0), attend("c")])
    other.enter([attend("a", "2", grace=0.0)])
    one.close()
    one.close()
    check_members(other, "a", "c")
    assert sweep_all(other) == ["b"]
    assert other.renew() is Lease.HELD


def test_closing_a_roster_that_was_not_used_does_nothing(broker: Broker) -> None:
    broker.roster().close()


def test_others_look_while_one_enters_and_leaves(make_roster: MakeRoster) -> None:
    roster, other = make_roster(), make_roster()
    stayers = [attend(f"stayer {number}") for number in range(20)]
    roster.enter(stayers)
    ended = threading.Event()
    errors: list[BaseException] = []

    def look(at: Roster) -> None:
        try:
            while not ended.is_set():
                assert 20 <= at.count("room") <= 30
                assert names(at.members("room"))[:20] == [each.member for each in stayers]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=look, args=(at,)) for at in (roster, other)]
    for thread in threads:
        thread.start()
    guests = [attend(f"guest {number}", grace=0.0) for number in range(10)]
    for _ in range(30):
        roster.enter(guests)
        roster.leave(guests)
        assert len(sweep_all(other)) == 10
    ended.set()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("seed", range(5))
def test_a_roster_has_those_who_are_there(make_roster: MakeRoster, seed: int) -> None:
    """Compare with a model: who has a connection is there, and every arrival has one departure."""
    choice = random.Random(seed)
    rosters = [make_roster() for _ in range(3)]
    connections: dict[tuple[str, str], set[tuple[int, str]]] = {}  # of members, with the rosters
    known: set[tuple[str, str]] = set()  # who has come and has not gone
    numbers = itertools.count()

    def note(arrived: Sequence[Presence], gone: Sequence[Presence]) -> None:
        for each in arrived:
            assert (each.room, each.member) not in known
            known.add((each.room, each.member))
        for each in gone:
            known.remove((each.room, each.member))

    for _ in range(200):
        index = choice.randrange(len(rosters))
        roster = rosters[index]
        action = choice.random()
        if action < 0.5:
            batch = []
            for _ in range(choice.randrange(1, 8)):
                room, member, connection = choice.choice("xy"), choice.choice("abcdef"), str(next(numbers))
                connections.setdefault((room, member), set()).add((index, connection))
                batch.append(attend(member, connection, room=room, grace=0.0))
            note(roster.enter(batch), [])
        elif action < 0.8:
            own = [
                (key, connection) for key, each in sorted(connections.items()) for at, connection in each if at == index
            ]
            leaving = choice.sample(own, min(len(own), choice.randrange(1, 8)))
            for key, connection in leaving:
                connections[key].remove((index, connection))
            roster.leave([attend(member, connection, room=room) for (room, member), connection in leaving])
        elif action < 0.95:
            note([], roster.sweep())
        else:
            roster.close()
            for each in connections.values():
                each -= {(at, connection) for at, connection in each if at == index}
        for room in "xy":
            present = sorted(member for (at, member), each in connections.items() if at == room and each)
            assert sorted(names(roster.members(room))) == present
            assert roster.count(room) == len(present)
    note([], rosters[0].sweep())
    assert known == {key for key, each in connections.items() if each}


# The local broker, with real processes.

#: What each process begins with: a roster in a directory.
PRELUDE = """
import json, os, sys, time
from pathlib import Path
from flask_uwsgi_websocket.exceptions import BrokerUnavailable
from flask_uwsgi_websocket.rooms.brokers.base import Attendance
from flask_uwsgi_websocket.rooms.brokers.local import LocalBroker

def say(*what):
    print(json.dumps(what), flush=True)

def attend(member, grace, room="room"):
    return Attendance(room, member, "of " + member, b"", grace)

broker = LocalBroker(Path(sys.argv[1]))
roster = broker.roster()
"""

#: Enters members with a grace, and waits.
MEMBERS = """
roster.enter([attend(member, float(sys.argv[2])) for member in sys.argv[3:]])
say("entered")
sys.stdin.readline()
"""


class Process:
    """Another Python process, which prints lines of JSON."""

    def __init__(self, code: str, *arguments: object) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(flask_uwsgi_websocket.__file__).parents[1])}
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PRELUDE + code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def read(self) -> Any:
        """Return what it says next."""
        assert self.popen.stdout
        line = self.popen.stdout.readline()
        assert line, f"it has ended with {self.popen.wait()}"
        return json.loads(line)

    def go_on(self) -> None:
        assert self.popen.stdin
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def stop(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.popen.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def expect_success(self) -> None:
        assert self.popen.wait(DEADLINE) == 0


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start other processes, which end with the test."""
    processes: list[Process] = []

    def start(code: str, *arguments: object) -> Process:
        processes.append(Process(code, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        for stream in (process.popen.stdin, process.popen.stdout):
            assert stream
            stream.close()


def log_of(broker: LocalBroker) -> Log:
    opened = broker._use().opened
    assert opened is not None
    return opened.log


def owners(directory: Path) -> set[str]:
    return {file.name for file in directory.glob("log-*/owners/*")}


def rows(directory: Path) -> dict[str, int]:
    """Return the number of rows of each table of the roster."""
    (file,) = directory.glob("log-*/log")
    with closing(sqlite3.connect(file)) as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("members", "attendances", "owners", "member_counts")
        }


NOTHING = {"members": 0, "attendances": 0, "owners": 0, "member_counts": 0}


def test_the_members_of_a_killed_process_leave_once(directory: Path, make_local: MakeRoster, start: Start) -> None:
    one, other = make_local(), make_local()
    one.enter([attend("stays"), attend("shared", "here", grace=0.0)])
    process = start(MEMBERS, directory, 0, "shared", *map(str, range(300)))
    process.read()
    assert one.count("room") == 302
    assert one.sweep() == other.sweep() == []
    process.kill()
    assert one.count("room") == 2  # before any sweep
    check_members(other, "stays", "shared")
    gone = [*names(other.sweep()), *names(one.sweep()), *sweep_all(other)]
    assert sorted(gone, key=int) == list(map(str, range(300)))
    assert one.reaped + other.reaped == 301
    assert one.renew() is Lease.HELD
    assert len(owners(directory)) == 1


def test_the_members_of_a_killed_process_stay_for_their_grace(
    directory: Path, make_local: MakeRoster, start: Start
) -> None:
    roster = make_local()
    process = start(MEMBERS, directory, LONG, "a", "b")
    process.read()
    process.kill()
    assert roster.sweep() == []
    check_members(roster, "a", "b")
    assert roster.enter([attend("a", "another", grace=0.0)]) == []
    roster.leave([attend("a", "another")])
    assert names(roster.sweep()) == ["a"]


def test_a_stopped_process_keeps_its_members(directory: Path, make_local: MakeRoster, start: Start) -> None:
    roster = make_local()
    process = start(MEMBERS + "say(roster.renew().value)", directory, 0, "a")
    process.read()
    process.stop()
    assert roster.sweep() == []
    check_members(roster, "a")
    process.resume()
    process.go_on()
    assert process.read() == ["held"]


def test_a_process_that_ends_without_a_word_leaves(directory: Path, make_local: MakeRoster, start: Start) -> None:
    roster = make_local()
    process = start(MEMBERS, directory, 0, "a")
    process.read()
    process.go_on()
    process.expect_success()
    assert names(roster.sweep()) == ["a"]
    assert not owners(directory)


def test_each_member_is_swept_by_one_of_several_processes(directory: Path, start: Start) -> None:
    """They find the same dead process at once, and sweep at once."""
    sweepers = [
        start(
            """
say(roster.count("room"))
sys.stdin.readline()
members = []
while roster.count("room"):
    pass
while some := roster.sweep():
    members += [each.member for each in some]
say(*members)
""",
            directory,
        )
        for _ in range(3)
    ]
    dead = [start(MEMBERS, directory, 0, *[f"{name} {number}" for number in range(700)]) for name in "xyz"]
    for process in (*sweepers, *dead):
        process.read()
    for process in dead:
        process.kill()
    for sweeper in sweepers:
        sweeper.go_on()
    swept = Counter(member for sweeper in sweepers for member in sweeper.read())
    assert swept == Counter(f"{name} {number}" for name in "xyz" for number in range(700))
    for sweeper in sweepers:
        sweeper.expect_success()
    assert rows(directory) == NOTHING
    assert not owners(directory)


def test_a_process_that_is_stopped_while_it_removes_a_dead_one_holds_up_nobody(
    directory: Path, make_local: MakeRoster, start: Start
) -> None:
    roster = make_local()
    dead = start(MEMBERS, directory, 0, *map(str, range(200)))
    dead.read()
    code = """
from flask_uwsgi_websocket.rooms.brokers import local_roster
local_roster.time.sleep = lambda seconds: (say("stops"), sys.stdin.readline())
roster.sweep()
say("done")
"""
    dead.kill()
    remover = start(code, directory)
    assert remover.read() == ["stops"]
    remover.stop()
    assert roster.count("room") == 0
    assert len(sweep_all(roster)) == 200
    assert not owners(directory)


FORK = """
import subprocess, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about a fork with threads

roster.enter([attend("parent", 0.0)])
descriptors = len(os.listdir("/proc/self/fd"))
child = os.fork()
if not child:
    assert roster.renew().value == "unknown"
    assert [each.member for each in roster.members("room")] == ["parent"]
    assert [each.member for each in roster.enter([attend("child", 0.0)])] == ["child"]
    assert roster.renew().value == "held"
    roster.close()
    roster.close()
    assert roster.sweep()[0].member == "child"
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert roster.renew().value == "held"
assert [each.member for each in roster.members("room")] == ["parent"]

# Neither a child nor another program keeps the lease.
reader, writer = os.pipe()
child = os.fork()
if not child:
    os.write(writer, b".")  # it runs, so it has dropped what it has inherited
    time.sleep(1000)
os.read(reader, 1)
program = subprocess.Popen(["sleep", "1000"], close_fds=False)
say(child, program.pid)
sys.stdin.readline()
"""


def test_a_forked_child_neither_has_nor_keeps_the_lease(directory: Path, make_local: MakeRoster, start: Start) -> None:
    roster = make_local()
    process = start(FORK, directory)
    children = process.read()
    try:
        check_members(roster, "parent")
        assert roster.sweep() == []
        process.kill()
        for child in children:
            os.kill(child, 0)  # it is there
        assert names(roster.sweep()) == ["parent"]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


FORKS = """
import threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about a fork with threads

ended = False
def come_and_go():
    while not ended:
        another = broker.roster()
        another.enter([attend("another", 0.0)])
        another.close()
threads = [threading.Thread(target=come_and_go) for _ in range(2)]
for thread in threads:
    thread.start()
children = []
reader, writer = os.pipe()
for _ in range(20):
    child = os.fork()
    if not child:
        os.write(writer, b".")  # it runs, so it has dropped what it has inherited
        while True:
            time.sleep(1000)
    children.append(child)
ended = True
for thread in threads:
    thread.join()
for _ in children:
    os.read(reader, 1)
say(*children)
sys.stdin.readline()
"""


def test_a_fork_while_leases_are_taken_keeps_none_of_them(
    directory: Path, make_local: MakeRoster, start: Start
) -> None:
    roster = make_local()
    process = start(FORKS, directory)
    children = process.read()
    try:
        process.kill()
        check_members(roster)
        assert not owners(directory)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


def test_two_rosters_of_a_process_do_not_take_each_other_for_dead(directory: Path, make_local: MakeRoster) -> None:
    with closing(LocalBroker(directory)) as broker, closing(broker.roster()) as other:
        roster = make_local()
        roster.enter([attend("a", grace=0.0)])
        other.enter([attend("b", grace=0.0)])
        for each in (roster, other):
            assert each.sweep() == []
            assert each.renew() is Lease.HELD
            check_members(each, "a", "b")
        assert len(owners(directory)) == 2


def test_a_process_whose_lease_was_deleted_learns_it_and_enters_again(directory: Path, make_local: MakeRoster) -> None:
    roster, other = make_local(), make_local()
    everybody = [attend("a"), attend("b", grace=0.0), attend("c")]
    roster.enter(everybody)
    (owner,) = owners(directory)
    next(directory.glob("log-*/owners/*")).unlink()
    assert names(other.sweep()) == ["b"]
    assert roster.enter([attend("d", grace=0.0)]) != []  # before it knows
    assert names(other.sweep()) == ["d"]
    assert roster.renew() is Lease.LOST
    assert names(roster.enter([*everybody, attend("d", grace=0.0)])) == ["b", "d"]
    assert roster.renew() is Lease.HELD
    assert other.sweep() == []
    check_members(other, "a", "c", "b", "d")
    assert owner not in owners(directory)
    assert rows(directory) == {"members": 4, "attendances": 4, "owners": 1, "member_counts": 1}


def test_a_connection_that_is_entered_again_survives_its_lost_lease(directory: Path, make_local: MakeRoster) -> None:
    roster, other = make_local(), make_local()
    roster.enter([attend("a", grace=0.0)])
    next(directory.glob("log-*/owners/*")).unlink()
    assert roster.renew() is Lease.LOST
    assert roster.enter([attend("a", grace=0.0)]) == []
    assert other.sweep() == []
    check_members(other, "a")


def test_a_roster_goes_on_with_the_log_that_replaces_its_own(
    directory: Path, local_broker: LocalBroker, make_local: MakeRoster
) -> None:
    roster = make_local()
    roster.enter([attend("a"), attend("b")])
    log_of(local_broker).retire()
    with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
        roster.members("room")
    assert roster.renew() is Lease.UNKNOWN
    check_members(roster)
    assert names(roster.enter([attend("a"), attend("b")])) == ["a", "b"]
    assert roster.renew() is Lease.HELD
    assert len(owners(directory)) == 1
    assert make_local().sweep() == []


def test_a_process_that_enters_somebody_in_another_log_still_learns_that_the_others_are_not_there(
    local_broker: LocalBroker, make_local: MakeRoster
) -> None:
    roster = make_local()
    roster.enter([attend("a")])
    log_of(local_broker).retire()
    with pytest.raises(BrokerUnavailable, match="deleted or replaced"):
        roster.members("room")
    assert names(roster.enter([attend("b")])) == ["b"]
    assert roster.renew() is Lease.UNKNOWN
    assert names(roster.enter([attend("a"), attend("b")])) == ["a"]
    assert roster.renew() is Lease.HELD
    check_members(roster, "b", "a")


def test_a_closed_roster_leaves_no_descriptor(directory: Path, local_broker: LocalBroker) -> None:
    local_broker.publish([Outgoing("room", b"x", 1)], "me")
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        roster = local_broker.roster()
        roster.enter([attend("a", grace=0.0)])
        roster.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert sweep_all(local_broker.roster()) == ["a"]
    assert rows(directory) == NOTHING
    assert not owners(directory)


def test_a_roster_that_comes_and_goes_leaves_nothing(directory: Path, make_local: MakeRoster) -> None:
    roster = make_local()
    for number in range(300):
        batch = [attend(f"{number} {member}", room=f"{number} {member % 3}", grace=0.0) for member in range(7)]
        roster.enter(batch)
        roster.leave(batch)
    assert len(sweep_all(roster)) == 2100
    assert rows(directory) == {**NOTHING, "owners": 1}


@pytest.mark.parametrize(
    "count", [1, 2, local_roster.TRANSACTION_CONNECTIONS, 3 * local_roster.TRANSACTION_CONNECTIONS]
)
def test_arrivals_are_not_lost_with_a_call_that_fails(
    local_broker: LocalBroker, make_local: MakeRoster, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Whatever statement fails, a repeated call returns the members that the first one has entered."""
    everybody = [attend(str(number)) for number in range(count)]
    statements = -(-count // local_roster.TRANSACTION_CONNECTIONS) * 2
    for failing in range(statements):
        for fails_after in (True, False):
            roster = make_local()
            room = f"{failing} {fails_after}"
            batch = [each._replace(room=room) for each in everybody]
            roster.enter([attend("before", room=room)])
            calls, execute = itertools.count(), Log.execute

            def fail(
                self: Log,
                *arguments: Any,
                calls: Iterator[int] = calls,
                failing: int = failing,
                fails_after: bool = fails_after,
                execute: Any = execute,
            ) -> Any:
                if next(calls) != failing:
                    return execute(self, *arguments)
                if fails_after:
                    execute(self, *arguments)
                raise BrokerUnavailable("as if another process held the lock")

            with monkeypatch.context() as patch:
                patch.setattr(Log, "execute", fail)
                with pytest.raises(BrokerUnavailable, match="as if"):
                    roster.enter(batch)
            assert names(roster.enter(batch)) == [each.member for each in everybody]
            assert roster.enter(batch) == []
            assert roster.renew() is Lease.HELD


def test_members_that_left_before_the_machine_was_started_are_gone(
    local_broker: LocalBroker, make_local: MakeRoster
) -> None:
    """The directory may be on a disk, and the time of a machine begins with its start."""
    roster = make_local()
    roster.enter([attend("a", grace=10.0), attend("b", grace=10.0), attend("long")])
    roster.leave([attend("a"), attend("long")])
    later = time.monotonic() + 10 * local_roster.FUTURE
    log_of(local_broker).execute("UPDATE members SET left_at = ?, gone_at = ? WHERE member = 'a'", (later, later + 10))
    assert names(roster.sweep()) == ["a"]
    check_members(roster, "b", "long")


def test_a_clock_that_is_set_changes_no_grace(make_local: MakeRoster, monkeypatch: pytest.MonkeyPatch) -> None:
    roster = make_local()
    roster.enter([attend("stays"), attend("goes", grace=0.0)])
    now = time.time()
    for jump in (-(10**6), 10**6):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        roster.leave([attend("stays")])
        assert roster.sweep() == []
        check_members(roster, "stays", "goes")
        assert roster.enter([attend("stays")]) == []
    roster.leave([attend("goes")])
    assert names(roster.sweep()) == ["goes"]


def test_looking_does_not_read_all_members(local_broker: LocalBroker, make_local: MakeRoster) -> None:
    """SQLite counts the steps of its machine: those for one more member do not grow with the room."""
    roster = make_local()
    roster.enter([attend("first")])
    connection = log_of(local_broker)._connection

    def steps(call: Callable[[], object]) -> int:
        count = itertools.count()
        connection.set_progress_handler(lambda: next(count) and None, 1)
        try:
            call()
        finally:
            connection.set_progress_handler(None, 1)
        return next(count)

    def measure(name: str) -> list[int]:
        return [
            steps(lambda: roster.enter([attend(name, grace=0.0)])),
            steps(lambda: roster.enter([attend(name, "another", grace=0.0)])),
            steps(lambda: roster.count("room")),
            steps(lambda: roster.leave([attend(name), attend(name, "another")])),
            steps(lambda: roster.sweep()),
        ]

    few = measure("a")
    roster.enter([attend(f"member {number}") for number in range(3000)])
    many = measure("b")
    assert all(some < 100 + one for one, some in zip(few, many, strict=True)), (few, many)


# The memory broker.


def test_memory_sweeps_some_at_a_time(memory_broker: MemoryBroker) -> None:
    roster = memory_broker.roster()
    everybody = [attend(f"{number}", grace=0.0) for number in range(2 * memory_roster.SWEPT_MEMBERS + 1)]
    roster.enter(everybody)
    roster.leave(everybody)
    assert [len(roster.sweep()) for _ in range(4)] == [memory_roster.SWEPT_MEMBERS, memory_roster.SWEPT_MEMBERS, 1, 0]
