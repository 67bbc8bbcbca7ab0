"""What a member has missed: positions as clients know them, unbroken histories, and messages that wait meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

from ..protocol.protocol import SharedMessage
from .brokers.base import Delivered, History, Position

#: The longest text of a position: an offset has at most 19 digits, and brokers' epochs are much shorter.
LONGEST_TEXT = 100

#: The largest offset. Offsets are counts, or begin at the time in microseconds.
LARGEST_OFFSET = 2**63 - 1

#: What waits for a connection that is getting what it has missed: at most so many messages and bytes.
MOST_HELD = 1000
MOST_HELD_BYTES = 2**20

#: The position before the first message of a room.
NOTHING = Position("", 0)


def text_of(position: Position, room: str) -> str:
    """Return a position as text for clients, who need not understand it.

    :param room: the key of the room, whose sum is in the text: positions of other rooms look alike.
    """
    return f"{position.offset}.{position.epoch}.{_sum_of(room)}"


def position_of(text: str | None, room: str) -> Position | None:
    """Return the position in a room that :func:`text_of` has made a text of, or None if the text is something else."""
    if text is None or len(text) > LONGEST_TEXT:
        return None
    digits, _, rest = text.partition(".")
    epoch, _, room_sum = rest.rpartition(".")
    if not (digits.isascii() and digits.isdigit()) or room_sum != _sum_of(room):
        return None
    offset = int(digits)
    return Position(epoch, offset) if offset <= LARGEST_OFFSET else None


def _sum_of(room: str) -> str:
    return f"{crc32(room.encode('utf-8', 'surrogatepass')):08x}"


def is_after(position: Position, other: Position) -> bool:
    """Return whether a message came after another one of its room. The broker may have lost its memory in between."""
    return position.epoch != other.epoch or position.offset > other.offset


def follows(event: Delivered, last: Position) -> bool | None:
    """Return whether a message comes after what a connection has; None when the broker has lost its memory in between.

    The history may be of a newer epoch than the messages that still arrive. Then nobody knows what lies between them.

    :param last: the position up to which the connection has all messages.
    """
    if event.position.epoch == last.epoch:
        return event.position.offset > last.offset
    return True if last == NOTHING and event.previous == 0 else None


def missed_since(after: Position | None, history: History) -> Sequence[Delivered] | None:
    """Return all messages of a room after a position, or None if the history does not have all of them."""
    last = history.position or NOTHING
    if after is None or after.epoch != last.epoch:
        return None
    offset = after.offset
    for message in history.messages:
        if message.previous != offset or message.position.epoch != after.epoch:
            return None
        offset = message.position.offset
    return history.messages if offset == last.offset else None


class Replay:
    """The messages that wait for a connection while it gets what it has missed. The lock of the rooms guards them."""

    __slots__ = ("_held", "_size")

    def __init__(self) -> None:
        self._held: list[tuple[Delivered, SharedMessage | None]] = []
        self._size = 0

    def hold(self, event: Delivered, message: SharedMessage | None) -> bool:
        """Keep a message for later. Return False when too much is kept.

        :param message: None for a message that leaves the connection out.
        """
        self._size += 0 if message is None else len(message.plain_frame)
        if len(self._held) >= MOST_HELD or self._size > MOST_HELD_BYTES:
            return False
        self._held.append((event._replace(data=b""), message))
        return True

    def take(self) -> Sequence[tuple[Delivered, SharedMessage | None]]:
        """Remove and return what is kept."""
        held, self._held, self._size = self._held, [], 0
        return held
