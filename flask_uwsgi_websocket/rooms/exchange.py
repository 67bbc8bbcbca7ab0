"""The rooms of one app in one process: who is in them, what arrives for them, and what is sent to them.

Every process has an exchange of its own, made when it is needed, so a fork leaves nothing behind that two processes
share. The exchange holds its lock only for changes of its dictionaries; nobody waits while holding it.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Protocol
from uuid import uuid4
from weakref import WeakSet

from flask import Flask, has_request_context, request

from .._uwsgi import uwsgi
from ..connection.base import SERVED_KEY, SLOW_CLOSE, BaseClient, send_to_all
from ..exceptions import BrokerUnavailable, ConnectionClosed
from ..loops.base import Loop
from ..loops.tasks import AsyncioLoop
from ..protocol.protocol import SharedMessage
from ..signals import websocket_gap
from ..state import state_of
from ..worker.shutdown import FLUSH_TIME, unfinished
from ..worker.stats import Metrics
from .brokers.base import Broker, Compared, Delivered, Event, Position, Subscribed
from .brokers.choice import make_broker
from .envelope import BadEnvelope, Command, Message, decode, encode, encode_command, unseal
from .feed import ALL_PROCESSES, SLICE, Feed
from .outbox import Direct, Outbox, Receipt

#: The key of an app's exchanges in ``app.extensions``: a dictionary by the ids of processes.
EXCHANGES_KEY = "uwsgi_websocket_exchanges"

#: The most seconds that a member waits until the broker has confirmed the subscription.
SUBSCRIBE_TIME = 1.0

#: Seconds between two looks whether it has, at first.
FIRST_LOOK = 0.0005

#: Seconds for which a room without members stays subscribed: members often come back.
LINGER = 1.0

#: Members between two looks at the clock.
STEP = 32

#: The most seconds that a question waits for the answers of all processes.
ANSWER_TIME = 1.0

#: The position of a room of which the broker knows no message.
NOTHING = Position("", 0)

#: The most publishers whose last numbers are known.
MOST_PUBLISHERS = 10_000

#: The names of the counters.
COUNTERS = ("rooms", "members", "published", "delivered", "slow", "gaps", "waiting", "lost", "broker_losses")

#: The most members, or rooms, that one process lists in an answer.
MOST_LISTED = 10_000

logger = logging.getLogger("flask_uwsgi_websocket")


class Room(Protocol):
    """The part of a room that its exchange knows."""

    @property
    def key(self) -> str:
        """What brokers call the room."""

    @property
    def name(self) -> str:
        """The name of the room."""

    @property
    def slow(self) -> str:
        """What becomes of a member that does not read fast enough: "close" or "skip"."""


class LocalRoom:
    """The members of a room in this process. The exchange's lock guards the members."""

    __slots__ = ("_exchange", "is_subscribed", "is_unsure", "joining", "members", "position", "room", "slow")

    def __init__(self, room: Room, exchange: Exchange) -> None:
        self.room = room
        self._exchange = exchange
        self.slow = room.slow
        # A dictionary, because the members get messages in the order in which they joined.
        self.members: dict[BaseClient, None] = {}
        #: How many connections are about to become members.
        self.joining = 0
        #: Whether the broker has confirmed the subscription.
        self.is_subscribed = False
        #: Whether there were members without a subscription, and the broker has not compared the positions since.
        self.is_unsure = False
        #: The position of the last message, NOTHING if there was none, None before the broker has reported it. Only the
        #: feed uses it.
        self.position: Position | None = None

    @property
    def last(self) -> Position | None:
        """The position of the last message that members have; None if they miss nothing, whatever comes first."""
        return NOTHING if self.position is None and self.is_unsure else self.position

    def discard(self, client: BaseClient) -> None:
        """Remove a member. Does nothing when it is none."""
        self._exchange.leave(self.room.key, client)


class Question:
    """A question to all processes, and their answers."""

    __slots__ = ("answers", "is_subscribed")

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        #: Whether the answers can arrive.
        self.is_subscribed = False


