"""Servers with rooms, their members, and the oracle: what every member must have got, or must have been told.

Members publish numbered messages, "PUBLISHER NUMBER". Then an :class:`Oracle` compares what all members got: there
is one order of all messages, every member got them in this order, and each message that a member did not get was told
by the signal ``websocket_gap`` in its worker.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from graphlib import CycleError, TopologicalSorter
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import websockets.asyncio.client
from websockets.exceptions import ConnectionClosed, WebSocketException

from support.endings import touch
from support.live import DEADLINE, MODES, PATHS, Mode, OtherServer, Server, in_threads
from support.namespaces import Place
from support.paths import SUPPORT

T = TypeVar("T")

#: uWSGI's log messages about faults that no test causes on purpose.
TROUBLE = re.compile(r"\[BUG\]|Segmentation|Traceback|never awaited|stack is not")

#: Seconds between two looks of a test for what it waits for.
PAUSE = 0.05


class AnyServer(Server):
    """What all servers with rooms have in common."""

    directory: Path
    broker: str

    def address(self, worker: int) -> str:
        """Return the address of a worker, which may be that of all workers. They count from 1."""
        return self.host

    def _environ(self) -> Mapping[str, str]:
        return {**super()._environ(), "LIVE_BROKER": self.broker}

    def request(self, path: str, body: str | None = None, worker: int = 1) -> Any:
        """Send a GET or POST request to a worker, and return the JSON of the response."""
        connection = HTTPConnection(self.address(worker), self.port, timeout=DEADLINE)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            return json.load(connection.getresponse())
        finally:
            connection.close()


class RoomServer(AnyServer):
    """A uWSGI with rooms, each of whose workers has an address of its own.

    :param broker: the setting ``WEBSOCKET_BROKER``.
    :param workers: their number.
    :param prefix: a command that runs the server's command, such as in another namespace.
    :param place: the machine where it runs, if it is another one. There it has one worker.
    """

    def __init__(
        self,
        directory: Path,
        mode: str,
        *,
        broker: str,
        workers: int,
        prefix: Sequence[str] = (),
        place: Place | None = None,
        **options: Any,
    ) -> None:
        self.directory, self.broker, self._prefix = directory, broker, prefix
        if place is not None:
            self.host, self._prefix = place.address, place.command()
        numbered = MODES[mode]._replace(
            options=[*MODES[mode].options, "--processes", str(workers), *mapped(workers)], processes=workers
        )
        hosts = [self.address(worker) for worker in range(2, workers + 1)]
        super().__init__(directory, numbered, "http-socket", hosts=hosts, module="live_rooms_app", **options)

    def address(self, worker: int) -> str:
        return self.host if worker == 1 else f"127.0.0.{worker}"

    def _arguments(self, *arguments: Any, **options: Any) -> list[str]:
        return [*self._prefix, *super()._arguments(*arguments, **options)]


def mapped(workers: int) -> list[str]:
    """Return the options that give each worker the socket with its number."""
    return [item for number in range(workers) for item in ("--map-socket", f"{number}:{number + 1}")]


class Setup(NamedTuple):
    """A server with rooms."""

    mode: str
    broker: str
    workers: int

    def __str__(self) -> str:
        return f"{self.mode}-{self.broker}-{self.workers}"


def make(directory: Path, setup: Setup, broker: str, **options: Any) -> RoomServer:
    """Start a server in a directory of its own."""
    directory = directory / str(setup)
    directory.mkdir(parents=True)
    return RoomServer(directory, setup.mode, broker=broker, workers=setup.workers, **options)


class OtherRoomServer(AnyServer, OtherServer):
    """Another server with rooms."""

    def __init__(self, directory: Path, mode: Mode, *, broker: str, **options: Any) -> None:
        self.directory, self.broker = directory, broker
        super().__init__(directory, mode, None, module="live_rooms_app", **options)


@contextmanager
def serving_rooms(*makes: Callable[[], AnyServer], are_mortal: bool = False) -> Iterator[list[AnyServer]]:
    """Run servers at the same time, and check what they leave behind.

    :param makes: start a server each.
    :param are_mortal: whether workers may die or be replaced.
    """
    servers: list[AnyServer] = []
    try:
        servers.extend(make() for make in makes)
        for server in servers:
            server.wait_until_ready()
        yield servers
    finally:
        in_threads(len(servers), lambda number: servers[number].stop())
    for server in servers:
        if are_mortal:
            assert not TROUBLE.search(server.log), server.log
        else:
            server.check_log()


class Worker(NamedTuple):
    """A worker of a server."""

    server: AnyServer
    number: int

    def pid(self) -> int:
        """Return its process id."""
        pid: int = self.server.request("/stats", worker=self.number)["pid"]
        return pid


def workers_of(*servers: AnyServer) -> list[Worker]:
    """Return all workers of some servers."""
    return [Worker(server, number) for server in servers for number in range(1, server.mode.processes + 1)]


class Group:
    """Servers that share a broker.

    :param broker: its kind.
    """

    def __init__(self, broker: str, servers: Sequence[AnyServer]) -> None:
        self.broker, self.servers = broker, servers

    @property
    def workers(self) -> list[Worker]:
        return workers_of(*self.servers)


@contextmanager
def serving_groups(directory: Path, setups: Sequence[Setup], brokers: Mapping[str, str]) -> Iterator[dict[str, Group]]:
    """Run servers whose workers may die, and which :func:`reload` replaces.

    :param brokers: the setting ``WEBSOCKET_BROKER`` for each kind of broker.
    """

    def start(setup: Setup) -> RoomServer:
        trigger = directory / f"reload-{setup}"
        trigger.touch()
        options = ["--lazy-apps", "--touch-chain-reload", str(trigger)]
        return make(directory, setup, brokers[setup.broker], options=options)

    with serving_rooms(*(partial(start, setup) for setup in setups), are_mortal=True) as servers:
        yield {
            name: Group(name, [each for each, setup in zip(servers, setups, strict=True) if setup.broker == name])
            for name in brokers
        }


def reload(server: AnyServer) -> None:
    """Have the workers of a server in a group replaced, one after the other."""
    touch(server.directory.parent / f"reload-{server.directory.name}")


def delete(directory: Path) -> None:
    """Delete the directory of a local broker at once, although processes use it."""
    moved = directory.with_name(f"{directory.name}-{time.monotonic_ns()}")
    directory.rename(moved)
    shutil.rmtree(moved, ignore_errors=True)  # another process may remove a file first


def on_each(servers: Iterable[T], check: Callable[[T], Coroutine[Any, Any, object]]) -> None:
    """Run a check on all servers at the same time, because it mostly waits."""

    async def run() -> None:
        await together(*map(check, servers))

    asyncio.run(run())


def outside(broker: str, mode: str = "threads") -> dict[str, str]:
    """Return the environment of a process that imports the application, and is no worker."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(PATHS),
        "LIVE_BROKER": broker,
        "LIVE_CLASS": MODES[mode].extension,
        "LIVE_SLEEP": MODES[mode].sleep,
        "LIVE_JOURNAL": os.devnull,
        "LIVE_COVERAGE": "",
    }


