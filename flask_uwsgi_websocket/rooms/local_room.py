"""The rooms in one process: who is in them, how far their messages have come, and whether some are missing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from ..connection.base import BaseClient
from ..loops.base import allocate_lock
from ..protocol.protocol import SharedMessage
from .brokers.base import Delivered, Position, Retention
from .replay import NOTHING, Replay, follows, is_after


class Room(Protocol):
    """The part of a room that its process knows."""

    @property
    def key(self) -> str:
        """What brokers call the room."""

    @property
    def name(self) -> str:
        """The name of the room."""

    @property
    def slow(self) -> str:
        """What becomes of a member that does not read fast enough: "close" or "skip"."""

    @property
    def retention(self) -> Retention | None:
        """The history that the broker keeps, or None."""

    @property
    def has_presence(self) -> bool:
        """Whether the broker knows who is in the room."""


class Gap(NamedTuple):
    """Messages that have not arrived.

    :param after: the last message before them.
    :param missed: how many there are, or None if that is not known.
    """

    after: Position
    missed: int | None


class LocalRoom:
    """A room in this process. The lock of :class:`LocalRooms` guards the members, the replays and who is ahead."""

    __slots__ = (
        "_discard",
        "ahead",
        "is_subscribed",
        "is_unsure",
        "joining",
        "members",
        "position",
        "replays",
        "room",
    )

    def __init__(self, room: Room, discard: Callable[[str, BaseClient], None]) -> None:
        self.room = room
        self._discard = discard
        # A dictionary, because the members get messages in the order in which they joined.
        self.members: dict[BaseClient, None] = {}
        #: What waits for the connections that are getting what they have missed, and are not in ``members`` yet.
        self.replays: dict[BaseClient, Replay] = {}
        #: The members that have messages which have not yet arrived in this process, and up to which position.
        self.ahead: dict[BaseClient, Position] = {}
        #: How many connections are about to become members.
        self.joining = 0
        #: Whether the broker has confirmed the subscription.
        self.is_subscribed = False
        #: Whether there were members without a subscription, and the broker has not compared the positions since.
        self.is_unsure = False
        #: The position of the last message, NOTHING if there was none, None before the broker has reported it. Only the
        #: feed uses it.
        self.position: Position | None = None

    # Members

    def everybody(self) -> tuple[BaseClient, ...]:
        """Return all connections that are in the room."""
        return (*self.members, *self.replays)

    def add(self, client: BaseClient, replay: Replay | None) -> None:
        """Add a connection, or make a member wait for what it has missed. Does nothing when it is a member already."""
        if self not in client.memberships:
            client.memberships += (self,)
        if replay is not None:
            self.members.pop(client, None)
            self.replays[client] = replay
        elif client not in self.replays:
            self.members[client] = None

    def remove(self, client: BaseClient) -> bool:
        """Remove a connection; return False when it is not in the room."""
        if self not in client.memberships:
            return False
        client.memberships = tuple(each for each in client.memberships if each is not self)
        self.members.pop(client, None)
        self.replays.pop(client, None)
        self.ahead.pop(client, None)
        return True

    def end_replay(self, client: BaseClient, position: Position) -> None:
        """Make a connection that has all messages up to a position an ordinary member."""
        if self.replays.pop(client, None) is not None:
            self.members[client] = None
            self.ahead[client] = position

    def is_empty(self) -> bool:
        """Return whether no connection is in the room, or about to join it."""
        return not (self.members or self.replays or self.joining)

    def discard(self, client: BaseClient) -> None:
        """Remove a connection. Does nothing when it is not in the room."""
        self._discard(self.room.key, client)

    # Who gets a message

    def receivers(self, event: Delivered) -> list[BaseClient]:
        """Return the members that get a message, and note that they have it."""
        if not self.ahead:
            return list(self.members)
        for client, last in list(self.ahead.items()):
            if follows(event, last):
                del self.ahead[client]
        return [client for client in self.members if client not in self.ahead]

    def lost(self, event: Delivered) -> list[BaseClient]:
        """Return the members of which nobody knows whether they miss something before a message."""
        return [client for client, last in self.ahead.items() if follows(event, last) is None]

    def hold(self, event: Delivered, message: SharedMessage, excluded: Iterable[str]) -> list[BaseClient]:
        """Keep a message for the replays; return the connections for which too much is kept."""
        return [
            client
            for client, replay in self.replays.items()
            if not replay.hold(event, None if client.id in excluded else message)
        ]

    # Positions: only the feed calls these

    @property
    def last(self) -> Position | None:
        """The position of the last message that members have; None if they miss nothing, whatever comes first."""
        return NOTHING if self.position is None and self.is_unsure else self.position

    def gap_before(self, event: Delivered) -> Gap | None:
        """Return what is missing between the last message and this one."""
        last = self.last
        if last is None:
            return None
        if last.epoch != event.position.epoch or event.previous == 0:
            is_missing = event.previous or (self.is_unsure and last != NOTHING)
            return Gap(last, None) if is_missing else None
        return Gap(last, event.previous - last.offset) if event.previous > last.offset else None

    def advance_by_one(self, event: Delivered) -> bool:
        """Note the position of the message that follows the last one; return False when it does not follow it."""
        last = self.position
        if last is None or event.previous != last.offset or not last.offset or event.position.epoch != last.epoch:
            return False
        self.position = event.position
        return True

    def advance(self, event: Delivered) -> bool:
        """Note the position of a message; return False when it was delivered before."""
        last = self.last
        is_counted = last is not None and event.previous != 0
        if is_counted and not is_after(event.position, last):  # type: ignore[arg-type]
            return False
        self.position = event.position
        return True

    def gap_until(self, position: Position) -> Gap | None:
        """Return what is missing after the last message, when the room's last message has this position."""
        last = self.last
        if last is None or last == position:
            return None
        if last.epoch != position.epoch:
            # The broker has lost its memory. If the subscription was not lost, its messages have all come.
            return Gap(last, None) if self.is_unsure or last == NOTHING else None
        return Gap(last, position.offset - last.offset) if position.offset > last.offset else None

    def compare(self, position: Position) -> None:
        """Note that all messages up to a position have arrived or will never arrive."""
        last = self.last
        if last is None or last == position or is_after(position, last):
            self.position = position
        self.is_unsure = False


