"""The broker that carries messages between workers and machines: Redis or Valkey, 6.2 or newer.

A Lua script puts a message into the order of its room and publishes it in one step. Its place travels with it, so that
whoever receives sees what is missing. Nothing is stored but a few counters:

=========================  ============================================================================
``PREFIX:epoch``           the epoch, which begins with the name of this run of the server
``PREFIX:offset:ROOM``     the offset of the room's last message
``PREFIX:publisher:NAME``  the number of the publisher's last message, by which a repeated one is known
=========================  ============================================================================

The messages are in the channels ``PREFIX:room:DATABASE:ROOM``, since channels are common to all databases of a server.

redis-py reads the URL, connects, authenticates, speaks TLS and asks Sentinel. After that the sockets are ours: a
connection that breaks must not come back by itself, because messages are lost meanwhile, and the server that answers
may be another one.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha1
from ssl import SSLWantReadError, SSLWantWriteError
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from ...exceptions import BrokerUnavailable
from ...loops.base import allocate_lock
from .base import Broker, Compared, Delivered, Event, Outgoing, Position, Subscribed, Subscription, batches

if TYPE_CHECKING:
    from redis import Redis

logger = logging.getLogger("flask_uwsgi_websocket")

#: Seconds that Redis may take to accept a connection, and to answer a command, unless the URL or the client says more.
CONNECT_TIMEOUT = 3.0
TIMEOUT = 4.0

#: Seconds of silence after which a subscription sends a PING, and after which it then gives up. The contract allows 10.
PING_AFTER = 4.0
SILENT_AFTER = 4.0

#: What one call of the script takes, during which Redis does nothing else: messages, and bytes of them.
BATCH = 64
BATCH_SIZE = 2**20

#: The number of rooms in one SUBSCRIBE.
ROOMS_AT_ONCE = 256

#: A read takes a whole record of TLS, which is 16 KiB at most, so that none is left where poll() does not see it.
READ_SIZE = 2**16

#: What a socket raises that would have to wait.
_LATER = (BlockingIOError, SSLWantReadError, SSLWantWriteError)

# A server that starts again may have an old snapshot. Then it would count again from there. So an epoch begins with the
# name of the run, and each connection compares it before it does anything else: a connection does not outlive the run.
_EPOCH = """
local function begin(key, run)
    local time = redis.call('TIME')
    local epoch = run .. '-' .. time[1] .. string.format('%06d', time[2])
    redis.call('SET', key, epoch)
    return epoch
end
local function run()
    return string.sub(string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or 'unknown', 1, 12)
end
"""

_MEET = (
    _EPOCH
    + """
