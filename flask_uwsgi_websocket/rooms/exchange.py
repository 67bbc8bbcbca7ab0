"""The rooms of one app in one process: the parts that make them, and the calls of rooms.

Every process has an exchange of its own, made when it is needed, so a fork leaves nothing behind that two processes
share.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

from flask import Flask, has_request_context, request

from .._uwsgi import uwsgi
from ..connection.base import SERVED_KEY, BaseClient
from ..exceptions import BrokerUnavailable
from ..loops.base import Loop
from ..loops.tasks import AsyncioLoop
from ..state import state_of
from ..worker.shutdown import FLUSH_TIME, unfinished
from ..worker.stats import Metrics
from .arrivals import MISSED_CLOSE, Arrivals, open_message, payload_for_members
from .brokers.base import Attendance, Broker, Delivered, History, Position, Presence, Retention
from .brokers.choice import make_broker
from .envelope import Message, encode, encode_command
from .feed import Feed
from .local_room import LocalRoom, LocalRooms, Room
from .outbox import Direct, Outbox, Receipt
from .presence import Keeper
from .questions import Questions
from .replay import Replay, follows
from .telling import Teller

#: The key of an app's exchanges in ``app.extensions``: a dictionary by the ids of processes.
EXCHANGES_KEY = "uwsgi_websocket_exchanges"

#: The most seconds that a member waits until the broker has confirmed the subscription.
SUBSCRIBE_TIME = 1.0

#: Seconds between two looks whether it has, at first.
FIRST_LOOK = 0.0005

#: What a room without history keeps.
NO_HISTORY = Retention(0, 0, 0)

#: The names of the counters.
COUNTERS = (
    "rooms",
    "members",
    "published",
    "delivered",
    "slow",
    "gaps",
    "filled",
    "resumed",
    "snapshots",
    "reaped",
    "waiting",
    "lost",
    "broker_losses",
)


class Exchange(Metrics):
    """The rooms of one app in this process. Threads, greenlets and tasks may call it unless it says otherwise."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._broker: Broker | None = None
        self._making = threading.Lock()  # held while a broker is made
        self._teller = Teller(app)
        self._rooms = LocalRooms(self._on_leave)
        self._outbox = Outbox(self.broker, lambda: self._feed.error is None)
        self._direct = Direct(self.broker)
        self._questions = Questions(self._rooms, self._outbox)
        self._feed = Feed(self.broker, Arrivals(app, self._rooms, self._questions, self._teller, self.read_history))
        self._keeper = Keeper(self.broker, self._teller.tell_presence)
        #: The id of the process.
        self.pid = os.getpid()
        super().__init__()
        _exchanges.add(self)

    def broker(self) -> Broker:
        """Return the broker of this process, made at the first call.

        :raises BrokerUnavailable: when the setting is "auto" and no process serves the app.
        """
        if self._broker is None:
            with self._making:
                if self._broker is None:
                    setting = state_of(self._app).settings(self._app.config).broker
                    self._broker = make_broker(setting, self._app, is_serving=self.is_serving())
        return self._broker

    def is_serving(self) -> bool:
        """Return whether connections or requests wait while the caller waits."""
        if self._rooms or (uwsgi is not None and uwsgi.worker_id() > 0):
            return True
        return has_request_context() and SERVED_KEY in request.environ

    # Members

    async def join(self, room: Room, client: BaseClient, replay: Replay | None = None) -> None:
        """Make a connection a member of a room. What comes before its handshake waits for that.

        :param replay: what comes waits in this, until :meth:`resume`.
        :raises ConnectionClosed: when the connection has ended.
        :raises BrokerUnavailable: with a replay, when the broker does not deliver the room's messages.
        """
        local = self._rooms.begin_join(room)
        try:
            if not local.is_subscribed:
                self._feed.add(room.key, client.loop)
            await self._until_subscribed(local, client)
            if replay is not None and not local.is_subscribed:
                raise BrokerUnavailable(self._feed.error or f"the broker has not answered within {SUBSCRIBE_TIME:g} s")
            self._rooms.add(local, client, replay)
        finally:
            self._rooms.end_join(local)
        self._check_open(local, client)

    @staticmethod
    def _check_open(local: LocalRoom, client: BaseClient) -> None:
        """Discard a connection that has ended: its handler has, or has not, seen the membership.

        :raises ConnectionClosed: when it has ended.
        """
        if client.has_ended:
            local.discard(client)
            raise client.end_error()

    async def _until_subscribed(self, local: LocalRoom, client: BaseClient) -> None:
        """Wait until the broker delivers the messages of a room, or until it has not confirmed that in time."""
        deadline = time.monotonic() + SUBSCRIBE_TIME
        pause = FIRST_LOOK
        while not local.is_subscribed and self._feed.error is None and time.monotonic() < deadline:
            await client.loop.sleep(pause)
            pause *= 2

    async def read_history(self, room: Room, after: Position | None, loop: Loop) -> History:
        """Return the position of a room, and the kept messages after another position.

        :raises BrokerUnavailable: when the broker cannot be reached.
        """
        retention = room.retention or NO_HISTORY
        return await loop.call_blocking(lambda: self.broker().history(room.key, after, retention))

    async def resume(
        self, room: Room, client: BaseClient, replay: Replay, missed: Sequence[Delivered] | None, last: Position
    ) -> None:
        """Send a connection what it has missed, and what was published meanwhile. Then it is an ordinary member.

        :param missed: the messages before those that wait in *replay*; None if the client has the application's state.
        :param last: the position up to which the connection has all messages then.
        :raises ConnectionClosed: when the connection has ended.
        """
        self._rooms.count("snapshots" if missed is None else "resumed")
        for event in missed or ():
            _, _, message = open_message(self._app, event)
            if isinstance(message, Message):
                await client.send_message(payload_for_members(message, event))
        while True:
            with self._rooms.lock:
                held = replay.take()
                local = self._rooms.get(room.key)
                if not held or local is None:
                    if local is not None:
                        local.end_replay(client, last)
                    return
            for event, shared in held:
                is_next = follows(event, last)
                if is_next is None:
                    client.begin_close(*MISSED_CLOSE)
                    raise client.end_error()
                if is_next:
                    if shared is not None:
                        await client.send_message(shared.message)
                    last = event.position

    def leave(self, key: str, client: BaseClient) -> None:
        """Remove a connection from a room. Does nothing when it is no member."""
        self._rooms.leave(key, client)

    def _on_leave(self, local: LocalRoom, client: BaseClient) -> None:
        if local.room.has_presence:
            self._keeper.leave(local.room.key, client.id)

    def members(self, key: str) -> tuple[BaseClient, ...]:
        """Return the members of a room in this process."""
        return self._rooms.members(key)

    async def ask(self, key: str | None, loop: Loop) -> list[dict[str, Any]]:
        """Ask all processes for their members, or for their rooms; see :meth:`.Questions.ask`."""
        return await self._questions.ask(key, loop, self._feed, self._put_question)

    def _put_question(self, key: str, data: bytes, receipt: Receipt) -> None:
        self._put(key, data, receipt=receipt)

    # Presence

    def enter(self, room: Room, client: BaseClient, member: str, data: bytes, grace: float) -> None:
        """Let all processes know that a connection of this one is in a room, until it leaves.

        :param member: whose connection it is.
        :param data: what :meth:`present` returns of the member.
        :param grace: the seconds for which the member stays after its last connection.
        :raises ConnectionClosed: when the connection has ended.
        """
        if isinstance(client.loop, AsyncioLoop):
            self._teller.loop = client.loop
        self._keeper.enter(Attendance(room.key, member, client.id, data, grace))
        with self._rooms.lock:
            local = self._rooms.get(room.key)
            is_here = local is not None and local in client.memberships
        if not is_here:  # it has ended, or has left, and was or was not removed
            self._keeper.leave(room.key, client.id)
        if local is not None:
            self._check_open(local, client)

    async def present(self, key: str, loop: Loop) -> Sequence[Presence]:
        """Return the members of a room with presence, of all processes.

        :param loop: the loop of the caller.
        :raises BrokerUnavailable: when the broker cannot be reached.
        """
        self._watch(loop)
        return await self._keeper.members(key, loop)

    async def count_present(self, key: str, loop: Loop) -> int:
        """Return how many members a room with presence has; see :meth:`present`."""
        self._watch(loop)
        return await self._keeper.count(key, loop)

    def _watch(self, loop: Loop) -> None:
        """Look for members that have gone, for some time. A process that serves nothing does not, such as a command.

        :param loop: the loop of the caller, which may be the only one in a process without connections.
        """
        if isinstance(loop, AsyncioLoop):
            self._teller.loop = loop
        if self.is_serving():
            self._keeper.wake()

    # What is sent

    def publish(self, room: Room, payload: str | bytes, excluded: Collection[str], *, is_stamped: bool = False) -> None:
        """Send a message to all members of a room, in all processes.

        :param excluded: the ids of connections that do not get it.
        :param is_stamped: whether the payload is what :func:`.envelope.stamped` returns.
        :raises BrokerUnavailable: outside of a worker, when the broker does not have the message.
        """
        data = encode(payload, frozenset(excluded) if excluded else (), is_stamped=is_stamped)
        self._put(room.key, data, room.retention)

    def close(self, room: Room, code: int, reason: str, user: str | None) -> None:
        """Close the members of a room, in all processes.

        :param user: close only the connections of this user.
        :raises BrokerUnavailable: outside of a worker, when the broker cannot be reached.
        """
        self._put(room.key, encode_command("close", code=code, reason=reason, user=user), room.retention)

    def _put(
        self, key: str, data: bytes, retention: Retention | None = None, *, receipt: Receipt | None = None
    ) -> None:
        """Publish at once where that does not wait or nobody waits for the caller, otherwise soon."""
        broker = self._broker or self.broker()
        sender = self._outbox if broker.waits and (self._rooms or self.is_serving()) else self._direct
        sender.put(key, data, retention, receipt=receipt)

    def has_unsent(self) -> bool:
        """Return whether the broker does not have all messages of this process yet, or not all who have left."""
        return self.pid == os.getpid() and (len(self._outbox) > 0 or self._keeper.is_behind())

    def hurry(self) -> None:
        """Let no message wait for an event loop, which may have ended."""
        self._outbox.hurry()

    # Counters

    def stats(self) -> Mapping[str, int]:
        """Return the counters of this process; see :meth:`.WebSocket.stats`."""
        with self._lock:
            return self._flat()

    def _flat(self) -> Mapping[str, int]:
        with self._rooms.lock:
            counts, occupied = dict(self._rooms.counts), self._rooms.occupied()
            members = sum(len(local.members) for local in occupied)
        return {
            **counts,
            "published": self._outbox.accepted + self._direct.accepted,
            "rooms": len(occupied),
            "members": members,
            "reaped": self._keeper.reaped,
            "lost": self._outbox.lost,
            "waiting": len(self._outbox),
            "broker_losses": self._feed.losses,
        }

    def add_to_uwsgi(self) -> None:
        """Add the changes to uWSGI's metrics. Does nothing in a child, which has the exchange of its parent, too."""
        if self.pid == os.getpid():
            super().add_to_uwsgi()

    @property
    def broker_error(self) -> str | None:
        """Why the broker cannot be reached, or None."""
        return self._feed.error or self._outbox.error or self._keeper.error


