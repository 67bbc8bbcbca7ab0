"""Rooms of real workers: one order, nothing lost that is not told, and rooms that reach only their own members.

``pytest -s tests/live/test_rooms.py`` prints how many messages were published, delivered, missed and told, and lost.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from subprocess import PIPE

import pytest
from websockets.exceptions import InvalidStatus

from flask_uwsgi_websocket.rooms.arrivals import LINGER
from flask_uwsgi_websocket.rooms.feed import TICK_INTERVAL
from support.endings import touch
from support.live import DEADLINE, OTHERS
from support.namespaces import Place, entering, mounting, places
from support.needs import require
from support.redis_server import RedisServer, running
from support.rooms import (
    FIGURES,
    AnyServer,
    Load,
    Member,
    Oracle,
    OtherRoomServer,
    RoomServer,
    Setup,
    enter,
    make,
    member,
    on_each,
    serving_rooms,
    together,
    until,
)


@pytest.fixture(scope="module", autouse=True)
def _summary() -> Iterator[None]:
    yield
    sys.stdout.write(f"\n{dict(FIGURES)}\n")


# Without faults

PLAIN = [
    Setup("gevent", "auto", 2),
    Setup("gevent", "auto", 4),
    Setup("gevent", "redis", 2),
    Setup("gevent", "redis", 4),
    Setup("threads", "auto", 4),
    Setup("threads", "redis", 2),
    Setup("asyncio", "auto", 2),
    Setup("asyncio", "redis", 4),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[list[AnyServer]]:
    directory = tmp_path_factory.mktemp("plain")
    makes = [
        partial(make, directory, setup, f"{redis.url}?prefix={setup}" if setup.broker == "redis" else setup.broker)
        for setup in PLAIN
    ]
    with serving_rooms(*makes) as servers:
        yield servers


def test_all_members_in_all_workers_get_all_messages_of_all_publishers_in_one_order(plain: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        async with Oracle([server], "order") as oracle:
            workers = range(1, server.mode.processes + 1)
            members = [await oracle.join(server, worker) for worker in workers for _ in range(2)]
            await together(*(oracle.publish(each, oracle.name(), 100) for each in members))
            await oracle.settle()
            assert oracle.check()["delivered"] == 100 * len(members) ** 2
            assert all(each.texts == members[0].texts for each in members)

    on_each(plain, check)


def test_a_publisher_may_leave_itself_out_and_no_other_member_of_any_worker(plain: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        async with member(server, "exclude") as one, member(server, "exclude") as near, far(server, "exclude") as other:
            await one.order("publish", "for others", True)
            await one.order("publish", "for all", False)
            await until(lambda: near.texts == other.texts == ["for others", "for all"])
            await until(lambda: one.texts == ["for all"])

    on_each(plain, check)


def far(server: AnyServer, room: str, **query: str) -> AbstractAsyncContextManager[Member]:
    """Join a room in the last worker."""
    return member(server, room, server.mode.processes, **query)


def test_a_room_or_one_user_in_it_is_closed_in_all_workers_from_any_worker(plain: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        async with (
            member(server, "close", user="7") as near,
            far(server, "close", user="7") as other,
            far(server, "close", user="8") as eighth,
            far(server, "elsewhere", user="7") as elsewhere,
        ):
            await eighth.order("close", 4401, "logged out", 7)
            await until(lambda: near.code == other.code == 4401)
            assert other.connection.close_reason == "logged out"
            await eighth.order("publish", "still here", False)
            await until(lambda: eighth.texts == ["still here"])
            async with member(server, "close", visitor="1") as visitor:
                await visitor.order("close", 4000, "over", None)
                await until(lambda: eighth.code == 4000)
            assert await elsewhere.order("count") == 1

    on_each(plain, check)


def test_the_connections_of_a_user_in_all_workers_form_a_room(plain: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        async with (
            member(server, "one", user="u") as near,
            far(server, "two", user="u") as other,
            far(server, "two", user="v") as stranger,
        ):
            await stranger.order("publish to user", "u", "for you")
            await until(lambda: near.texts == other.texts == ["for you"])
            await stranger.order("publish to user", "v", "for me")
            await until(lambda: stranger.texts == ["for me"])

    on_each(plain, check)


def test_the_members_in_all_workers_are_counted_from_any_worker(plain: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        async with AsyncExitStack() as stack:
            workers = range(1, server.mode.processes + 1)
            members = [await stack.enter_async_context(member(server, "count", each)) for each in workers]
            assert [await each.order("count") for each in members] == [len(members)] * len(members)
            for worker in workers:
                async with member(server, "count", worker, visitor="1") as visitor:
                    assert await visitor.order("count") == len(members)
            await members[0].order("leave", "count")
            assert await members[-1].order("count") == len(members) - 1
        async with member(server, "nobody", visitor="1") as visitor:
            assert await visitor.order("count") == 0

    on_each(plain, check)


@pytest.mark.parametrize("kind", ["handler", "view"])
def test_handlers_and_views_share_the_rooms_of_a_blueprint_with_the_views_of_http(
    plain: list[AnyServer], kind: str
) -> None:
    async def check(server: AnyServer) -> None:
        last = server.mode.processes
        async with (
            member(server, path=f"/chat/{kind}/lobby", ticket="valid") as near,
            member(server, "", last, f"/chat/{kind}/lobby", ticket="valid") as other,
            member(server, "", last, "/chat/handler/lobby", ticket="valid") as third,
            far(server, "lobby") as namesake,
        ):
            await near.send("hello")
            await until(lambda: near.texts == other.texts == third.texts == ["hello"])
            await asyncio.to_thread(server.request, "/chat/announce/lobby", "from a view")
            await until(lambda: near.texts == other.texts == third.texts == ["hello", "from a view"])
            assert (await asyncio.to_thread(server.request, "/chat/count/lobby"))["count"] == 3
            assert not namesake.texts

    on_each(plain, check)


def test_before_join_refuses_by_http_or_by_a_close_code_in_every_worker(plain: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        for worker in range(1, server.mode.processes + 1):
            for path in ("/chat/handler/private", "/chat/view/private"):
                with pytest.raises(InvalidStatus, match="403"):
                    await enter(server, "", worker, path, ticket="forged")
            with pytest.raises(ConnectionResetError, match="4403"):
                await enter(server, "", worker, "/chat/handler/private", ticket="forged", late="1")

    on_each(plain, check)


#: Names that are part of a path, a pattern, a key or a channel elsewhere, and some that differ little.
NAMES = [
    *("a", "A", "a ", " a", "a\0", "a\0b", "a\n", "a\r\n", "\0", "\n", "*", "?", "[a]", "a*", "\\", "%", "%00", "%61"),
    *("../a", "../../x", "/", "//", ".", "..", "~", "-", "a:b", "a::b", ":", "::", "u:a", "a:", "b:chat:a", "'", '"'),
    *("'; DROP TABLE rooms; --", "$", "{a}", "{}", "\u00e9", "e\u0301", "\u202e", "\ufeff", "\U0001f600", "\x7f"),
    *("x" * 255, "x" * 254, "\u00fc" * 127, "\U0001f600" * 63),
]


def test_a_name_of_any_text_is_the_name_of_a_room_that_reaches_only_its_own_members(plain: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        async with AsyncExitStack() as stack:
            members = [await stack.enter_async_context(far(server, name)) for name in NAMES]
            for name in NAMES:
                async with member(server, name, visitor="1") as visitor:
                    await visitor.order("publish", f"only {name}", False)
            async with member(server, "end", visitor="1") as visitor:
                for each in members:
                    await each.order("join", "end")
                await visitor.order("publish", "end", False)
            await until(lambda: all(each.texts[-1:] == ["end"] for each in members))
            assert [each.texts for each in members] == [[f"only {name}", "end"] for name in NAMES]

    on_each([server for server in plain if server.mode.processes == 2], check)


# Workers that die, stand still, or are replaced

#: Each broker serves two servers in different modes.
MORTAL = [
    Setup("gevent", "local", 2),
    Setup("asyncio", "local", 2),
    Setup("gevent", "redis", 2),
    Setup("threads", "redis", 2),
]


@pytest.fixture(scope="module")
def mortal(
    tmp_path_factory: pytest.TempPathFactory, redis: RedisServer, shared_memory: Path
) -> Iterator[list[AnyServer]]:
    directory = tmp_path_factory.mktemp("mortal")
    brokers = {"local": f"local://{shared_memory}/mortal", "redis": f"{redis.url}?prefix=mortal"}

    def start(setup: Setup) -> RoomServer:
        options = ["--lazy-apps", "--touch-chain-reload", str(directory / f"reload-{setup}")]
        (directory / f"reload-{setup}").touch()
        return make(directory, setup, brokers[setup.broker], options=options)

    with serving_rooms(*(partial(start, setup) for setup in MORTAL), are_mortal=True) as servers:
        yield servers


def load_on(*servers: AnyServer, room: str) -> Load:
    """Return two clients for each worker."""
    places = [(server, worker) for server in servers for worker in range(1, server.mode.processes + 1)]
    return Load([place for place in places for _ in range(2)], room)


@pytest.mark.once
def test_when_a_worker_is_killed_the_members_of_the_others_miss_nothing(mortal: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        load = load_on(server, room=f"kill {server.port}")
        async with load.running():
            victim = load.members[0].pid
            os.kill(victim, signal.SIGKILL)
            await until(lambda: load.codes == {1006: 2}, lambda: str(load.codes))
            await load.progress()
            assert victim not in {each.pid for each in load.members}
        assert not load.figures["missed and told"]

    on_each(mortal, check)


@pytest.mark.once
def test_a_worker_that_stood_still_gives_its_members_all_that_was_published_meanwhile(mortal: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        load = load_on(server, room=f"stop {server.port}")
        async with load.running():
            victim = load.members[0].pid
            os.kill(victim, signal.SIGSTOP)
            try:
                for _ in range(5):
                    await load.progress(missing={0, 1})
                    await asyncio.sleep(0.5)
            finally:
                os.kill(victim, signal.SIGCONT)
        assert not load.codes
        assert not load.figures["missed and told"]

    on_each(mortal, check)


#: The number of messages that a handler publishes when it ends.
FAREWELLS = 100


@pytest.mark.once
def test_a_chain_reload_under_load_loses_nothing_that_handlers_published_before_their_ends(
    mortal: list[AnyServer],
) -> None:
    async def reload(load: Load, server: AnyServer) -> None:
        members = [each for each in load.members if each.server is server]
        farewells = [(load.oracle.name(), each) for each in members]
        for name, each in farewells:
            await each.order("farewell", name, FAREWELLS)
        for number in range(FAREWELLS):
            for name, _ in farewells:
                load.oracle.note_sent(f"{name} {number}")
        touch(server.directory.parent / f"reload-{server.directory.name}")
        await until(lambda: all(each.code == 1012 for each in members), lambda: f"{load.codes}\n{server.log[-3000:]}")
        for number in range(FAREWELLS):
            for name, _ in farewells:
                load.oracle.note_published(f"{name} {number}")
        await load.progress()
        assert not {each.pid for each in members} & {each.pid for each in load.members}

    async def check(first: AnyServer, second: AnyServer) -> None:
        load = load_on(first, second, room="reload")
        async with load.running():
            await reload(load, first)
            await reload(load, second)
        assert load.codes.keys() == {1012}
        assert not load.figures["missed and told"]

    asyncio.run(together(check(*mortal[:2]), check(*mortal[2:])))


# Publishers outside of the workers


@pytest.mark.once
def test_processes_that_fork_after_they_have_published_reach_all_workers_in_order(mortal: list[AnyServer]) -> None:
    async def check(*servers: AnyServer) -> None:
        async with Oracle(servers, "outside") as oracle:
            members = [await oracle.join(server, worker) for server in servers for worker in (1, 2)]
            await together(
                oracle.publish_outside(servers[0].broker, 60, "os.fork", "os.fork", "multiprocessing"),
                oracle.publish(members[0], oracle.name(), 60),
            )
            await oracle.settle()
            assert oracle.check()["delivered"] == 4 * 6 * 60

    asyncio.run(together(check(*mortal[:2]), check(*mortal[2:])))


@pytest.mark.once
def test_outside_of_a_worker_auto_finds_the_server_and_says_when_there_is_none(tmp_path: Path) -> None:
    require("namespaces")
    # Other servers of the same application are running, whose directories are in /dev/shm.
    prefix = mounting("size=64m", Path("/dev/shm"))

    async def publish(server: AnyServer) -> None:
        async with Oracle([server], "outside") as oracle:
            for worker in (1, 2):
                await oracle.join(server, worker)
            await oracle.publish_outside("auto", 10, prefix=entering(server.pid))
            await oracle.settle()
            assert oracle.check()["delivered"] == 20

    with serving_rooms(partial(make, tmp_path, Setup("gevent", "auto", 2), "auto", prefix=prefix)) as servers:
        on_each(servers, publish)
    with pytest.raises(AssertionError, match="BrokerUnavailable: no server with several workers serves the app"):
        asyncio.run(Oracle([], "outside").publish_outside("auto", 1, prefix=prefix))


# A broker that is away


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, list[AnyServer]]]:
    """A Redis, and servers with a worker in each mode that have nothing else in common, like three machines."""
    require("redis")
    directory = tmp_path_factory.mktemp("machines")
    setups = [Setup(mode, "redis", 1) for mode in ("gevent", "threads", "asyncio")]
    with (
        tempfile.TemporaryDirectory() as place,
        running(RedisServer(Path(place))) as redis,
        serving_rooms(*(partial(make, directory, setup, redis.url) for setup in setups)) as servers,
    ):
        yield redis, servers


def broker_errors(server: AnyServer) -> list[str]:
    """Return why the broker of a server's first worker is away, or an empty list."""
    errors: list[str] = server.request("/stats")["broker_errors"]
    return errors


