"""Who is in which room, in Redis.

All keys but the first have a generation in their names. Redis has one as long as its memory is complete. When a key is
missing, or the server has started again, another generation begins, without anybody in it: each process then finds that
its lease is not known, and enters its connections again. What is left of the old generation expires.

====================================  ==================================================================================
``PREFIX:roster``                     the epoch and the generation
``PREFIX:roster:GENERATION:owners``   the leases: when they end, in ms
``...:dead``                          the leases that have ended, whose connections have not all left
``...:gone``                          all leases that have ended within a day
``...:owned:OWNER``                   the connections of a lease, with the grace of each; and an empty one, whose grace
                                      is infinite, so that the key is there as long as the lease
``...:members:ROOM``                  the members of a room, each with the time when it came, the number of its
                                      connections, the call that has entered it, and its data
``...:leaving:ROOM``                  the members without connections: when their grace is over, in ms
``...:leaving``                       the rooms that have some: when the first grace is over, or earlier
``...:heard``                         when a process has swept
``...:swept:NAME``                    what a process has swept, in case that it did not get the reply
====================================  ==================================================================================

A process that has lost its lease takes another one, under another name. So what is left of the old lease leaves while
the same connections enter, and they do not mix.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any
from uuid import uuid4

from ...exceptions import BrokerUnavailable
from ...loops.base import allocate_lock
from .base import Attendance, Lease, Presence, Roster
from .redis_roster_scripts import CLOSE, COUNT, ENTER, LEAVE, MEMBERS, RENEW, SWEEP
from .redis_scripts import Script
from .redis_wire import ScriptRunner, Settings, decode, encode

#: Seconds for which a lease lasts, and after which a process prolongs it. The grace of a dead process' members begins
#: when it should have been prolonged, not when it ends: they have had this time to come back.
LEASE = 15.0
PROLONG_AFTER = 5.0

#: Seconds after which Redis was cut off from all processes if none has swept: no lease ends then, because none could be
#: prolonged. Beyond the second number, all processes are dead.
SILENT_AFTER = 5.0
DEAD_AFTER = 300.0

#: What one call of a script takes, during which Redis does nothing else: connections and members.
BATCH = 100
SWEEP_BATCH = 200


class RedisRoster(Roster):
    """The connections of this process, and the members of all processes.

    Redis' clock counts. The calls of one process use one connection to Redis. Nothing is lost with a reply: a call that
    is repeated returns what the reply had.

    Members who return after their grace, but before a sweep has returned them, were there all the time: nobody can
    announce then that they have left before they are back.
    """

    def __init__(self, settings: Settings) -> None:
        self._runner = ScriptRunner(settings)
        self._keys = settings.key("epoch"), settings.key("roster")
        self._lock = allocate_lock()  # guards the next one
        self.reaped = 0
        # The following attributes belong to the thread that enters and sweeps.
        self._name = uuid4().hex[:16]
        self._leases = 0
        self._generation = b""  # empty while this process has no lease
        self._loss = Lease.UNKNOWN  # what has become of the last lease, and whether renew() has returned it
        self._is_loss_told = True
        self._prolong_at = 0.0
        self._cursor = b"0"
        self._enters = self._sweeps = 0

    def enter(self, attendances: Sequence[Attendance]) -> Sequence[Presence]:
        arrived: dict[tuple[str, str], Presence] = {}
        for start in range(0, max(1, len(attendances)), BATCH):
            batch = attendances[start : start + BATCH]
            for index, since in self._enter(batch):
                room, member, _, data, _ = batch[index]
                arrived[room, member] = Presence(room, member, since / 1e6, data)
        self._enters += 1
        return list(arrived.values())

    def _enter(self, batch: Sequence[Attendance]) -> list[tuple[int, int]]:
        """Enter connections, and return the index of each one whose member has come, and since when it is there."""
        values: list[bytes] = []
        for room, member, connection, data, grace in batch:
            values += (encode(room), encode(member), encode(connection), data, _milliseconds(grace))
        call = f"{self._name}/{self._enters}".encode()
        while True:
            state, *reply = self._run(ENTER, *self._lease(), _milliseconds(LEASE), call, *values)
            if state == b"held":
                break
            self._lose(Lease(state.decode()))
        self._generation, *numbers = reply
        return list(zip(map(int, numbers[::2]), map(int, numbers[1::2]), strict=True))

    def leave(self, attendances: Sequence[Attendance]) -> None:
        for start in range(0, len(attendances), BATCH):
            values: list[bytes] = []
            for each in attendances[start : start + BATCH]:
                values += (encode(each.room), encode(each.member), encode(each.connection))
            self._run(LEAVE, *self._lease(), *values)

    def renew(self) -> Lease:
        if self._generation:
            now = monotonic()
            is_due = now >= self._prolong_at
            state, *cursor = self._run(
                RENEW, *self._lease(), _milliseconds(LEASE), self._cursor if is_due else b"", b"%d" % BATCH
            )
            if state != b"held":
                self._lose(Lease(state.decode()))
            else:
                if is_due:
                    self._prolong_at = now + PROLONG_AFTER
                    (self._cursor,) = cursor
                if self._is_loss_told:
                    return Lease.HELD
        self._is_loss_told = True
        return self._loss

    def _lease(self) -> tuple[bytes, bytes]:
        """Return the name of the lease, and the generation in which this process holds it."""
        return f"{self._name}.{self._leases}".encode(), self._generation

    def _lose(self, loss: Lease) -> None:
        """Note what has become of the lease. The next one has another name."""
        self._loss, self._is_loss_told = loss, False
        self._leases += 1
        self._generation, self._cursor, self._prolong_at = b"", b"0", 0.0

    def sweep(self) -> Sequence[Presence]:
        call = self._name.encode(), b"%d" % self._sweeps
        reaped, *reply = self._run(SWEEP, *_reap_arguments(), _milliseconds(LEASE), *call)
        self._sweeps += 1
        self._count_reaped(reaped)
        return [
            Presence(decode(room), decode(member), int(since) / 1e6, data)
            for room, member, since, data in zip(*(iter(reply),) * 4, strict=True)
        ]

    def members(self, room: str) -> Sequence[Presence]:
        values, leaving = self._look(MEMBERS, room)
        gone = set(leaving)
        members = []
        for member, value in zip(values[::2], values[1::2], strict=True):
            if member not in gone:
                since, _, _, data = value.split(b":", 3)
                members.append(Presence(room, decode(member), int(since) / 1e6, data))
        members.sort(key=lambda each: each.since)
        return members

    def count(self, room: str) -> int:
        (count,) = self._look(COUNT, room)
        return int(count)

    def _look(self, script: Script, room: str) -> Sequence[Any]:
        """Run a script that looks at a room, again and again until no connections of dead processes are left."""
        reply: list[Any] = []
        while not reply:
            reaped, *reply = self._run(script, *_reap_arguments(), encode(room))
            self._count_reaped(reaped)
        return reply

    def _count_reaped(self, reaped: int) -> None:
        with self._lock:
            self.reaped += reaped

    def _run(self, script: Script, *arguments: bytes) -> Any:
        return self._runner.run(script, self._keys, arguments)

    def close(self) -> None:
        if self._generation:
            with suppress(BrokerUnavailable):  # then the lease ends by itself
                self._run(CLOSE, *self._lease())
            self._lose(Lease.UNKNOWN)
        self._runner.hang_up()


def _reap_arguments() -> tuple[bytes, ...]:
    """Return what the scripts need that have the connections of dead processes leave."""
    silent, dead, overdue = map(_milliseconds, (SILENT_AFTER, DEAD_AFTER, LEASE - PROLONG_AFTER))
    return silent, dead, b"%d" % SWEEP_BATCH, overdue


def _milliseconds(seconds: float) -> bytes:
    return b"%d" % (seconds * 1000)
