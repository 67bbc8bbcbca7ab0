"""Users who come and go in a room with presence, and the model: who must be there, and what must be announced."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Collection
from http.client import HTTPException
from typing import Any, TypeGuard
from urllib.parse import urlencode

from websockets.exceptions import WebSocketException

from support.live import DEADLINE
from support.rooms import PAUSE, Group, Member, Worker, enter, together, until

#: The figures of all rooms of this run with each broker, for the summary.
FIGURES: defaultdict[str, Counter[str]] = defaultdict(Counter)


class Attendance:
    """One room.

    :param group: the servers.
    :param grace: which of the application's graces the room has.
    """

    def __init__(self, group: Group, room: str, grace: str = "brief") -> None:
        #: The open connections, and the user of each.
        self.connections: dict[Member, str] = {}
        self.figures = FIGURES[group.broker]
        self._group, self._room, self._grace = group, room, grace
        # Who was there when all workers agreed the last time, and what was announced until then.
        self._present: set[str] = set()
        self._announced: Counter[tuple[str, str]] = Counter()

    async def __aenter__(self) -> Attendance:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await together(*(each.close() for each in self.connections))

    @property
    def users(self) -> set[str]:
        """Those who are present, in truth."""
        return set(self.connections.values())

    async def come(self, user: str, worker: Worker) -> Member:
        """Open a connection of a user."""
        query = {"grace": self._grace, "user": user}
        connection = await enter(worker.server, self._room, worker.number, "/present", **query)
        self.connections[connection] = user
        return connection

    async def go(self, user: str) -> None:
        """Close or reset one of the connections of a user."""
        connection = random.choice([each for each, whose in self.connections.items() if whose == user])
        del self.connections[connection]
        await random.choice((connection.close, connection.reset))()

    async def keep_coming(self, user: str) -> None:
        """Open another connection of a user, to another worker, whenever one has ended, until it is cancelled."""
        worker = random.choice(self._group.workers)
        while True:
            try:
                connection = await self.come(user, worker)
            except (OSError, WebSocketException):
                await asyncio.sleep(PAUSE)
            else:
                await connection.wait_until_ended()
                del self.connections[connection]
                self.figures["returns"] += 1
            worker = random.choice([each for each in self._group.workers if each != worker])

    def lose(self, pid: int) -> dict[Member, str]:
        """Note that a worker has lost its connections, or seems to, and return them."""
        lost = {each: user for each, user in self.connections.items() if each.pid == pid}
        for each in lost:
            del self.connections[each]
        return lost

    # What must be true

    def members(self, worker: Worker) -> tuple[list[str], int] | str:
        """Return the users whom a worker lists, and their number; or why it does not answer."""
        path = f"/present/members?{urlencode({'room': self._room, 'grace': self._grace})}"
        try:
            answer: dict[str, Any] = worker.server.request(path, worker=worker.number)
        except (OSError, HTTPException, ValueError) as error:  # it has just been killed, or the broker is away
            return repr(error)
        return [user for user, info in answer["members"] if info == user], answer["count"]

    def announced(self) -> Counter[tuple[str, str]]:
        """Return how often each join and leave was announced, in all processes."""
        return Counter(
            (entry["event"], entry["user"])
            for server in self._group.servers
            for entry in server.journal()
            if entry["event"] in {"join", "leave"} and entry["room"] == f"{self._grace}:{self._room}"
        )

    def expected(self) -> Counter[tuple[str, str]]:
        """Return how often each join and leave must have been announced when all is settled."""
        users = self.users
        changes = [("join", user) for user in users - self._present] + [
            ("leave", user) for user in self._present - users
        ]
        return self._announced + Counter(changes)

    async def settle(self, cause: str, without: Collection[Worker] = ()) -> None:
        """Wait until all workers list those who are present, and all changes were announced.

        Between two calls, a user comes or goes once at most.

        :param cause: what has happened, for the figures.
        :param without: workers that stand still, or are cut off.
        """
        began = time.monotonic()
        expected, users = self.expected(), self.users
        workers = [worker for worker in self._group.workers if worker not in without]
        lists = await together(*(self._agreed(worker, users) for worker in workers))
        assert all(each == lists[0] for each in lists), f"{self._room}: in another order: {lists}"
        await until(lambda: self.announced() >= expected, lambda: self._complaint(expected))
        self._present, self._announced = users, expected
        self.check()
        self.figures[cause] += 1
        slowest = f"slowest {cause} (ms)"
        self.figures[slowest] = max(self.figures[slowest], round(1000 * (time.monotonic() - began)))

    async def _agreed(self, worker: Worker, users: Collection[str]) -> list[str]:
        """Wait until a worker lists some users, and return them in its order."""
        deadline = time.monotonic() + DEADLINE
        while not _is_of(found := await asyncio.to_thread(self.members, worker), users):
            assert time.monotonic() < deadline, f"{self._room}: {found} in {worker}, and not {users}"
            await asyncio.sleep(PAUSE)
        return found[0]

    async def watch(self, worker: Worker) -> None:
        """Check that a worker lists the same users all the time, until it is cancelled."""
        users = self._present
        while True:
            found = await asyncio.to_thread(self.members, worker)
            assert isinstance(found, str) or _is_of(found, users), f"{self._room}: {found} in {worker}, and not {users}"
            self.figures["looks"] += not isinstance(found, str)
            await asyncio.sleep(PAUSE)

    def check(self) -> None:
        """Check that nothing was announced that has not happened, and nothing twice."""
        announced = self.announced()
        assert announced == self._announced, self._complaint(self._announced)

    def _complaint(self, expected: Counter[tuple[str, str]]) -> str:
        announced = self.announced()
        return f"{self._room}: not announced: {expected - announced}; announced in vain: {announced - expected}"


def _is_of(found: tuple[list[str], int] | str, users: Collection[str]) -> TypeGuard[tuple[list[str], int]]:
    """Return whether a worker lists and counts some users."""
    return not isinstance(found, str) and sorted(found[0]) == sorted(users) and found[1] == len(users)
