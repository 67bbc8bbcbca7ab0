"""The contract of a broker: it puts the messages of a room in one order, and brings them to every process.

A broker belongs to one process and is made after the fork. It knows neither connections nor Flask: a room is a key, a
message is bytes. It keeps no promise that it cannot keep: what it may lose, the positions of the messages show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple


class Position(NamedTuple):
    """The place of a message in its room.

    :param epoch: the memory of the broker that counts: a broker that has lost its memory begins another epoch.
    :param offset: the count, which grows by one with each message of the room in the epoch.
    """

    epoch: str
    offset: int


class Outgoing(NamedTuple):
    """A message on its way to the broker.

    :param room: the key of the room.
    :param data: the message as the processes encode it.
    :param number: the number of the message among those of its publisher. It grows with each message.
    """

    room: str
    data: bytes
    number: int


class Delivered(NamedTuple):
    """An event: a message has arrived.

    :param previous: the offset of the room's message before this one in the same epoch; 0 when the broker knows none,
        because it has forgotten the room, or because this is the first one. Then the offset may be any number above all
        earlier ones.
    """

    room: str
    position: Position
    previous: int
    data: bytes


class Subscribed(NamedTuple):
    """An event: all messages that are published to these rooms from now on will be delivered."""

    rooms: Sequence[str]


class Compared(NamedTuple):
    """An event: of these rooms, all messages up to these positions were delivered, or will never be.

    :param positions: the position of the last message of each room; None for a room without one.
    """

    positions: Mapping[str, Position | None]


Event = Delivered | Subscribed | Compared


class Subscription(ABC):
    """The messages of some rooms. No call waits.

    Any thread or greenlet may call :meth:`add` and :meth:`remove`. The rest is called by one at a time.
    """

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor to wait for: it is readable while :meth:`receive` has something to do."""

    @abstractmethod
    def add(self, room: str) -> None:
        """Subscribe to a room. :meth:`receive` confirms it by :class:`Subscribed`, then :class:`Compared`."""

    @abstractmethod
    def remove(self, room: str) -> None:
        """Unsubscribe from a room. Some of its messages may still be delivered."""

    @abstractmethod
    def receive(self) -> Sequence[Event]:
        """Return the events that are here, in their order; not more than some hundred at a time.

        :raises BrokerUnavailable: when the subscription has ended.
        """

    @abstractmethod
    def tick(self) -> None:
        """Check the connection to the broker. Called about once a second.

        :raises BrokerUnavailable: when the broker was silent for 10 seconds although it was asked.
        """

    @abstractmethod
    def close(self) -> None:
        """End the subscription, and release what it holds. Does nothing the second time."""


class Broker(ABC):
    """What carries messages between processes. To make one opens nothing: its first use does."""

    #: Whether :meth:`publish` may wait for another process, so that a worker does not call it in a handler.
    waits = True

    @abstractmethod
    def publish(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int]:
        """Publish messages in their order, and return how many subscriptions each of them reaches.

        Messages whose number is not above the last number of the same publisher were published before: an earlier call
        has failed after the broker had them. They are not published again, and reach -1 subscriptions.

        It may wait. One thread or greenlet at a time calls this for one *publisher*.

        :param publisher: the name of the caller, unique among all processes.
        :raises BrokerUnavailable: when it is not known that the broker has all messages. The call may be repeated.
        """

    @abstractmethod
    def subscribe(self, rooms: Iterable[str]) -> Subscription:
        """Open a subscription, as if :meth:`.Subscription.add` was called for each of *rooms*. It may wait.

        :raises BrokerUnavailable: when the broker cannot be reached.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the broker holds in this process."""


def batches(messages: Sequence[Outgoing], most: int, most_bytes: int) -> Iterator[Sequence[Outgoing]]:
    """Split messages into those that a broker publishes at a time.

    :param most: the most messages of a batch.
    :param most_bytes: the most bytes of their data. A larger message has a batch of its own.
    """
    batch: list[Outgoing] = []
    size = 0
    for message in messages:
        if batch and (len(batch) == most or size + len(message.data) > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.data)
    if batch:
        yield batch
