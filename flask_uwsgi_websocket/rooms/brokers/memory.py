"""The broker of a single process: nothing leaves its memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from uuid import uuid4

from ...loops.base import allocate_lock
from ...loops.wakeup import Wakeup
from .base import (
    Broker,
    Compared,
    Delivered,
    Event,
    History,
    Outgoing,
    Position,
    Retention,
    Roster,
    Subscribed,
    Subscription,
)
from .memory_history import Histories
from .memory_roster import Attendances, MemoryRoster

#: The most bytes of messages that wait for a subscription. Beyond it, the oldest ones are lost.
MOST_BYTES = 16 * 2**20


class MemoryBroker(Broker):
    """Carries messages within one process."""

    waits = False

    def __init__(self) -> None:
        self._epoch = uuid4().hex
        self._lock = allocate_lock()  # guards the following attributes
        self._subscriptions: list[_Subscription] = []
        self._offsets: dict[str, int] = {}
        self._forgotten = 0  # the last offset of all rooms that were forgotten: no offset of a room comes twice
        self._histories = Histories()
        self._attendances = Attendances(self._lock)

    def publish(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int]:
        with self._lock:
            return [self._publish(message) for message in messages]

    def _publish(self, message: Outgoing) -> int:
        room = message.room
        reached = [each for each in self._subscriptions if room in each.rooms]
        # A room without members and history needs no count.
        if reached or message.retention is not None or room in self._histories:
            previous = self._offsets.get(room, 0)
            offset = self._offsets[room] = (previous or self._forgotten) + 1
            event = Delivered(room, Position(self._epoch, offset), previous, message.data)
            for each in reached:
                each.put(event)
            if message.retention is not None:
                self._histories.append(event, message.retention)
        if self._histories:
            self._forget(self._histories.forget())
        return len(reached)

    def history(self, room: str, after: Position | None, retention: Retention) -> History:
        with self._lock:
            offset = self._offsets.get(room)
            if offset is None:
                return History(None, [])
            position = Position(self._epoch, offset)
            if after is None or after.epoch != self._epoch:
                return History(position, [])
            return History(position, self._histories.after(room, after.offset, retention))

    def roster(self) -> Roster:
        return MemoryRoster(self._attendances)

    def subscribe(self, rooms: Iterable[str]) -> Subscription:
        subscription = _Subscription(self)
        with self._lock:
            self._subscriptions.append(subscription)
        for room in rooms:
            subscription.add(room)
        return subscription

    def add(self, room: str, subscription: _Subscription) -> None:
        """Deliver the messages of a room to a subscription from now on."""
        with self._lock:
            subscription.rooms.add(room)
            offset = self._offsets.get(room)
            position = None if offset is None else Position(self._epoch, offset)
            subscription.put(Subscribed([room]), Compared({room: position}))

    def remove(self, room: str, subscription: _Subscription) -> None:
        """Deliver the messages of a room no longer to a subscription."""
        with self._lock:
            subscription.rooms.discard(room)
            self._forget([room])

    def end(self, subscription: _Subscription) -> None:
        """Forget a subscription."""
        with self._lock:
            if subscription in self._subscriptions:
                self._subscriptions.remove(subscription)
                self._forget(subscription.rooms)
                subscription.wakeup.close()

    def take(self, subscription: _Subscription) -> Sequence[Event]:
        """Remove and return the events that wait for a subscription."""
        with self._lock:
            return subscription.take()

    def _forget(self, rooms: Iterable[str]) -> None:
        for room in rooms:
            if room not in self._histories and not any(room in each.rooms for each in self._subscriptions):
                self._forgotten = max(self._forgotten, self._offsets.pop(room, 0))

    def close(self) -> None:
        """Do nothing: all is gone with the process."""


class _Subscription(Subscription):
    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._events: deque[Event] = deque()  # appended with the broker's lock
        self._size = 0
        #: Set while there are events.
        self.wakeup = Wakeup()
        #: The keys of the rooms. Guarded by the broker's lock.
        self.rooms: set[str] = set()

    def put(self, *events: Event) -> None:
        """Append events, for the next call of receive(). Called with the broker's lock."""
        self._events.extend(events)
        self._size += sum(map(_size_of, events))
        while self._size > MOST_BYTES:
            self._size -= _size_of(self._events.popleft())
        self.wakeup.set()

    def take(self) -> Sequence[Event]:
        """Remove and return all events. Called with the broker's lock."""
        events, self._events, self._size = self._events, deque(), 0
        return events

    def add(self, room: str) -> None:
        self._broker.add(room, self)

    def remove(self, room: str) -> None:
        self._broker.remove(room, self)

    def fileno(self) -> int:
        return self.wakeup.fileno()

    def receive(self) -> Sequence[Event]:
        self.wakeup.clear()
        return self._broker.take(self)

    def tick(self) -> None:
        """Do nothing: memory is always there."""

    def close(self) -> None:
        self._broker.end(self)


def _size_of(event: Event) -> int:
    return len(event.data) if isinstance(event, Delivered) else 0
