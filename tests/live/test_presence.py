"""Who is in the rooms of real workers: all workers agree on it, and each join and leave is announced once.

``pytest -s tests/live/test_presence.py`` prints how often users came, went and were lost with a worker, and the most
seconds until all workers agreed.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from support.attending import FIGURES, Attendance
from support.namespaces import Place, places
from support.needs import require
from support.redis_server import RedisServer, running
from support.rooms import (
    AnyServer,
    Group,
    Setup,
    delete,
    make,
    on_each,
    reload,
    serving_rooms,
    together,
    until,
)

pytestmark = pytest.mark.once


@pytest.fixture(scope="module", autouse=True)
def _summary() -> Iterator[None]:
    yield
    sys.stdout.write(f"\n{dict(FIGURES)}\n")


#: The servers of the fixture `groups`. Those with the same broker share it.
SETUPS = [
    Setup("gevent", "local", 2),
    Setup("asyncio", "local", 2),
    Setup("threads", "redis", 2),
    Setup("asyncio", "redis", 2),
]


USERS = [f"user {number}" for number in range(10)]


async def populate(room: Attendance, group: Group) -> None:
    """Let each user come: one half to one worker, so that each has some of them, and one half to two of them."""
    for number, user in enumerate(USERS):
        worker = group.workers[number % len(group.workers)]
        await room.come(user, worker)
        if number % 2:
            await room.come(user, random.choice([each for each in group.workers if each != worker]))
    await room.settle("join")


@asynccontextmanager
async def stopped(pid: int) -> AsyncIterator[None]:
    """Let a worker stand still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# Users who come and go


def test_users_who_come_and_go_in_all_workers_are_listed_and_announced_once(groups: dict[str, Group]) -> None:
    async def change(room: Attendance, group: Group, user: str) -> None:
        if user in room.users and random.random() < 0.6:
            await room.go(user)
        else:
            await room.come(user, random.choice(group.workers))

    async def check(group: Group) -> None:
        async with Attendance(group, "changes") as room:
            for _ in range(15):
                await together(*(change(room, group, user) for user in random.sample(USERS, 5)))
                await room.settle("change")
            await together(*map(room.go, list(room.connections.values())))
            await room.settle("leave")

    on_each(groups.values(), check)


def test_users_of_killed_workers_leave_once_unless_they_have_another_connection(groups: dict[str, Group]) -> None:
    async def check(group: Group) -> None:
        async with Attendance(group, "kills") as room:
            await populate(room, group)
            for worker in group.workers[::3]:
                pid = await asyncio.to_thread(worker.pid)
                os.kill(pid, signal.SIGKILL)
                room.lose(pid)
                await room.settle("kill")
                for user in set(USERS) - room.users:
                    await room.come(user, worker)
                await room.settle("join")

    on_each(groups.values(), check)


def test_users_of_a_worker_that_stands_still_stay_where_its_lease_does_not_end_and_otherwise_leave_and_come_back(
    groups: dict[str, Group],
) -> None:
    async def check(group: Group) -> None:
        async with Attendance(group, "stops") as room:
            await populate(room, group)
            worker, *others = group.workers
            pid = await asyncio.to_thread(worker.pid)
            hidden = {}
            async with stopped(pid):
                if group.broker == "redis":
                    hidden = room.lose(pid)
                await room.settle("stop", without=[worker])
                await room.come("newcomer", others[0])
                await room.settle("join", without=[worker])
            room.connections |= hidden
            await room.settle("continuation")

    on_each(groups.values(), check)


# Users who always come back


def test_through_reloads_and_kills_users_who_come_back_are_listed_all_the_time_and_not_announced(
    groups: dict[str, Group],
) -> None:
    async def replace(room: Attendance, server: AnyServer) -> None:
        before = server.running_workers()
        reload(server)
        await until(lambda: not before & server.running_workers(), lambda: server.log[-3000:])

    async def check(group: Group) -> None:
        async with Attendance(group, "returns", "default") as room:
            coming = [asyncio.ensure_future(room.keep_coming(user)) for user in USERS]
            await until(lambda: room.users == set(USERS))
            await room.settle("join")
            tasks = coming + [asyncio.ensure_future(room.watch(worker)) for worker in group.workers]
            try:
                for worker in group.workers[::3]:
                    os.kill(await asyncio.to_thread(worker.pid), signal.SIGKILL)
                    await until(lambda: room.users == set(USERS))
                await together(*(replace(room, server) for server in group.servers))
                await until(lambda: room.users == set(USERS))
            finally:
                for task in tasks:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
            room.check()  # that nobody was announced
            await together(*map(room.go, list(room.connections.values())))
            await room.settle("leave after the default grace")

    on_each(groups.values(), check)


# Brokers that lose their memory


async def forget_and_go_on(group: Group, forget: Callable[[], object]) -> None:
    """Let a broker lose its memory, and check that nobody is announced who was there all the time."""
    async with Attendance(group, "forgotten") as room:
        await populate(room, group)
        for user in USERS[:3]:
            forget()
            await room.settle("loss of memory")
            while user in room.users:
                await room.go(user)
            await room.settle("leave")


def test_when_redis_starts_again_without_its_memory_nobody_is_announced(
    groups: dict[str, Group], redis: RedisServer
) -> None:
    on_each([groups["redis"]], lambda group: forget_and_go_on(group, redis.restart))


def test_when_the_local_log_is_deleted_nobody_is_announced(groups: dict[str, Group], local_directory: Path) -> None:
    on_each([groups["local"]], lambda group: forget_and_go_on(group, lambda: delete(local_directory)))


# Machines that are cut off


def test_users_of_a_machine_that_is_cut_off_leave_and_come_back_with_it(tmp_path: Path) -> None:
    require("redis", "ip", "namespaces")

    async def run(cut: Place, group: Group) -> None:
        worker = group.workers[0]
        async with Attendance(group, "machines") as room:
            await populate(room, group)
            cut.cut()
            hidden = room.lose(await asyncio.to_thread(worker.pid))
            await room.settle("cut", without=[worker])
            cut.mend()
            room.connections |= hidden
            await room.settle("return")

    with (
        places(3) as (address, machines),
        tempfile.TemporaryDirectory() as directory,
        running(RedisServer(Path(directory), options=(f"bind 127.0.0.1 {address}", "protected-mode no"))) as redis,
    ):
        broker = f"redis://{address}:{redis.port}"
        setups = [Setup(mode, "redis", 1) for mode in ("gevent", "threads", "asyncio")]
        makes = [
            partial(make, tmp_path, setup, broker, place=machine)
            for setup, machine in zip(setups, machines, strict=True)
        ]
        with serving_rooms(*makes) as servers:
            on_each([Group("redis", servers)], partial(run, machines[0]))