@pytest.mark.once
def test_when_redis_is_killed_and_starts_empty_members_are_told_and_go_on(
    machines: tuple[RedisServer, list[AnyServer]],
) -> None:
    redis, servers = machines

    async def run() -> None:
        load = load_on(*servers, room="killed")
        async with load.running():
            redis.kill()
            await until(lambda: all(map(broker_errors, servers)))
            await load.publish_more()
            redis.start()
            await load.progress()
        assert not load.codes
        assert {gap.pid for gap in load.oracle.gaps()} == {each.pid for each in load.members}

    asyncio.run(run())
    assert not any(map(broker_errors, servers))


@pytest.mark.once
def test_when_redis_stands_still_for_12_seconds_members_get_all_or_are_told(
    machines: tuple[RedisServer, list[AnyServer]],
) -> None:
    redis, servers = machines

    async def run() -> None:
        load = load_on(*servers, room="paused")
        async with load.running():
            redis.pause()
            try:
                await asyncio.sleep(12)
                await load.publish_more()
            finally:
                redis.resume()
            await load.progress()
        assert not load.codes

    asyncio.run(run())


@pytest.mark.once
def test_of_four_machines_with_one_redis_one_is_cut_off_and_told_what_it_has_missed(tmp_path: Path) -> None:
    require("redis", "ip", "namespaces")

    async def run(cut: Place, *servers: AnyServer) -> None:
        load = load_on(*servers, room="machines")
        # Rooms that have no message before the machine is cut off. Its member joins before, or meanwhile.
        async with Oracle(servers, "fresh") as fresh, Oracle(servers, "late") as late, load.running():
            publishers = [await each.join(servers[1]) for each in (fresh, late)]
            await fresh.join(servers[0])
            cut.cut()
            end = time.monotonic() + 15
            await late.join(servers[0])
            for each, through in zip((fresh, late), publishers, strict=True):
                await each.publish(through, each.name(), 10)
            await asyncio.sleep(end - time.monotonic())
            await load.progress(missing={0, 1})
            cut.mend()
            await load.progress()
            for each in (fresh, late):
                await each.settle()
                figures = each.check()
                assert (figures["delivered"], figures["missed and told"]) == (10, 10)
        assert not load.codes
        assert {gap.pid for gap in load.oracle.gaps()} == {load.members[0].pid}

    with (
        places(4) as (address, machines),
        tempfile.TemporaryDirectory() as directory,
        running(RedisServer(Path(directory), options=(f"bind 127.0.0.1 {address}", "protected-mode no"))) as redis,
    ):
        broker = f"redis://{address}:{redis.port}"
        makes = [
            partial(make, tmp_path / each.namespace, Setup("gevent", "redis", 1), broker, place=each)
            for each in machines
        ]
        with serving_rooms(*makes) as servers:
            asyncio.run(run(machines[0], *servers))


