"""The local broker: the processes of one user on one machine, with nothing to install.

An ordered log carries the messages (``local_log.py``), bells wake its readers (``local_bells.py``), and both are in a
directory that is this user's alone (``local_directory.py``).

A process that forks keeps its broker. In the child, the broker opens the directory again at its first use. The
subscriptions of the parent can be dropped or closed there, which changes nothing for the parent, but not used.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from ...exceptions import BrokerUnavailable
from ...loops.base import allocate_lock
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
    batches,
)
from .local_bells import Bell, Bells
from .local_directory import Directory
from .local_history import prune_history, read_history
from .local_log import (
    PRUNED_MESSAGES,
    READ_MESSAGES,
    TRANSACTION_BYTES,
    TRANSACTION_MESSAGES,
    Locked,
    Log,
    open_log,
)
from .local_roster import LocalRoster
from .local_schema import OVERHEAD

#: The most rooms that one call of ``receive()`` compares.
COMPARED_ROOMS = 1000

#: A publisher prunes the log after so many seconds, messages or bytes, whichever comes first.
PRUNE_SECONDS = 1.0
PRUNE_MESSAGES = PRUNED_MESSAGES // 2
PRUNE_BYTES = 4 * 2**20

#: Seconds between two looks for rooms and publishers to forget.
FORGET_INTERVAL = 60.0


class LocalBroker(Broker):
    """Carries messages between the processes of one user on one machine.

    The directory is opened at the first use, and again after an error: a log that was damaged or deleted is replaced.

    :param directory: a directory on a tmpfs, the same one for all processes. Made with mode 0700 if it is missing.
    """

    publishes_now = True

    def __init__(self, directory: Path) -> None:
        self._path = directory
        # By process: a thread of the parent may hold its lock at a fork, of which uWSGI does not even tell Python.
        self._uses: dict[int, _Use] = {}

    def publish(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int]:
        with self._open() as opened:
            return opened.publish(messages, publisher)

    def publish_now(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int] | None:
        opened = self._use().opened
        if opened is None:
            return None
        with opened.closing:
            try:
                return opened.publish_now(messages, publisher)
            except BrokerUnavailable:  # as publish() will find out
                return None

    def subscribe(self, rooms: Iterable[str]) -> LocalSubscription:
        with self._open() as opened:
            return opened.subscribe(rooms)

    def history(self, room: str, after: Position | None, retention: Retention) -> History:
        with self._open_log() as log:
            return read_history(log, room, after, retention)

    def roster(self) -> Roster:
        return LocalRoster(self._open_log)

    @contextmanager
    def _open_log(self) -> Iterator[Log]:
        with self._open() as opened:
            opened.log.check()
            yield opened.log

    def _use(self) -> _Use:
        # setdefault(), because two threads may get here at once: both use the first one that is stored.
        return self._uses.get(os.getpid()) or self._uses.setdefault(os.getpid(), _Use())

    @contextmanager
    def _open(self) -> Iterator[_Opened]:
        """Yield the open directory for one call. After an error, the next call opens it again.

        :raises BrokerUnavailable: when the directory cannot be used, or others may use it.
        """
        use = self._use()
        with use.lock:
            if use.opened is None:
                use.opened = _Opened(self._path)
            opened = use.opened
            opened.calls += 1
        try:
            yield opened
        except BrokerUnavailable:
            use.give_up(opened)
            raise
        finally:
            with use.lock:
                opened.calls -= 1
                use.close_if_unused(opened)

    def close(self) -> None:
        use = self._use()
        use.give_up(use.opened)


class _Use:
    """What one process has open of a broker."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while the directory is opened or closed
        self.opened: _Opened | None = None

    def give_up(self, opened: _Opened | None) -> None:
        """Use what is open no longer, unless that was replaced already."""
        with self.lock:
            if opened is not None and self.opened is opened:
                self.opened = None
                self.close_if_unused(opened)

    def close_if_unused(self, opened: _Opened) -> None:
        """Close what is open if no call uses it any more: not under the hands of another thread. Needs the lock."""
        if opened is not self.opened and not opened.calls:
            opened.close()


