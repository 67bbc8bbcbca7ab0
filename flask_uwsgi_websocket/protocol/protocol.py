"""The WebSocket protocol, RFC 6455, without I/O: bytes in, events out; messages in, bytes out.

A :class:`Protocol` belongs to one connection and knows neither sockets nor Flask. Its methods form two groups. One
thread may receive while another sends, because the groups share only flags that are set once and never cleared:

* receiving: :meth:`~Protocol.receive_data`, :meth:`~Protocol.receive_some`, :meth:`~Protocol.receive_eof`;
* sending: every method that returns bytes. The bytes must reach the peer in the order of the calls.

The parser never raises an exception. Input that the RFC forbids *fails the connection* (section 7.1.7):
:attr:`~Protocol.closed` then has the close code, and :meth:`~Protocol.replies` returns the Close frame for the peer.
"""

from __future__ import annotations

import codecs
import os
import sys
import zlib
from inspect import isawaitable
from typing import TYPE_CHECKING, NamedTuple

from ..exceptions import ConnectionClosed
from .deflate import Deflate, MessageTooBig
from .frames import BINARY, FIN, MASKED, TEXT
from .speedups import apply_mask, frame, take_messages

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Opcodes, section 5.2. The opcodes of messages are in frames.py, with the bits FIN and MASK.
CONTINUATION, CLOSE, PING, PONG = 0x0, 0x8, 0x9, 0xA

# Close codes, section 7.4.1.
NORMAL_CLOSURE = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
NO_STATUS_RECEIVED = 1005
ABNORMAL_CLOSURE = 1006
INVALID_DATA = 1007
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012

#: The default of ``max_message_size``, in bytes.
MAX_MESSAGE_SIZE = 2**20

#: The default of ``max_fragments``: a message of 4 MiB in fragments of 64 bytes, as the Autobahn test suite sends it.
MAX_FRAGMENTS = 2**16

# The other bits of the first byte and of the second one.
_RSV1, _RSV2_RSV3, _OPCODE, _IS_CONTROL = 0x40, 0x30, 0x0F, 0x08
_LENGTH = 0x7F

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Ping(NamedTuple):
    """A received Ping (section 5.5.2). :meth:`Protocol.replies` returns the Pong."""

    payload: bytes


class Pong(NamedTuple):
    """A received Pong, solicited or not (section 5.5.3)."""

    payload: bytes


class Close(NamedTuple):
    """A Close frame, received or sent (section 5.5.1). Code 1005 stands for a frame without a code."""

    code: int
    reason: str = ""


#: What :meth:`Protocol.receive_data` returns: a text message, a binary message, or a control frame.
Event = str | bytes | Ping | Pong | Close


class _Failure(Exception):
    """The input broke a rule: the close code and the reason for the peer."""

    def __init__(self, code: int, reason: str) -> None:
        self.close = Close(code, reason)


def is_valid_close_code(code: int) -> bool:
    """Return whether a Close frame may carry *code* (section 7.4 and the IANA registry)."""
    return (1000 <= code <= 1014 and code not in {1004, 1005, 1006}) or 3000 <= code <= 4999