local epoch, run = redis.call('GET', KEYS[1]), run()
if not epoch or string.sub(epoch, 1, #run) ~= run then
    begin(KEYS[1], run)
end
"""
).encode()

# A room that is not known begins at the time, so that its offset is above those that Redis has forgotten.
# The publisher's number is kept after each message: if the next one fails, this one is not published again.
_PUBLISH = (
    _EPOCH
    + """
local counts = {}
local epoch = redis.call('GET', KEYS[1]) or begin(KEYS[1], run())
local last = tonumber(redis.call('GET', KEYS[2]) or -1)
for i = 1, #KEYS - 2 do
    local channel, number, data = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
    if tonumber(number) <= last then
        counts[i] = -1
    else
        local offset = redis.call('INCR', KEYS[i + 2])
        local previous, place = string.format('%.0f', offset - 1), string.format('%.0f', offset)
        if offset == 1 then
            local time = redis.call('TIME')
            place = time[1] .. string.format('%06d', time[2])
            redis.call('SET', KEYS[i + 2], place, 'EX', 86400)
        else
            redis.call('EXPIRE', KEYS[i + 2], 86400)
        end
        counts[i] = redis.call('PUBLISH', channel, epoch .. ':' .. previous .. ':' .. place .. ':' .. data)
        redis.call('SET', KEYS[2], number, 'EX', 300)
        last = tonumber(number)
    end
end
return counts
"""
).encode()

_PUBLISH_SHA = sha1(_PUBLISH, usedforsecurity=False).hexdigest().encode()

_PASSWORD = "Put the password into the URL."
_PERMIT = "Give the user the commands, keys and channels of the rooms by ACL SETUSER."
_NO_CLUSTER = "Rooms need a server that is no part of a Redis Cluster."

#: What to do about an error of Redis, by a part of its text.
_REMEDIES = {
    "NOAUTH": _PASSWORD,
    "Authentication required": _PASSWORD,
    "invalid username-password pair": "Check the user and the password in the URL.",
    "NOPERM": _PERMIT,
    "ACL failure": _PERMIT,
    "user executing the script can't": _PERMIT,
    "CROSSSLOT": _NO_CLUSTER,
    "CLUSTERDOWN": _NO_CLUSTER,
    "MOVED": _NO_CLUSTER,
    "OOM command": "Raise its maxmemory, or let it evict keys.",
    "read only replica": "It is a replica: use the address of the master, or Sentinel.",
    "loading the dataset": "It is starting, and answers when it has read its data.",
    "MISCONF": "It cannot save its data: its log says why.",
    "max number of clients reached": "Raise its maxclients.",
    "unknown command": "Rooms need Redis or Valkey 6.2 or newer, with all of its commands.",
}


class Refusal(Exception):
    """An error that Redis replies. Its text begins with a code, such as ``NOPERM``."""


class _Settings:
    """How to connect to Redis.

    :param source: a URL or a client.
    :param prefix: what the keys and channels begin with, if the URL has no parameter of this name.
    :raises RuntimeError: when redis-py is not installed.
    :raises ValueError: when the URL is wrong.
    """

    def __init__(self, source: str | Redis, prefix: str) -> None:
        try:
            import hiredis
            import redis
            from redis.backoff import NoBackoff
            from redis.connection import ConnectionPool
            from redis.retry import Retry
        except ImportError as error:
            raise RuntimeError('WEBSOCKET_BROKER needs redis-py: pip install "Flask-uWSGI-WebSocket[redis]"') from error
        # redis-py's own layers around its parser cost several times as much for each message.
        self.make_reader = partial(hiredis.Reader, replyError=Refusal)
        self.push_type = hiredis.PushNotification
        self.pack: Callable[[tuple[bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]
        self.prefix = prefix
        if isinstance(source, str):
            url = self._take_prefix(source)
            try:
                pool = ConnectionPool.from_url(url)
            except ValueError:  # whose text may have a part of the password
                raise ValueError(
                    "The URL of Redis is wrong. It is redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss:// instead for "
                    "TLS, or unix:///PATH?db=DATABASE. Percent-encode special characters in the password."
                ) from None
        else:
            pool = source.connection_pool
        self._source = source  # which Sentinel's connections refer to weakly
        # Connections like those of the pool that are not in it: it would count them, and they are never given back.
        self._make = pool.connection_class
        options = {name: value for name, value in pool.connection_kwargs.items() if "maint_notifications" not in name}
        for name, value in (("socket_connect_timeout", CONNECT_TIMEOUT), ("socket_timeout", TIMEOUT)):
            if options.get(name) is None:
                options[name] = value
        self._options = {
            **options,
            "decode_responses": False,
            "health_check_interval": 0,
            "protocol": 2,  # in the handshake: RESP3 begins after it
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
            "retry_on_timeout": False,
        }
        self.timeout = float(options["socket_timeout"])
        self._timeouts = (TimeoutError, redis.TimeoutError)
        self.errors = (redis.RedisError, hiredis.HiredisError, OSError, Refusal, ValueError)
        self.database = int(options.get("db") or 0)
        self._service = getattr(pool, "service_name", None)
        self.connection()  # which raises for an option that redis-py does not know

    def _take_prefix(self, url: str) -> str:
        """Remove our own parameter from a URL, and leave the rest as it is."""
        base, mark, query = url.partition("?")
        others = []
        for pair in query.split("&"):
            name, _, value = pair.partition("=")
            if name == "prefix":
                self.prefix = unquote_plus(value)
            else:
                others.append(pair)
        return base + mark + "&".join(others)

    def connection(self) -> Any:
        """Return a connection of redis-py that is not yet open."""
        try:
            return self._make(**self._options)
        except TypeError as error:  # which names the option
            raise ValueError(f"The URL of Redis has a parameter that redis-py does not know: {error}") from None

    def __str__(self) -> str:
        if self._service:
            return f"the Redis master {self._service!r}, database {self.database}"
        place = self._options.get("path")
        if place is None:
            place = f"{self._options.get('host', 'localhost')}:{self._options.get('port', 6379)}"
        return f"Redis at {place}, database {self.database}"

    def unavailable(self, error: BaseException) -> BrokerUnavailable:
        """Return the exception for an error, with what to do about it if that is known."""
        if isinstance(error, self._timeouts):
            return BrokerUnavailable(f"{self} has not answered for {self.timeout:g} seconds.")
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        remedy = next((f" {remedy}" for part, remedy in _REMEDIES.items() if part in text), "")
        return BrokerUnavailable(f"{self}: {text}.{remedy}")


class _Wire:
    """A socket to Redis, on which commands and replies are ours.

    :raises BrokerUnavailable: when Redis cannot be reached, or does not let us in.
    """

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._replies = settings.make_reader()
        self._output = bytearray()
        try:
            self._connection = settings.connection()
        except OSError as error:  # redis-py reads its own version from a file
            raise settings.unavailable(error) from error
        try:
            self._connection.connect()
            # redis-py has no other name for it. It has had this one since 2010, and kombu relies on it, too.
            self._socket: socket.socket = self._connection._sock
            self.ask(b"HELLO", b"3")
            self.ask(b"EVAL", _MEET, b"1", f"{settings.prefix}:epoch".encode())
        except settings.errors as error:
            self.close()
            raise settings.unavailable(error) from error
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, *words: bytes) -> Any:
        """Send a command, and wait for the reply.

        :raises Refusal: when it is an error.
        """
        self._socket.sendall(self._settings.pack(words))
        while (reply := self._replies.gets()) is False:
            self._read()
        if isinstance(reply, Refusal):
            raise reply
        return reply

    def begin_to_listen(self) -> None:
        """From now on, no call waits."""
        self._socket.settimeout(0)

    def put(self, *words: bytes) -> None:
        """Send a command, and keep what the socket does not take."""
        self._output += self._settings.pack(words)
        self.flush()

    def flush(self) -> None:
        """Send what is kept."""
        with suppress(*_LATER):
            while self._output:
                sent = self._socket.send(self._output)
                if not sent:  # what gevent's sockets of TLS return instead of raising
                    return
                del self._output[:sent]

    def read(self) -> bool:
        """Read what has arrived, and return whether there was something."""
        try:
            self._read()
        except _LATER:
            return False
        # Redis has answered, so that it takes more: nobody waits until the socket is writable.
        self.flush()
        return True

    def _read(self) -> None:
        data = self._socket.recv(READ_SIZE)
        if not data:
            raise ConnectionError("it has closed the connection")
        self._replies.feed(data)

    def replies(self) -> Iterator[Any]:
        """Yield the replies that have arrived, all of them: a loop does not see what is left here."""
        while (reply := self._replies.gets()) is not False:
            yield reply

    def close(self) -> None:
        self._connection.disconnect()


class RedisBroker(Broker):
    """Redis or Valkey, which is reached by redis-py.

    :param source: a URL: ``redis://``, ``rediss://`` for TLS or ``unix://``, with the parameters that
        :meth:`redis.Redis.from_url` knows, and *prefix*. Or a client, such as ``Sentinel(...).master_for("main")``.
    :param prefix: what the keys and channels begin with.
    :raises RuntimeError: when redis-py is not installed.
    :raises ValueError: when the URL is wrong.
    """

    def __init__(self, source: str | Redis, *, prefix: str = "websocket") -> None:
        self._settings = _Settings(source, prefix)
        self._epoch, self._offset, self._publisher, self._channel = (
            f"{self._settings.prefix}:{name}".encode()
            for name in ("epoch", "offset:", "publisher:", f"room:{self._settings.database}:")
        )
        self._lock = threading.Lock()  # around the connection that publishes
        self._wire: _Wire | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<RedisBroker: {self._settings}>"

    def publish(self, messages: Sequence[Outgoing], publisher: str) -> Sequence[int]:
        counts: list[int] = []
        with self._lock:
            for batch in batches(messages, BATCH, BATCH_SIZE):
                counts += self._publish(self._arguments(batch, publisher))
        return counts

    def _arguments(self, batch: Sequence[Outgoing], publisher: str) -> list[bytes]:
        """Return the arguments of the script: how many keys, the keys, and three values for each message."""
        keys = [self._epoch, self._publisher + publisher.encode()]
        values: list[bytes] = []
        for message in batch:
            room = _encode(message.room)
            keys.append(self._offset + room)
            values += (self._channel + room, b"%d" % message.number, message.data)
        return [b"%d" % len(keys), *keys, *values]

    def _publish(self, arguments: Sequence[bytes]) -> list[int]:
        """Call the script, a second time on a new connection if the one at hand turns out to be dead."""
        if self._wire is not None:
            try:
                return self._call(self._wire, arguments)
            except BrokerUnavailable:
                self._hang_up()
        if self._is_closed:
            raise BrokerUnavailable(f"{self._settings}: the broker is closed.")
        self._wire = _Wire(self._settings)
        return self._call(self._wire, arguments)

    def _call(self, wire: _Wire, arguments: Sequence[bytes]) -> list[int]:
        try:
            try:
                reply: list[int] = wire.ask(b"EVALSHA", _PUBLISH_SHA, *arguments)
            except Refusal as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
                reply = wire.ask(b"EVAL", _PUBLISH, *arguments)
        except self._settings.errors as error:
            self._hang_up()
            raise self._settings.unavailable(error) from error
        except BaseException:  # such as gevent's Timeout: the reply would be taken for that of the next command
            self._hang_up()
            raise
        return reply

    def _hang_up(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def subscribe(self, rooms: Iterable[str]) -> Subscription:
        return _RedisSubscription(self._settings, self._epoch, self._offset, self._channel, rooms)

    def close(self) -> None:
        """Close the connection that publishes, after the call that is under way. Subscriptions have their own."""
        with self._lock:
            self._is_closed = True
            self._hang_up()


class _RedisSubscription(Subscription):
    """A connection that receives. Commands go out on it from any thread, with a lock, since no call waits."""

    def __init__(self, settings: _Settings, epoch: bytes, offset: bytes, channel: bytes, rooms: Iterable[str]) -> None:
        self._settings = settings
        self._epoch_key, self._offset, self._channel = epoch, offset, channel
        #: The rooms whose positions are asked for, and how many of them Redis has not yet confirmed.
        self._asked: deque[tuple[list[str], int]] = deque()
        self._epoch, self._epoch_bytes = "", b""
        self._has_logged = self._is_closed = False
        self._wire = _Wire(settings)
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
        names = [_encode(room) for room in rooms]
        with self._sending():
            self._asked.append((rooms, len(rooms)))
            self._wire.put(b"SUBSCRIBE", *(self._channel + name for name in names))
            self._wire.put(b"MGET", self._epoch_key, *(self._offset + name for name in names))

    def remove(self, room: str) -> None:
        with self._sending():
            self._wire.put(b"UNSUBSCRIBE", self._channel + _encode(room))

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
        room = str(channel[len(self._channel) :], "utf-8", "surrogatepass")
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


def _encode(room: str) -> bytes:
    return room.encode("utf-8", "surrogatepass")
