"""The histories of the rooms of a memory broker."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from time import monotonic
from typing import NamedTuple

from .base import Delivered, Retention

#: The most bytes of all histories together. Beyond it, those go first whose time is over first.
MOST_BYTES = 64 * 2**20

#: What a message costs in memory besides its data, and what a room costs, in bytes; roughly.
OVERHEAD = 400
ROOM_OVERHEAD = 1000

#: The most rooms that one call looks at.
LOOKS = 10


class _Kept(NamedTuple):
    at: float
    message: Delivered


class _History:
    """The history of a room."""

    def __init__(self) -> None:
        self.kept: deque[_Kept] = deque()
        self.size = 0  # the bytes of their data
        self.until = 0.0


class Histories:
    """The histories of rooms, by :func:`time.monotonic`. The caller guards each call by a lock."""

    def __init__(self) -> None:
        self._rooms: dict[str, _History] = {}
        # When to look at a room. Each has one place in the heap, which may come before its time.
        self._looks: list[tuple[float, str]] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rooms)

    def __contains__(self, room: str) -> bool:
        return room in self._rooms

    def append(self, message: Delivered, retention: Retention) -> None:
        """Keep a message of a room, and forget what is beyond its retention."""
        now = monotonic()
        room = message.room
        history = self._rooms.get(room)
        if history is None:
            history = self._rooms[room] = _History()
            self._bytes += ROOM_OVERHEAD
            heapq.heappush(self._looks, (now + retention.seconds, room))
        history.until = now + retention.seconds
        history.kept.append(_Kept(now, message))
        history.size += len(message.data)
        self._bytes += len(message.data) + OVERHEAD
        oldest = now - retention.seconds
        while history.kept and (
            len(history.kept) > retention.messages or history.size > retention.size or history.kept[0].at < oldest
        ):
            self._forget_first(history)

    def after(self, room: str, offset: int, retention: Retention) -> Sequence[Delivered]:
        """Return the messages of a room after an offset."""
        history = self._rooms.get(room)
        if history is None:
            return []
        oldest = monotonic() - retention.seconds
        messages: list[Delivered] = []
        size = 0
        for at, message in reversed(history.kept):
            size += len(message.data)
            is_beyond = len(messages) == retention.messages or size > retention.size or at < oldest
            if is_beyond or message.position.offset <= offset:
                break
            messages.append(message)
        return messages[::-1]

    def forget(self) -> Iterator[str]:
        """Forget rooms whose time is over, or beyond :data:`MOST_BYTES`, some at a time; yield them."""
        now = monotonic()
        for _ in range(LOOKS):
            if not self._looks or (self._looks[0][0] > now and self._bytes <= MOST_BYTES):
                return
            at, room = heapq.heappop(self._looks)
            history = self._rooms[room]
            if at < history.until and now < history.until:
                heapq.heappush(self._looks, (history.until, room))
                continue
            del self._rooms[room]
            self._bytes -= ROOM_OVERHEAD
            while history.kept:
                self._forget_first(history)
            yield room

    def _forget_first(self, history: _History) -> None:
        size = len(history.kept.popleft().message.data)
        history.size -= size
        self._bytes -= size + OVERHEAD
