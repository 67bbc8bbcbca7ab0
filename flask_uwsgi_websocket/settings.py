"""The settings of a connection: their checks, and where they come from.

A setting is one field of :class:`Settings`, which carries its default and its check, one ``:param`` of its docstring,
and one entry in ``docs/configuration.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from inspect import get_annotations
from types import NoneType
from typing import Any, Literal, TypeVar

from .protocol.deflate import Compression
from .protocol.handshake import check_token, parse_origin
from .protocol.protocol import MAX_FRAGMENTS, MAX_MESSAGE_SIZE

T = TypeVar("T")

#: Called with the name and the value of a field. Raises TypeError or ValueError for a wrong value.
Check = Callable[[str, Any], None]


# Fields with a check


def setting(default: T, check: Check, key: str | None = None) -> T:
    """Declare a field of a :class:`Checked` dataclass.

    :param default: the value without configuration.
    :param check: the check that every other value has to pass.
    :param key: the key in ``app.config``; ``WEBSOCKET_`` and the field's name in capitals, unless given.
    """
    return field(default=default, metadata={"check": check, "key": key})


@dataclass(frozen=True)
class Checked:
    """A dataclass that checks the values of its fields, each one declared by :func:`setting`.

    :raises TypeError: when a value has the wrong type.
    :raises ValueError: when a value makes no sense.
    """

    # What errors call a field.
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
        raise TypeError(f"{name} is a whole number of bytes, not {value!r}")
    check_positive(name, value)


def check_count(name: str, value: object) -> None:
    """Check that a value is a whole number above 0."""
    if not _is_count(value):
        raise ValueError(f"{name} is a whole number above 0, not {value!r}")


def check_count_or_none(name: str, value: object) -> None:
    """Check that a value is a whole number above 0 or None."""
    if value is not None and not _is_count(value):
        raise ValueError(f"{name} is a whole number above 0 or None, not {value!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_origins(name: str, value: object) -> None:
    """Check that a value says which origins may connect."""
    error = f'{name} is "same-origin", "*" or a list of origins, not {value!r}'
    if isinstance(value, str):
        if value not in {"same-origin", "*"}:
            raise ValueError(error)
    elif not isinstance(value, Collection):
        raise TypeError(error)
    else:
        for origin in value:
            parse_origin(origin)


def check_subprotocols(name: str, value: object) -> None:
    """Check that a value is a list of subprotocols."""
    # An iterator would be empty from its second use on.
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"{name} is a list of names, not {value!r}")
    for subprotocol in value:
        check_token(subprotocol)


def optional(check: Check) -> Check:
    """Return *check*, which passes None, too."""

    def check_optional(name: str, value: object) -> None:
        if value is not None:
            check(name, value)

    return check_optional


def one_of(*choices: str) -> Check:
    """Return the check of a field that has one of these values."""

    def check_choice(name: str, value: object) -> None:
        if value not in choices:
            raise ValueError(f"{name} is {' or '.join(map(_quote, choices))}, not {value!r}")

    return check_choice


def _quote(text: str) -> str:
    return f'"{text}"'


def instance_of(*types: type, expected: str) -> Check:
    """Return the check of a field whose value has one of these types.

    :param expected: the types in words.
    """

    def check_type(name: str, value: object) -> None:
        if not isinstance(value, types):
            raise TypeError(f"{name} is {expected}, not {value!r}")

    return check_type


# The settings


@dataclass(frozen=True)
class RateLimit(Checked):
    """How much a client may send on one connection. Above it, the connection is closed with 1008.

    It is a token bucket: what was not used is saved up, for at most *burst* seconds. What waits unread because the
    handler is slow is not held against the client.

    :param messages: messages, Pings and Pongs per second on average, or None.
    :param bytes: bytes per second on average, or None. A compressed message is counted as it inflates.
    :param burst: for how many seconds' worth the client may make up, in seconds.
    :param frames: frames of any kind per second on average, fragments among them; None for 64 times *messages*.
    :raises ValueError: when one of them is no number above 0.
    """

    messages: float | None = setting(None, optional(check_positive))
    bytes: float | None = setting(None, optional(check_positive))
    burst: float = setting(2.0, check_positive)
    frames: float | None = setting(None, optional(check_positive))

    _label = "{} of a RateLimit"


@dataclass(frozen=True)
class Settings(Checked):
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
    max_connections: int | None = setting(None, check_count_or_none)
    max_connections_per_ip: int | None = setting(None, check_count_or_none)
    accept: Literal["lazy", "early"] = setting("lazy", one_of("lazy", "early"))
    handshake_timeout: float | None = setting(60.0, optional(check_positive))
    rate_limit: RateLimit | None = setting(None, instance_of(RateLimit, NoneType, expected="a RateLimit or None"))


#: The key of each setting in ``app.config``.
KEYS = {each.name: each.metadata["key"] or f"WEBSOCKET_{each.name.upper()}" for each in fields(Settings)}

#: The names of all settings: keywords of the extension, options of a route.
NAMES = frozenset(KEYS)


# Where they come from


def resolve(config: Mapping[str, Any], *overrides: Mapping[str, Any]) -> Settings:
    """Return the settings that an app's *config* and the *overrides*, weakest first, come to.

    :raises TypeError: for a name in *overrides* that is no setting, or a value of the wrong type.
    :raises ValueError: for a value that makes no sense.
    """
    values = {name: config[key] for name, key in KEYS.items() if key in config}
    for override in overrides:
        for name in override:
            if name not in NAMES:
                raise TypeError(f"{name} is no setting: {_suggest(name)}")
        values.update(override)
    return Settings(**values)


@contextmanager
def suggesting_settings(options: Collection[str]) -> Iterator[None]:
    """Suggest a setting where Werkzeug's rule does not know one of a WebSocket route's *options*.

    :raises TypeError: for an option that resembles a setting.
    """
    try:
        yield
    except TypeError as error:
        for name in options:
            similar = find_similar(name, NAMES)
            if similar is not None and repr(name) in str(error):
                raise TypeError(f"{name} is no option of a WebSocket route: is it {similar}?") from error
        raise


def _suggest(name: str) -> str:
    similar = find_similar(name, NAMES)
    return f"the settings are {', '.join(KEYS)}" if similar is None else f"is it {similar}?"


def find_misspelt(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the keys of *config* that are no setting's but almost, each with the one that it resembles."""
    keys = KEYS.values()
    names = [key.removeprefix("WEBSOCKET") for key in keys]  # a common prefix would make all keys similar
    for key in config:
        if key.startswith("WEBSOCKET") and key not in keys:
            similar = find_similar(key.removeprefix("WEBSOCKET"), names)
            if similar is not None:
                yield key, f"WEBSOCKET{similar}"


def find_similar(name: str, names: Iterable[str]) -> str | None:
    """Return the one of *names* that a misspelt *name* resembles most, or None."""
    return next(iter(get_close_matches(name, names, 1, 0.65)), None)
