"""The settings of a connection, their checks, and their sources.

A setting is a field of :class:`Settings`, with its default and its check, a ``:param`` in the docstring of that class,
and an entry in ``docs/configuration.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from difflib import SequenceMatcher, get_close_matches
from inspect import get_annotations
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from .protocol.deflate import Compression
from .protocol.handshake import check_token, parse_origin
from .protocol.protocol import MAX_FRAGMENTS, MAX_MESSAGE_SIZE

T = TypeVar("T")

#: A function that is called with the name and the value of a field, and raises TypeError or ValueError for a wrong
#: value.
Check = Callable[[str, Any], None]


#: How the address of a broker begins.
BROKER_SCHEMES = ("memory://", "local://", "redis://", "rediss://", "unix://")


# Fields with a check


def setting(default: T, check: Check, key: str | None = None, *, of_route: bool = True) -> T:
    """Declare a field of a :class:`Checked` dataclass.

    :param default: the value without configuration.
    :param check: the function that checks the value.
    :param key: the key in ``app.config``. The default is ``WEBSOCKET_`` and the field's name in capitals.
    :param of_route: whether a route may have a value of its own.
    """
    return field(default=default, metadata={"check": check, "key": key, "of_route": of_route})


@dataclass(frozen=True)
class Checked:
    """A dataclass that checks the values of its fields. Declare each field by :func:`setting`.

    :raises TypeError: when a value has the wrong type.
    :raises ValueError: when a value is invalid.
    """

    # The name of a field in errors.
    _label = "{}"

    def __init_subclass__(cls) -> None:
        for name in get_annotations(cls):
            declared = vars(cls).get(name)
            if not isinstance(declared, Field) or "check" not in declared.metadata:
                raise TypeError(f"{cls.__name__}.{name} has no check: declare it as {name} = setting(default, check)")

    def __post_init__(self) -> None:
        for each in fields(self):
            each.metadata["check"](self._label.format(each.name), getattr(self, each.name))


# Checks


def check_positive(name: str, value: object) -> None:
    """Check that a value is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} must be a number above 0, not {value!r}")


def check_size(name: str, value: object) -> None:
    """Check that a value is a size in bytes."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number of bytes, not {value!r}")
    check_positive(name, value)


def check_count(name: str, value: object) -> None:
    """Check that a value is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} must be a whole number above 0, not {value!r}")


def check_origins(name: str, value: object) -> None:
    """Check that a value is ``"same-origin"``, ``"*"`` or a collection of origins."""
    error = f'{name} must be "same-origin", "*" or a list of origins, not {value!r}'
    if isinstance(value, str):
        if value not in {"same-origin", "*"}:
            raise ValueError(error)
    elif not isinstance(value, Collection):
        raise TypeError(error)
    else:
        for origin in value:
            parse_origin(origin)


def check_subprotocols(name: str, value: object) -> None:
    """Check that a value is a collection of subprotocols."""
    # Not an iterator, which would be empty at its second use.
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"{name} must be a list of names, not {value!r}")
    for subprotocol in value:
        check_token(subprotocol)