LOCK_HOLDER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.once
def test_while_the_holder_of_the_local_lock_stands_still_handlers_go_on_and_others_are_told_why(
    tmp_path: Path, shared_memory: Path
) -> None:
    broker = shared_memory / "locked"

    async def run(*servers: AnyServer) -> None:
        load = load_on(*servers, room="locked")
        async with load.running():
            (log,) = broker.glob("log-*/log")
            holder = subprocess.Popen([sys.executable, "-c", LOCK_HOLDER, log], stdin=PIPE, stdout=PIPE, text=True)
            with holder, ExitStack() as stack:
                stack.callback(holder.kill)
                assert holder.stdout is not None
                assert holder.stdout.readline() == "locked\n"
                holder.send_signal(signal.SIGSTOP)
                await load.publish_more()
                with pytest.raises(AssertionError, match="BrokerUnavailable: Another process has locked"):
                    await Oracle(servers, "locked").publish_outside(servers[0].broker, 1)
                await load.publish_more()
            await load.progress()
        assert not load.codes
        assert not load.figures["missed and told"]

    setups = [Setup("gevent", "local", 1), Setup("threads", "local", 1), Setup("asyncio", "local", 1)]
    with serving_rooms(*(partial(make, tmp_path, setup, f"local://{broker}") for setup in setups)) as servers:
        asyncio.run(run(*servers))