class Protocol:
    """One end of one WebSocket connection after its handshake.

    :param is_client: whether this end is the client, which masks its frames.
    :param max_message_size: the largest received message in bytes, over all its fragments, after inflation.
    :param max_fragments: the largest number of frames in a received message.
    :param deflate: permessage-deflate as negotiated, or None.
    """

    __slots__ = (
        "_buffer",
        "_compressed",
        "_decoder",
        "_deflate",
        "_fragments",
        "_in_frame",
        "_inflating_work",
        "_is_client",
        "_left",
        "_mask",
        "_max_fragments",
        "_max_message_size",
        "_message",
        "_opcode",
        "_pongs",
        "_remaining",
        "_unfinished",
        "close_received",
        "close_sent",
        "closed",
        "frames",
        "gained",
        "has_input",
        "input_ended",
        "work",
    )

    def __init__(
        self,
        *,
        is_client: bool = False,
        max_message_size: int = MAX_MESSAGE_SIZE,
        max_fragments: int = MAX_FRAGMENTS,
        deflate: Deflate | None = None,
    ) -> None:
        self._is_client = is_client
        self._max_message_size = max_message_size
        self._max_fragments = max_fragments
        self._deflate = deflate
        #: The Close frame that ended the connection, which is the first of either side; 1006 when there was none.
        self.closed: Close | None = None
        self.close_received: Close | None = None
        self.close_sent: Close | None = None
        #: Whether further input is dropped: after a Close frame, an error, or the end of the input.
        self.input_ended = False
        #: Whether :meth:`receive_some` has left input that it can parse without more data.
        self.has_input = False
        # For the last call of receive_some(): its work, the frames in it, and the bytes that inflation has added, a
        # negative number if payloads have shrunk.
        self.work = 0
        self.frames = 0
        self.gained = 0
        self._left = 0  # the work that this call may still do
        self._inflating_work = 0  # the part of the work that is inflation
        self._pongs: list[bytes] = []
        # Unparsed input: the rest of receive_some(), or at most 139 bytes of an incomplete header or control frame.
        self._buffer = b""
        # The data frame whose payload is arriving.
        self._in_frame = False
        self._unfinished = False  # FIN is not set: another fragment follows
        self._remaining = 0
        self._mask = b""
        # The message whose frames are arriving; opcode 0 means no message.
        self._opcode = 0
        self._fragments = 0
        self._compressed = False
        self._message = bytearray()
        self._decoder: codecs.IncrementalDecoder | None = None

    @property
    def is_between_messages(self) -> bool:
        """Whether the next received byte starts a new message or a control frame."""
        return not (self._opcode or self._buffer or self.input_ended)

    # Receiving

    def receive_data(self, data: bytes) -> list[Event]:
        """Parse bytes from the peer, split in any way, and return the events that they complete.

        Input after a Close frame or an error is dropped.
        """
        return self.receive_some(data, sys.maxsize // 1024)

    def receive_some(self, data: bytes, most: int) -> list[Event]:
        """Parse some bytes from the peer, so that the call returns soon, and return the events that they complete.

        While :attr:`has_input` is set afterwards, call this again without data.

        :param most: the work to do: a frame counts 1, and so does each KiB that a compressed message inflates to.
        """
        events: list[Event] = []
        self._left = most
        self._inflating_work = self.gained = 0
        if not self.input_ended:
            try:
                self._parse(data, events)
            except _Failure as failure:
                self._end_input(failure.close)
            except UnicodeDecodeError as error:
                self._end_input(Close(INVALID_DATA, f"text is not UTF-8: {error.reason}"))
            except MessageTooBig:
                self._end_input(self._too_big())
            except zlib.error:
                self._end_input(Close(INVALID_DATA, "a compressed message is not deflate data"))
        self.work = most - self._left
        self.frames = self.work - self._inflating_work
        return events

    def receive_eof(self, reason: str = "the connection was lost without a Close frame") -> None:
        """Process the end of the input. Without a Close frame before it, the connection has ended with 1006."""
        self._end_input(Close(ABNORMAL_CLOSURE, reason))

    def _end_input(self, close: Close) -> None:
        if self.closed is None:
            self.closed = close
        self.input_ended = True
        self.has_input = False
        self._buffer = b""
        self._message = bytearray()
        self._decoder = None

    def _too_big(self) -> Close:
        return Close(MESSAGE_TOO_BIG, f"a message may have at most {self._max_message_size} bytes")

    def _parse(self, data: bytes, events: list[Event]) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        position, end = 0, len(data)
        # After our own Close, messages are read and dropped. Another thread may send the Close during this call: one
        # check ensures that no message is dropped before one that is delivered.
        messages = events if self.close_sent is None else []
        self.has_input = False
        while self._left > 0:
            if self._in_frame:
                if self._is_inflating:  # inflate earlier input before taking more
                    self._receive_payload(b"", messages)
                    continue
                chunk = data[position : position + self._remaining]
                position += len(chunk)
                if chunk or not self._remaining:
                    self._receive_payload(chunk, messages)
                    continue
                return
            if not self._opcode:
                # In the common case, each message is one frame and needs no state.
                count = len(messages)
                position = take_messages(
                    data, position, not self._is_client, self._max_message_size, self._left, messages
                )
                self._left += count - len(messages)
                if self._left <= 0:
                    continue
            start = position
            if end - start < 2:
                break
            first, second = data[start], data[start + 1]
            opcode = first & _OPCODE
            self._check_header(first, second, opcode)
            length = second & _LENGTH
            position = start + 2
            if length == 126:
                if end - position < 2:
                    break
                length = data[position] << 8 | data[position + 1]
                position += 2
                if length < 126:
                    raise _Failure(PROTOCOL_ERROR, "the length is not encoded in the fewest bytes")
            elif length == 127:
                if end - position < 8:
                    break
                length = int.from_bytes(data[position : position + 8], "big")
                position += 8
                if length >> 63:
                    raise _Failure(PROTOCOL_ERROR, "the most significant bit of the length is set")
                if length < 65536:
                    raise _Failure(PROTOCOL_ERROR, "the length is not encoded in the fewest bytes")
            mask = b""
            if second & MASKED:
                mask = data[position : position + 4]
                position += 4
            if opcode & _IS_CONTROL:
                if end - position < length:
                    break
                self._left -= 1
                payload = data[position : position + length]
                position += length
                self._receive_control(opcode, apply_mask(payload, mask) if mask else payload, events)
                if self.input_ended:
                    return
                continue
            if position > end:
                break
            self._left -= 1
            self._begin_data_frame(first, opcode, length, mask)
        else:
            start = position
            is_payload_here = self._in_frame and (self._is_inflating or not self._remaining)
            self.has_input = is_payload_here or start < end
        self._buffer = data[start:]

    @property
    def _is_inflating(self) -> bool:
        return self._deflate is not None and self._deflate.has_more

    def _begin_data_frame(self, first: int, opcode: int, length: int, mask: bytes) -> None:
        if opcode:
            self._opcode = opcode
            self._fragments = 0
            self._compressed = bool(first & _RSV1)
            self._decoder = _utf8_decoder() if opcode == TEXT else None
        self._fragments += 1
        if self._fragments > self._max_fragments:
            raise _Failure(POLICY_VIOLATION, f"a message may have at most {self._max_fragments} fragments")
        if not self._compressed and length > self._max_message_size - len(self._message):
            raise _Failure(*self._too_big())
        self._in_frame = True
        self._unfinished = not first & FIN
        self._remaining = length
        self._mask = mask

    def _check_header(self, first: int, second: int, opcode: int) -> None:
        """Check the first two bytes of a frame (sections 5.2, 5.4 and 5.5; RFC 7692 section 6)."""
        if bool(second & MASKED) is self._is_client:
            rule = "a server must not mask its frames" if self._is_client else "a client must mask its frames"
            raise _Failure(PROTOCOL_ERROR, rule)
        if first & _RSV2_RSV3 or (
            first & _RSV1 and (self._deflate is None or opcode == CONTINUATION or opcode & _IS_CONTROL)
        ):
            raise _Failure(PROTOCOL_ERROR, "a reserved bit is set")
        if opcode & _IS_CONTROL:
            if opcode > PONG:
                raise _Failure(PROTOCOL_ERROR, f"opcode {opcode} is reserved")
            if not first & FIN:
                raise _Failure(PROTOCOL_ERROR, "a control frame is fragmented")
            if second & _LENGTH > 125:
                raise _Failure(PROTOCOL_ERROR, "a control frame has more than 125 bytes")
        elif opcode > BINARY:
            raise _Failure(PROTOCOL_ERROR, f"opcode {opcode} is reserved")
        elif opcode and self._opcode:
            raise _Failure(PROTOCOL_ERROR, "a message starts within another")
        elif not opcode and not self._opcode:
            raise _Failure(PROTOCOL_ERROR, "a continuation has no message to continue")

    def _receive_payload(self, chunk: bytes, messages: list[Event]) -> None:
        """Process the next bytes of a data frame's payload, and check them at once, without the rest."""
        if self._mask and chunk:
            shift = len(chunk) % 4
            mask = self._mask
            chunk = apply_mask(chunk, mask)
            self._mask = mask[shift:] + mask[:shift]
        self._remaining -= len(chunk)
        ended = not self._remaining
        final = ended and not self._unfinished
        if self._compressed:
            assert self._deflate is not None
            size = len(chunk)
            limit = self._max_message_size - len(self._message)
            chunk = self._deflate.decompress(chunk, limit, self._left * 1024, final=final)
            self.gained += len(chunk) - size
            work = 1 + len(chunk) // 1024
            self._inflating_work += work
            self._left -= work
            if self._deflate.has_more:
                ended = final = False
        if self._decoder is not None:
            self._decoder.decode(chunk, final)
            # The second byte of a surrogate already gives it away, but Python's decoder waits for the third.
            if b"\xed\xa0" <= self._decoder.getstate()[0] <= b"\xed\xbf":
                raise _Failure(INVALID_DATA, "text is not UTF-8: invalid continuation byte")
        self._message += chunk
        if ended:
            self._in_frame = False
        if final:
            message = self._message
            messages.append(message.decode() if self._opcode == TEXT else bytes(message))
            self._opcode = 0
            self._message = bytearray()
            self._decoder = None

    def _receive_control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        if opcode == PING:
            self._pongs.append(payload)
            events.append(Ping(payload))
        elif opcode == PONG:
            events.append(Pong(payload))
        else:
            close = _parse_close(payload)
            self.close_received = close
            self._end_input(close)
            events.append(close)

    # Sending

    def replies(self) -> bytes:
        """Return the frames that answer the input: Pongs, and a Close that answers the peer's or fails the connection.

        The receiving thread calls this after :meth:`receive_data`.
        """
        frames = b""
        if self._pongs:
            # Our own Close does not end the duty to answer Pings; only the peer's does (section 5.5.2).
            frames = b"".join([self._frame(FIN | PONG, payload) for payload in self._pongs])
            self._pongs.clear()
        closed = self.closed
        if closed is not None and self.close_sent is None and closed.code != ABNORMAL_CLOSURE:
            frames += self._close_frame(closed)
        return frames

    def send_text(self, message: str) -> bytes:
        """Return the frame of a text message.

        :raises UnicodeEncodeError: for a lone surrogate, which UTF-8 cannot encode.
        :raises ConnectionClosed: when :attr:`closed` is set.
        """
        return self._data_frame(TEXT, message)

    def send_binary(self, message: bytes) -> bytes:
        """Return the frame of a binary message.

        :raises ConnectionClosed: when :attr:`closed` is set.
        """
        return self._data_frame(BINARY, message)

    def shared_frame(self, message: SharedMessage) -> bytes | None:
        """Return the frame of a shared message, for :meth:`send_frame`, or None if this peer needs its own frame."""
        return message.frame_for(self._deflate)

    def send_frame(self, whole: bytes) -> bytes:
        """Return *whole*, a data frame for many peers, which is not masked.

        :raises ConnectionClosed: when :attr:`closed` is set.
        """
        self._check_open()
        return whole

    def send_ping(self, payload: bytes = b"") -> bytes:
        """Return a Ping frame (section 5.5.2) with at most 125 bytes of payload."""
        if len(payload) > 125:
            raise ValueError(f"a ping may carry at most 125 bytes, not {len(payload)}")
        self._check_open()
        return self._frame(FIN | PING, payload)

    def send_close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> bytes:
        """Return a Close frame (section 5.5.1), or no bytes when one was sent before.

        :param reason: at most 123 bytes of UTF-8.
        :raises ValueError: when the code must not be sent or the reason is too long.
        """
        check_close(code, reason)
        if self.close_sent is not None:
            return b""
        close = Close(code, reason)
        frame = self._close_frame(close)
        if self.closed is None:
            self.closed = close
        return frame

    def _close_frame(self, close: Close) -> bytes:
        self.close_sent = close
        if close.code == NO_STATUS_RECEIVED:
            return self._frame(FIN | CLOSE, b"")
        return self._frame(FIN | CLOSE, close.code.to_bytes(2, "big") + close.reason.encode())

    def _check_open(self) -> None:
        if self.closed is not None:
            raise ConnectionClosed(*self.closed)

    def _data_frame(self, opcode: int, payload: str | bytes) -> bytes:
        self._check_open()
        deflate = self._deflate
        if deflate is not None:
            payload = payload.encode() if isinstance(payload, str) else payload
            if len(payload) >= deflate.threshold:
                return self._frame(FIN | _RSV1 | opcode, deflate.compress(payload))
        return self._frame(FIN | opcode, payload)

    def _frame(self, first: int, payload: str | bytes) -> bytes:
        """Build a frame (section 5.2). A client masks it with new random bytes (section 5.3)."""
        return frame(first, payload, os.urandom(4) if self._is_client else b"")


def payload_of(message: str | ReadableBuffer) -> str | bytes:
    """Return the payload of a message: a str as it is, any bytes-like object as bytes.

    :raises TypeError: when the message is neither.
    """
    if isinstance(message, (str, bytes)):
        return message
    try:
        return bytes(memoryview(message))
    except TypeError:
        hint = "is an await missing?" if isawaitable(message) else "use send_json(), or app.json.dumps()"
        raise TypeError(f"a message is str (text) or bytes (binary), not {type(message).__name__}: {hint}") from None


class SharedMessage:
    """A message that a server sends to many connections. Equal frames are built once.

    :raises UnicodeEncodeError: for a lone surrogate, which UTF-8 cannot encode.
    """

    def __init__(self, message: str | bytes) -> None:
        self.message = message
        self._first = FIN | (TEXT if isinstance(message, str) else BINARY)
        self._payload = message.encode() if isinstance(message, str) else message
        #: The frame without compression.
        self.plain_frame = frame(self._first, self._payload)
        self._compressed: dict[tuple[int, ...], bytes] = {}

    def frame_for(self, deflate: Deflate | None) -> bytes | None:
        """Return the frame for a connection, or None if its own compressor, which keeps its context, must make it."""
        if deflate is None or len(self._payload) < deflate.threshold:
            return self.plain_frame
        recipe = deflate.recipe
        if recipe is None:
            return None
        if recipe not in self._compressed:
            self._compressed[recipe] = frame(self._first | _RSV1, deflate.compress(self._payload))
        return self._compressed[recipe]


def check_close(code: object, reason: object) -> None:
    """Check the code and reason for a Close frame (section 5.5.1).

    :raises TypeError: when the code is not an int or the reason is not a str.
    :raises ValueError: when the code must not be sent or the reason has more than 123 bytes.
    """
    if not isinstance(code, int) or not isinstance(reason, str):
        raise TypeError(f"close(code, reason) takes a number and a str, not {code!r} and {reason!r}")
    if not is_valid_close_code(code):
        raise ValueError(f"{code} is not a close code to send: use one of 1000-1003, 1007-1014 or 3000-4999")
    if len(reason.encode()) > 123:
        raise ValueError("the reason of a close may have at most 123 bytes of UTF-8")


def _parse_close(payload: bytes) -> Close:
    """Parse the payload of a Close frame (section 5.5.1)."""
    if not payload:
        return Close(NO_STATUS_RECEIVED)
    if len(payload) == 1:
        raise _Failure(PROTOCOL_ERROR, "a Close frame has one byte")
    code = int.from_bytes(payload[:2], "big")
    if not is_valid_close_code(code):
        raise _Failure(PROTOCOL_ERROR, f"close code {code} must not be sent")
    return Close(code, payload[2:].decode())
