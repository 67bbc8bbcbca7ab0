"""Frames as bytes (RFC 6455 section 5.2): what is done for every message, without state.

This is the pure-Python engine. ``_frames.pyx`` has the same functions, compiled; ``protocol.py`` takes those when
they are there. Only what is common is done here: whatever is rare or wrong is left to :class:`.protocol.Protocol`.
"""

from __future__ import annotations

import struct
from typing import Any

# The opcodes of messages, and the bits around them.
TEXT, BINARY = 0x1, 0x2
FIN, MASKED = 0x80, 0x80


def apply_mask(data: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    """Mask or unmask *data* with the four bytes of *mask* (section 5.3)."""
    if len(mask) != 4:
        raise ValueError("a mask has four bytes")
    size = len(data)
    # Two big integers and one XOR: the fastest that Python has without an extension. A one above all bits keeps the
    # result big: CPython 3.14 and newer keeps the memory of an integer that has become small for the next small one.
    key = (mask * (size // 4 + 1))[:size] + b"\1"
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size + 1, "little")[:size]


def take_messages(data: bytes, position: int, masked: bool, max_size: int, most: int, messages: list[Any]) -> int:
    """Append the messages that start at *position* to *messages*, as long as each is in one frame that is all here.

    It stops before everything else: a part of a frame, a control frame, a fragment, a compressed or very long
    message, and whatever breaks a rule.

    :param masked: whether the frames have to be masked.
    :param max_size: the most bytes that a message may have.
    :param most: the most messages to take.
    :returns: the position where it stopped.
    """
    end = len(data)
    most += len(messages)
    while end - position >= 2 and len(messages) < most:
        first = data[position]
        if first != FIN | TEXT and first != FIN | BINARY:
            break
        # Where the mask bit is not as it has to be, this is above 127.
        length = data[position + 1] ^ (MASKED if masked else 0)
        start = position + 2
        if length == 126 and end - start >= 2:
            length = data[start] << 8 | data[start + 1]
            start += 2
            if length < 126:  # not the fewest bytes
                break
        elif length > 125:
            break
        if masked:
            start += 4
        if length > end - start or length > max_size:
            break
        payload = data[start : start + length]
        if masked:
            payload = apply_mask(payload, data[start - 4 : start])
        try:
            messages.append(payload.decode() if first == FIN | TEXT else payload)
        except UnicodeDecodeError:
            break
        position = start + length
    return position


def frame(first: int, payload: str | bytes, mask: bytes = b"") -> bytes:
    """Build a frame.

    :param first: its first byte: FIN, the reserved bits and the opcode.
    :param payload: the bytes, or a text to encode.
    :param mask: four bytes to mask it with; none from a server.
    :raises UnicodeEncodeError: for a lone surrogate, which UTF-8 has no bytes for.
    """
    if isinstance(payload, str):
        payload = payload.encode()
    length = len(payload)
    second = MASKED if mask else 0
    if length < 126:
        header = bytes((first, second | length))
    elif length < 65536:
        header = struct.pack("!BBH", first, second | 126, length)
    else:
        header = struct.pack("!BBQ", first, second | 127, length)
    if not mask:
        return header + payload
    return header + mask + apply_mask(payload, mask)