def fill(server: AnyServer, filler: Path) -> None:
    """Take all space of a file system that only a server sees."""
    command = ["dd", "if=/dev/zero", f"of={filler}", "bs=4k"]
    assert "No space left" in subprocess.run([*entering(server.pid), *command], capture_output=True, text=True).stderr


def empty(server: AnyServer, filler: Path) -> None:
    """Give the space back."""
    subprocess.run([*entering(server.pid), "rm", str(filler)], check=True)


@pytest.mark.once
def test_while_its_file_system_is_full_nobody_hangs_and_members_get_all_or_are_told_when_there_is_space(
    tmp_path: Path, shared_memory: Path
) -> None:
    require("namespaces")
    directory = shared_memory / "full"
    directory.mkdir()
    filler = directory / "filler"

    async def publish_in_vain(server: AnyServer) -> None:
        with pytest.raises(AssertionError, match=r"BrokerUnavailable: .* Check that there is space"):
            await Oracle([server], "full").publish_outside(server.broker, 1, prefix=entering(server.pid))

    async def run(server: AnyServer) -> None:
        fill(server, filler)  # before there is a log
        load = load_on(server, room="full")
        async with load.running(is_away=True):
            await load.publish_more()
            await publish_in_vain(server)
            empty(server, filler)
            await load.progress()
            fill(server, filler)
            await until(lambda: broker_errors(server))
            assert "Check that there is space" in broker_errors(server)[0]
            await load.publish_more()
            empty(server, filler)
            await load.progress()
        assert not load.codes

    setup = Setup("gevent", "local", 2)
    prefix = mounting("size=4m", directory)
    with serving_rooms(partial(make, tmp_path, setup, f"local://{directory}/rooms", prefix=prefix)) as (server,):
        asyncio.run(run(server))


