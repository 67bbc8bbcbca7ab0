"""The log of a local broker: an SQLite file that puts the messages of all processes in one order.

Each log has a directory of its own, ``log-EPOCH``, with the file, the bells of its readers and the leases of rosters.
A log that was damaged or deleted is not repaired: another one replaces it, under another epoch, and all processes move
there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from ...exceptions import BrokerUnavailable
from ...loops.base import allocate_rlock
from .base import Outgoing, Position
from .local_bells import ring_all
from .local_directory import LOCK_TIMEOUT, LOG, NEW, OLD, Directory, explained, pauses
from .local_schema import SCHEMA, VERSION

#: The size of a page in bytes. Small ones are fast, because SQLite writes and sums up whole pages.
PAGE_SIZE = 2048

#: Seconds for which the log keeps a message, and the bytes that it keeps: at most a quarter of its file system. Between
#: two prunings it has more.
LOG_SECONDS = 60
LOG_BYTES = 32 * 2**20

#: The most messages that one pruning deletes. A publisher prunes at least once for half as many.
PRUNED_MESSAGES = 1000

#: Hours after which a room or a publisher is forgotten that was not used, and the most that one pruning forgets.
FORGET_HOURS = 24
FORGOTTEN = 500

#: The bytes of the write-ahead log from which pruning shortens it, and from which the log is replaced: it grows on and
#: on after a process was stopped while it was reading.
LONG_JOURNAL = 8 * 2**20
LONGEST_JOURNAL = 64 * 2**20

#: The most messages and bytes of one transaction, so that none holds the lock for long.
TRANSACTION_MESSAGES = 32
TRANSACTION_BYTES = 2**20

#: The most messages that one call reads.
READ_MESSAGES = 256

_PUBLISH = [
    f"INSERT INTO batch VALUES {','.join(['(?,?,?,?,?)'] * count)}" for count in range(TRANSACTION_MESSAGES + 1)
]
_KEEP = [
    f"INSERT INTO kept_batch VALUES {','.join(['(?,?,?,?,?,?,?,?,?)'] * count)}"
    for count in range(TRANSACTION_MESSAGES + 1)
]
_NOT_KEPT = (None, None, None)  # as a retention
_READ = f"SELECT id, room, previous, offset, data FROM log WHERE id > ? ORDER BY id LIMIT {READ_MESSAGES}"
#: Tables from which rows are forgotten, with their keys, and the condition for it.
_FORGETTABLE = (("rooms", "room", "AND room NOT IN (SELECT room FROM histories)"), ("publishers", "publisher", ""))
_LAST_TO_DELETE = f"""
SELECT max(id) FROM (
    SELECT id, at, total FROM log WHERE id < (SELECT max(id) FROM log) ORDER BY id LIMIT {PRUNED_MESSAGES}
) WHERE at < ? OR total < (SELECT total FROM log ORDER BY id DESC LIMIT 1) - ?
"""


class Log:
    """A connection to a log. Threads may share it, unless one of them takes a snapshot.

    :param path: the directory of the log.
    :raises BrokerUnavailable: when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch = path.name[len(LOG) :]
        self._file = path / "log"
        with explained(path):
            space = os.statvfs(path)
        #: The bytes of the file system.
        self.space = space.f_blocks * space.f_frsize or sys.maxsize  # 0 is a tmpfs without a limit
        self._lock = allocate_rlock()  # SQLite does not wait, so no greenlet does
        try:
            _logs.add(self)
            with self._lock:
                self._connection = _connect(self._file)
        except sqlite3.Error as error:
            _logs.discard(self)
            raise self._unavailable(error) from error
        try:
            self._check_version()
        except BaseException:
            self.close()
            raise

    def _check_version(self) -> None:
        self.execute("PRAGMA synchronous = OFF")  # the log need not survive the machine
        ((version,),) = self.execute("PRAGMA user_version")
        if version not in (0, VERSION):
            raise BrokerUnavailable(
                f"Another version of Flask-uWSGI-WebSocket has made {self.path.parent}. Stop the processes that use "
                "the directory, and remove it."
            )
        if version == 0:
            raise self._damaged("it is empty")

    def publish(self, messages: Sequence[Outgoing], publisher: str, *, waits: bool = True) -> None:
        """Append messages to the log, in one transaction.

        :param messages: at most :data:`TRANSACTION_MESSAGES`.
        :param waits: whether it waits while another process holds the lock.
        :raises Locked: when another process holds the lock, and it does not wait.
        :raises BrokerUnavailable: when it is not known that the log has them.
        """
        at = int(time.time())
        parameters: list[object] = []
        for room, data, number, retention in messages:
            if retention is not None:
                self._publish_and_keep(messages, publisher, waits)
                return
            parameters += (room, data, number, publisher, at)
        (self.execute if waits else self._look)(_PUBLISH[len(messages)], parameters)

    def _publish_and_keep(self, messages: Sequence[Outgoing], publisher: str, waits: bool) -> None:
        """Append messages to the log, and those with a retention to the histories of their rooms, too."""
        at, uptime = time.time(), time.monotonic()
        parameters: list[object] = []
        for room, data, number, retention in messages:
            parameters += (room, data, number, publisher, at, uptime, *(retention or _NOT_KEPT))
        (self.execute if waits else self._look)(_KEEP[len(messages)], parameters)

    def last_number(self, publisher: str) -> int | None:
        """Return the number of the last message of a publisher, or None if there is none."""
        rows: list[tuple[int]] = self.execute("SELECT number FROM publishers WHERE publisher = ?", (publisher,))
        return rows[0][0] if rows else None

    def end(self) -> int:
        """Return the id of the last message, or 0 if there is none."""
        rows: list[tuple[int]] = self.execute("SELECT coalesce(max(id), 0) FROM log")
        return rows[0][0]

    def read(self, after: int) -> list[tuple[int, str, int, int, bytes]]:
        """Return the next messages after an id, at most :data:`READ_MESSAGES`: id, room, previous, offset and data.

        :raises Locked: when another process has locked the log for a moment.
        """
        return self._look(_READ, (after,))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read the log as it is now, in a ``with`` statement. Only the first look of it may raise :exc:`Locked`."""
        self._look("BEGIN")
        try:
            yield
        finally:
            self._look("COMMIT")

    def positions(self, rooms: Iterable[str]) -> dict[str, Position | None]:
        """Return the position of the last message of each room, without waiting."""
        positions: dict[str, Position | None] = {}
        for room in rooms:
            rows = self._look("SELECT offset FROM rooms WHERE room = ?", (room,))
            positions[room] = Position(self.epoch, rows[0][0]) if rows else None
        return positions

    def prune(self) -> None:
        """Delete what is too old or too much, a part of it at a time, and without waiting for a lock.

        :raises BrokerUnavailable: when another log replaces this one, or has to.
        """
        self.check()
        now = int(time.time())
        with suppress(Passing):
            ((last,),) = self.attempt(_LAST_TO_DELETE, (now - LOG_SECONDS, min(LOG_BYTES, self.space // 4)))
            if last is not None:
                self.attempt("DELETE FROM log WHERE id <= ?", (last,))
            self._shorten_journal()

    def forget(self) -> None:
        """Forget rooms and publishers that were not used for long, like :meth:`prune`."""
        before = int(time.time()) // 3600 - FORGET_HOURS
        with suppress(Passing):
            for table, key, condition in _FORGETTABLE:
                old = f"SELECT {key} FROM {table} WHERE hour < ? {condition} LIMIT {FORGOTTEN}"
                if self.attempt(old, (before,)):
                    self.attempt(f"DELETE FROM {table} WHERE {key} IN ({old})", (before,))

    def _shorten_journal(self) -> None:
        """Let the write-ahead log begin again, which it does by itself while there are moments without a reader."""
        journal = self.path / "log-wal"
        with explained(journal):
            if journal.stat().st_size < LONG_JOURNAL:
                return
            self.attempt("PRAGMA wal_checkpoint(TRUNCATE)")
            if journal.stat().st_size < LONGEST_JOURNAL:
                return
        self.retire()
        raise BrokerUnavailable(
            f"{journal} has grown beyond {LONGEST_JOURNAL} bytes: a process was stopped while it was reading, by a "
            "debugger or SIGSTOP. The next broker in the directory replaces the log."
        )

    def check(self) -> None:
        """Check that this is the log that processes find in the directory.

        :raises BrokerUnavailable: when another log replaces it.
        """
        if not os.path.exists(self._file):
            raise BrokerUnavailable(f"{self._file} was deleted or replaced. Open the broker again.")

    def retire(self) -> None:
        """Have the next broker in the directory replace this log."""
        with suppress(OSError):
            self._file.unlink()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()
        _logs.discard(self)

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Run a statement and return its rows. Waits while another process holds the lock.

        :raises BrokerUnavailable: when it is not known that it was done.
        """
        for _ in pauses():
            try:
                with self._lock:
                    return self._connection.execute(statement, parameters).fetchall()
            except sqlite3.Error as error:
                if not _is_locked(error):
                    raise self._unavailable(error) from error
        raise BrokerUnavailable(
            f"Another process has locked {self._file} for {LOCK_TIMEOUT:g} seconds. It was probably stopped, by a "
            f"debugger or SIGSTOP: `fuser {self._file}` lists the processes. Continue or end it."
        )

    def _look(self, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Run a statement without waiting, and return its rows.

        :raises Locked: when another process has locked the log for a moment.
        :raises BrokerUnavailable: when the log cannot be used.
        """
        try:
            with self._lock:
                return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            if _is_locked(error):
                raise Locked from error
            raise self._unavailable(error) from error

    def attempt(self, statement: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Run a statement and return its rows.

        :raises Passing: when it was not done, which may be otherwise the next time.
        :raises BrokerUnavailable: when the log is of no use any more.
        """
        try:
            with self._lock:
                return self._connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            if _is_damage(error):
                raise self._unavailable(error) from error
            raise Passing from error

    def _unavailable(self, error: sqlite3.Error) -> BrokerUnavailable:
        """Return what to raise for an error."""
        if _is_damage(error):
            return self._damaged(str(error))
        return BrokerUnavailable(
            f"The local broker cannot use {self._file}: {error}. Check that there is space on its file system, and "
            "that this user may write to it."
        )

    def _damaged(self, why: str) -> BrokerUnavailable:
        self.retire()
        return BrokerUnavailable(f"{self._file} is damaged: {why}. The next broker in the directory replaces it.")


class Locked(Exception):
    """Another process has locked the log, and the caller does not wait."""


class Passing(Exception):
    """A statement was not done, because of a lock or of an error that may go away."""


def _is_locked(error: sqlite3.Error) -> bool:
    # "database is locked", "database table is locked" or "locking protocol"; Python 3.10 does not have the code.
    return isinstance(error, sqlite3.OperationalError) and "lock" in str(error)


def _is_damage(error: sqlite3.Error) -> bool:
    # Python has no class of its own for a damaged file. A table is missing when someone has emptied the file.
    return type(error) is sqlite3.DatabaseError or str(error).startswith("no such")


def _connect(file: Path, mode: str = "rw") -> sqlite3.Connection:
    uri = f"{file.as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)


def open_log(directory: Directory) -> Log:
    """Open the log of a directory. Makes one if there is none, or if it is damaged.

    :raises BrokerUnavailable: when it cannot be opened or made.
    """
    with directory.setup():
        for name in os.listdir(directory.path):
            path = directory.path / name
            if name.startswith(LOG) and (path / "log").exists():
                try:
                    return Log(path)
                except BrokerUnavailable:
                    if (path / "log").exists():  # it is not damaged
                        raise
        return Log(_replace_log(directory.path))


def _replace_log(directory: Path) -> Path:
    """Make a log, remove all others, and return the directory of the new one."""
    epoch = secrets.token_urlsafe(8)
    new = directory / f"{NEW}{epoch}"
    new.mkdir(0o700)
    (new / "bells").mkdir(0o700)
    (new / "owners").mkdir(0o700)
    try:
        with closing(_connect(new / "log", "rwc")) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
    except sqlite3.Error as error:
        raise BrokerUnavailable(
            f"The local broker cannot make a log in {directory}: {error}. Check that there is space on its file system."
        ) from error
    for name in os.listdir(directory):
        path = directory / name
        if name.startswith(LOG):
            # In one step, so that no process finds a part of it.
            path = path.rename(directory / f"{OLD}{name[len(LOG) :]}")
            ring_all(path / "bells")
            shutil.rmtree(path / "bells", ignore_errors=True)  # by which publishers notice
        if name.startswith((LOG, NEW, OLD)) and path != new:
            shutil.rmtree(path)
    return new.rename(directory / f"{LOG}{epoch}")


# A fork while another thread is in SQLite would leave SQLite's own locks taken in the child for ever, and the child
# could roll back the transaction of its parent, because they share the index of the write-ahead log.
_logs: set[Log] = set()
_forking = threading.Lock()  # one thread at a time
_held: list[Log] = []


def _hold() -> None:
    _forking.acquire()
    _held.extend(_logs)
    for log in _held:
        log._lock.acquire()


def _let_go() -> None:
    while _held:
        _held.pop()._lock.release()
    if _forking.locked():  # not with --py-call-osafterfork of uWSGI, which announces only the end of a fork
        _forking.release()


os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)
