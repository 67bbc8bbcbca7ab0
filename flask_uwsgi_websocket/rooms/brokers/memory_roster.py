"""Who is in which room of a memory broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from time import monotonic

from .base import Attendance, Lease, Presence, Roster

#: The most members that one sweep returns.
SWEPT_MEMBERS = 200


class _Member:
    """A member of a room."""

    def __init__(self, presence: Presence) -> None:
        self.presence = presence
        #: The roster that has entered each connection, and the grace.
        self.connections: dict[str, tuple[MemoryRoster, float]] = {}


class Attendances:
    """Who is in which room, from all rosters of a broker.

    :param lock: the lock of the broker, which guards all attributes.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._members: dict[str, dict[str, _Member]] = {}  # in the order in which they came
        # Members without connections, and when they are gone.
        self._leaving: dict[str, dict[str, float]] = {}

    def enter(self, roster: MemoryRoster, attendances: Sequence[Attendance]) -> Sequence[Presence]:
        """See :meth:`.Roster.enter`."""
        arrived: dict[tuple[str, str], _Member] = {}
        with self._lock:
            for room, name, connection, data, grace in attendances:
                members = self._members.setdefault(room, {})
                member = members.get(name)
                if member is None:
                    member = members[name] = _Member(Presence(room, name, time.time(), data))
                    arrived[room, name] = member
                member.presence = member.presence._replace(data=data)
                member.connections[connection] = (roster, grace)
                self._stay(room, name)
            return [member.presence for member in arrived.values()]

    def leave(self, attendances: Sequence[Attendance]) -> None:
        """See :meth:`.Roster.leave`."""
        with self._lock:
            for room, name, connection, _, _ in attendances:
                member = self._members.get(room, {}).get(name)
                if member is not None and connection in member.connections:
                    self._leave(member, connection)

    def leave_all(self, roster: MemoryRoster) -> None:
        """Have all connections of a roster leave."""
        with self._lock:
            for members in self._members.values():
                for member in members.values():
                    for connection in [key for key, (owner, _) in member.connections.items() if owner is roster]:
                        self._leave(member, connection)

    def _leave(self, member: _Member, connection: str) -> None:
        _, grace = member.connections.pop(connection)
        if not member.connections:
            room, name, _, _ = member.presence
            self._leaving.setdefault(room, {})[name] = monotonic() + grace

    def _stay(self, room: str, name: str) -> None:
        """Note that a member has a connection."""
        leaving = self._leaving.get(room)
        if leaving is not None and leaving.pop(name, None) is not None and not leaving:
            del self._leaving[room]

    def _remove(self, room: str, name: str) -> Presence:
        self._stay(room, name)
        members = self._members[room]
        member = members.pop(name)
        if not members:
            del self._members[room]
        return member.presence

    def _gone(self, room: str) -> Iterator[str]:
        """Yield the members of a room whose grace is over."""
        now = monotonic()
        return (name for name, gone_at in self._leaving.get(room, {}).items() if gone_at <= now)

    def sweep(self) -> Sequence[Presence]:
        """See :meth:`.Roster.sweep`."""
        with self._lock:
            gone = [(room, name) for room in self._leaving for name in self._gone(room)]
            return [self._remove(room, name) for room, name in gone[:SWEPT_MEMBERS]]

    def members(self, room: str) -> Sequence[Presence]:
        """See :meth:`.Roster.members`."""
        with self._lock:
            gone = set(self._gone(room))
            return [each.presence for name, each in self._members.get(room, {}).items() if name not in gone]

    def count(self, room: str) -> int:
        """See :meth:`.Roster.count`."""
        with self._lock:
            return len(self._members.get(room, {})) - sum(1 for _ in self._gone(room))


class MemoryRoster(Roster):
    """The connections of one user of a memory broker. It cannot die alone, so that its lease never ends.

    :param attendances: what all rosters of the broker have entered.
    """

    def __init__(self, attendances: Attendances) -> None:
        self._attendances = attendances
        self._has_entered = False

    def enter(self, attendances: Sequence[Attendance]) -> Sequence[Presence]:
        self._has_entered = True
        return self._attendances.enter(self, attendances)

    def leave(self, attendances: Sequence[Attendance]) -> None:
        self._attendances.leave(attendances)

    def renew(self) -> Lease:
        return Lease.HELD if self._has_entered else Lease.UNKNOWN

    def sweep(self) -> Sequence[Presence]:
        return self._attendances.sweep()

    def members(self, room: str) -> Sequence[Presence]:
        return self._attendances.members(room)

    def count(self, room: str) -> int:
        return self._attendances.count(room)

    def close(self) -> None:
        if self._has_entered:
            self._has_entered = False
            self._attendances.leave_all(self)
