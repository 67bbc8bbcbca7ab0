"""permessage-deflate: Compression Extensions for WebSocket, RFC 7692."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zlib import _Compress, _Decompress

#: Every message compressed with a sync flush ends in these bytes; they are not sent (section 7.2.1).
_TAIL = b"\x00\x00\xff\xff"

#: One parsed extension of a ``Sec-WebSocket-Extensions`` header: its name and its parameters.
Extension = tuple[str, list[tuple[str, "str | None"]]]


class MessageTooBig(ValueError):
    """A compressed message inflates to more bytes than the limit."""


@dataclass(frozen=True)
class Compression:
    """How messages are compressed (permessage-deflate, RFC 7692), for ``WEBSOCKET_COMPRESSION``.

    With the default values, the compressor of a connection takes about 40 kB, from its first compressed message on. The
    decompressor, whose window the client chooses, takes up to 40 kB.

    :param threshold: the length in bytes below which messages are sent uncompressed.
    :param level: zlib's level, 1 (fast) to 9 (small).
    :param window_bits: the largest window of the compressor, 9 to 15: 2**window_bits bytes.
    :param memory_level: zlib's ``memLevel``, 1 to 9.
    :param context_takeover: whether earlier messages help to compress later ones. Without it, both directions start
        afresh with each message, and an idle connection holds no compression memory.
    :raises ValueError: when a number is not whole or out of its range.
    """

    threshold: int = 1024
    level: int = 6
    window_bits: int = 12
    memory_level: int = 5
    context_takeover: bool = True

    def __post_init__(self) -> None:
        for name, least, most in (
            ("threshold", 0, sys.maxsize),
            ("level", 1, 9),
            ("window_bits", 9, 15),  # zlib cannot write raw deflate with a window of 2**8
            ("memory_level", 1, 9),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")


@dataclass(frozen=True)
class DeflateParameters:
    """The result of a negotiation (section 7.1), as the server sees it.

    The answer does not mention a window of None, which then has 15 bits.
    """

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int | None = None
    client_max_window_bits: int | None = None

    def header(self) -> str:
        """Return these parameters as the value of a ``Sec-WebSocket-Extensions`` header."""
        parts = ["permessage-deflate"]
        if self.server_no_context_takeover:
            parts.append("server_no_context_takeover")
        if self.client_no_context_takeover:
            parts.append("client_no_context_takeover")
        if self.server_max_window_bits is not None:
            parts.append(f"server_max_window_bits={self.server_max_window_bits}")
        if self.client_max_window_bits is not None:
            parts.append(f"client_max_window_bits={self.client_max_window_bits}")
        return "; ".join(parts)


def negotiate(offers: Iterable[Extension], config: Compression) -> DeflateParameters | None:
    """Return the answer to the first acceptable offer of a client (section 5), or None.

    :param offers: the extensions of the request, in the client's order of preference.
    """
    for name, parameters in offers:
        if name == "permessage-deflate":
            accepted = _accept(parameters, config)
            if accepted is not None:
                return accepted
    return None


def _accept(parameters: list[tuple[str, str | None]], config: Compression) -> DeflateParameters | None:
    """Return the answer to one offer, or None if a parameter is unknown, repeated or invalid (section 7.1)."""
    server_bits = config.window_bits if config.window_bits < 15 else None
    client_bits = None
    server_no_context = client_no_context = not config.context_takeover
    seen = set()
    for name, value in parameters:
        if name in seen:
            return None
        seen.add(name)
        if name == "server_no_context_takeover" and value is None:
            server_no_context = True
        elif name == "client_no_context_takeover" and value is None:
            client_no_context = True
        elif name == "server_max_window_bits" and _is_window(value):
            # The answer must include it, "with the same or smaller value as the offer" (section 7.1.2.1).
            server_bits = min(config.window_bits, int(value))  # type: ignore[arg-type]
        elif name == "client_max_window_bits" and (value is None or _is_window(value)):
            client_bits = min(config.window_bits, int(value or 15))
        else:
            return None
    if server_bits == 8:
        return None  # the client can inflate a window of 2**8 only, which zlib cannot write
    if client_bits == 8:
        # The zlib of some clients cannot write a window of 2**8, and the answer must not exceed the offer
        # (section 7.1.2.2). Without an answer, the client keeps to its own offer.
        client_bits = None
    return DeflateParameters(server_no_context, client_no_context, server_bits, client_bits)


def _is_window(value: str | None) -> bool:
    return value in {"8", "9", "10", "11", "12", "13", "14", "15"}


class Deflate:
    """The compressor and the decompressor of one connection.

    They share nothing, so one thread may compress while another decompresses.

    :param parameters: the result of the negotiation.
    :param config: the level, memory level and threshold of the compressor.
    :param is_client: whether this end is the client.
    """

    def __init__(
        self, parameters: DeflateParameters, config: Compression | None = None, *, is_client: bool = False
    ) -> None:
        self._config = config or Compression()
        self.threshold = self._config.threshold
        if is_client:
            self._keep_compressor = not parameters.client_no_context_takeover
            self._keep_decompressor = not parameters.server_no_context_takeover
            self._window_bits = max(9, parameters.client_max_window_bits or 15)
        else:
            self._keep_compressor = not parameters.server_no_context_takeover
            self._keep_decompressor = not parameters.client_no_context_takeover
            self._window_bits = parameters.server_max_window_bits or 15
        self._compressor: _Compress | None = None
        self._decompressor: _Decompress | None = None
        self._input = b""  # input that decompress() has not used yet
        #: Whether :meth:`decompress` has more output for the part that it was given.
        self.has_more = False

    @property
    def recipe(self) -> tuple[int, ...] | None:
        """The parameters that a compressed message depends on. None if it depends on earlier messages, too."""
        if self._keep_compressor:
            return None
        return self._window_bits, self._config.level, self._config.memory_level

    def compress(self, payload: bytes) -> bytes:
        """Compress one whole message (section 7.2.1)."""
        compressor = self._compressor
        if compressor is None:
            config = self._config
            compressor = zlib.compressobj(config.level, zlib.DEFLATED, -self._window_bits, config.memory_level)
        data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        self._compressor = compressor if self._keep_compressor else None
        return data[: -len(_TAIL)]

    def decompress(self, data: bytes, limit: int, most: int, *, final: bool) -> bytes:
        """Decompress the next part of a message (section 7.2.2), as far as *most* allows.

        While :attr:`has_more` is set afterwards, call this again for the rest of the part, without data and with the
        same *final*.

        :param limit: the most bytes that the rest of the message may inflate to.
        :param most: the most bytes to return now, above 0. No more are inflated.
        :param final: whether the message ends with this part.
        :raises MessageTooBig: when the message inflates to more than *limit* bytes.
        :raises zlib.error: when the input is not deflate data.
        """
        if self.has_more:
            data, self._input, self.has_more = self._input, b"", False
        elif final:
            data += _TAIL
        elif not data:
            return b""
        decompressor = self._decompressor
        if decompressor is None:
            # The largest window reads the output of any smaller one, and zlib allocates it only as needed.
            decompressor = self._decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        most = min(most, limit + 1)
        output = decompressor.decompress(data, most)
        if len(output) > limit:
            self._decompressor = None  # it holds the unread input
            raise MessageTooBig
        if decompressor.eof:
            # A sender may end a block with BFINAL set (section 7.2.3.4); its next block starts afresh.
            self._input = decompressor.unused_data
            self._decompressor = None
            self.has_more = bool(self._input)
        else:
            self._input = decompressor.unconsumed_tail
            self.has_more = len(output) == most  # zlib may hold output even when it has read all input
        if final and not self.has_more and not self._keep_decompressor:
            self._decompressor = None
        return output
