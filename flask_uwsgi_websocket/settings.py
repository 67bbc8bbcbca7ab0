"""The settings of a connection: ``app.config``, then the extension's keywords, then the route's options."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal

from .protocol.deflate import Compression
from .protocol.handshake import check_token, parse_origin
from .protocol.protocol import MAX_FRAGMENTS, MAX_MESSAGE_SIZE

#: Settings whose key in ``app.config`` is not simply ``WEBSOCKET_`` and the name in capitals.
_CONFIG_KEYS = {"origins": "WEBSOCKET_ALLOWED_ORIGINS"}


def check_positive(name: str, value: object) -> None:
    """Check that a setting is a number above 0.

    :raises ValueError: when it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} must be a number above 0, not {value!r}")


@dataclass(frozen=True)
class RateLimit:
    """How much a client may send on one connection. Above it, the connection is closed with 1008.

    It is a token bucket: what was not used is saved up, for at most *burst* seconds. What waits unread because the
    handler is slow is not held against the client.

    :param messages: messages, Pings and Pongs per second on average, or None.
    :param bytes: bytes per second on average, or None. A compressed message is counted as it inflates.
    :param burst: for how many seconds' worth the client may make up, in seconds.
    :param frames: frames of any kind per second on average, fragments among them; None for 64 times *messages*.
    :raises ValueError: when one of them is no number above 0.
    """

    messages: float | None = None
    bytes: float | None = None
    burst: float = 2.0
    frames: float | None = None

    def __post_init__(self) -> None:
        for name in ("messages", "frames", "bytes", "burst"):
            value = getattr(self, name)
            if value is not None or name == "burst":
                check_positive(f"{name} of a RateLimit", value)