class _Opened:
    """A directory with its log, open for publishers.

    :raises BrokerUnavailable: when the directory cannot be used, or others may use it.
    """

    def __init__(self, directory: Path) -> None:
        with ExitStack() as stack:
            self._directory = stack.enter_context(closing(Directory(directory)))
            #: The log.
            self.log = stack.enter_context(closing(open_log(self._directory)))
            self._bells = stack.enter_context(closing(Bells(self.log.path / "bells")))
            stack.pop_all()
        #: How many calls use it, apart from those of :meth:`publish_now`.
        self.calls = 0
        #: Held while it is closed, and by :meth:`publish_now`, so that it is not closed under its hands.
        self.closing = allocate_lock()
        self._is_closed = False
        self._last: tuple[str, int] | None = None  # the last publisher, and its last number, if its call has succeeded
        self._messages = self._bytes = 0  # published since the log was pruned
        self._prune_at = self._forget_at = 0.0

    def publish(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int]:
        # Both may find that another log replaces this one. Before the messages are there, so that none comes twice.
        self._prune_if_due()
        self._bells.check()
        fresh = self._fresh(messages, publisher)
        self._last = None
        for batch in batches(fresh, TRANSACTION_MESSAGES, TRANSACTION_BYTES):
            self.log.publish(batch, publisher)
            self._messages += len(batch)
            self._bytes += sum(len(message.data) + OVERHEAD for message in batch)
        reached = self._bells.ring()
        if fresh:
            self._last = (publisher, fresh[-1].number)
        return [-1] * (len(messages) - len(fresh)) + [reached] * len(fresh)

    def publish_now(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int] | None:
        """Publish messages if nobody has to be waited for; otherwise return None."""
        last = self._last
        if self._is_closed or last is None or last[0] != publisher or last[1] >= messages[0].number:
            return None
        size = sum([len(message.data) + OVERHEAD for message in messages])
        if len(messages) > TRANSACTION_MESSAGES or size > TRANSACTION_BYTES:
            return None
        self._prune_if_due()  # which does not wait; a thread would fall behind while a loop is busy
        self._last = None
        try:
            self.log.publish(messages, publisher, waits=False)
        except Locked:
            self._last = last
            return None
        self._messages += len(messages)
        self._bytes += size
        reached = self._bells.ring()
        self._last = (publisher, messages[-1].number)
        return [reached] * len(messages)

    def _fresh(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[Outgoing]:
        """Return the messages that were not published before."""
        last = self._last  # which another thread may replace meanwhile
        number = last[1] if last is not None and last[0] == publisher else self.log.last_number(publisher)
        if number is None or not messages or messages[0].number > number:
            return messages
        return [message for message in messages if message.number > number]

    def _prune_if_due(self) -> None:
        now = time.monotonic()
        if now < self._prune_at and self._messages < PRUNE_MESSAGES and self._bytes < PRUNE_BYTES:
            return
        self._messages = self._bytes = 0
        self._prune_at = now + PRUNE_SECONDS
        self.log.prune()
        prune_history(self.log)
        if now >= self._forget_at:
            self._forget_at = now + FORGET_INTERVAL
            self.log.forget()

    def subscribe(self, rooms: Iterable[str]) -> LocalSubscription:
        return LocalSubscription(self._directory.path, self.log.path, rooms)

    def close(self) -> None:
        with self.closing:
            self._is_closed = True
            self._bells.close()
            self.log.close()
            self._directory.close()


class LocalSubscription(Subscription):
    """A reader of the log. It keeps the directory in use by itself: the broker may close it after an error.

    :param directory: the directory of the broker.
    :param path: the directory of the log.
    :param rooms: the first rooms.
    :raises BrokerUnavailable: when the log cannot be read.
    """

    def __init__(self, directory: Path, path: Path, rooms: Iterable[str]) -> None:
        self._process = os.getpid()
        self._rooms = set(rooms)
        # The rooms that are to be compared, and whether they are new. Every change of it is one operation of the
        # interpreter, without a lock that a garbage collection could find taken.
        self._pending = dict.fromkeys(self._rooms, True)
        self._is_behind = False  # whether the log has probably more messages that were not read
        self._has_looked_in_vain = True  # whether the last look found no message
        self._is_closed = False
        with ExitStack() as stack:
            self._directory = stack.enter_context(closing(Directory(directory)))
            self._log = stack.enter_context(closing(Log(path)))
            # The bell comes before the end of the log: a publisher of a message after that end finds the bell.
            self._bell = stack.enter_context(closing(Bell(path / "bells")))
            self._after = self._log.end()
            stack.pop_all()
        self._bell.ring()

    def fileno(self) -> int:
        return self._bell.fileno()

    def add(self, room: str) -> None:
        self._rooms.add(room)
        self._pending[room] = True
        self._bell.ring()

    def remove(self, room: str) -> None:
        self._rooms.discard(room)
        self._pending.pop(room, None)

    def receive(self) -> Sequence[Event]:
        if self._process != os.getpid():
            raise BrokerUnavailable("This process was forked after the subscription began. Subscribe again.")
        if self._is_closed:
            raise BrokerUnavailable("The subscription is closed.")
        # Most often there is one ring. More of them are taken when there was nothing to read.
        self._bell.take(all_rings=self._has_looked_in_vain)
        events: list[Event] = []
        with suppress(Locked):  # the next tick rings again
            if self._is_behind or not self._pending:
                self._take(events)
            else:
                self._compare(events)
            if self._is_behind or self._pending:
                self._bell.ring()
        return events

    def tick(self) -> None:
        """Check that publishers use this log and find this bell, and look into the log although nobody has rung."""
        self._log.check()
        self._bell.check()
        self._bell.ring()

    def _take(self, events: list[Event]) -> None:
        """Append the next messages to *events*."""
        messages = self._log.read(self._after)
        self._is_behind = len(messages) == READ_MESSAGES
        self._has_looked_in_vain = not messages
        if not messages:
            self._log.check()  # whoever replaces the log rings, too
            return
        if messages[0][0] != self._after + 1:  # the log no longer has those in between
            for room in list(self._rooms):
                self._pending.setdefault(room, False)
        self._after = messages[-1][0]
        rooms, epoch = self._rooms, self._log.epoch
        for _, room, previous, offset, data in messages:
            if room in rooms:
                events.append(Delivered(room, Position(epoch, offset), previous, data))

    def _compare(self, events: list[Event]) -> None:
        """Append all messages to *events*, and then the positions of rooms that are to be compared."""
        with self._log.snapshot():
            self._take(events)
            while self._is_behind:
                self._take(events)
            pending: dict[str, bool] = {}
            with suppress(KeyError):  # no more rooms
                while len(pending) < COMPARED_ROOMS:
                    pending.update([self._pending.popitem()])
            positions = self._log.positions(pending)
        if new := [room for room, is_new in pending.items() if is_new]:
            events.append(Subscribed(new))
        events.append(Compared(positions))

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._process == os.getpid():
            self._bell.close()
            self._log.close()
        self._directory.close()
