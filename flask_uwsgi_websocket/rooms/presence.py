"""Presence: each process enters its connections in the roster of the broker, and announces who comes and goes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from ..exceptions import BrokerUnavailable
from ..loops.base import Loop, allocate_lock
from .brokers.base import RENEW_INTERVAL, Attendance, Broker, Lease, Presence, Roster
from .outbox import backoff

#: Connections that one call of the broker enters or removes.
BATCH = 100

#: Seconds for which the keeper rests after a change, so that one call has all connections of a storm.
REST = 0.01

#: Seconds without a renewal after which the lease may have ended, whatever the broker says now.
SURE_TIME = 5.0

#: Seconds for which the keeper looks for members that have left, after the last connection of this process and its
#: grace.
LINGER = 5.0

#: The most seconds that a reader waits until the broker knows the connections of its own process.
OWN_TIME = 1.0

#: Seconds between two looks whether it does.
LOOK = 0.001

#: The most announcements that wait for the application's functions. Beyond it, the oldest ones are lost.
MOST_ANNOUNCEMENTS = 100_000

logger = logging.getLogger("flask_uwsgi_websocket")


@dataclass(frozen=True)
class Member:
    """A member of a room with presence: a user with all connections, or a connection without a user.

    :param id: the id of the user, or that of the connection.
    :param user_id: the id of the user as text, or None.
    :param info: what the newest of its connections has passed to ``join()``.
    :param since: when it came, in seconds since 1970.
    """

    id: str
    user_id: str | None
    info: Any
    since: float


class Announcer:
    """Calls a function for each member that comes or goes, in the order in which they do, in a thread of its own.

    The functions of the application may take long, which must not end the lease.

    :param announce: called with "join" or "leave", and the member.
    """

    def __init__(self, announce: Callable[[str, Presence], None]) -> None:
        self._announce = announce
        self._lock = allocate_lock()  # guards the next two
        self._queue: deque[tuple[str, Presence]] = deque()
        self._is_running = False

    def put(self, kind: str, presences: Iterable[Presence]) -> None:
        """Announce members soon."""
        with self._lock:
            self._queue.extend((kind, presence) for presence in presences)
            lost = max(0, len(self._queue) - MOST_ANNOUNCEMENTS)
            for _ in range(lost):
                self._queue.popleft()
            starts = bool(self._queue) and not self._is_running
            self._is_running |= starts
        if lost:
            logger.error("%d joins and leaves were not announced: on_join and on_leave functions are too slow.", lost)
        if starts and not _start(self._run, "flask-uwsgi-websocket-announcer"):
            self._is_running = False

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._is_running = False
                    return
                kind, presence = self._queue.popleft()
            try:
                self._announce(kind, presence)
            except Exception:  # of one member: the others go on
                logger.exception("announcing a %s has failed", kind)


class Keeper:
    """Keeps the roster in step with the connections of this process, in a thread of its own.

    It notes what should be in the roster, and what may differ. So a broker that is away, or has lost its memory, costs
    nothing but time. It starts with the first connection, and ends some time after the last one.

    :param get_broker: returns the broker, or raises :exc:`BrokerUnavailable`.
    :param announce: called with "join" or "leave", and a member that has come or gone.
    """

    def __init__(self, get_broker: Callable[[], Broker], announce: Callable[[str, Presence], None]) -> None:
        self._get_broker = get_broker
        self._announcer = Announcer(announce)
        self._lock = allocate_lock()  # guards the next four
        self._present: dict[tuple[str, str], Attendance] = {}  # by the room and the id of the connection
        self._changed: dict[tuple[str, str], Attendance] = {}  # those that the roster may not have as they are here
        self._is_running = False
        self._ends_at = 0.0
        self._alarm = threading.Event()
        self._making = threading.Lock()  # held while the roster is made
        self._roster: Roster | None = None
        self._is_working = False  # only the thread changes it
        # Only the thread uses the next ones.
        self._arrived: list[Presence] = []  # members who have come, and were not announced yet
        self._entered: set[tuple[str, str]] = set()
        self._known: set[tuple[str, str]] = set()  # whose members were announced, before the broker has forgotten them
        self._tick_at = self._renewed_at = 0.0
        #: Why the broker cannot be reached, or None.
        self.error: str | None = None

    @property
    def reaped(self) -> int:
        """How many connections of dead processes this one has removed."""
        return 0 if self._roster is None else self._roster.reaped

    def enter(self, attendance: Attendance) -> None:
        """Enter a connection soon, or change what it has entered."""
        key = (attendance.room, attendance.connection)
        with self._lock:
            self._present[key] = self._changed[key] = attendance
        self.wake(attendance.grace)

    def leave(self, room: str, connection: str) -> None:
        """Remove a connection soon. Does nothing when it was not entered."""
        key = (room, connection)
        with self._lock:
            attendance = self._present.pop(key, None)
            if attendance is None:
                return
            self._changed[key] = attendance
        self.wake(attendance.grace)

    def wake(self, grace: float = 0.0) -> None:
        """Let the keeper look soon, and on for some time after a grace. It starts if it does not run."""
        with self._lock:
            self._ends_at = max(self._ends_at, time.monotonic() + grace + LINGER)
            starts, self._is_running = not self._is_running, True
        if not starts:
            self._alarm.set()
        elif not _start(self._run, "flask-uwsgi-websocket-presence"):
            self._is_running = False

    def is_behind(self) -> bool:
        """Return whether the broker does not know all connections of this process as they are."""
        return bool(self._changed) or self._is_working

    async def members(self, room: str, loop: Loop) -> Sequence[Presence]:
        """Return the members of a room. Those of this process are right, unless the broker is away.

        :param loop: the loop of the caller.
        :raises BrokerUnavailable: when the broker cannot be reached.
        """
        await self._catch_up(loop)
        return await loop.call_blocking(lambda: self.roster().members(room))

    async def count(self, room: str, loop: Loop) -> int:
        """Return the number of members of a room; see :meth:`members`."""
        await self._catch_up(loop)
        return await loop.call_blocking(lambda: self.roster().count(room))

    async def _catch_up(self, loop: Loop) -> None:
        deadline = time.monotonic() + OWN_TIME
        while self.is_behind() and self.error is None and time.monotonic() < deadline:
            await loop.sleep(LOOK)

    def roster(self) -> Roster:
        """Return the roster of this process, made at the first call."""
        if self._roster is None:
            with self._making:
                if self._roster is None:
                    self._roster = self._get_broker().roster()
        return self._roster

    # The thread

    def _run(self) -> None:
        attempt = 0
        while self._is_needed():
            self._alarm.clear()
            try:
                has_changed = self._step()
            except Exception as error:
                self._report(error)
                time.sleep(backoff(attempt))
                attempt += 1
            else:
                attempt, self.error = 0, None
                if has_changed and len(self._changed) < BATCH:
                    time.sleep(REST)
                if not self._changed:
                    self._alarm.wait(max(0.0, self._tick_at - time.monotonic()))

    def _is_idle(self) -> bool:
        """Return whether this process has nobody to enter, and nobody to wait for."""
        return not (self._present or self._changed) and time.monotonic() >= self._ends_at

    def _is_needed(self) -> bool:
        if self._is_idle() and self._roster is not None:  # the lease can be taken again
            with suppress(BrokerUnavailable):
                self._roster.close()
        with self._lock:
            self._is_running = not self._is_idle()
            return self._is_running

    def _report(self, error: Exception) -> None:
        if self.error is None:
            if isinstance(error, BrokerUnavailable):
                logger.warning("Presence is not up to date until the broker is available again: %s", error)
            else:
                logger.exception("keeping presence has failed")
        self.error = str(error) or repr(error)

    def _step(self) -> bool:
        """Renew the lease if it is time, enter and remove some connections, and announce who has come and gone.

        :returns: whether there were connections to enter or remove.
        """
        now = time.monotonic()
        if now >= self._tick_at:
            self._renew(now)
            self._announcer.put("leave", self.roster().sweep())
            self._tick_at = now + RENEW_INTERVAL
        self._is_working = True
        try:
            with self._lock:
                keys = list(self._changed)[:BATCH]
                changed = {key: self._changed.pop(key) for key in keys}
                entering = [self._present[key] for key in keys if key in self._present]
            try:
                self._apply(changed, entering)
            except BaseException:
                with self._lock:  # what has changed meanwhile is newer
                    self._changed = changed | self._changed
                raise
            return bool(changed)
        finally:
            self._is_working = False

    def _renew(self, now: float) -> None:
        """Renew the lease, and enter all connections again if it may have been lost."""
        lease = self.roster().renew() if self._entered else Lease.HELD
        is_sure = lease is Lease.HELD and now - self._renewed_at < SURE_TIME
        self._renewed_at = now
        if is_sure or not self._entered:
            return
        if lease is Lease.UNKNOWN:  # the broker has lost its memory: nobody has come, and nobody has gone
            self._known |= self._entered
        with self._lock:
            self._changed = self._present | self._changed

    def _apply(self, changed: dict[tuple[str, str], Attendance], entering: Sequence[Attendance]) -> None:
        # Enter first: whoever replaces one connection by another one is always there.
        keys = {(each.room, each.connection) for each in entering}
        if entering:
            self._arrived += self.roster().enter(entering)
            arrived = {(each.room, each.member) for each in self._arrived}
            again = {(each.room, each.connection) for each in entering if (each.room, each.member) in arrived}
            if again & self._entered - self._known:  # something was lost since the lease was renewed
                self._renew(time.monotonic())
            known = {(each.room, each.member) for each in entering if (each.room, each.connection) in self._known}
            self._known -= keys
            self._entered |= keys
            self._announcer.put("join", [each for each in self._arrived if (each.room, each.member) not in known])
            self._arrived = []
        leaving = {key: attendance for key, attendance in changed.items() if key not in keys}
        if leaving:
            self.roster().leave(list(leaving.values()))
            self._entered -= leaving.keys()
            self._known -= leaving.keys()


def _start(function: Callable[[], None], name: str) -> bool:
    """Run a function in a thread, or in a greenlet where the standard library is patched; return whether it starts."""
    thread = threading.Thread(target=function, name=name, daemon=True)
    try:
        Context().run(thread.start)  # a greenlet would keep the caller's context alive
    except RuntimeError:
        logger.exception("the thread %r cannot start: presence is late until there are fewer threads", name)
        return False
    return True