# Other servers

#: Those that may have several workers have two.
SEVERAL = ["gunicorn-threads", "gunicorn-threads-asyncio", "gunicorn-gevent"]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[AnyServer]]:
    def start(name: str) -> OtherRoomServer:
        mode = OTHERS[name]
        if name in SEVERAL:
            mode = mode._replace(options=[*mode.options, "--workers", "2"], processes=2)
        return OtherRoomServer(tmp_path_factory.mktemp(name), mode, broker="auto")

    with serving_rooms(*(partial(start, name) for name in OTHERS)) as servers:
        yield servers


@pytest.mark.once
def test_on_other_servers_all_members_in_all_workers_get_one_order_without_a_setting(others: list[AnyServer]) -> None:
    async def check(server: AnyServer) -> None:
        async with Oracle([server], "others") as oracle:
            members = oracle.members
            while {each.pid for each in members} != server.running_workers():  # the system chooses the worker
                assert len(members) < 100, server.log
                await oracle.join(server, user="u")
            await together(*(oracle.publish(each, oracle.name(), 20) for each in members))
            await oracle.settle()
            assert oracle.check()["delivered"] == 20 * len(members) ** 2
            await members[0].order("publish", "for others", True)
            await members[0].order("publish to user", "u", "for all")
            await until(lambda: all(each.texts[-2:] == ["for others", "for all"] for each in members[1:]))
            await until(lambda: members[0].texts[-1] == "for all")
            assert await members[0].order("count") == len(members)
            await members[0].order("close", 4000, "over", None)
            await until(lambda: all(each.code == 4000 for each in members))

    on_each(others, check)


