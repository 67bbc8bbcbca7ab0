"""Clients that drop at random and resume, and the oracle: each has every message exactly once, or got a snapshot.

Publishers publish numbered messages, "PUBLISHER NUMBER", into which a room with a history puts their positions.
:class:`Resumer` keeps the position of the last message that it has, and comes back with it. :class:`Resumption`
compares what all of them have: messages have one order, in which each client has all of them from its first position
on. A snapshot begins anew at its own position.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from websockets.exceptions import WebSocketException

from flask_uwsgi_websocket.rooms.brokers.base import Position
from support.rooms import PAUSE, Member, Received, Worker, connect, enter, number, publisher, together, until

#: The most seconds for which a client stays, and for which it is away.
LONGEST_STAY = 0.5
LONGEST_ABSENCE = 0.3

#: Seconds between two messages of a publisher.
PUBLISH_PAUSE = 0.01

#: How the application's rooms with a history are joined.
KINDS = ("handler", "view")

#: The close codes of uWSGI's workers that end, and of members that have missed messages.
RELOADED, MISSED = 1012, 1013


class Item(NamedTuple):
    """A message, or a snapshot, whose text is None."""

    position: Position
    text: str | None


def item_of(received: Received) -> Item:
    """Return what a text frame has."""
    value = json.loads(received.text)
    text: str = value.get("id") or value["snapshot"]
    offset, _, rest = text.partition(".")
    return Item(Position(rest.rpartition(".")[0], int(offset)), value.get("text"))


class Resumer:
    """A client of a room that has a history.

    :param workers: the workers to which it connects, a random one each time.
    :param history: which of the application's histories the room has.
    :param is_calm: whether it stays until its connection ends by itself.
    """

    def __init__(self, workers: Sequence[Worker], room: str, history: str = "long", *, is_calm: bool = False) -> None:
        self.received: list[Received] = []
        #: Its present connection, or the last one.
        self.member: Member | None = None
        #: How its connections have ended by themselves.
        self.codes: Counter[int | None] = Counter()
        #: How many connections it has ended, how many it has opened with a position, and how many were refused.
        self.figures: Counter[str] = Counter()
        self.is_calm = is_calm
        self._workers, self._room, self._history = workers, room, history
        self._items: list[Item] = []

    @property
    def items(self) -> Sequence[Item]:
        """What it has got, from all connections."""
        while len(self._items) < len(self.received):
            self._items.append(item_of(self.received[len(self._items)]))
        return self._items

    @property
    def since(self) -> str | None:
        """The position with which it resumes."""
        if not self.received:
            return None
        value = json.loads(self.received[-1].text)
        since: str = value.get("id") or value["snapshot"]
        return since

    async def connect(self, kind: str = "", **query: str) -> Member:
        """Connect with the last position, and do not wait until the client has joined.

        :param kind: "handler" or "view"; a random one if it is empty.
        """
        if (since := self.since) is not None:
            query = {"since": since, **query}
        worker = random.choice(self._workers)
        path = f"/kept/{kind or random.choice(KINDS)}"
        return await connect(
            worker.server, self._room, worker.number, path, self.received, history=self._history, **query
        )

    @asynccontextmanager
    async def resuming(self, kind: str = "", **query: str) -> AsyncIterator[Member]:
        """Connect for the ``with`` block; see :meth:`connect`."""
        began = len(self.received)
        self.member = await self.connect(kind, **query)
        try:
            yield self.member
        finally:
            await self.member.close()
            self._check_hello(self.member, began)

    def _check_hello(self, member: Member, began: int) -> None:
        """Check that ``join()`` has said whether the client has got a snapshot."""
        if member.hello is not None:
            has_snapshot = any(item.text is None for item in self.items[began:])
            assert member.hello["is_whole"] is not has_snapshot, self.items[began:]

    async def run(self) -> None:
        """Come back again and again, until it is cancelled."""
        while True:
            await self._come()
            if not self.is_calm:
                await asyncio.sleep(random.choice((0, random.uniform(0, LONGEST_ABSENCE))))

    async def close(self) -> None:
        """Close its present connection."""
        if self.member is not None:
            await self.member.close()

    async def _come(self) -> None:
        began = len(self.received)
        self.figures["resumes"] += self.since is not None
        try:
            member = await self.connect()
        except (OSError, WebSocketException):  # the worker, or the broker, is away
            self.figures["refused"] += 1
            await asyncio.sleep(PAUSE)
            return
        self.member = member
        await self._stay(member)
        if member.code is None:
            self.figures["drops"] += 1
            await random.choice((member.reset, member.close))()
        else:
            self.codes[member.code] += 1
        self._check_hello(member, began)

    async def _stay(self, member: Member) -> None:
        """Stay for a while, which may end before the client has joined."""
        end = time.monotonic() + random.uniform(0, LONGEST_STAY)
        while member.code is None and (self.is_calm or time.monotonic() < end):
            await member.wait_until_ended(PAUSE)


class Publisher:
    """Publishes numbered messages through a worker, and goes on under another name when its connection ends.

    :param worker: the worker.
    :param names: makes names.
    """

    def __init__(self, worker: Worker, room: str, history: str, names: Iterator[str]) -> None:
        self._worker, self._room, self._history, self._names = worker, room, history, names
        #: How many messages each of its names has certainly published.
        self.published: dict[str, int] = {}
        self.name = ""
        self.is_over = False

    async def run(self) -> None:
        """Publish until it is over."""
        while not self.is_over:
            try:
                client = await enter(self._worker.server, "orders", self._worker.number, visitor="1")
            except (OSError, WebSocketException):
                await asyncio.sleep(PAUSE)
                continue
            self.name = next(self._names)
            try:
                await self._publish(client)
            except ConnectionResetError:
                if client.code == 1006:  # its worker was killed, perhaps with messages that nobody else has
                    del self.published[self.name]
            finally:
                await client.close()

    async def _publish(self, client: Member) -> None:
        self.published[self.name] = 0
        while not self.is_over:
            await publish(client, self._history, self._room, self.name, self.published[self.name])
            self.published[self.name] += 1
            await asyncio.sleep(PUBLISH_PAUSE)


async def publish(
    client: Member, history: str, room: str, name: str, start: int = 0, count: int = 1, size: int = 0
) -> None:
    """Publish numbered messages at once.

    :param client: gives the order.
    :param name: the name of the publisher.
    :param start: the first number.
    :param size: the bytes by which each message is longer.
    """
    await client.order("publish kept", history, room, name, start, count, size)


#: The figures of each broker in this run, for the summary.
FIGURES: defaultdict[str, Counter[str]] = defaultdict(Counter)


class Resumption:
    """The clients of one room, and the oracle.

    :param workers: the workers.
    :param broker: under which name it is counted.
    :param clients: their number. One of three does not drop by itself.
    :param history: which of the application's histories the room has.
    """

    def __init__(
        self, workers: Sequence[Worker], room: str, broker: str, *, clients: int = 12, history: str = "long"
    ) -> None:
        names = map("p{}".format, itertools.count())
        self.resumers = [Resumer(workers, room, history, is_calm=each % 3 == 0) for each in range(clients)]
        self.publishers = [Publisher(worker, room, history, names) for worker in workers]
        self.figures: Counter[str] = Counter()
        self._room, self._broker = room, broker
        self._tasks: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Resumption]:
        """Begin, and at the end let all have everything, and judge."""
        self._tasks = [asyncio.ensure_future(each.run()) for each in (*self.publishers, *self.resumers)]
        try:
            await self.progress()
            yield self
            for each in self.resumers:
                each.is_calm = True
            await self.progress()
            for each_publisher in self.publishers:
                each_publisher.is_over = True
            await self.until(lambda: not self.complaint(), self.complaint)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await together(*(each.close() for each in self.resumers))
        self.figures = self.check()

    async def until(self, find: Callable[[], Any], complain: Callable[[], object] = str) -> None:
        """Wait until *find* returns something true, or until a client or publisher has failed."""

        def look() -> Any:
            for task in self._tasks:
                if task.done():
                    task.result()
            return find()

        await until(look, complain)

    async def progress(self) -> None:
        """Wait until each client gets messages that all publishers publish from now on."""
        began = {each: len(each.received) for each in self.resumers}

        def late() -> list[int]:
            names = {each.name for each in self.publishers}
            return [
                len(each.received) - start
                for each, start in began.items()
                if not names <= {publisher(item.text) for item in each.items[start:] if item.text is not None}
            ]

        await self.until(lambda: not late(), lambda: f"{self._room}: {late()}, {self.count()}")

    def epochs(self) -> set[str]:
        """Return the epochs in which the clients are."""
        return {each.items[-1].position.epoch for each in self.resumers}

    # The verdict

    def count(self) -> Counter[str]:
        """Return the figures of the clients."""
        figures: Counter[str] = Counter()
        for each in self.resumers:
            figures.update(each.figures)
            figures.update({f"closed by {code}": count for code, count in each.codes.items()})
            figures["messages"] += sum(item.text is not None for item in each.items)
            figures["snapshots"] += max(0, sum(item.text is None for item in each.items) - 1)
        return figures

    def truth(self) -> dict[Position, str]:
        """Return the messages that anybody has, by their positions."""
        truth: dict[Position, str] = {}
        for each in self.resumers:
            for position, text in each.items:
                if text is not None:
                    assert truth.setdefault(position, text) == text, f"{truth[position]} and {text} are at {position}"
        return truth

    def complaint(self) -> str:
        """Return what the clients do not have yet, or an empty text."""
        lasts = Counter(each.items[-1].position for each in self.resumers)
        if len(lasts) > 1:
            return f"{self._room}: the last positions are {lasts}"
        texts = set(self.truth().values())
        for each in self.publishers:
            if (last := f"{each.name} {each.published[each.name] - 1}") not in texts:
                return f"{self._room}: nobody has {last}"
        return ""

    def check(self) -> Counter[str]:
        """Check that nothing was lost and nothing came twice, and return the figures."""
        truth = self.truth()
        figures, faults = self.count(), []
        for index, each in enumerate(self.resumers):
            for part in parts_of(each.items):
                for kind, count, fault in itertools.chain(faults_of(part, truth), faults_of_numbers(part)):
                    figures[kind] += count
                    faults.append(f"client {index}: {fault}")
        if not figures["snapshots"]:
            faults += self._ends_missing(truth)
        FIGURES[self._broker].update(figures, lost=0, duplicated=0)
        assert not faults, f"{self._room}: {figures}\n" + "\n".join(faults[:20])
        return figures

    def _ends_missing(self, truth: Mapping[Position, str]) -> Iterator[str]:
        """Yield the publishers whose last message nobody has."""
        texts = set(truth.values())
        for each in self.publishers:
            for name, count in each.published.items():
                if count and f"{name} {count - 1}" not in texts:
                    yield f"nobody has message {count - 1} of {name}"


Fault = tuple[str, int, str]


def parts_of(items: Iterable[Item]) -> list[list[Item]]:
    """Split what a client has: each part begins with a snapshot."""
    parts: list[list[Item]] = []
    for item in items:
        if item.text is None:
            parts.append([])
        parts[-1].append(item)
    return parts


def faults_of(part: Sequence[Item], truth: Mapping[Position, str]) -> Iterator[Fault]:
    """Yield where messages are missing, or come twice, by their positions."""
    for (before, _), (after, text) in itertools.pairwise(part):
        if before.epoch == after.epoch:
            missing = after.offset - before.offset - 1
        else:  # nobody has one that is later in the old epoch, or earlier in the new one
            missing = sum(
                (each.epoch == before.epoch and each.offset > before.offset)
                or (each.epoch == after.epoch and each.offset < after.offset)
                for each in truth
            )
        if missing:
            kind = "lost" if missing > 0 else "duplicated"
            yield kind, abs(missing), f"{missing} between {before} and {after}, {text}"


def faults_of_numbers(part: Sequence[Item]) -> Iterator[Fault]:
    """Yield where messages of a publisher are missing, or come twice, by their numbers."""
    lasts: dict[str, int] = {}
    for position, text in part:
        if text is not None:
            name, this = publisher(text), number(text)
            missing = this - lasts.get(name, this - 1) - 1
            if missing:
                yield "lost" if missing > 0 else "duplicated", abs(missing), f"{missing} before {text} at {position}"
            lasts[name] = this