class LocalRooms:
    """The rooms that have, or just had, connections of this process. Any thread, greenlet or task may use them.

    :param on_leave: called when a connection has left a room, without the lock.
    """

    def __init__(self, on_leave: Callable[[LocalRoom, BaseClient], None]) -> None:
        self._on_leave = on_leave
        #: Guards the dictionaries of this object and of its rooms, and the counters. Nobody waits while holding it.
        self.lock = allocate_lock()
        self._rooms: dict[str, LocalRoom] = {}
        self._empty_since: dict[str, float] = {}
        #: What was counted, by name.
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return the number of rooms."""
        return len(self._rooms)

    def get(self, key: str) -> LocalRoom | None:
        """Return a room, or None if it has no connections here."""
        return self._rooms.get(key)

    def count(self, name: str) -> None:
        """Add one to a counter."""
        with self.lock:
            self.counts[name] += 1

    def occupied(self) -> list[LocalRoom]:
        """Return the rooms that have members. Called with the lock."""
        return [local for local in self._rooms.values() if local.members]

    def members(self, key: str) -> tuple[BaseClient, ...]:
        """Return all connections that are in a room."""
        with self.lock:
            local = self._rooms.get(key)
            return () if local is None else local.everybody()

    def begin_join(self, room: Room) -> LocalRoom:
        """Return a room, which stays until :meth:`end_join`."""
        with self.lock:
            local = self._rooms.get(room.key)
            if local is None:
                local = self._rooms[room.key] = LocalRoom(room, self.leave)
            local.joining += 1
            self._empty_since.pop(room.key, None)
            return local

    def end_join(self, local: LocalRoom) -> None:
        """Undo :meth:`begin_join`."""
        with self.lock:
            local.joining -= 1
            self._note_if_empty(local)

    def add(self, local: LocalRoom, client: BaseClient, replay: Replay | None) -> None:
        """Add a connection to a room; see :meth:`LocalRoom.add`."""
        with self.lock:
            local.add(client, replay)
            local.is_unsure |= not local.is_subscribed

    def leave(self, key: str, client: BaseClient) -> None:
        """Remove a connection from a room. Does nothing when it is not in it."""
        with self.lock:
            local = self._rooms.get(key)
            if local is None or not local.remove(client):
                return
            self._note_if_empty(local)
        self._on_leave(local, client)

    def _note_if_empty(self, local: LocalRoom) -> None:
        if local.is_empty():
            self._empty_since[local.room.key] = time.monotonic()

    def lose(self) -> None:
        """Note that no messages arrive until the rooms are subscribed again."""
        with self.lock:
            for local in self._rooms.values():
                local.is_subscribed = False
                local.is_unsure |= bool(local.members or local.replays)

    def sweep(self, latest: float, give_up: Callable[[str], None]) -> None:
        """Give up the rooms that were without connections since a time on the clock.

        :param give_up: called with the key of each, and with the lock, so that nobody joins it meanwhile.
        """
        if not self._empty_since:
            return
        with self.lock:
            for key in [key for key, since in self._empty_since.items() if since < latest]:
                del self._empty_since[key], self._rooms[key]
                give_up(key)
