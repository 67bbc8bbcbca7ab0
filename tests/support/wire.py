"""Frames as bytes, legal and illegal, for the tests of the protocol."""

from __future__ import annotations

import struct

from websockets.frames import Frame
from websockets.streams import StreamReader

from flask_uwsgi_websocket.protocol.deflate import Compression, Deflate, DeflateParameters
from flask_uwsgi_websocket.protocol.protocol import Protocol

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

#: The masking key of the examples of RFC 6455 section 5.7.
KEY = bytes.fromhex("37fa213d")

#: Every role by its name, with the value of ``is_client``.
ROLES = {"server": False, "client": True}


def xor(payload: bytes, key: bytes) -> bytes:
    """Section 5.3 to the letter: "octet i of the original data XORed with octet at index i modulo 4"."""
    return bytes(octet ^ key[i % 4] for i, octet in enumerate(payload))


def header(
    opcode: int, length: int, *, fin: bool = True, rsv: int = 0, key: bytes | None = None, wide: int = 0
) -> bytes:
    """Build a frame header (section 5.2).

    :param rsv: the three reserved bits, RSV1 being 4.
    :param key: the masking key; None leaves the frame unmasked.
    :param wide: the bits to write the length with (7, 16 or 64); 0 takes the fewest.
    """
    wide = wide or (7 if length < 126 else 16 if length < 65536 else 64)
    first = fin << 7 | rsv << 4 | opcode
    masked = 0 if key is None else 0x80
    if wide == 7:
        start = struct.pack("!BB", first, masked | length)
    elif wide == 16:
        start = struct.pack("!BBH", first, masked | 126, length)
    else:
        start = struct.pack("!BBQ", first, masked | 127, length)
    return start + (key or b"")


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    key: bytes | None = None,
    wide: int = 0,
) -> bytes:
    """Build a whole frame; the parameters are those of :func:`header`."""
    start = header(opcode, len(payload), fin=fin, rsv=rsv, key=key, wide=wide)
    return start + (payload if key is None else xor(payload, key))


def key_to(is_client: bool) -> bytes | None:
    """Return the masking key of frames to this role: clients mask, servers do not."""
    return None if is_client else KEY


def close_body(code: int, reason: bytes = b"") -> bytes:
    return code.to_bytes(2, "big") + reason


def deflating(parameters: DeflateParameters | None = None, *, threshold: int = 0, is_client: bool = False) -> Deflate:
    """Return permessage-deflate that compresses every message, however short."""
    config = Compression(threshold=threshold)
    return Deflate(parameters or DeflateParameters(), config, is_client=is_client)


def feed(protocol: Protocol, parts: list[bytes]) -> list[object]:
    """Feed *parts* one after the other, and return all events."""
    events: list[object] = []
    for part in parts:
        events += protocol.receive_data(part)
    return events


def splits(data: bytes) -> list[list[bytes]]:
    """Return each way to receive *data* in two parts, and the way to receive it one byte at a time.

    Long data is split in its first and last bytes and at a few places between them.
    """
    cuts = set(range(len(data) + 1))
    if len(data) > 600:
        cuts = {*range(40), *range(len(data) - 10, len(data) + 1), *range(40, len(data), len(data) // 13)}
    pairs = [[data[:cut], data[cut:]] for cut in sorted(cuts)]
    return [*pairs, [data[i : i + 1] for i in range(len(data))]]


def read_frames(data: bytes, *, masked: bool) -> list[Frame]:
    """Parse *data* with the parser of ``websockets``, which must find only whole and valid frames."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while reader.buffer:
        parser = Frame.parse(reader.read_exact, mask=masked)
        try:
            next(parser)
        except StopIteration as stop:
            frames.append(stop.value)
        else:
            raise AssertionError("the parser waits for more")
    return frames


def bodies(data: bytes, *, is_client: bool) -> list[tuple[int, bytes]]:
    """Return the opcode and payload of each frame that a protocol of this role sent."""
    return [(int(each.opcode), bytes(each.data)) for each in read_frames(data, masked=is_client)]
