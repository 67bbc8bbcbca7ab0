"""The contract of a broker: it puts the messages of a room in one order, and brings them to every process.

A broker belongs to one process and is made after the fork. It knows neither connections nor Flask: a room is a key, a
message is bytes. It keeps no promise that it cannot keep: what it may lose, the positions of the messages show.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

#: Seconds between two renewals of a lease, and between two sweeps of a roster.
RENEW_INTERVAL = 1.0


class Position(NamedTuple):
    """The place of a message in its room.

    :param epoch: the memory of the broker that counts: a broker that has lost its memory begins another epoch.
    :param offset: the count, which grows by one with each message of the room in the epoch.
    """

    epoch: str
    offset: int


class Retention(NamedTuple):
    """How much history of a room a broker keeps. Whatever is beyond one of these, it forgets, the oldest first.

    :param messages: the most messages.
    :param seconds: the most seconds.
    :param size: the most bytes of their data.
    """

    messages: int
    seconds: float
    size: int


class Outgoing(NamedTuple):
    """A message on its way to the broker.

    :param room: the key of the room.
    :param data: the message as the processes encode it.
    :param number: the number of the message among those of its publisher. It grows with each message.
    :param retention: how the message is kept for :meth:`.Broker.history`; None if it is not.
    """

    room: str
    data: bytes
    number: int
    retention: Retention | None = None


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


class History(NamedTuple):
    """What a broker knows of a room.

    :param position: the position of the room's last message; None for a room without one.
    :param messages: kept messages, in their order. Some may be missing between them, which their positions show.
    """

    position: Position | None
    messages: Sequence[Delivered]


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


class Attendance(NamedTuple):
    """A connection that is in a room, for :class:`Roster`.

    :param room: the key of the room.
    :param member: whose connection it is. A member may have several, in several processes.
    :param connection: the id of the connection.
    :param data: what ``Presence.data`` of the member becomes.
    :param grace: the seconds for which the member stays a member after its last connection.
    """

    room: str
    member: str
    connection: str
    data: bytes
    grace: float


class Presence(NamedTuple):
    """A member of a room.

    :param since: when it came, in seconds since 1970 by the clock of the broker.
    :param data: the data of the connection that has entered last.
    """

    room: str
    member: str
    since: float
    data: bytes


class Lease(Enum):
    """What the broker knows about a roster."""

    #: All connections that it has entered are there.
    HELD = "held"
    #: It was taken for dead. Its connections have left.
    LOST = "lost"
    #: The broker does not know it: it is new, or the broker has lost its memory.
    UNKNOWN = "unknown"


class Roster(ABC):
    """Who is in which room, from all processes. A process has one, and enters its own connections.

    The process holds a lease. When the process dies, the lease ends, and whichever process looks next has the
    connections leave that the dead one has entered. Every call may wait. One thread or greenlet at a time calls this,
    but any may call :meth:`members` and :meth:`count`.

    All methods raise :exc:`.BrokerUnavailable` when it is not known that the call was done. It may be repeated.
    """

    #: How many connections of dead processes this roster has removed.
    reaped = 0

    @abstractmethod
    def enter(self, attendances: Sequence[Attendance]) -> Sequence[Presence]:
        """Enter connections, and return the members that were not there. Takes the lease if it is not held.

        A connection that is entered again only changes the data of its member. A member that returns before
        :meth:`sweep` has returned it was there all the time: nobody was told that it had gone.
        """

    @abstractmethod
    def leave(self, attendances: Sequence[Attendance]) -> None:
        """Remove connections. A member without connections leaves after its grace. Unknown connections do not matter.

        A member is removed after the grace that the connection was entered with which has left last.
        """

    @abstractmethod
    def renew(self) -> Lease:
        """Prolong the lease, and return what became of it. Called about every :data:`RENEW_INTERVAL`."""

    @abstractmethod
    def sweep(self) -> Sequence[Presence]:
        """Have the connections of dead processes leave, and return members whose grace is over.

        Every member is returned to one process, once. Called about once a second.

        :returns: at most some hundred, so that no call takes long: more of them come with the next call.
        """

    @abstractmethod
    def members(self, room: str) -> Sequence[Presence]:
        """Return the members of a room, in the order in which they came. Has the connections of dead processes leave.

        Those whose grace is over are left out, whether a sweep has returned them or not.
        """

    @abstractmethod
    def count(self, room: str) -> int:
        """Return the number of members of a room, as :meth:`members` has them."""

    @abstractmethod
    def close(self) -> None:
        """Give up the lease: all connections of this process leave, as if it was dead. Does nothing the second time."""


class Broker(ABC):
    """What carries messages between processes. To make one opens nothing: its first use does."""

    #: Whether :meth:`publish` may wait for another process, so that a worker does not call it in a handler.
    waits = True

    #: Whether the broker has :meth:`publish_now`.
    publishes_now = False

    @abstractmethod
    def publish(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int]:
        """Publish messages in their order, and return how many subscriptions each of them reaches.

        Messages whose number is not above the last number of the same publisher were published before: an earlier call
        has failed after the broker had them. They are not published again, and reach -1 subscriptions.

        It may wait. One thread or greenlet at a time calls this for one *publisher*.

        :param publisher: the name of the caller, unique among all processes.
        :raises BrokerUnavailable: when it is not known that the broker has all messages. The call may be repeated.
        """

    def publish_now(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int] | None:
        """Do the work of :meth:`publish` if it takes no more than a moment, for an event loop that calls this.

        It neither waits, nor lets other greenlets run, nor logs.

        :returns: what :meth:`publish` returns; or None, when it is not known that the broker has all messages. Then the
            caller calls :meth:`publish` with the same ones.
        """
        return None

    @abstractmethod
    def subscribe(self, rooms: Iterable[str]) -> Subscription:
        """Open a subscription, as if :meth:`.Subscription.add` was called for each of *rooms*. It may wait.

        :raises BrokerUnavailable: when the broker cannot be reached.
        """

    def history(self, room: str, after: Position | None, retention: Retention) -> History:
        """Return the position of a room, and the messages of its history after a position. It may wait.

        A subscription that was confirmed before the call delivers all messages after the position that is returned.

        :param after: None, or a position of another epoch: no messages.
        :param retention: what was published with, see ``Outgoing.retention``. Older messages are not returned.
        :raises BrokerUnavailable: when the broker cannot be reached.
        """
        raise NotImplementedError

    def roster(self) -> Roster:
        """Return a roster for this process. To make one opens nothing: its first use does."""
        raise NotImplementedError

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
