"""What arrives at a process: one subscription for all its rooms, opened again whenever it breaks."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..exceptions import BrokerUnavailable
from ..loops.base import Loop, allocate_lock
from .brokers.base import Broker, Event, Subscription
from .outbox import backoff

#: Seconds between two checks of the broker and of empty rooms.
TICK_INTERVAL = 1.0

#: The key that every feed subscribes to, so that all processes with rooms can be asked. No room has it.
ALL_PROCESSES = "*"

#: Seconds for which messages may hold up the other connections.
SLICE = 0.001

logger = logging.getLogger("flask_uwsgi_websocket")


class Reader(Protocol):
    """What is done with the events. Only the feed calls this."""

    def read(self, event: Event, loop: Loop) -> Awaitable[None] | None:
        """Handle an event. Return what is to be awaited if that takes long.

        :raises BrokerUnavailable: when the broker cannot be reached. The subscription is opened again.
        """

    def sweep(self, give_up: Callable[[str], None]) -> None:
        """Call *give_up* with each room that nobody needs. Called about once a second."""

    def on_loss(self) -> None:
        """Note that no messages arrive until the rooms are subscribed again."""


class Feed:
    """Reads the events of a subscription in a thread, greenlet or task of the loop of the first member.

    It starts with the first room and ends after the last one.

    :param get_broker: returns the broker, or raises :exc:`BrokerUnavailable`.
    """

    def __init__(self, get_broker: Callable[[], Broker], reader: Reader) -> None:
        self._get_broker = get_broker
        self._reader = reader
        self._lock = allocate_lock()  # guards the next three
        self._rooms: set[str] = set()
        self._subscription: Subscription | None = None
        self._is_running = False
        #: Why no messages arrive although there are rooms, or None.
        self.error: str | None = None
        #: How often the subscription was lost.
        self.losses = 0

    def add(self, room: str, loop: Loop) -> None:
        """Subscribe to a room, unless that was done. It does not wait for the broker.

        Hold no lock: the start of a thread may let others run.

        :param loop: where the feed runs, if it is not running.
        """
        with self._lock:
            is_new = room not in self._rooms
            self._rooms.add(room)
            if self._subscription is not None and is_new:
                self._subscription.add(room)
            starts, self._is_running = not self._is_running, True
        if starts:
            try:
                loop.start(self._run(loop), "flask-uwsgi-websocket-rooms")
            except BaseException:  # no more threads: the next room tries again
                self._is_running = False
                raise

    def remove(self, room: str) -> None:
        """Unsubscribe from a room, without waiting."""
        with self._lock:
            self._rooms.discard(room)
            if self._subscription is not None:
                self._subscription.remove(room)

    async def _run(self, loop: Loop) -> None:
        """Read until there are no rooms."""
        attempt = 0
        while self._is_needed():
            try:
                subscription = await self._open(loop)
                await self._read(subscription, loop)
            except Exception as error:
                if self.error is None:  # events have arrived: a broker that refuses each subscription counts on
                    attempt = 0
                self._report(error)
                self._reader.sweep(self.remove)
                await loop.sleep(backoff(attempt))
                attempt += 1

    def _is_needed(self) -> bool:
        """Return whether there are rooms. Otherwise, the next room starts the feed again."""
        with self._lock:
            self._is_running = bool(self._rooms)
            if not self._is_running:  # nobody can say whether the broker is away
                self.error = None
            return self._is_running

    async def _open(self, loop: Loop) -> Subscription:
        """Open a subscription of all rooms, and of :data:`ALL_PROCESSES`."""
        with self._lock:
            asked = set(self._rooms)
        subscription = await loop.call_blocking(lambda: self._get_broker().subscribe([ALL_PROCESSES, *asked]))
        with self._lock:
            for room in self._rooms - asked:
                subscription.add(room)
            for room in asked - self._rooms:
                subscription.remove(room)
            self._subscription = subscription
        return subscription

    async def _read(self, subscription: Subscription, loop: Loop) -> None:
        """Read a subscription until there are no rooms.

        :raises BrokerUnavailable: when the subscription is lost.
        """
        watch = loop.watch(subscription.fileno(), TICK_INTERVAL)
        try:
            while self._rooms:
                is_due = not await watch.wait()
                end = time.monotonic() + SLICE
                for event in subscription.receive():
                    if self.error is not None:
                        logger.warning("The messages of rooms arrive again.")
                        self.error = None
                    try:
                        if (rest := self._reader.read(event, loop)) is not None:
                            await rest
                    except BrokerUnavailable:  # it has more to say, and is asked again
                        raise
                    except Exception:  # of one message, which must not end the subscription
                        logger.exception("a message of a room was not delivered")
                    if time.monotonic() > end:
                        await loop.sleep(0)
                        end = time.monotonic() + SLICE
                if is_due:
                    subscription.tick()
                    self._reader.sweep(self.remove)
        finally:
            with self._lock:
                self._subscription = None
            watch.close()
            subscription.close()

    def _report(self, error: Exception) -> None:
        """Note that the broker cannot be reached, and log it once until it can be."""
        if self.error is None:
            self.losses += 1
            known = isinstance(error, BrokerUnavailable)
            logger.warning(
                "Messages of rooms do not arrive until the broker is available again: %s",
                error if known else repr(error),
                exc_info=not known,
            )
        self.error = str(error)
        self._reader.on_loss()
