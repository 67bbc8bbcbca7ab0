"""The roster of a local broker: tables in the log's file, and a lease (``local_leases.py``) for each process."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice

from ...loops.base import allocate_lock
from .base import Attendance, Lease, Presence, Roster
from .local_directory import explained
from .local_leases import LeaseFile, is_dead
from .local_log import Log

#: The most connections that one transaction enters or removes, so that none holds the lock for long.
TRANSACTION_CONNECTIONS = 50

#: The most members that one sweep returns.
SWEPT_MEMBERS = 200

#: Seconds by which a member may seem to have left in the future, because the caller was held up after it has looked at
#: the clock. One that seems to leave later has left before the machine was started, with a directory on a disk.
FUTURE = 60.0

_ENTER = [
    f"INSERT INTO entering VALUES {','.join(['(?,?,?,?,?,?,?,?)'] * count)}"
    for count in range(TRANSACTION_CONNECTIONS + 1)
]
_ARRIVED = [
    f"""
    WITH entered (room, member) AS (VALUES {",".join(["(?,?)"] * count)})
    SELECT DISTINCT members.room, members.member, since, data FROM entered CROSS JOIN members
        ON members.room = entered.room AND members.member = entered.member WHERE call = ? ORDER BY since
    """
    for count in range(TRANSACTION_CONNECTIONS + 1)
]
_LEAVE = [
    f"INSERT INTO leaving VALUES {','.join(['(?,?,?,?)'] * count)}" for count in range(TRANSACTION_CONNECTIONS + 1)
]
_REAP = f"""
INSERT INTO leaving SELECT room, member, connection, ? FROM attendances WHERE owner = ? LIMIT {TRANSACTION_CONNECTIONS}
RETURNING 1
"""
_FORGET_OWNER = """
DELETE FROM owners WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM attendances WHERE attendances.owner = owners.owner)
"""
_GONE = f"""
SELECT room, member FROM members WHERE gone_at <= ? OR gone_at > ? + {FUTURE} AND left_at > ? + {FUTURE} LIMIT ?
"""
_SWEEP = f"DELETE FROM members WHERE (room, member) IN ({_GONE}) RETURNING room, member, since, data, gone_at"
_MEMBERS = """
SELECT room, member, since, data FROM members WHERE room = ? AND (gone_at IS NULL OR gone_at > ?)
ORDER BY since, member
"""
_COUNT = """
SELECT coalesce((SELECT members FROM member_counts WHERE room = ?), 0)
    - (SELECT count(*) FROM members INDEXED BY members_by_end WHERE gone_at <= ? AND room = ?)
"""


class LocalRoster(Roster):
    """Who is in which room, from all processes of one user on one machine.

    :param open_log: yields the log for one call.
    """

    def __init__(self, open_log: Callable[[], AbstractContextManager[Log]]) -> None:
        self._open_log = open_log
        self._lease: LeaseFile | None = None
        self._process = os.getpid()  # which holds the lease
        self._has_lost = False  # whether renew() has yet to tell that a log with its connections was replaced
        self._counting = allocate_lock()  # guards reaped
        # The number of the call of enter(). A repeated call has the same, and so returns the members of the first one.
        self._call = secrets.randbits(62)

    def enter(self, attendances: Sequence[Attendance]) -> Sequence[Presence]:
        arrived: list[Presence] = []
        with self._open_log() as log:
            owner = self._take_lease(log).owner
            for batch in _batches(attendances):
                since = time.time()
                parameters: list[object] = []
                for number, (room, member, connection, data, grace) in enumerate(batch):
                    # Each has a time of its own, for the order of members.
                    parameters += (room, member, connection, data, grace, since + number * 1e-6, owner, self._call)
                log.execute(_ENTER[len(batch)], parameters)
                keys = [key for each in batch for key in (each.room, each.member)]
                arrived += [Presence(*row) for row in log.execute(_ARRIVED[len(batch)], [*keys, self._call])]
        self._call = secrets.randbits(62)
        # A member of several batches has come with the first one, and has the data of the last one.
        return list({(each.room, each.member): each for each in arrived}.values())

    def _take_lease(self, log: Log) -> LeaseFile:
        lease = self._lease_in(log)
        if lease is None:
            has_lost = self._lease is not None and self._process == os.getpid()
            self.close()
            self._has_lost = has_lost
            lease = self._lease = LeaseFile(log.path / "owners")
            self._process = os.getpid()
        return lease

    def _lease_in(self, log: Log) -> LeaseFile | None:
        """Return the lease of this process in a log."""
        lease = self._lease
        if lease is None or self._process != os.getpid() or lease.path.parent.parent != log.path:
            return None
        return lease

    def leave(self, attendances: Sequence[Attendance]) -> None:
        with self._open_log() as log:
            for batch in _batches(attendances):
                now = time.monotonic()
                parameters: list[object] = []
                for room, member, connection, _, _ in batch:
                    parameters += (room, member, connection, now)
                log.execute(_LEAVE[len(batch)], parameters)

    def renew(self) -> Lease:
        with self._open_log() as log:
            lease = self._lease_in(log)
            if lease is None:
                self.close()
                return Lease.UNKNOWN
            if self._has_lost:
                self._has_lost = False
                return Lease.UNKNOWN
            if lease.is_held():
                return Lease.HELD
            self.close()  # enter() takes another one, because others remove all that was entered with this one
            return Lease.LOST

    def sweep(self) -> Sequence[Presence]:
        with self._open_log() as log:
            self._reap(log)
            now = time.monotonic()
            if not log.execute(_GONE, (now, now, now, 1)):  # which needs no lock
                return []
            rows = log.execute(_SWEEP, (now, now, now, SWEPT_MEMBERS))
        return [Presence(*row[:-1]) for row in sorted(rows, key=lambda row: row[-1])]

    def members(self, room: str) -> Sequence[Presence]:
        with self._open_log() as log:
            self._reap(log)
            return [Presence(*row) for row in log.execute(_MEMBERS, (room, time.monotonic()))]

    def count(self, room: str) -> int:
        with self._open_log() as log:
            self._reap(log)
            ((count,),) = log.execute(_COUNT, (room, time.monotonic(), room))
        return int(count)

    def _reap(self, log: Log) -> None:
        """Have the connections of dead processes leave. Any number of threads and processes may do so at once."""
        path = log.path / "owners"
        with explained(path):
            owners = set(os.listdir(path))
        # Those whose file was deleted by someone, too. One that is alive learns of it by renew().
        owners.update(owner for (owner,) in log.execute("SELECT owner FROM owners"))
        for owner in owners:
            if is_dead(path / owner):
                self._remove(log, owner)
                with explained(path):
                    (path / owner).unlink(missing_ok=True)

    def _remove(self, log: Log, owner: str) -> None:
        """Have all connections of an owner leave."""
        while removed := len(log.execute(_REAP, (time.monotonic(), owner))):
            with self._counting:
                self.reaped += removed
            if removed == TRANSACTION_CONNECTIONS:
                time.sleep(0)  # let others have the lock, and other greenlets run
        log.execute(_FORGET_OWNER, (owner,))

    def close(self) -> None:
        lease, self._lease, self._has_lost = self._lease, None, False
        if lease is not None:
            lease.close()


def _batches(attendances: Sequence[Attendance]) -> Iterator[Sequence[Attendance]]:
    each = iter(attendances)
    while batch := list(islice(each, TRANSACTION_CONNECTIONS)):
        yield batch