@dataclass(frozen=True)
class Settings:
    """What a connection may do and how long it may take. Sizes are in bytes, times in seconds.

    :param origins: who may connect from a browser: ``"same-origin"``, ``"*"``, or a list of origins such as
        ``"https://example.com"``, or ``"https://*.example.com"`` for all its subdomains. Requests without an
        ``Origin`` header, which no browser sends, pass.
    :param max_message_size: the largest message received, after reassembly and inflation; beyond it, 1009.
    :param max_fragments: the most fragments of one message received, empty ones included; beyond it, 1008.
    :param ping_interval: how often the peer is pinged; None turns pings off.
    :param ping_timeout: how long the peer may stay silent after a ping before the connection is dropped; None
        turns that off.
    :param close_timeout: how long the closing handshake may take before the connection is dropped.
    :param shutdown_timeout: how long a handler may take to end when its worker ends.
    :param send_timeout: how long a peer may read nothing of what waits for it before the connection is dropped.
    :param send_buffer: the high-water mark: while more than this waits for the peer, ``send()`` waits too.
    :param min_read_rate: the bytes per second that the peer has to read on average over ``send_timeout``, while output
        waits for it; below, the connection is dropped.
    :param max_queue: how many messages may wait for the handler before the socket is not read any more.
    :param idle_timeout: how long no message may come or go before the connection is closed with 1001. Pings do not
        count. None turns that off.
    :param max_lifetime: how long a connection may last before it is closed with 1012, so that the client connects again
        and its login is checked again. It may be up to a tenth less, so that not all come back at once. None turns that
        off.
    :param compression: False, True, or a :class:`.Compression`: offer permessage-deflate (RFC 7692).
    :param subprotocols: the subprotocols that the route speaks (RFC 6455 section 1.9).
    :param text_as_bytes: what 0.6.1 did: text messages are received as bytes, and bytes are sent as text.
    :param max_connections: beyond so many connections of a worker, whatever their routes, a handshake is answered
        with 503; None for as many as uWSGI has cores, or gunicorn threads, but for a tenth of them (1 to 20) kept for
        HTTP. Other servers have no such number, and no limit.
    :param max_connections_per_ip: beyond so many connections of a worker from one address (of IPv6, one /64), a
        handshake is answered with 429; None for any number.
    :param accept: when the handshake is sent: ``"lazy"``, by the first call of a handler that needs it, or ``"early"``,
        before the handler starts, for handlers that register their connection and wait.
    :param handshake_timeout: how long a handler may leave the handshake unsent before the client gets 503; None for
        ever.
    :param rate_limit: a :class:`.RateLimit` of what one client may send, or None; beyond it, 1008.
    """

    origins: str | Sequence[str] = "same-origin"
    max_message_size: int = MAX_MESSAGE_SIZE
    max_fragments: int = MAX_FRAGMENTS
    ping_interval: float | None = 25.0
    ping_timeout: float | None = 20.0
    close_timeout: float = 5.0
    shutdown_timeout: float = 5.0
    send_timeout: float = 30.0
    send_buffer: int = 2**20
    min_read_rate: float = 1024
    max_queue: int = 1024
    idle_timeout: float | None = None
    max_lifetime: float | None = None
    compression: bool | Compression = False
    subprotocols: Sequence[str] = ()
    text_as_bytes: bool = False
    max_connections: int | None = None
    max_connections_per_ip: int | None = None
    accept: Literal["lazy", "early"] = "lazy"
    handshake_timeout: float | None = 60.0
    rate_limit: RateLimit | None = None

    def __post_init__(self) -> None:
        for name in ("max_message_size", "send_buffer"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name} is a whole number of bytes, not {getattr(self, name)!r}")
            check_positive(name, getattr(self, name))
        for name in ("close_timeout", "send_timeout", "shutdown_timeout", "min_read_rate"):
            check_positive(name, getattr(self, name))
        for name in ("ping_interval", "ping_timeout", "handshake_timeout", "idle_timeout", "max_lifetime"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in ("max_connections", "max_connections_per_ip"):
            if getattr(self, name) is not None and not _is_count(getattr(self, name)):
                raise ValueError(f"{name} is a whole number above 0 or None, not {getattr(self, name)!r}")
        for name in ("max_fragments", "max_queue"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} is a whole number above 0, not {getattr(self, name)!r}")
        # An iterator would be empty from its second use on.
        if isinstance(self.subprotocols, str) or not isinstance(self.subprotocols, Collection):
            raise TypeError(f"subprotocols is a list of names, not {self.subprotocols!r}")
        for name in self.subprotocols:
            check_token(name)
        if isinstance(self.origins, str):
            if self.origins not in {"same-origin", "*"}:
                raise ValueError(f'origins is "same-origin", "*" or a list of origins, not {self.origins!r}')
        elif not isinstance(self.origins, Collection):
            raise TypeError(f'origins is "same-origin", "*" or a list of origins, not {self.origins!r}')
        else:
            for origin in self.origins:
                parse_origin(origin)
        if self.accept not in ("lazy", "early"):
            raise ValueError(f'accept is "lazy" or "early", not {self.accept!r}')
        if not isinstance(self.text_as_bytes, bool):
            raise TypeError(f"text_as_bytes is True or False, not {self.text_as_bytes!r}")
        if not isinstance(self.compression, (bool, Compression)):
            raise TypeError(f"compression is True, False or a Compression, not {self.compression!r}")
        if not isinstance(self.rate_limit, (RateLimit, type(None))):
            raise TypeError(f"rate_limit is a RateLimit or None, not {self.rate_limit!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


#: The names of all settings: keywords of the extension, options of a route.
NAMES = frozenset(field.name for field in fields(Settings))


#: The key of each setting in ``app.config``.
KEYS = {name: _CONFIG_KEYS.get(name, f"WEBSOCKET_{name.upper()}") for name in NAMES}


def find_misspelt(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of *config* that are no setting's but almost, each with the one that it resembles."""
    keys = KEYS.values()
    names = [key.removeprefix("WEBSOCKET") for key in keys]  # a common prefix would make all keys similar
    for key in config:
        if key.startswith("WEBSOCKET") and key not in keys:
            for name in get_close_matches(key.removeprefix("WEBSOCKET"), names, 1, 0.65):
                yield key, f"WEBSOCKET{name}"


def resolve(config: Mapping[str, Any], *overrides: Mapping[str, Any]) -> Settings:
    """Return the settings that an app's *config* and the *overrides*, weakest first, come to.

    :raises TypeError: for a keyword that is no setting, or a value of the wrong type.
    :raises ValueError: for a value that makes no sense.
    """
    values: dict[str, Any] = {}
    for name, key in KEYS.items():
        if key in config:
            values[name] = config[key]
    for override in overrides:
        values.update(override)
    return Settings(**values)