# Many rooms

#: Clients, the rooms that they choose from, and the most rooms of a client at a time.
CROWD = 200
ROOMS = 1000
MOST_ROOMS = 10

#: Seconds for which they come and go: at first until all is loaded that is loaded once, and then to measure.
WARM_UP = 2.0
MEASURED = 6.0

#: The most kilobytes by which a worker may grow meanwhile: the allocator's fragments.
MOST_GROWTH = 4096


@pytest.mark.once
def test_after_200_clients_have_joined_and_left_1000_rooms_nothing_is_left_of_them(
    tmp_path: Path, redis: RedisServer, shared_memory: Path
) -> None:
    async def check(server: AnyServer) -> None:
        deadline = time.monotonic() + DEADLINE
        while not all(each["delivered"] for each in stats_of(server)):  # until each has opened what it keeps open
            assert time.monotonic() < deadline
            await come_and_go(server, WARM_UP)
        await until(lambda: not any(each["members"] or each["rooms"] for each in stats_of(server)))
        await asyncio.sleep(LINGER + 2 * TICK_INTERVAL)  # so that the workers do not wait for members to come back
        before = stats_of(server)
        await come_and_go(server, MEASURED)
        await until(lambda: has_shrunk(before, stats_of(server)), lambda: f"{before}\n{stats_of(server)}")

    brokers = {"local": f"local://{shared_memory}/many", "redis": f"{redis.url}?prefix=many"}
    with serving_rooms(
        *(partial(make, tmp_path, Setup("gevent", name, 2), broker) for name, broker in brokers.items())
    ) as servers:
        on_each(servers, check)


async def come_and_go(server: AnyServer, seconds: float) -> None:
    """Let clients join rooms, publish in them, leave them and vanish, all at random."""
    end = time.monotonic() + seconds

    async def run(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            worker = 1 + number % server.mode.processes
            async with member(server, "none", worker, visitor="1") as client:
                visited = await wander(client, chance, end)
                if chance.random() < 0.5:
                    client.connection.transport.abort()
            assert visited.issuperset(client.texts)

    await together(*map(run, range(CROWD)))


async def wander(client: Member, chance: random.Random, end: float) -> set[str]:
    """Join and leave rooms for a while, and return the names of all of them. Each message is the name of its room."""
    rooms: list[str] = []
    visited: set[str] = set()
    for _ in range(chance.randrange(100)):
        if time.monotonic() > end:
            break
        room = f"room {chance.randrange(ROOMS)}"
        await client.order("publish in", room, room)
        if len(rooms) < MOST_ROOMS:
            rooms.append(room)
            visited.add(room)
            await client.order("join", room)
        else:
            await client.order("leave", rooms.pop(chance.randrange(MOST_ROOMS)))
    return visited


def stats_of(server: AnyServer) -> list[dict[str, int]]:
    """Return the counters of all workers."""
    return [server.request("/stats", worker=worker) for worker in range(1, server.mode.processes + 1)]


def has_shrunk(before: list[dict[str, int]], after: list[dict[str, int]]) -> bool:
    """Return whether the workers have no rooms, and do not use more than before."""
    return all(
        now["rooms"] == now["members"] == now["waiting"] == 0
        and now["files"] <= then["files"]
        and now["kilobytes"] <= then["kilobytes"] + MOST_GROWTH
        for then, now in zip(before, after, strict=True)
    )