# Members


class Received(NamedTuple):
    """A message that a member got, and when."""

    at: float
    text: str


class Member:
    """A WebSocket that is a member of a room, or gives orders as a visitor.

    :param received: where it notes the messages that it gets.
    """

    def __init__(
        self,
        server: AnyServer,
        connection: websockets.asyncio.client.ClientConnection,
        received: list[Received] | None = None,
    ) -> None:
        self.server = server
        self.connection = connection
        self.received: list[Received] = [] if received is None else received
        #: The process id of its worker, and when it has joined.
        self.pid, self.joined_at = 0, 0.0
        #: The close code, when the connection has ended.
        self.code: int | None = None
        self._answers: deque[asyncio.Future[Any]] = deque([asyncio.get_running_loop().create_future()])
        self._first = self._answers[0]
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(ConnectionClosed):
            async for message in self.connection:
                if isinstance(message, str):
                    self.received.append(Received(time.monotonic(), message))
                elif not (answer := self._answers.popleft()).done():  # else nobody waits for it any more
                    answer.set_result(json.loads(message))
        self.code = self.connection.close_code
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(ConnectionResetError(f"closed with {self.code}"))
                answer.exception()  # nobody need look at it

    async def wait_until_joined(self) -> None:
        self.pid = (await asyncio.wait_for(self._first, DEADLINE))["pid"]
        self.joined_at = time.monotonic()

    @property
    def hello(self) -> Any:
        """What its handler has sent first, when it has joined; None before."""
        has_come = self._first.done() and not self._first.cancelled() and self._first.exception() is None
        return self._first.result() if has_come else None

    async def send(self, message: str) -> None:
        """Send a message without waiting for an answer."""
        await self.connection.send(message)

    async def order(self, *words: Any) -> Any:
        """Give an order, and return the answer.

        :raises ConnectionResetError: when the connection ends before.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        try:
            await self.connection.send(json.dumps(words))
        except ConnectionClosed as error:
            await self._reading  # which notes the close code
            raise ConnectionResetError(str(error)) from error
        return await answer

    @property
    def texts(self) -> list[str]:
        """The messages that it got."""
        return [each.text for each in self.received]

    async def wait_until_ended(self, seconds: float | None = None) -> None:
        """Wait until the connection has ended, or for at most some seconds."""
        await asyncio.wait([self._reading], timeout=seconds)

    async def close(self) -> None:
        await self.connection.close()
        await self._reading

    async def reset(self) -> None:
        """Vanish with a TCP reset."""
        with suppress(OSError):  # it has just ended by itself
            sock = self.connection.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()
        await self._reading


@asynccontextmanager
async def member(
    server: AnyServer, room: str = "", worker: int = 1, path: str = "/member", **query: str
) -> AsyncIterator[Member]:
    """Connect to a worker and join a room.

    :param query: what the query string has besides the room.
    """
    each = await enter(server, room, worker, path, **query)
    try:
        yield each
    finally:
        await each.close()


async def enter(server: AnyServer, room: str = "", worker: int = 1, path: str = "/member", **query: str) -> Member:
    """Do the same without a ``with`` statement."""
    each = await connect(server, room, worker, path, **query)
    try:
        await each.wait_until_joined()
    except BaseException:
        await each.close()
        raise
    return each


async def connect(
    server: AnyServer,
    room: str = "",
    worker: int = 1,
    path: str = "/member",
    received: list[Received] | None = None,
    **query: str,
) -> Member:
    """Connect to a worker, which then has the connection join a room; see :class:`Member`."""
    host = server.address(worker)
    sock = socket.create_connection((host, server.port), DEADLINE)
    sock.setblocking(False)
    address = server.path(f"{path}?{urlencode({'room': room, **query})}")
    connection = await websockets.asyncio.client.connect(
        f"ws://{host}:{server.port}{address}",
        sock=sock,
        compression=None,
        open_timeout=DEADLINE,
        ping_interval=None,
        max_size=None,
    )
    return Member(server, connection, received)


async def until(find: Callable[[], Any], complain: Callable[[], object] = str) -> None:
    """Wait until *find* returns something true, and let the members run."""
    deadline = time.monotonic() + DEADLINE
    while not find():
        assert time.monotonic() < deadline, complain()
        await asyncio.sleep(PAUSE)


async def together(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run coroutines at the same time; when one fails, end the others and raise its error."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# The oracle


class Gap(NamedTuple):
    """What ``websocket_gap`` has told in a worker. ``missed`` is None if the number is not known."""

    pid: int
    at: float
    missed: int | None


#: The figures of all oracles of this run, for the summary.
FIGURES: Counter[str] = Counter()


class Oracle:
    """What is sent to one room, what its members get, and what was told to be missed.

    Use it in a ``with`` statement, which closes the members.

    :param servers: those that serve the room.
    """

    def __init__(self, servers: Sequence[AnyServer], room: str) -> None:
        self.room = room
        self.members: list[Member] = []
        self._servers = servers
        self._sent: dict[str, float] = {}  # when each message was sent
        self._published: set[str] = set()  # those that the members must get, whether or not somebody got them
        self._names = map("p{}".format, itertools.count())

    async def __aenter__(self) -> Oracle:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.gather(*(member.close() for member in self.members))

    def name(self) -> str:
        """Return a name for another publisher."""
        return next(self._names)

    def note_sent(self, text: str, at: float | None = None) -> None:
        """Note that a message is about to be published."""
        self._sent[text] = time.monotonic() if at is None else at

    def note_published(self, text: str) -> None:
        """Note that ``publish()`` has returned, in a process that did not die soon after it."""
        self._published.add(text)

    def published_by(self, name: str) -> int:
        """Return how many messages a publisher has published."""
        return sum(publisher(text) == name for text in self._published)

    def forgive(self, publisher: str) -> None:
        """Note that the process of a publisher was killed: it may have published less than it said."""
        self._published = {text for text in self._published if text.split()[0] != publisher}

    async def join(self, server: AnyServer, worker: int = 1, **query: str) -> Member:
        each = await enter(server, self.room, worker, **query)
        self.members.append(each)
        return each

    async def publish(self, through: Member, name: str, count: int, start: int = 0) -> None:
        """Publish messages through a connection.

        :raises ConnectionResetError: when it ends.
        """

        async def publish(text: str) -> None:
            self.note_sent(text)
            await through.order("publish", text, False)
            self.note_published(text)

        await together(*(publish(f"{name} {number}") for number in range(start, start + count)))

    def gaps(self) -> list[Gap]:
        return [
            Gap(entry["pid"], entry["at"], entry["missed"])
            for server in self._servers
            for entry in server.journal()
            if entry["event"] == "gap" and entry["room"] == self.room
        ]

    async def publish_outside(self, broker: str, count: int, *how: str, prefix: Sequence[str] = ()) -> None:
        """Publish messages by ``rooms_publishers.py``.

        :param broker: the setting ``WEBSOCKET_BROKER``.
        :param how: how it starts its children.
        :param prefix: a command that runs the script's command.
        """
        command = [*prefix, sys.executable, str(SUPPORT / "rooms_publishers.py"), self.room, str(count), *how]
        process = await asyncio.create_subprocess_exec(
            *command, env=outside(broker), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        for name, began, end in map(json.loads, output.splitlines()):
            for text in map(f"{name} {{}}".format, range(end)):
                if text not in self._published:  # else an earlier line had it
                    self.note_sent(text, began)
                    self.note_published(text)

    # What is missing

    def expected(self) -> set[str]:
        """Return the messages that have arrived somewhere, or must arrive."""
        return self._published.union(*(member.texts for member in self.members))

    def missed(self, member: Member, expected: Iterable[str]) -> set[str]:
        """Return the messages that a member did not get although it was one.

        A member whose connection has ended must have got what another one got before its own last message.
        """
        texts = member.texts
        firsts = first_numbers(texts)
        after_joining = {
            text
            for text in expected
            if self._sent.get(text, 0) > member.joined_at or number(text) > firsts.get(publisher(text), sys.maxsize)
        }
        missing = after_joining.difference(texts)
        if member.code is None or not missing:
            return missing
        if not texts:
            return set()
        earlier: set[str] = set()
        for other in self.members:
            with suppress(ValueError):
                earlier.update(other.texts[: other.texts.index(texts[-1])])
        return missing & earlier

    def untold(self, member: Member, missing: Iterable[str], gaps: Iterable[Gap]) -> set[str]:
        """Return the messages of which the worker of a member has not told that it has missed them.

        It has to tell so after the message was sent, and before it delivers a later one of the same publisher.
        """
        told = [gap for gap in gaps if gap.pid == member.pid]
        untold = set()
        for text in missing:
            later = (
                each.at
                for each in member.received
                if publisher(each.text) == publisher(text) and number(each.text) > number(text)
            )
            end = next(later, float("inf"))
            if not any(self._sent.get(text, 0) < gap.at < end for gap in told):
                untold.add(text)
        return untold

    def complaint(self) -> str:
        """Return what is missing now, or an empty text."""
        expected, gaps = self.expected(), self.gaps()
        for member in self.members:
            missing = self.missed(member, expected)
            if untold := self.untold(member, missing, gaps):
                some = sorted(untold, key=lambda text: self._sent.get(text, 0))[:20]
                return f"{self.room}: {len(untold)} of {len(expected)} are lost in {member.pid}: {some}; {gaps[-20:]}"
        return ""

    async def settle(self) -> None:
        """Wait until every member got everything, or was told that something is missing."""
        await until(lambda: not self.complaint(), self.complaint)

    # The verdict

    def check(self) -> Counter[str]:
        """Check the order and that nothing was lost or came twice, and return the figures."""
        self._check_order()
        expected, gaps = self.expected(), self.gaps()
        assert expected <= self._sent.keys(), expected - self._sent.keys()
        figures = Counter(published=len(expected), members=len(self.members))
        for member in self.members:
            texts, missing = member.texts, self.missed(member, expected)
            told = [gap.missed for gap in gaps if gap.pid == member.pid and gap.at > member.joined_at]
            numbers = [missed for missed in told if missed is not None]
            assert len(numbers) < len(told) or sum(numbers) >= len(missing), (numbers, missing)
            untold = self.untold(member, missing, gaps)
            figures.update(
                {
                    "delivered": len(set(texts)),
                    "duplicated": len(texts) - len(set(texts)),
                    "missed and told": len(missing) - len(untold),
                    "lost untold": len(untold),
                }
            )
        FIGURES.update(figures)
        assert not figures["lost untold"], self.complaint()
        assert not figures["duplicated"], figures
        return figures

    def _check_order(self) -> None:
        """Check that one order of all messages has those of each member and of each publisher in their order."""
        sorter: TopologicalSorter[str] = TopologicalSorter()
        publishers: dict[str, list[str]] = {}
        for text in self.expected():
            publishers.setdefault(publisher(text), []).append(text)
        sequences = [sorted(texts, key=number) for texts in publishers.values()]
        for texts in sequences + [member.texts for member in self.members]:
            for earlier, later in itertools.pairwise(texts):
                sorter.add(later, earlier)
        try:
            sorter.prepare()
        except CycleError as error:
            raise AssertionError(f"members of {self.room} disagree about the order of {error.args[1]}") from error


def publisher(text: str) -> str:
    return text.split()[0]


def number(text: str) -> int:
    return int(text.split()[1])


def first_numbers(texts: Iterable[str]) -> dict[str, int]:
    """Return the number of the first message of each publisher."""
    firsts: dict[str, int] = {}
    for text in texts:
        firsts.setdefault(publisher(text), number(text))
    return firsts


# Load


class Load:
    """Clients that are members of one room, publish all the time, and come back when their connections end.

    :param places: a server and the number of a worker for each client.
    :param pause: seconds between two messages of a client.
    """

    def __init__(self, places: Sequence[tuple[AnyServer, int]], room: str, *, pause: float = 0.05) -> None:
        self.oracle = Oracle(list(dict.fromkeys(server for server, _ in places)), room)
        #: How many connections have ended with each code.
        self.codes: Counter[int | None] = Counter()
        self.figures: Counter[str] = Counter()
        self._places = places
        self._pause = pause
        self._is_over = False
        # The connection of each client now, and the name under which it publishes.
        self._current: dict[int, tuple[Member, str]] = {}

    @asynccontextmanager
    async def running(self, *, is_away: bool = False) -> AsyncIterator[Load]:
        """Begin, and at the end let the oracle judge.

        :param is_away: whether the broker is not available at first.
        """
        clients = [asyncio.ensure_future(self._keep_coming(number)) for number in range(len(self._places))]
        try:
            await until(lambda: len(self._current) == len(self._places))
            if not is_away:
                await self.progress()
            yield self
            await self.progress()
            self._is_over = True
            await asyncio.gather(*clients)
            await self.oracle.settle()
            self.figures = self.oracle.check()
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            await self.oracle.__aexit__()

    @property
    def members(self) -> list[Member]:
        """The last connection of each client, in the order of the places."""
        return [member for _, (member, _) in sorted(self._current.items())]

    async def _keep_coming(self, number: int) -> None:
        server, worker = self._places[number]
        while not self._is_over:
            name = self.oracle.name()
            try:
                client = await self.oracle.join(server, worker)
            except (OSError, WebSocketException):
                await asyncio.sleep(PAUSE)
                continue
            self._current[number] = client, name
            try:
                await self._keep_publishing(client, name)
            except ConnectionResetError:
                self.codes[client.code] += 1
                if client.code == 1006:  # its worker was killed
                    self.oracle.forgive(name)

    async def _keep_publishing(self, client: Member, name: str) -> None:
        number = 0
        while not self._is_over:
            await self.oracle.publish(client, name, 1, number)
            await asyncio.sleep(self._pause)
            number += 1

    async def publish_more(self, count: int = 10) -> None:
        """Wait until each client has published some more messages, whether or not they arrive."""
        published = {name: self.oracle.published_by(name) for _, name in self._current.values()}
        await until(lambda: all(self.oracle.published_by(each) >= published[each] + count for each in published))

    async def progress(self, missing: Container[int] = ()) -> None:
        """Wait until each client gets messages that all clients publish from now on.

        :param missing: the clients that are not waited for.
        """
        began = time.monotonic()

        def is_served(client: Member, names: set[str]) -> bool:
            recent = itertools.takewhile(lambda each: each.at > began, reversed(client.received))
            return client.code is None and names <= {publisher(each.text) for each in recent}

        def are_served() -> bool:
            here = [number for number in range(len(self._places)) if number not in missing]
            if not all(number in self._current for number in here):
                return False
            names = {self._current[number][1] for number in here}
            return all(is_served(self._current[number][0], names) for number in here)

        await until(are_served, lambda: f"{self.codes}, {self.oracle.complaint()}")