def optional(check: Check) -> Check:
    """Return a check that passes None, and otherwise does *check*."""

    def check_optional(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return check_optional


def one_of(*choices: str) -> Check:
    """Return a check that a value is one of *choices*."""
    expected = " or ".join(f'"{choice}"' for choice in choices)

    def check_choice(name: str, value: object) -> None:
        if value not in choices:
            raise ValueError(f"{name} must be {expected}, not {value!r}")

    return check_choice


def instance_of(*types: type, expected: str) -> Check:
    """Return a check that a value has one of *types*.

    :param expected: the types in words.
    """

    def check_type(name: str, value: object) -> None:
        if not isinstance(value, types):
            raise TypeError(f"{name} must be {expected}, not {value!r}")

    return check_type


def check_broker(name: str, value: object) -> None:
    """Check that a value is the address of a broker, or a broker."""
    if isinstance(value, str):
        if value != "auto" and not value.startswith(BROKER_SCHEMES):
            raise ValueError(f'{name} must be "auto" or begin with one of {", ".join(BROKER_SCHEMES)}, not {value!r}')
    elif not callable(value):
        raise TypeError(f"{name} must be an address, or a function that returns a Broker, not {value!r}")


# The settings


@dataclass(frozen=True)
class RateLimit(Checked):
    """How much a client may send on one connection. Above it, the connection is closed with 1008.

    It is a token bucket: the client saves unused allowance for at most *burst* seconds. Input that stays unread because
    the handler is slow does not count against the client.

    :param messages: the most messages, Pings and Pongs per second, on average; None for no limit.
    :param bytes: the most bytes per second, on average; None for no limit. A compressed message counts with its
        inflated size.
    :param burst: the seconds for which the client may save unused allowance.
    :param frames: the most frames of any kind per second, on average, fragments included; None for 64 times *messages*.
    :raises ValueError: when a value is not a number above 0.
    """

    messages: float | None = setting(None, optional(check_positive))
    bytes: float | None = setting(None, optional(check_positive))
    burst: float = setting(2.0, check_positive)
    frames: float | None = setting(None, optional(check_positive))

    _label = "{} of a RateLimit"


@dataclass(frozen=True)
class Settings(Checked):
    """The settings of a connection. Sizes are in bytes, times in seconds.

    :param origins: the origins from which a browser may connect: ``"same-origin"``, ``"*"``, or a list of origins such
        as ``"https://example.com"``, or ``"https://*.example.com"`` for all its subdomains. Requests without an
        ``Origin`` header pass: no browser sends them.
    :param max_message_size: the size of the largest message that is received, after reassembly and inflation. A larger
        one closes the connection with 1009.
    :param max_fragments: the most fragments of one message, empty ones included. More close the connection with 1008.
    :param ping_interval: the time between two pings; None turns pings off.
    :param ping_timeout: how long the peer may stay silent after a ping before the connection is dropped; None turns
        this limit off.
    :param close_timeout: how long the closing handshake may take before the connection is dropped.
    :param shutdown_timeout: how long a handler may take to end when its worker ends.
    :param send_timeout: how long the peer may read nothing, while output waits, before the connection is dropped.
    :param send_buffer: the high-water mark: ``send()`` waits while more output than this waits for the peer.
    :param min_read_rate: the bytes per second that the peer has to read on average over ``send_timeout``, while output
        waits. Below this rate, the connection is dropped.
    :param max_queue: the most messages that wait for the handler. Beyond it, the socket is not read.
    :param idle_timeout: how long a connection may have no message in either direction before it is closed with 1001.
        Pings do not count. None turns this limit off.
    :param max_lifetime: how long a connection may last before it is closed with 1012, so that the client connects again
        and its login is checked again. A connection may get up to a tenth less, so that not all clients come back at
        once. None turns this limit off.
    :param compression: whether to offer permessage-deflate (RFC 7692): False, True, or a :class:`.Compression`.
    :param subprotocols: the subprotocols of the route (RFC 6455 section 1.9).
    :param text_as_bytes: whether text messages are received as bytes, and bytes are sent as text, as in 0.6.1.
    :param max_connections: the most connections of one worker, over all routes. Further handshakes get 503. None means
        the number of uWSGI's cores, or of gunicorn's threads or greenlets, less a tenth (1 to 20) that stays free for
        HTTP. Other servers have no limit. Parked connections take no core: only a number and the descriptors limit
        them.
    :param max_connections_per_ip: the most connections of one worker from one address (of IPv6, one /64). Further
        handshakes get 429. None means no limit.
    :param accept: when the handshake is sent: ``"lazy"``, by the first call of the handler that needs it, or
        ``"early"``, before the handler starts, for handlers that register their connection and wait.
    :param handshake_timeout: how long a handler may run without sending the handshake before the client gets 503; None
        for no limit.
    :param rate_limit: how much one client may send, as a :class:`.RateLimit`, or None. Beyond it, the connection is
        closed with 1008.
    :param broker: what carries the messages of rooms between processes: ``"auto"``, an address such as
        ``"redis://localhost:6379/0"``, or a function that returns a :class:`.Broker`, which each process calls.
    :param threads: how many threads of a worker run the methods of parked views. None means as many as uWSGI has.
    :param compatibility: ``"0.6.1"`` for an application that was written for this version. It changes other defaults.
    """

    origins: str | Sequence[str] = setting("same-origin", check_origins, key="WEBSOCKET_ALLOWED_ORIGINS")
    max_message_size: int = setting(MAX_MESSAGE_SIZE, check_size)
    max_fragments: int = setting(MAX_FRAGMENTS, check_count)
    ping_interval: float | None = setting(25.0, optional(check_positive))
    ping_timeout: float | None = setting(20.0, optional(check_positive))
    close_timeout: float = setting(5.0, check_positive)
    shutdown_timeout: float = setting(5.0, check_positive)
    send_timeout: float = setting(30.0, check_positive)
    send_buffer: int = setting(2**20, check_size)
    min_read_rate: float = setting(1024, check_positive)
    max_queue: int = setting(1024, check_count)
    idle_timeout: float | None = setting(None, optional(check_positive))
    max_lifetime: float | None = setting(None, optional(check_positive))
    compression: bool | Compression = setting(
        False, instance_of(bool, Compression, expected="True, False or a Compression")
    )
    subprotocols: Sequence[str] = setting((), check_subprotocols)
    text_as_bytes: bool = setting(False, instance_of(bool, expected="True or False"))
    max_connections: int | None = setting(None, optional(check_count))
    max_connections_per_ip: int | None = setting(None, optional(check_count))
    accept: Literal["lazy", "early"] = setting("lazy", one_of("lazy", "early"))
    handshake_timeout: float | None = setting(60.0, optional(check_positive))
    rate_limit: RateLimit | None = setting(None, optional(instance_of(RateLimit, expected="a RateLimit")))
    broker: Any = setting("auto", check_broker, of_route=False)
    threads: int | None = setting(None, optional(check_count), of_route=False)
    compatibility: Literal["0.6.1"] | None = setting(None, optional(one_of("0.6.1")), of_route=False)


#: The defaults of the settings with ``compatibility="0.6.1"``.
_DEFAULTS_OF_0_6_1: Mapping[str, Any] = {
    "accept": "early",
    "origins": "*",
    "ping_interval": 5,
    "send_buffer": 2**23,  # 0.6.1 had no limit
    "text_as_bytes": True,
}


#: The key of each setting in ``app.config``.
KEYS = {each.name: each.metadata["key"] or f"WEBSOCKET_{each.name.upper()}" for each in fields(Settings)}

#: The names of all settings, which are keywords of the extension.
NAMES = frozenset(KEYS)

#: The names of the settings that are also options of a route.
ROUTE_NAMES = frozenset(each.name for each in fields(Settings) if each.metadata["of_route"])


# Sources


def resolve(
    config: Mapping[str, Any], *overrides: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """Return the settings of an app's *config*, with *overrides*, of which a later one wins.

    :param defaults: the values of settings that nobody gives, by name, where they differ from those of the package.
    :raises TypeError: for an unknown name in *overrides*, or a value of the wrong type.
    :raises ValueError: for an invalid value.
    """
    values = {**defaults, **{name: config[key] for name, key in KEYS.items() if key in config}}
    for override in overrides:
        for name in override:
            if name not in NAMES:
                raise TypeError(f"{name} is not a setting: {_suggest(name)}")
        values.update(override)
    if values.get("compatibility") == "0.6.1":
        values = {**_DEFAULTS_OF_0_6_1, **values}
    return Settings(**values)


@contextmanager
def suggesting_settings(options: Collection[str]) -> Iterator[None]:
    """Suggest a setting when Werkzeug's rule refuses one of the *options* of a WebSocket route.

    :raises TypeError: for an option that resembles a setting.
    """
    try:
        yield
    except TypeError as error:
        for name in options:
            similar = find_similar(name, ROUTE_NAMES)
            if similar is not None and repr(name) in str(error):
                raise TypeError(f"{name} is not an option of a WebSocket route: did you mean {similar}?") from error
        raise


def _suggest(name: str) -> str:
    similar = find_similar(name, NAMES)
    return f"the settings are {', '.join(KEYS)}" if similar is None else f"did you mean {similar}?"


def find_misspelt(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of *config* that look like misspelt settings, each with the key that it resembles."""
    keys = KEYS.values()
    names = [key.removeprefix("WEBSOCKET") for key in keys]  # a common prefix would make all keys similar
    for key in config:
        if key.startswith("WEBSOCKET") and key not in keys:
            name = key.removeprefix("WEBSOCKET")
            similar = find_similar(name, names)
            # A typing error leaves a piece of the name as it was.
            if similar is not None and SequenceMatcher(None, name, similar).find_longest_match().size >= 3:
                yield key, f"WEBSOCKET{similar}"


def find_similar(name: str, names: Iterable[str]) -> str | None:
    """Return the one of *names* that is most similar to a misspelt *name*, or None."""
    return next(iter(get_close_matches(name, names, 1, 0.65)), None)
