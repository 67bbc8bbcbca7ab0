"""A connection to Redis, and what to do about its errors.

redis-py reads the URL, connects, authenticates, speaks TLS and asks Sentinel. After that the sockets are ours: a
connection that breaks must not come back by itself, because messages are lost meanwhile, and the server that answers
may be another one.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from ssl import SSLWantReadError, SSLWantWriteError
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from ...exceptions import BrokerUnavailable
from .redis_scripts import MEET, Script

if TYPE_CHECKING:
    from redis import Redis

#: Seconds that Redis may take to accept a connection, and to answer a command, unless the URL or the client says more.
CONNECT_TIMEOUT = 3.0
TIMEOUT = 4.0

#: A read takes a whole record of TLS, which is 16 KiB at most, so that none is left where poll() does not see it.
READ_SIZE = 2**16

#: What a socket raises that would have to wait.
_LATER = (BlockingIOError, SSLWantReadError, SSLWantWriteError)

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
    "OOM command": "Raise its maxmemory.",
    "read only replica": "It is a replica: use the address of the master, or Sentinel.",
    "loading the dataset": "It is starting, and answers when it has read its data.",
    "MISCONF": "It cannot save its data: its log says why.",
    "max number of clients reached": "Raise its maxclients.",
    "WRONGTYPE": "Something else writes to keys of the rooms: give these another prefix, or another database.",
    "unknown command": "Rooms need Redis or Valkey 6.2 or newer, with all of its commands.",
}


class Refusal(Exception):
    """An error that Redis replies. Its text begins with a code, such as ``NOPERM``."""


class Settings:
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

    def key(self, name: str) -> bytes:
        """Return a key, or the beginning of one."""
        return f"{self.prefix}:{name}".encode()

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


class Wire:
    """A socket to Redis, on which commands and replies are ours.

    :raises BrokerUnavailable: when Redis cannot be reached, or does not let us in.
    """

    def __init__(self, settings: Settings) -> None:
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
            self.ask(b"EVAL", MEET.text, b"1", settings.key("epoch"))
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


class ScriptRunner:
    """Runs scripts on a connection of its own, which it opens when there is one to run.

    Any thread or greenlet may call this. One at a time has the connection.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()  # guards the following attributes
        self._wire: Wire | None = None
        self._is_closed = False
        #: How often Redis could not be reached, and why. Those who wait for the lock read them before they have it.
        self._failures = 0
        self._reason = ""

    def run(self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        """Run a script, a second time on a new connection if the one at hand turns out to be dead.

        :raises BrokerUnavailable: when it is not known whether Redis has run it.
        """
        failures = self._failures
        with self._lock:
            if self._failures != failures:  # while this call waited: thousands of others may wait behind it
                raise BrokerUnavailable(self._reason)
            words = (b"%d" % len(keys), *keys, *arguments)
            if self._wire is not None:
                with suppress(BrokerUnavailable):
                    return self._call(self._wire, script, words)
            if self._is_closed:
                raise BrokerUnavailable(f"{self._settings}: the broker is closed.")
            try:
                self._wire = Wire(self._settings)
                return self._call(self._wire, script, words)
            except BrokerUnavailable as error:
                if not isinstance(error.__cause__, Refusal):  # which is about this script
                    self._failures += 1
                    self._reason = str(error)
                raise

    def _call(self, wire: Wire, script: Script, words: tuple[bytes, ...]) -> Any:
        try:
            try:
                return wire.ask(b"EVALSHA", script.sha, *words)
            except Refusal as error:
                if not str(error).startswith("NOSCRIPT"):
                    raise
                return wire.ask(b"EVAL", script.text, *words)
        except self._settings.errors as error:
            self._hang_up()
            raise self._settings.unavailable(error) from error
        except BaseException:  # such as gevent's Timeout: the reply would be taken for that of the next command
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def hang_up(self) -> None:
        """Close the connection, after the call that is under way. The next call opens another one."""
        with self._lock:
            self._hang_up()

    def close(self) -> None:
        """Close the connection, after the call that is under way, for good."""
        with self._lock:
            self._is_closed = True
            self._hang_up()


def encode(text: str) -> bytes:
    """Return the name of a room, or another text, as it is in a key."""
    return text.encode("utf-8", "surrogatepass")


def decode(text: bytes) -> str:
    """Undo :func:`encode`."""
    return text.decode("utf-8", "surrogatepass")