class Exchange(Metrics):
    """The rooms of one app in this process. Threads, greenlets and tasks may call it unless it says otherwise."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        # The lock guards the next four.
        self._rooms: dict[str, LocalRoom] = {}
        self._empty_since: dict[str, float] = {}
        self._questions: dict[str, Question] = {}
        self._last_numbers: dict[bytes, int] = {}  # of each publisher; only the feed uses it
        self._counts: Counter[str] = Counter()
        self._broker: Broker | None = None
        self._making = threading.Lock()  # held while a broker is made
        self._feed = Feed(self.broker, self)
        self._outbox = Outbox(self.broker, lambda: self._feed.error is None)
        self._direct = Direct(self.broker)
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
        is_in_request = has_request_context() and SERVED_KEY in request.environ
        return is_in_request or bool(self._rooms) or (uwsgi is not None and uwsgi.worker_id() > 0)

    # Members

    async def join(self, room: Room, client: BaseClient) -> None:
        """Make a connection a member of a room. What comes before its handshake waits for that.

        :raises ConnectionClosed: when the connection has ended.
        """
        local = self._begin_join(room)
        try:
            if not local.is_subscribed:
                self._feed.add(room.key, client.loop)
            await self._until_subscribed(local, client)
            with self._lock:
                if client not in local.members:
                    client.memberships += (local,)
                    local.members[client] = None
                    local.is_unsure |= not local.is_subscribed
        finally:
            with self._lock:
                local.joining -= 1
                self._note_if_empty(room.key, local)
        if client.has_ended:  # its handler has ended, and has or has not seen the membership
            local.discard(client)
            raise client.end_error()

    def _begin_join(self, room: Room) -> LocalRoom:
        with self._lock:
            local = self._rooms.get(room.key)
            if local is None:
                local = self._rooms[room.key] = LocalRoom(room, self)
            local.slow = room.slow
            local.joining += 1
            self._empty_since.pop(room.key, None)
            return local

    async def _until_subscribed(self, local: LocalRoom, client: BaseClient) -> None:
        """Wait until the broker delivers the messages of a room, or until it has not confirmed that in time."""
        deadline = time.monotonic() + SUBSCRIBE_TIME
        pause = FIRST_LOOK
        while not local.is_subscribed and self._feed.error is None and time.monotonic() < deadline:
            await client.loop.sleep(pause)
            pause *= 2

    def leave(self, key: str, client: BaseClient) -> None:
        """Remove a connection from a room. Does nothing when it is no member."""
        with self._lock:
            local = self._rooms.get(key)
            if local is not None and client in local.members:
                del local.members[client]
                client.memberships = tuple(each for each in client.memberships if each is not local)
                self._note_if_empty(key, local)

    def _note_if_empty(self, key: str, local: LocalRoom) -> None:
        """Note since when a room is empty. Called with the lock."""
        if not local.members and not local.joining:
            self._empty_since[key] = time.monotonic()

    def members(self, key: str) -> tuple[BaseClient, ...]:
        """Return the members of a room in this process."""
        with self._lock:
            local = self._rooms.get(key)
            return () if local is None else tuple(local.members)

    # What is sent

    def publish(self, key: str, payload: str | bytes, excluded: Collection[str]) -> None:
        """Send a message to all members of a room, in all processes.

        :param excluded: the ids of connections that do not get it.
        :raises BrokerUnavailable: outside of a worker, when the broker does not have the message.
        """
        self._put(key, encode(payload, frozenset(excluded) if excluded else ()))

    def close(self, key: str, code: int, reason: str, user: str | None) -> None:
        """Close the members of a room, in all processes.

        :param user: close only the connections of this user.
        :raises BrokerUnavailable: outside of a worker, when the broker cannot be reached.
        """
        self._put(key, encode_command("close", code=code, reason=reason, user=user))

    async def ask(self, key: str | None, loop: Loop) -> list[dict[str, Any]]:
        """Ask all processes that have rooms, and return their answers.

        Processes that do not answer within a second are left out, such as one that is stopped.

        :param key: the room whose members they list, see :meth:`_answer_members`; or None: they list their rooms, see
            :meth:`_answer_rooms`.
        :param loop: the loop of the caller.
        :raises BrokerUnavailable: when the broker cannot be reached.
        """
        name, question = uuid4().hex, Question()
        self._questions[name] = question
        deadline = time.monotonic() + ANSWER_TIME
        try:
            self._feed.add(name, loop)
            while not question.is_subscribed:
                await self._pause(loop, deadline, self._feed.error)
            command = encode_command("ask", question=name, room=key)
            receipt = await loop.call_blocking(lambda: self._put(ALL_PROCESSES, command))
            while receipt.reached is None:
                await self._pause(loop, deadline, self._outbox.error)
            while len(question.answers) < receipt.reached and time.monotonic() < deadline:
                await loop.sleep(FIRST_LOOK)
            return list(question.answers)
        finally:
            del self._questions[name]
            self._feed.remove(name)

    @staticmethod
    async def _pause(loop: Loop, deadline: float, error: str | None) -> None:
        """Wait a moment for the broker.

        :raises BrokerUnavailable: when it is too late.
        """
        if time.monotonic() > deadline:
            raise BrokerUnavailable(error or f"the broker has not answered within {ANSWER_TIME:g} s")
        await loop.sleep(FIRST_LOOK)

    def _put(self, key: str, data: bytes) -> Receipt:
        """Publish at once where that does not wait or nobody waits for the caller, otherwise soon."""
        self._count("published")
        if self.broker().waits and self.is_serving():
            return self._outbox.put(key, data)
        return self._direct.put(key, data)

    def has_unsent(self) -> bool:
        """Return whether the broker does not have all messages of this process yet."""
        return self.pid == os.getpid() and len(self._outbox) > 0

    # What arrives: called by the feed

    async def read(self, event: Event, loop: Loop) -> None:
        """Handle an event of the broker, and let others run meanwhile."""
        if isinstance(event, Delivered):
            await self._deliver(event, loop)
        elif isinstance(event, Subscribed):
            for key in event.rooms:
                if (subscribed := self._rooms.get(key) or self._questions.get(key)) is not None:
                    subscribed.is_subscribed = True
        elif isinstance(event, Compared):
            for key, position in event.positions.items():
                if (local := self._rooms.get(key)) is not None:
                    self._compare(local, position)

    def on_loss(self) -> None:
        """Note that no messages arrive until the rooms are subscribed again."""
        with self._lock:
            for local in self._rooms.values():
                local.is_subscribed = False
                local.is_unsure |= bool(local.members)

    def sweep(self) -> None:
        """Give up the rooms that have been without members for a while."""
        if not self._empty_since:
            return
        latest = time.monotonic() - LINGER
        with self._lock:
            for key in [key for key, since in self._empty_since.items() if since < latest]:
                del self._empty_since[key], self._rooms[key]
                self._feed.remove(key)

    async def _deliver(self, event: Delivered, loop: Loop) -> None:
        local = self._rooms.get(event.room)
        try:
            publisher, number, data = unseal(event.data)
            message = decode(data)
        except BadEnvelope as error:
            if state_of(self._app).warned.is_first_time("envelope"):
                logger.error("The broker has delivered something to the room %r: %s", event.room, error)
            return
        if (local is not None and not self._advance(local, event)) or not self._is_new(publisher, number):
            return
        if isinstance(message, Command):
            self._obey(message, event.room, local)
        elif local is not None:
            await self._send(local, message, loop)

    def _advance(self, local: LocalRoom, event: Delivered) -> bool:
        """Note the position of a message; return False when the message was delivered before."""
        last, local.position = local.last, event.position
        if last is None:
            return True
        if last.epoch != event.position.epoch or event.previous == 0:
            if event.previous or (local.is_unsure and last != NOTHING):
                self._tell_gap(local, None)
        elif event.position.offset <= last.offset:
            local.position = last
            return False
        elif event.previous != last.offset:
            self._tell_gap(local, event.previous - last.offset)
        return True

    def _is_new(self, publisher: bytes, number: int) -> bool:
        """Return whether a message is not one that a publisher repeated, because the broker did not confirm it."""
        if number <= self._last_numbers.get(publisher, 0):
            return False
        self._last_numbers[publisher] = number
        if len(self._last_numbers) > MOST_PUBLISHERS:
            for oldest in list(self._last_numbers)[: MOST_PUBLISHERS // 2]:
                del self._last_numbers[oldest]
        return True

    def _compare(self, local: LocalRoom, position: Position | None) -> None:
        """Compare the last message that was delivered with the last one of the room."""
        last, was_unsure = local.last, local.is_unsure
        position = position or NOTHING
        local.is_unsure = False
        if last is None or last == position:
            local.position = position
        elif last.epoch != position.epoch:
            # The broker has lost its memory. If the subscription was not lost, its messages have all come.
            local.position = position
            if was_unsure or last == NOTHING:
                self._tell_gap(local, None)
        elif position.offset > last.offset:
            local.position = position
            self._tell_gap(local, position.offset - last.offset)

    def _tell_gap(self, local: LocalRoom, missed: int | None) -> None:
        """Send ``websocket_gap``."""
        self._count("gaps")
        logger.warning("The room %r has missed %s messages.", local.room.name, "some" if missed is None else missed)
        for receiver in websocket_gap.receivers_for(self._app):
            try:
                with self._app.app_context():
                    value = receiver(self._app, room=local.room, missed=missed)
                if inspect.isawaitable(value):
                    self._await(local, value)
            except Exception:
                self._app.logger.exception("%r failed on the signal websocket-gap", receiver)

    def _await(self, local: LocalRoom, value: Awaitable[Any]) -> None:
        """Run what a coroutine function returned in the event loop of the members."""

        async def run() -> None:
            try:
                await value
            except Exception:
                self._app.logger.exception("a coroutine failed on the signal websocket-gap")

        for client in self.members(local.room.key):
            if isinstance(client.loop, AsyncioLoop):
                client.loop.submit(run())
                return

    async def _send(self, local: LocalRoom, message: Message, loop: Loop) -> None:
        """Send a message to the members, and let others run meanwhile."""
        shared = SharedMessage(message.payload)
        with self._lock:
            members = list(local.members)
        if message.excluded:
            members = [client for client in members if client.id not in message.excluded]
        end = time.monotonic() + SLICE
        for start in range(0, len(members), STEP):
            for client in send_to_all(members[start : start + STEP], shared, partial(_deliver_to_one, shared)):
                self._on_slow(local, client)
            if time.monotonic() > end:
                await loop.sleep(0)
                end = time.monotonic() + SLICE
        self._count("delivered", len(members))

    def _on_slow(self, local: LocalRoom, client: BaseClient) -> None:
        """Close a member that does not read fast enough, or leave it out."""
        self._count("slow")
        if local.slow == "close":
            local.discard(client)
            client.begin_close(*SLOW_CLOSE)

    def _obey(self, command: Command, key: str, local: LocalRoom | None) -> None:
        """Do what another process asks for."""
        values = command.values
        if command.name == "answer":
            self._take_answer(key, values)
        elif command.name == "ask":
            answer = self._answer_rooms() if values["room"] is None else self._answer_members(values["room"])
            if not self._take_answer(values["question"], answer):  # it is the question of another process
                self._outbox.put(values["question"], encode_command("answer", **answer))
        elif command.name == "close":
            for client in self.members(key):
                if values["user"] is None or client.user_id == values["user"]:
                    client.begin_close(values["code"], values["reason"])

    def _take_answer(self, name: str, answer: dict[str, Any]) -> bool:
        """Keep an answer to a question of this process; return False when this process has no such question."""
        question = self._questions.get(name)
        if question is not None:
            question.answers.append(answer)
        return question is not None

    def _answer_members(self, key: str) -> dict[str, Any]:
        """Return the members of a room in this process, as JSON has them."""
        members = self.members(key)
        listed = [
            {"id": client.id, "user": client.user_id, "address": client.environ.get("REMOTE_ADDR")}
            for client in members[:MOST_LISTED]
        ]
        return {"pid": self.pid, "count": len(members), "members": listed}

    def _answer_rooms(self) -> dict[str, Any]:
        """Return the rooms that have members in this process, as JSON has them."""
        with self._lock:
            rooms = [(local.room, len(local.members)) for local in self._rooms.values() if local.members]
        listed = [{"key": room.key, "name": room.name, "count": count} for room, count in rooms[:MOST_LISTED]]
        return {"pid": self.pid, "count": len(rooms), "rooms": listed}

    # Counters

    def _count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self._counts[name] += number

    def stats(self) -> Mapping[str, int]:
        """Return the counters of this process; see :meth:`.WebSocket.stats`."""
        with self._lock:
            return self._flat()

    def _flat(self) -> Mapping[str, int]:
        rooms = [local for local in self._rooms.values() if local.members]
        return {
            **self._counts,
            "rooms": len(rooms),
            "members": sum(len(local.members) for local in rooms),
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
        return self._feed.error or self._outbox.error


def _deliver_to_one(shared: SharedMessage, client: BaseClient) -> bool:
    """Send a message of a room to a connection; return whether there was room for it."""
    try:
        return client.deliver(shared)
    except ConnectionClosed:
        raise
    except Exception:  # of one connection, which must not keep the message from the others
        logger.exception("sending to WebSocket %s failed", client.id)
        return True


_exchanges: WeakSet[Exchange] = WeakSet()


def exchange_of(app: Flask) -> Exchange:
    """Return the exchange of an app in this process. That of a parent process is kept, so that nothing closes it."""
    exchanges: dict[int, Exchange] = app.extensions.setdefault(EXCHANGES_KEY, {})
    pid = os.getpid()
    exchange = exchanges.get(pid)
    if exchange is None:
        # setdefault(), because two threads may get here at once: both use the first one that is stored.
        exchange = exchanges.setdefault(pid, Exchange(app))
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
    while _has_unsent() and time.monotonic() < deadline:
        time.sleep(0.01)


unfinished.append(_has_unsent)
atexit.register(_flush)
