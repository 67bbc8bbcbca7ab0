"""A message between processes, as bytes: who has published it, what it is, who must not get it, and its payload."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

# The first byte of an envelope.
_TEXT, _BINARY, _STAMPED, _COMMAND = b"t", b"b", b"s", b"c"

# A stamped message is text that ends where its position belongs.
# A text, binary or stamped message goes on with the number of connections that it leaves out, and their ids, which have
# 16 bytes.
_HEADER = struct.Struct("!cH")
_ID_SIZE = 16

# In front of all: the id of the publisher, and the number of the message among those of the publisher.
_SEAL = struct.Struct("!16sQ")

#: The bytes by which a message grows.
SEAL_SIZE = _SEAL.size

#: The most connections that one message may leave out.
MOST_EXCLUDED = 0xFFFF


class BadEnvelope(Exception):
    """The bytes are no message of this package, or of another version."""


class Message(NamedTuple):
    """A message for the members of a room.

    :param payload: ``str`` for text, bytes for binary.
    :param excluded: the ids of the connections that do not get it.
    :param is_stamped: whether the members get the position of the message in it; see :func:`stamped`.
    """

    payload: str | bytes
    excluded: frozenset[str] = frozenset()
    is_stamped: bool = False

    def at(self, position: str) -> str:
        """Return what the members get of a stamped message.

        :param position: the position of the message as text.
        """
        return f'{self.payload!s}{position}"}}'


@dataclass(frozen=True)
class Command:
    """An order or a question to the processes with members of a room.

    :param name: "close", "ask" or "answer".
    :param values: the details, as JSON has them.
    """

    name: str
    values: dict[str, Any]


def seal(publisher: bytes, number: int, data: bytes) -> bytes:
    """Return a message with its publisher, so that a process knows one that is repeated.

    :param publisher: 16 bytes.
    """
    return _SEAL.pack(publisher, number) + data


def unseal(data: bytes) -> tuple[bytes, int, bytes]:
    """Return the publisher, the number and the message that :func:`seal` got.

    :raises BadEnvelope: when the bytes are something else.
    """
    if len(data) < _SEAL.size:
        raise BadEnvelope(f"unknown message {data[:20]!r}")
    publisher, number = _SEAL.unpack_from(data)
    return publisher, number, data[_SEAL.size :]


def stamped(text: str, name: str) -> str:
    """Return a JSON object up to the place of its position, which becomes its last member.

    Where a name is twice in an object, readers of JSON take the last one.

    :param text: the object.
    :param name: the name of the member.
    :raises TypeError: when *text* is no object.
    """
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise TypeError("stamp= puts the position into a JSON object: publish a dictionary")
    others = text[:-1].rstrip()
    return f'{others}{"" if others == "{" else ","}{json.dumps(name)}:"'


def encode(payload: str | bytes, excluded: Collection[str] = (), *, is_stamped: bool = False) -> bytes:
    """Return a message for the members of a room as bytes.

    :param excluded: the ids of the connections that do not get it.
    :param is_stamped: whether the payload is what :func:`stamped` returns.
    :raises UnicodeEncodeError: for a lone surrogate, which UTF-8 cannot encode.
    :raises ValueError: when more than 65,535 connections are excluded.
    """
    if len(excluded) > MOST_EXCLUDED:
        raise ValueError(f"publish(exclude=) takes at most {MOST_EXCLUDED:,} connections, not {len(excluded):,}")
    kind, data = (_TEXT, payload.encode()) if isinstance(payload, str) else (_BINARY, payload)
    if is_stamped:
        kind = _STAMPED
    if not excluded:
        return _HEADER.pack(kind, 0) + data
    return b"".join((_HEADER.pack(kind, len(excluded)), *map(bytes.fromhex, excluded), data))


def encode_command(name: str, **values: Any) -> bytes:
    """Return a :class:`Command` as bytes."""
    return _COMMAND + json.dumps([name, values]).encode()


def decode(data: bytes) -> Message | Command:
    """Return what :func:`encode` or :func:`encode_command` has encoded.

    :raises BadEnvelope: when the bytes are something else.
    """
    try:
        if data[:1] == _COMMAND:
            name, values = json.loads(data[1:])
            return Command(name, dict(values))
        kind, count = _HEADER.unpack_from(data)
        start = _HEADER.size + count * _ID_SIZE
        if kind not in {_TEXT, _BINARY, _STAMPED} or start > len(data):
            raise BadEnvelope(f"unknown message {data[:20]!r}")
        payload = data[start:] if kind == _BINARY else data[start:].decode()
        if not count:
            return Message(payload, is_stamped=kind == _STAMPED)
        ids = (data[at : at + _ID_SIZE].hex() for at in range(_HEADER.size, start, _ID_SIZE))
        return Message(payload, frozenset(ids), kind == _STAMPED)
    except (ValueError, TypeError, struct.error, RecursionError) as error:
        raise BadEnvelope(f"unknown message {data[:20]!r}") from error
