"""The broker that carries messages between workers and machines: Redis or Valkey, 6.2 or newer.

A Lua script puts a message into the order of its room and publishes it in one step. Its place travels with it, so that
whoever receives sees what is missing. The same step appends it to the history of its room, if it is to be kept:

=========================  ============================================================================
``PREFIX:epoch``           the epoch, which begins with the name of this run of the server
``PREFIX:offset:ROOM``     the offset of the room's last message, for a day
``PREFIX:publisher:NAME``  the number of the publisher's last message, by which a repeated one is known
``PREFIX:history:ROOM``    the messages that are kept: a stream, whose ids are offsets
=========================  ============================================================================

The messages are in the channels ``PREFIX:room:DATABASE:ROOM``, since channels are common to all databases of a server.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

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
from .redis_roster import RedisRoster
from .redis_scripts import HISTORY, PUBLISH
from .redis_wire import Refusal, ScriptRunner, Settings, Wire, decode, encode

if TYPE_CHECKING:
    from redis import Redis

logger = logging.getLogger("flask_uwsgi_websocket")

#: Seconds of silence after which a subscription sends a PING, and after which it then gives up. The contract allows 10.
PING_AFTER = 4.0
SILENT_AFTER = 4.0

#: What one call of the script takes, during which Redis does nothing else: messages, and bytes of them.
BATCH = 64
BATCH_SIZE = 2**20

#: The number of rooms in one SUBSCRIBE.
ROOMS_AT_ONCE = 256


class RedisBroker(Broker):
    """Redis or Valkey, which is reached by redis-py.

    :param source: a URL: ``redis://``, ``rediss://`` for TLS or ``unix://``, with the parameters that
        :meth:`redis.Redis.from_url` knows, and *prefix*. Or a client, such as ``Sentinel(...).master_for("main")``.
    :param prefix: what the keys and channels begin with.
    :raises RuntimeError: when redis-py is not installed.
    :raises ValueError: when the URL is wrong.
    """

    def __init__(self, source: str | Redis, *, prefix: str = "websocket") -> None:
        self._settings = settings = Settings(source, prefix)
        self._epoch, self._offset, self._publisher, self._history = map(
            settings.key, ("epoch", "offset:", "publisher:", "history:")
        )
        self._channel = settings.key(f"room:{settings.database}:")
        self._publishing = ScriptRunner(settings)
        # Many read histories at once when clients come back. Neither they nor the publisher wait for one another.
        self._reading = ScriptRunner(settings)

    def __repr__(self) -> str:
        return f"<RedisBroker: {self._settings}>"

    def publish(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int]:
        counts: list[int] = []
        for batch in batches(messages, BATCH, BATCH_SIZE):
            counts += self._publishing.run(PUBLISH, *self._publish_arguments(batch, publisher))
        return counts

    def _publish_arguments(self, batch: Sequence[Outgoing], publisher: str) -> tuple[list[bytes], list[bytes]]:
        """Return the keys and the arguments of :data:`PUBLISH`."""
        keys = [self._epoch, self._publisher + publisher.encode()]
        values = [b"%d" % len(batch)]
        for message in batch:
            room = encode(message.room)
            keys.append(self._offset + room)
            values += (self._channel + room, b"%d" % message.number, message.data)
        if any(message.retention for message in batch):
            for message in batch:
                keys.append(self._history + encode(message.room))
                values += (b"", b"", b"") if message.retention is None else _limits(message.retention)
        return keys, values

    def subscribe(self, rooms: Iterable[str]) -> Subscription:
        return _RedisSubscription(self._settings, self._epoch, self._offset, self._channel, rooms)

    def history(self, room: str, after: Position | None, retention: Retention) -> History:
        name = encode(room)
        if after is None or after.offset >= 2**63:  # no position of ours, nor an id of a stream
            after = Position("", 0)
        keys = [self._epoch, self._offset + name, self._history + name]
        reply = self._reading.run(
            HISTORY, keys, [encode(after.epoch), b"%d" % max(0, after.offset), *_limits(retention)]
        )
        if not reply:
            return History(None, [])
        epoch = reply[0].decode()
        return History(
            Position(epoch, int(reply[1])),
            [
                Delivered(room, Position(epoch, int(offset)), int(previous), data)
                for offset, previous, data in zip(*(iter(reply[2:]),) * 3, strict=True)
            ],
        )

    def roster(self) -> Roster:
        return RedisRoster(self._settings)

    def close(self) -> None:
        """Close the connections, after the calls that are under way. Subscriptions and rosters have their own."""
        self._publishing.close()
        self._reading.close()


def _limits(retention: Retention) -> tuple[bytes, bytes, bytes]:
    """Return the arguments of a script for a retention."""
    return b"%d" % retention.messages, b"%.3f" % retention.seconds, b"%d" % retention.size


class _RedisSubscription(Subscription):
    """A connection that receives. Commands go out on it from any thread, with a lock, since no call waits."""

    def __init__(self, settings: Settings, epoch: bytes, offset: bytes, channel: bytes, rooms: Iterable[str]) -> None:
        self._settings = settings
        self._epoch_key, self._offset, self._channel = epoch, offset, channel
        #: The rooms whose positions are asked for, and how many of them Redis has not yet confirmed.
        self._asked: deque[tuple[list[str], int]] = deque()
        self._epoch, self._epoch_bytes = "", b""
        self._has_logged = self._is_closed = False
        self._wire = Wire(settings)
        self._wire.begin_to_listen()
        self._lock = allocate_lock()  # guards the socket: one thread at a time may use that of TLS
        self._heard = monotonic()
        self._pinged: float | None = None
        rooms = list(rooms)
        for start in range(0, len(rooms), ROOMS_AT_ONCE):
            self._add(rooms[start : start + ROOMS_AT_ONCE])

    def fileno(self) -> int:
        return self._wire.fileno()

    def add(self, room: str) -> None:
        self._add([room])

    def _add(self, rooms: list[str]) -> None:
        names = [encode(room) for room in rooms]
        with self._sending():
            self._asked.append((rooms, len(rooms)))
            self._wire.put(b"SUBSCRIBE", *(self._channel + name for name in names))
            self._wire.put(b"MGET", self._epoch_key, *(self._offset + name for name in names))

    def remove(self, room: str) -> None:
        with self._sending():
            self._wire.put(b"UNSUBSCRIBE", self._channel + encode(room))

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """Send commands in a ``with`` statement. An error is left to :meth:`receive`, which gets it, too."""
        with self._lock, suppress(*self._settings.errors):
            yield

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._wire.close()

    def receive(self) -> Sequence[Event]:
        try:
            with self._lock:
                self._check_open()
                has_read = self._wire.read()
            if has_read:
                self._heard = monotonic()
                self._pinged = None
            return self._take_events()
        except self._settings.errors as error:
            raise self._settings.unavailable(error) from error

    def tick(self) -> None:
        now = monotonic()
        silence = now - self._heard
        if self._pinged is not None and now - self._pinged >= SILENT_AFTER:
            raise BrokerUnavailable(f"{self._settings} has not answered for {silence:.0f} seconds.")
        try:
            with self._lock:
                self._check_open()
                if self._pinged is None and silence >= PING_AFTER:
                    self._pinged = now
                    self._wire.put(b"PING")
                self._wire.flush()
        except self._settings.errors as error:
            raise self._settings.unavailable(error) from error

    def _check_open(self) -> None:
        if self._is_closed:
            raise BrokerUnavailable(f"{self._settings}: the subscription is closed.")

    def _take_events(self) -> list[Event]:
        """Return the events in the replies that have arrived."""
        events: list[Event] = []
        push_type = self._settings.push_type
        for reply in self._wire.replies():
            event = self._on_push(*reply) if type(reply) is push_type else self._on_reply(reply)
            if event is not None:
                events.append(event)
        return events

    def _on_push(self, kind: bytes, channel: bytes, payload: Any) -> Event | None:
        room = decode(channel[len(self._channel) :])
        if kind == b"message":
            return self._delivered(room, payload)
        if kind == b"subscribe":
            rooms, missing = self._asked[0]
            self._asked[0] = rooms, missing - 1
            if missing == 1:
                return Subscribed(rooms)
        return None

    def _delivered(self, room: str, payload: bytes) -> Delivered | None:
        try:
            epoch, previous, offset, data = payload.split(b":", 3)
            if epoch != self._epoch_bytes:
                self._epoch, self._epoch_bytes = epoch.decode(), epoch
            return Delivered(room, Position(self._epoch, int(offset)), int(previous), data)
        except ValueError:
            if not self._has_logged:
                logger.warning("%s: somebody else publishes to the channel of the room %r.", self._settings, room)
            self._has_logged = True
            return None

    def _on_reply(self, reply: Any) -> Event | None:
        if isinstance(reply, Refusal):
            raise reply
        if not isinstance(reply, list):  # that of PING
            return None
        # All messages up to these positions came before, since Redis answers in the order of what it does.
        rooms, _ = self._asked.popleft()
        epoch, *offsets = reply
        return Compared(
            {
                room: None if epoch is None or offset is None else Position(epoch.decode(), int(offset))
                for room, offset in zip(rooms, offsets, strict=True)
            }
        )
