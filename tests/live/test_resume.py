"""Clients of real workers that drop and resume: each message exactly once, or a snapshot, whatever fails meanwhile.

``pytest -s tests/live/test_resume.py`` prints how many messages the clients got, how often they dropped, resumed, got a
snapshot or were closed with 1013, and how many messages were lost or came twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlencode

import pytest
from websockets.exceptions import ConnectionClosed

from flask_uwsgi_websocket.rooms.replay import MOST_HELD, text_of
from support.live import Raw
from support.redis_server import RedisServer
from support.resuming import (
    FIGURES,
    KINDS,
    MISSED,
    RELOADED,
    Item,
    Resumer,
    Resumption,
    item_of,
    publish,
)
from support.rooms import (
    AnyServer,
    Group,
    Received,
    Setup,
    Worker,
    delete,
    member,
    on_each,
    reload,
    together,
    until,
)
from support.wire import CLOSE

pytestmark = pytest.mark.once


@pytest.fixture(scope="module", autouse=True)
def _summary() -> Iterator[None]:
    yield
    for broker, figures in FIGURES.items():
        sys.stdout.write(f"\n{broker}: {dict(figures)}\n")


#: The servers of the fixture `groups`. Those with the same broker share it.
SETUPS = [
    Setup("gevent", "local", 2),
    Setup("asyncio", "local", 2),
    Setup("threads", "redis", 2),
    Setup("gevent", "redis", 4),
]


def resumption(group: Group, room: str, history: str = "long") -> Resumption:
    return Resumption(group.workers, room, group.broker, history=history)


# Clients that drop at random


def test_clients_that_drop_at_random_have_every_message_once(groups: dict[str, Group]) -> None:
    async def check(group: Group) -> None:
        async with resumption(group, "drops").running() as clients:
            await clients.until(lambda: clients.count()["drops"] >= 200)
        assert not clients.figures["snapshots"]
        assert not clients.figures[f"closed by {MISSED}"]

    on_each(groups.values(), check)


def test_through_chain_reloads_under_load_clients_have_every_message_once(groups: dict[str, Group]) -> None:
    async def reload_under_load(server: AnyServer, clients: Resumption) -> None:
        before = server.running_workers()
        reload(server)
        await clients.until(lambda: not before & server.running_workers(), lambda: server.log[-3000:])
        await clients.progress()

    async def check(group: Group) -> None:
        async with resumption(group, "reloads").running() as clients:
            await together(*(reload_under_load(server, clients) for server in group.servers))
        assert clients.figures[f"closed by {RELOADED}"]
        assert not clients.figures["snapshots"]
        assert not clients.figures[f"closed by {MISSED}"]

    on_each(groups.values(), check)


def test_when_workers_are_killed_clients_have_every_message_once(groups: dict[str, Group]) -> None:
    async def check(group: Group) -> None:
        async with resumption(group, "kills").running() as clients:
            for worker in group.workers[::2]:
                os.kill(await asyncio.to_thread(worker.pid), signal.SIGKILL)
                await clients.progress()
        assert not clients.figures["snapshots"]
        assert not clients.figures[f"closed by {MISSED}"]

    on_each(groups.values(), check)


def test_when_a_worker_stands_still_and_goes_on_clients_have_every_message_once(groups: dict[str, Group]) -> None:
    async def check(group: Group) -> None:
        async with resumption(group, "stops").running() as clients:
            for worker in group.workers[1::2]:
                pid = await asyncio.to_thread(worker.pid)
                os.kill(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(2)
                finally:
                    os.kill(pid, signal.SIGCONT)
                await clients.progress()
        assert not clients.figures["snapshots"]
        assert not clients.figures[f"closed by {MISSED}"]

    on_each(groups.values(), check)


# Brokers that lose connections, or their memory


def test_when_redis_ends_subscriptions_clients_have_every_message_once(
    groups: dict[str, Group], redis: RedisServer
) -> None:
    async def check(group: Group) -> None:
        async with resumption(group, "cut").running() as clients:
            for _ in range(5):
                assert redis.run("CLIENT", "KILL", "TYPE", "pubsub")
                await clients.progress()
        assert not clients.figures["snapshots"]
        assert not clients.figures[f"closed by {MISSED}"]

    on_each([groups["redis"]], check)


@pytest.mark.parametrize("is_saved", [False, True], ids=["empty", "with an old snapshot"])
def test_when_redis_starts_again_clients_have_every_message_once_or_get_a_snapshot(
    groups: dict[str, Group], redis: RedisServer, is_saved: bool
) -> None:
    async def check(group: Group) -> None:
        async with resumption(group, f"restart {is_saved}").running() as clients:
            for _ in range(2):
                if is_saved:
                    redis.save()
                    await clients.progress()
                redis.kill()
                await asyncio.sleep(0.5)
                redis.start()
                await clients.progress()
                redis.forget()
        assert clients.figures["snapshots"] >= 2 * len(clients.resumers)
        assert clients.figures[f"closed by {MISSED}"]

    on_each([groups["redis"]], check)


def test_when_the_local_log_is_deleted_clients_have_every_message_once_or_get_a_snapshot(
    groups: dict[str, Group], local_directory: Path
) -> None:
    async def check(group: Group) -> None:
        async with resumption(group, "deleted").running() as clients:
            for _ in range(3):
                before = clients.epochs()
                delete(local_directory)
                await clients.until(lambda: not before & clients.epochs())  # noqa: B023
                await clients.progress()
        assert clients.figures["snapshots"] >= 3 * len(clients.resumers)
        assert clients.figures[f"closed by {MISSED}"]

    on_each([groups["local"]], check)


# Positions that the history does not have


def test_where_the_history_is_too_short_clients_get_a_snapshot_and_then_every_message_once(
    groups: dict[str, Group],
) -> None:
    async def check(group: Group) -> None:
        async with resumption(group, "short", "short").running() as clients:
            await clients.until(lambda: clients.count()["snapshots"] >= 50)
            await clients.until(lambda: clients.count()["drops"] >= 100)

    on_each(groups.values(), check)


#: What is no position of the room. Some are not even text of a position.
UNKNOWN = ["", ".", "0.", "1.", "-1.x", "1.x", "+1.x", "1", "garbage", "\0", "\u0661.x", f"{2**63}.x", "9" * 500]


@pytest.mark.parametrize("kind", KINDS)
def test_with_an_unknown_position_a_client_gets_a_snapshot_and_then_what_comes_after_it(
    groups: dict[str, Group], kind: str
) -> None:
    async def check(worker: Worker) -> None:
        room, other = f"unknown {kind} {worker.server.port}", f"other {kind} {worker.server.port}"
        async with member(worker.server, "orders", worker.number, visitor="1") as orders, AsyncExitStack() as stack:
            first, stranger = Resumer([worker], room), Resumer([worker], other)
            for each, its_room, count in ((first, room, 3), (stranger, other, 2)):
                await stack.enter_async_context(each.resuming(kind))
                await publish(orders, "long", its_room, "p", 0, count)
            await until(lambda: (len(first.items), len(stranger.items)) == (4, 3))  # with the snapshots
            last = first.items[-1].position
            assert first.since is not None
            room_sum = first.since.rpartition(".")[2]
            unknown = [
                *UNKNOWN,
                f"{last.offset + 1}.{last.epoch}.{room_sum}",
                f"{last.offset - 100}.{last.epoch}.{room_sum}",
                f"{last.offset}.{last.epoch}x.{room_sum}",
                f"{last.offset}.{last.epoch[:-1]}.{room_sum}",
                f"{last.offset}..{room_sum}",
                f"{last.offset}.{last.epoch}",
                stranger.since,
            ]
            clients = [Resumer([worker], room) for _ in unknown]
            for client, since in zip(clients, unknown, strict=True):
                await stack.enter_async_context(client.resuming(kind, since=since))
            await until(
                lambda: all(client.items for client in clients),
                lambda: str([since for client, since in zip(clients, unknown, strict=True) if not client.items]),
            )
            assert all(client.items == [Item(last, None)] for client in clients)
            await publish(orders, "long", room, "p", 3)
            await until(lambda: all(client.items[1:] for client in (*clients, first)))
            assert {tuple(client.items[1:]) for client in clients} == {tuple(first.items[4:])}

    on_each([group.workers[0] for group in groups.values()], check)


# Clients that take long


#: Messages that are held for a client while it gets what it has missed: as many as are held, and more.
MANY, TOO_MANY = MOST_HELD, MOST_HELD + 1


async def publish_while_joining(worker: Worker, kind: str, room: str, count: int) -> None:
    """Publish messages while a client gets a snapshot, and check that it gets all of them."""
    client, observer = Resumer([worker], room), Resumer([worker], room)
    async with (
        member(worker.server, "orders", worker.number, visitor="1") as orders,
        observer.resuming(),
        AsyncExitStack() as stack,
    ):
        await until(lambda: observer.items)
        await publish(orders, "long", room, "p")
        await until(lambda: observer.items[1:])
        connection = await stack.enter_async_context(client.resuming(kind, waits="1"))
        await until(lambda: client.items)
        await publish(orders, "long", room, "p", 1, count)
        await until(lambda: len(observer.items) == 2 + count, lambda: str(len(observer.items)))
        with suppress(ConnectionClosed):
            await connection.send("go on")
        await until(lambda: connection.code or len(client.items) == 1 + count, lambda: str(len(client.items)))
        assert client.items[1:] == observer.items[2 : 1 + len(client.items)]
        assert connection.code == (None if count == MANY else MISSED)
    async with client.resuming(kind) as connection:
        await connection.wait_until_joined()
        assert connection.hello["is_whole"]
        assert client.items[1:] == observer.items[2:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [MANY, TOO_MANY])
def test_what_is_published_while_a_snapshot_is_sent_follows_it_or_the_client_has_to_resume(
    groups: dict[str, Group], kind: str, count: int
) -> None:
    async def check(group: Group) -> None:
        for server in group.servers:
            await publish_while_joining(Worker(server, 1), kind, f"slow {kind} {count} {server.port}", count)

    on_each(groups.values(), check)


#: The number of messages of 100 kB that are more than the system keeps for a client that does not read.
BIG = 200


def test_a_client_that_does_not_read_what_it_has_missed_is_closed_and_delays_nobody(groups: dict[str, Group]) -> None:
    async def check(server: AnyServer) -> None:
        room, worker = f"unread {server.port}", Worker(server, 1)
        observer = Resumer([worker], room)
        async with member(server, "orders", visitor="1") as orders, observer.resuming(kind="handler"):
            await until(lambda: observer.items)
            for number in range(0, BIG, 5):  # not faster than the observer reads
                await publish(orders, "long", room, "p", number, 5, 100_000)
                await until(lambda: len(observer.items) == 1 + number + 5)  # noqa: B023
            query = urlencode(
                {"history": "long", "room": room, "since": text_of(observer.items[1].position, f"b:long:{room}")}
            )
            with closing(Raw(server, server.path(f"/kept/handler?{query}"))) as client:
                assert (await asyncio.to_thread(client.handshake, {})).status == 101
                slow = (await asyncio.to_thread(server.request, "/stats"))["slow"]
                await publish(orders, "long", room, "p", BIG, TOO_MANY)
                await until(lambda: len(observer.items) == 1 + BIG + TOO_MANY)
                await until(lambda: server.request("/stats")["slow"] > slow)
                received, code = await asyncio.to_thread(read_to_the_end, client)
        assert received == observer.items[2 : 2 + len(received)]
        assert code in {MISSED, None}  # None if it was late for the Close frame

    on_each([server for group in groups.values() for server in group.servers], check)


def read_to_the_end(client: Raw) -> tuple[list[Item], int | None]:
    """Return what a client gets, and the close code, if it gets one."""
    items = []
    with suppress(ConnectionError, ValueError, struct.error):  # in the midst of a frame, too
        while True:
            opcode, payload = client.receive()
            if opcode == CLOSE:
                return items, int.from_bytes(payload[:2], "big")
            items.append(item_of(Received(0, payload.decode())))
    return items, None