_exchanges: WeakSet[Exchange] = WeakSet()


def exchange_of(app: Flask) -> Exchange:
    """Return the exchange of an app in this process. That of a parent process is kept, so that nothing closes it."""
    pid = os.getpid()
    try:
        exchange: Exchange = app.extensions[EXCHANGES_KEY][pid]
    except KeyError:
        # setdefault(), because two threads may get here at once: both use the first one that is stored.
        exchange = app.extensions.setdefault(EXCHANGES_KEY, {}).setdefault(pid, Exchange(app))
    return exchange


def rooms_stats(apps: Iterable[Flask]) -> dict[str, Any]:
    """Return the counters of the rooms of some apps in this process; see :meth:`.WebSocket.stats`."""
    exchanges = list(map(exchange_of, apps))
    sums: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
    for exchange in exchanges:
        sums.update(exchange.stats())
    errors = [exchange.broker_error for exchange in exchanges if exchange.broker_error is not None]
    return {**sums, "broker_errors": errors}


def _has_unsent() -> bool:
    return any(exchange.has_unsent() for exchange in list(_exchanges))


def _flush() -> None:
    """Give the brokers some time to take the messages of a process that ends."""
    deadline = time.monotonic() + FLUSH_TIME
    for exchange in list(_exchanges):
        if exchange.has_unsent():
            exchange.hurry()
    while _has_unsent() and time.monotonic() < deadline:
        time.sleep(0.01)


unfinished.append(_has_unsent)
atexit.register(_flush)
