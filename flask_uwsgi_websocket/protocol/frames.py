"""Frames as bytes (RFC 6455 section 5.2): the work for every message that needs no state.

These functions are pure Python. ``_frames.pyx`` has the same functions, compiled, and ``speedups.py`` chooses between
the two. They handle common frames only and leave rare and invalid ones to :class:`.protocol.Protocol`.
"""

from __future__ import annotations

import struct
from typing import Any

# The opcodes of messages, and the bits FIN and MASK.
TEXT, BINARY = 0x1, 0x2
FIN, MASKED = 0x80, 0x80


def apply_mask(data: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    """Mask or unmask *data* with the four bytes of *mask* (section 5.3)."""
    if len(mask) != 4:
        raise ValueError("a mask has four bytes")
    size = len(data)
    # The fastest way in pure Python is one XOR of two big integers. A 1 above all other bits keeps the result big:
    # CPython 3.14 and newer keeps the memory of a big integer that became small, and reuses it for small integers.
    key = (mask * (size // 4 + 1))[:size] + b"\1"
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size + 1, "little")[:size]


def take_messages(data: bytes, position: int, masked: bool, max_size: int, most: int, messages: list[Any]) -> int:
    """Parse the messages that start at *position* and append them to *messages*.

    Parsing stops before anything but a whole message in one complete frame: before an incomplete frame, a control
    frame, a fragment, a compressed message, a message of 64 KiB or more, and a frame that breaks a rule.

    :param masked: whether the frames must be masked.
    :param max_size: the largest message to take, in bytes.
    :param most: the largest number of messages to take.
    :returns: the position where parsing stopped.
    """
    end = len(data)
    most += len(messages)
    while end - position >= 2 and len(messages) < most:
        first = data[position]
        if first != FIN | TEXT and first != FIN | BINARY:
            break
        # A wrong mask bit makes this larger than 127.
        length = data[position + 1] ^ (MASKED if masked else 0)
        start = position + 2
        if length == 126 and end - start >= 2:
            length = data[start] << 8 | data[start + 1]
            start += 2
            if length < 126:  # not the shortest encoding
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

    :param first: the first byte: FIN, the reserved bits and the opcode.
    :param payload: the payload; text is encoded as UTF-8.
    :param mask: four bytes to mask the payload with; a server passes none.
    :raises UnicodeEncodeError: for a lone surrogate, which UTF-8 cannot encode.
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
