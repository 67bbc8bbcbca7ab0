"""RFC 7692, permessage-deflate: its examples, its negotiation, and attacks by hostile peers."""

from __future__ import annotations

import itertools
import tracemalloc
import zlib

import pytest
from websockets.exceptions import NegotiationError
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.headers import parse_extension

from flask_uwsgi_websocket.protocol.deflate import Compression, Deflate, DeflateParameters, negotiate
from flask_uwsgi_websocket.protocol.protocol import Ping, Protocol
from support.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    ROLES,
    TEXT,
    bodies,
    close_body,
    deflating,
    feed,
    frame,
    header,
    key_to,
    splits,
    xor,
)

pytestmark = pytest.mark.usefixtures("functions")

both_roles = pytest.mark.parametrize("is_client", ROLES.values(), ids=ROLES)

RSV1 = 4
SYNC_TAIL = b"\x00\x00\xff\xff"

#: The output of a deflating endpoint for "Hello" (section 7.2.3.1).
HELLO = bytes.fromhex("f248cdc9c90700")

NO_CONTEXT = DeflateParameters(server_no_context_takeover=True, client_no_context_takeover=True)


def h(digits: str) -> bytes:
    return bytes.fromhex(digits)


def protocol_with_deflate(
    is_client: bool = False,
    parameters: DeflateParameters | None = None,
    *,
    threshold: int = 0,
    max_message_size: int = 2**20,
) -> Protocol:
    deflate = deflating(parameters, threshold=threshold, is_client=is_client)
    return Protocol(is_client=is_client, max_message_size=max_message_size, deflate=deflate)


def compressed(payload: bytes, *, level: int = 6) -> bytes:
    """Compress a message and remove the tail (section 7.2.1), with zlib alone."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def final_block(payload: bytes) -> bytes:
    """Compress to blocks, with BFINAL set on the last one."""
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(payload) + compressor.flush(zlib.Z_FINISH)


# Section 7.2.3, Examples.

#: Frames to a client, and their messages.
EXAMPLES = {
    "7.2.3.1 one block": (h("c107 f248cdc9c90700"), ["Hello"]),
    "7.2.3.1 two fragments": (h("4103 f248cd 8004 c9c90700"), ["Hello"]),
    "7.2.3.2 sharing the window": (h("c107 f248cdc9c90700 c105 f200110000"), ["Hello", "Hello"]),
    "7.2.3.2 not sharing the window": (h("c107 f248cdc9c90700 c107 f248cdc9c90700"), ["Hello", "Hello"]),
    "7.2.3.3 a block without compression": (h("c10b 000500faff48656c6c6f00"), ["Hello"]),
    "7.2.3.4 a block with BFINAL set to 1": (h("c108 f348cdc9c9070000"), ["Hello"]),
    "7.2.3.5 two blocks": (h("c10d f248050000 00ffff cac9c90700"), ["Hello"]),
    "7.2.3.6 an empty last fragment": (h("410b f248cdc9c90700 0000ffff 8001 00"), ["Hello"]),
    "an empty message": (h("c101 00"), [""]),
    "an empty message of one BFINAL block": (h("c103 030000"), [""]),
    "messages of BFINAL blocks, then one without": (
        h("c108 f348cdc9c9070000 c108 f348cdc9c9070000 c107 f248cdc9c90700 c105 f200110000"),
        ["Hello"] * 4,
    ),
    "several BFINAL blocks in one message": (
        h("c10f f348cdc9c90700 f348cdc9c90700 00"),
        ["HelloHello"],
    ),
    "a BFINAL block in each fragment": (
        h("4107 f348cdc9c90700 0007 f348cdc9c90700 8001 00"),
        ["HelloHello"],
    ),
    "uncompressed between compressed": (
        h("c107 f248cdc9c90700 8103 616263 8203 ffffff c105 f200110000"),
        ["Hello", "abc", b"\xff\xff\xff", "Hello"],
    ),
    "uncompressed fragments after compressed ones": (
        h("4103 f248cd 8004 c9c90700 0101 61 8001 62"),
        ["Hello", "ab"],
    ),
    "control frames between the fragments": (
        h("4103 f248cd 8901 31 0002 c9c9 8a00 8002 0700"),
        [Ping(b"1"), (b"",), "Hello"],
    ),
    "empty fragments around the data": (h("4100 0000 0007 f248cdc9c90700 8000"), ["Hello"]),
    "binary": (h("c207 f248cdc9c90700"), [b"Hello"]),
}

examples = pytest.mark.parametrize(("data", "events"), EXAMPLES.values(), ids=EXAMPLES)


def masked(data: bytes) -> bytes:
    """Mask frames, each of at most 125 bytes."""
    output = b""
    while data:
        size = data[1]
        output += data[:1] + bytes([0x80 | size]) + KEY + xor(data[2 : 2 + size], KEY)
        data = data[2 + size :]
    return output


@examples
@both_roles
def test_7_2_3_an_example_gives_its_messages(data: bytes, events: list[object], is_client: bool) -> None:
    protocol = protocol_with_deflate(is_client)
    assert protocol.receive_data(data if is_client else masked(data)) == events
    assert protocol.closed is None


@examples
@both_roles
def test_7_2_3_every_split_of_an_example_gives_the_same_messages(
    data: bytes, events: list[object], is_client: bool
) -> None:
    for parts in splits(data if is_client else masked(data)):
        protocol = protocol_with_deflate(is_client)
        assert feed(protocol, parts) == events
        assert protocol.closed is None


@pytest.mark.parametrize("name", [name for name in EXAMPLES if h("f200110000") not in EXAMPLES[name][0]])
def test_7_2_3_the_examples_without_a_shared_window_need_no_context(name: str) -> None:
    data, events = EXAMPLES[name]
    for parts in splits(data):
        assert feed(protocol_with_deflate(True, NO_CONTEXT), parts) == events


def test_7_2_3_1_hello_is_sent_as_in_the_example() -> None:
    assert protocol_with_deflate().send_text("Hello") == h("c107 f248cdc9c90700")
    assert protocol_with_deflate().send_binary(b"Hello") == h("c207 f248cdc9c90700")


def test_7_2_3_2_hello_is_sent_with_the_shared_window_as_in_the_example() -> None:
    protocol = protocol_with_deflate()
    assert protocol.send_text("Hello") == h("c107 f248cdc9c90700")
    assert protocol.send_text("Hello") == h("c105 f200110000")


@pytest.mark.parametrize("is_client", ROLES.values(), ids=ROLES)
def test_7_2_3_2_hello_is_sent_twice_in_the_same_bytes_without_context_takeover(is_client: bool) -> None:
    # Each endpoint obeys the parameter with its own name.
    own = DeflateParameters(server_no_context_takeover=not is_client, client_no_context_takeover=is_client)
    protocol = protocol_with_deflate(is_client, own)
    assert bodies_of_data(protocol.send_text("Hello"), is_client) == HELLO
    assert bodies_of_data(protocol.send_text("Hello"), is_client) == HELLO
    other = DeflateParameters(server_no_context_takeover=is_client, client_no_context_takeover=not is_client)
    protocol = protocol_with_deflate(is_client, other)
    assert bodies_of_data(protocol.send_text("Hello"), is_client) == HELLO
    assert bodies_of_data(protocol.send_text("Hello"), is_client) == h("f200110000")


def bodies_of_data(data: bytes, is_client: bool) -> bytes:
    """Return the payload of the only compressed frame that a protocol of this role sent."""
    assert data[0] & 0x70 == 0x40
    size = data[1] & 0x7F
    assert size < 126
    start = 6 if is_client else 2
    assert len(data) == start + size
    return xor(data[start:], data[2:6]) if is_client else data[start:]


@both_roles
def test_7_2_2_without_context_takeover_a_message_that_refers_to_the_previous_one_is_refused(is_client: bool) -> None:
    protocol = protocol_with_deflate(is_client, NO_CONTEXT)
    data = h("c107 f248cdc9c90700 c105 f200110000")
    assert protocol.receive_data(data if is_client else masked(data)) == ["Hello"]
    assert protocol.closed is not None
    assert protocol.closed.code == 1007


@both_roles
def test_7_2_3_6_empty_messages_are_sent_compressed_and_received_again_and_again(is_client: bool) -> None:
    sender, receiver = protocol_with_deflate(is_client), protocol_with_deflate(not is_client)
    for message in ("", "", b"", "a", "", b"b", b"", b"", ""):
        data = sender.send_text(message) if isinstance(message, str) else sender.send_binary(message)
        assert receiver.receive_data(data) == [message]
    assert protocol_with_deflate().send_text("") == h("c101 00")


# Section 6, 6.1, 6.2: framing.


@pytest.mark.parametrize("threshold", [0, 1, 5, 6])
def test_6_messages_shorter_than_the_threshold_are_sent_uncompressed(threshold: int) -> None:
    protocol = protocol_with_deflate(threshold=threshold)
    assert protocol.send_text("Hello") == (frame(TEXT, b"Hello") if threshold > 5 else h("c107 f248cdc9c90700"))
    assert protocol.send_binary(b"") == (frame(BINARY) if threshold else h("c201 00"))


def test_6_the_threshold_counts_bytes_and_not_characters() -> None:
    protocol = protocol_with_deflate(threshold=6)
    assert protocol.send_text("ééé")[0] & 0x40
    assert not protocol.send_text("eee")[0] & 0x40


@both_roles
def test_6_control_frames_are_never_compressed(is_client: bool) -> None:
    protocol = protocol_with_deflate(is_client)
    protocol.receive_data(frame(PING, b"p" * 100, key=key_to(is_client)))
    data = protocol.send_ping(b"q" * 100) + protocol.replies() + protocol.send_close(1000, "r" * 100)
    assert bodies(data, is_client=is_client) == [
        (PING, b"q" * 100),
        (PONG, b"p" * 100),
        (CLOSE, close_body(1000, b"r" * 100)),
    ]


@both_roles
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_6_1_rsv1_must_not_be_set_on_control_frames(is_client: bool, opcode: int) -> None:
    protocol = protocol_with_deflate(is_client)
    assert protocol.receive_data(frame(opcode, rsv=RSV1, key=key_to(is_client))) == []
    assert protocol.closed is not None
    assert protocol.closed.code == 1002


@both_roles
@pytest.mark.parametrize("first", [0, RSV1])
def test_6_1_rsv1_must_not_be_set_on_the_fragments_after_the_first(is_client: bool, first: int) -> None:
    protocol = protocol_with_deflate(is_client)
    key = key_to(is_client)
    data = frame(TEXT, HELLO, fin=False, rsv=first, key=key) if first else frame(TEXT, b"a", fin=False, key=key)
    protocol.receive_data(data)
    assert protocol.closed is None
    protocol.receive_data(frame(CONTINUATION, b"\x00", rsv=RSV1, key=key))
    assert protocol.closed is not None
    assert protocol.closed.code == 1002


@both_roles
@pytest.mark.parametrize("rsv", [1, 2, 3, 5, 6, 7])
def test_6_the_other_reserved_bits_stay_reserved(is_client: bool, rsv: int) -> None:
    protocol = protocol_with_deflate(is_client)
    protocol.receive_data(frame(TEXT, HELLO, rsv=rsv, key=key_to(is_client)))
    assert protocol.closed is not None
    assert protocol.closed.code == 1002


@both_roles
@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("payload", [h("ff"), h("07"), HELLO[:-1] + h("ffffffff"), h("00 0500 0000 48656c6c6f")])
def test_7_2_2_invalid_deflate_data_fails_the_connection_at_once(is_client: bool, fin: bool, payload: bytes) -> None:
    key = key_to(is_client)
    data = frame(TEXT, b"before", key=key) + frame(TEXT, payload, rsv=RSV1, fin=fin, key=key)
    protocol = protocol_with_deflate(is_client)
    assert protocol.receive_data(data) == ["before"]
    assert protocol.closed is not None
    assert protocol.closed.code == 1007
    assert protocol.receive_data(frame(TEXT, b"after", key=key)) == []
    ((opcode, body),) = bodies(protocol.replies(), is_client=is_client)
    assert (opcode, body[:2]) == (CLOSE, close_body(1007))


@both_roles
@pytest.mark.parametrize("bad", ["80", "c0", "c1", "eda0", "f490", "f5", "ff"])
def test_8_1_compressed_text_that_is_not_utf8_fails_the_connection_before_its_frame_ends(
    is_client: bool, bad: str
) -> None:
    # A block without compression: each byte of it can be inflated when it arrives.
    text = b"ok" + h(bad)
    payload = b"\x00" + (1000).to_bytes(2, "little") + (1000 ^ 0xFFFF).to_bytes(2, "little") + text
    data = header(TEXT, 1006, rsv=RSV1, key=key_to(is_client)) + (payload if is_client else xor(payload, KEY))
    protocol = protocol_with_deflate(is_client)
    for i in range(len(data)):
        assert protocol.closed is None
        assert protocol.receive_data(data[i : i + 1]) == []
    assert protocol.closed is not None
    assert protocol.closed.code == 1007


@both_roles
def test_8_1_compressed_binary_need_not_be_utf8(is_client: bool) -> None:
    payload = bytes(range(256)) * 3
    data = frame(BINARY, compressed(payload), rsv=RSV1, key=key_to(is_client))
    assert protocol_with_deflate(is_client).receive_data(data) == [payload]


@both_roles
def test_7_2_2_messages_that_are_dropped_after_our_close_stay_in_the_window(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = protocol_with_deflate(is_client)
    protocol.send_close()
    assert protocol.receive_data(frame(TEXT, HELLO, rsv=RSV1, key=key)) == []
    assert protocol.receive_data(frame(TEXT, h("f200110000"), rsv=RSV1, key=key)) == []
    assert protocol.closed is not None
    assert protocol.closed.code == 1000
    assert not protocol.input_ended


# The limit, and bombs.


@both_roles
@pytest.mark.parametrize("limit", [0, 1, 100, 65536])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("encode", [compressed, final_block], ids=["BFINAL=0", "BFINAL=1"])
def test_10_4_a_message_that_inflates_to_the_limit_passes_and_one_byte_more_is_refused(
    is_client: bool, limit: int, opcode: int, encode
) -> None:
    key = key_to(is_client)
    end = b"\x00" if encode is final_block else b""
    for parts in (1, 3):
        protocol = protocol_with_deflate(is_client, max_message_size=limit)
        fits = fragments(opcode, encode(b"x" * limit) + end, key, parts)
        (message,) = protocol.receive_data(fits)
        assert len(message) == limit
        assert protocol.receive_data(fragments(opcode, encode(b"x" * (limit + 1)) + end, key, parts)) == []
        assert protocol.closed is not None
        assert protocol.closed.code == 1009


def fragments(opcode: int, payload: bytes, key: bytes | None, parts: int) -> bytes:
    """Cut a compressed message into this number of frames."""
    size = -(-len(payload) // parts)
    data = b""
    for i in range(parts):
        piece = payload[i * size : (i + 1) * size]
        data += frame(CONTINUATION if i else opcode, piece, fin=i == parts - 1, rsv=0 if i else RSV1, key=key)
    return data


@both_roles
def test_10_4_many_blocks_with_bfinal_share_one_limit(is_client: bool) -> None:
    protocol = protocol_with_deflate(is_client, max_message_size=1000)
    data = frame(BINARY, final_block(b"x" * 100) * 10 + b"\x00", rsv=RSV1, key=key_to(is_client))
    assert protocol.receive_data(data) == [b"x" * 1000]
    data = frame(BINARY, final_block(b"x" * 100) * 11 + b"\x00", rsv=RSV1, key=key_to(is_client))
    assert protocol.receive_data(data) == []
    assert protocol.closed is not None
    assert protocol.closed.code == 1009


@both_roles
@pytest.mark.parametrize(("limit", "code"), [(3, 1009), (4, None)])
def test_10_4_output_that_only_the_removed_tail_completes_counts_too(
    is_client: bool, limit: int, code: int | None
) -> None:
    # A block with fixed codes (bits 0 10) of three times "P" (1000 0000) and the first five bits of a fourth.
    bits = "010" + "10000000" * 3 + "10000"
    payload = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    protocol = protocol_with_deflate(is_client, max_message_size=limit)
    events = protocol.receive_data(frame(TEXT, payload, rsv=RSV1, key=key_to(is_client)))
    assert (protocol.closed and protocol.closed.code) == code
    assert events == ([] if code else ["PPPP"])


@both_roles
def test_10_4_a_message_may_be_longer_compressed_than_inflated(is_client: bool) -> None:
    # The limit applies to the message: incompressible data is a little longer on the wire.
    payload = bytes(range(256)) * 4
    data = frame(BINARY, compressed(payload, level=0), rsv=RSV1, key=key_to(is_client))
    assert protocol_with_deflate(is_client, max_message_size=len(payload)).receive_data(data) == [payload]


def gigabyte_bomb() -> bytes:
    """Return 2**30 zeros, compressed to one megabyte: the same block 1024 times."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    mebibyte = compressor.compress(bytes(2**20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    bomb = mebibyte * 1024
    assert len(bomb) < 1_100_000
    return bomb


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("limit", [1000, 2**20])
@pytest.mark.parametrize("size", [65536, 2**24], ids=["in reads of 64 kB", "in one read"])
@pytest.mark.parametrize("frames", [1, 1000])
def test_8_a_bomb_of_a_megabyte_that_inflates_to_a_gigabyte_costs_no_more_memory_than_the_limit(
    opcode: int, limit: int, size: int, frames: int
) -> None:
    data = fragments(opcode, gigabyte_bomb(), None, frames)
    protocol = protocol_with_deflate(True, max_message_size=limit)
    tracemalloc.start()
    try:
        for i in range(0, len(data), size):
            assert protocol.receive_data(data[i : i + size]) == []
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert protocol.closed is not None
    assert protocol.closed.code == 1009
    # The protocol keeps nothing of a failed message. The peak has the output of zlib twice, in pieces and joined, and
    # the input twice, in the protocol and in zlib.
    assert held < 16 * 1024
    assert peak < 2 * limit + 3 * min(size, len(data)) + 128 * 1024


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("parameters", [DeflateParameters(), NO_CONTEXT], ids=["context", "no context"])
@pytest.mark.parametrize("most", [1, 3, 64])
def test_a_call_inflates_no_more_than_its_limit_and_the_next_calls_inflate_the_rest(
    is_client: bool, opcode: int, parameters: DeflateParameters, most: int
) -> None:
    key = key_to(is_client)
    sender = protocol_with_deflate(not is_client, parameters)
    texts = ["x" * 100_000, "", "y" * 1024, "\u2603" * 30_000, "end"]
    send = sender.send_text if opcode == TEXT else lambda text: sender.send_binary(text.encode())
    data = b"".join(send(text) for text in texts)
    protocol = protocol_with_deflate(is_client, parameters)
    messages = protocol.receive_some(data, most)
    while protocol.has_input:
        assert protocol.gained <= most * 1024
        more = protocol.receive_some(b"", most)
        assert len(more) <= most
        messages += more
    assert messages == [text if opcode == TEXT else text.encode() for text in texts]
    assert protocol.is_between_messages
    # A ping behind the messages is answered, and the limit applies to all pieces of a message together.
    protocol.receive_some(frame(PING, b"p", key=key), most)
    assert bodies(protocol.replies(), is_client=is_client) == [(PONG, b"p")]
    limited = protocol_with_deflate(is_client, max_message_size=50_000)
    assert feed(limited, [frame(opcode, compressed(b"x" * 50_001), rsv=RSV1, key=key)]) == []
    assert limited.closed is not None
    assert limited.closed.code == 1009


@both_roles
def test_a_call_starts_no_more_new_blocks_than_its_limit(is_client: bool) -> None:
    payload = b"\x03\x00" * 1000 + b"\x00"  # zlib needs a new state for each block
    protocol = protocol_with_deflate(is_client)
    data = frame(BINARY, payload, rsv=RSV1, key=key_to(is_client)) + frame(BINARY, b"next", key=key_to(is_client))
    events, calls = protocol.receive_some(data, 10), 1
    while protocol.has_input:
        events += protocol.receive_some(b"", 10)
        calls += 1
    assert events == [b"", b"next"]
    assert calls >= 100


@pytest.mark.parametrize("is_text", [True, False])
def test_8_a_bomb_behind_harmless_messages_is_refused_too(is_text: bool) -> None:
    protocol = protocol_with_deflate(True, max_message_size=2**20)
    opcode = TEXT if is_text else BINARY
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    for size in (0, 10, 2**20):
        payload = compressor.compress(bytes(size)) + compressor.flush(zlib.Z_SYNC_FLUSH)
        (message,) = protocol.receive_data(frame(opcode, payload[:-4], rsv=RSV1))
        assert len(message) == size
    payload = compressor.compress(bytes(2**20 + 1)) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert protocol.receive_data(frame(opcode, payload[:-4], rsv=RSV1)) == []
    assert protocol.closed is not None
    assert protocol.closed.code == 1009


def test_an_idle_connection_without_context_takeover_holds_no_compression_memory() -> None:
    tracemalloc.start()
    try:
        server, client = protocol_with_deflate(False, NO_CONTEXT), protocol_with_deflate(True, NO_CONTEXT)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(3):
            assert client.receive_data(server.send_text("x" * 5000)) == ["x" * 5000]
            assert server.receive_data(client.send_text("x" * 5000)) == ["x" * 5000]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 4096


def test_a_connection_with_context_takeover_costs_the_memory_of_its_configuration() -> None:
    tracemalloc.start()
    try:
        server = Protocol(deflate=Deflate(DeflateParameters(server_max_window_bits=12), Compression()))
        before, _ = tracemalloc.get_traced_memory()
        server.send_text("x" * 100_000)
        compressor, _ = tracemalloc.get_traced_memory()
        server.receive_data(frame(BINARY, compressed(noise(100_000)), rsv=RSV1, key=KEY))
        both, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert compressor - before < 44 * 1024  # the exact number depends on the version of zlib
    assert both - compressor < 44 * 1024


# Window sizes.


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes that compress only where they repeat."""
    value, output = seed, bytearray()
    for _ in range(size):
        value = (value * 1103515245 + 12345) & 0x7FFFFFFF
        output.append(value >> 16 & 0xFF)
    return bytes(output)


# A server never agrees to a window of 2**8, which zlib cannot write. A client with this window writes within it.
@pytest.mark.parametrize(
    ("is_client", "bits"),
    [(False, bits) for bits in range(9, 16)] + [(True, bits) for bits in range(8, 16)],
)
def test_7_1_2_an_endpoint_writes_data_that_a_decompressor_with_the_agreed_window_reads(
    is_client: bool, bits: int
) -> None:
    name = "client_max_window_bits" if is_client else "server_max_window_bits"
    protocol = protocol_with_deflate(is_client, DeflateParameters(**{name: bits}))
    # Repeats at every distance, also across messages.
    message = b"".join(noise(distance) * 3 for distance in (200, 250, 256, 300, 500, 600, 2000, 9000, 20000))
    decompressor = zlib.decompressobj(-bits)
    for _ in range(2):
        data = protocol.send_binary(message)
        start = len(header(BINARY, len(data) - 14, key=KEY if is_client else None))
        payload = data[start:]
        if is_client:
            payload = xor(payload, data[start - 4 : start])
        # With small pieces zlib has to copy from its window, because it cannot look back in its output.
        output = b"".join(
            decompressor.decompress(payload[i : i + 10]) for i in range(0, len(payload), 10)
        ) + decompressor.decompress(SYNC_TAIL)
        assert output == message


@pytest.mark.parametrize("bits", range(9, 16))
@both_roles
def test_7_1_2_an_endpoint_reads_data_that_was_written_with_any_window(is_client: bool, bits: int) -> None:
    protocol = protocol_with_deflate(is_client)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -bits)
    message = noise(40000) * 2
    for _ in range(2):
        payload = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)
        data = frame(BINARY, payload[:-4], rsv=RSV1, key=key_to(is_client))
        assert protocol.receive_data(data) == [message]


# Section 5 and 7.1: negotiation.


def answer(*offers: str, **config: object) -> str | None:
    """Negotiate with the offers of a request, and return the answer in the response."""
    parsed = [parsed for offer in offers for parsed in parse_extension(offer)]
    parameters = negotiate(parsed, Compression(**config))  # type: ignore[arg-type]
    return None if parameters is None else parameters.header()


def test_5_no_offer_gives_no_answer() -> None:
    assert answer() is None
    assert answer("x-webkit-deflate-frame", "permessage-bzip2; level=1", "x-permessage-deflate") is None


@pytest.mark.parametrize(
    ("offer", "expected"),
    [
        ("", "server_max_window_bits=12"),
        ("server_no_context_takeover", "server_no_context_takeover; server_max_window_bits=12"),
        ("client_no_context_takeover", "client_no_context_takeover; server_max_window_bits=12"),
        ("server_max_window_bits=15", "server_max_window_bits=12"),
        ("server_max_window_bits=12", "server_max_window_bits=12"),
        ("server_max_window_bits=9", "server_max_window_bits=9"),
        ("client_max_window_bits", "server_max_window_bits=12; client_max_window_bits=12"),
        ("client_max_window_bits=15", "server_max_window_bits=12; client_max_window_bits=12"),
        ("client_max_window_bits=10", "server_max_window_bits=12; client_max_window_bits=10"),
        ("client_max_window_bits=9", "server_max_window_bits=12; client_max_window_bits=9"),
        (
            "client_max_window_bits; server_max_window_bits=10; client_no_context_takeover",
            "client_no_context_takeover; server_max_window_bits=10; client_max_window_bits=12",
        ),
        (
            "server_max_window_bits=9; server_no_context_takeover; client_max_window_bits=9",
            "server_no_context_takeover; server_max_window_bits=9; client_max_window_bits=9",
        ),
    ],
)
def test_7_1_each_parameter_of_an_offer_is_answered(offer: str, expected: str) -> None:
    offer = f"permessage-deflate; {offer}" if offer else "permessage-deflate"
    assert answer(offer) == f"permessage-deflate; {expected}"


def test_7_1_without_limits_the_answer_has_no_windows() -> None:
    assert answer("permessage-deflate", window_bits=15) == "permessage-deflate"


def test_7_1_1_without_context_takeover_the_answer_says_so_for_both_directions() -> None:
    expected = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    assert answer("permessage-deflate", window_bits=15, context_takeover=False) == expected


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("ours", range(9, 16))
def test_7_1_2_1_an_offer_of_a_server_window_is_answered_with_the_same_or_a_smaller_one(bits: int, ours: int) -> None:
    expected = f"permessage-deflate; server_max_window_bits={min(bits, ours)}"
    assert answer(f"permessage-deflate; server_max_window_bits={bits}", window_bits=ours) == expected


def test_7_1_2_1_an_offer_of_a_server_window_of_8_bits_is_declined() -> None:
    assert answer("permessage-deflate; server_max_window_bits=8") is None


@pytest.mark.parametrize("ours", [9, 12, 15])
def test_7_1_2_2_an_offer_of_a_client_window_of_8_bits_is_not_answered_with_a_larger_one(ours: int) -> None:
    parameters = negotiate([("permessage-deflate", [("client_max_window_bits", "8")])], Compression(window_bits=ours))
    assert parameters is not None
    assert parameters.client_max_window_bits is None


def test_7_1_2_2_client_max_window_bits_is_answered_only_if_it_was_offered() -> None:
    for ours in range(9, 16):
        text = answer("permessage-deflate; server_max_window_bits=10", window_bits=ours)
        assert text is not None
        assert "client_max_window_bits" not in text


@pytest.mark.parametrize(
    "offer",
    [
        "unknown",
        "unknown=1",
        "server_no_context_takeover=1",
        "server_no_context_takeover=true",
        "client_no_context_takeover=1",
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=0",
        "server_max_window_bits=08",
        "server_max_window_bits=010",
        "server_max_window_bits=1e1",
        "server_max_window_bits=10x",
        "server_max_window_bits=-9",
        "server_max_window_bits=+9",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=09",
        "client_max_window_bits=abc",
        "Server_No_Context_Takeover",
        "server_no_context_takeover; server_no_context_takeover",
        "client_no_context_takeover; client_no_context_takeover",
        "server_max_window_bits=10; server_max_window_bits=10",
        "client_max_window_bits; client_max_window_bits",
        "client_max_window_bits; client_max_window_bits=10",
        "client_max_window_bits=10; server_max_window_bits=10; unknown",
    ],
)
def test_7_1_an_offer_with_an_unknown_repeated_or_invalid_parameter_is_declined(offer: str) -> None:
    assert answer(f"permessage-deflate; {offer}") is None
    # "... the server MUST decline" this offer, but not the next ones.
    assert answer(f"permessage-deflate; {offer}", "permessage-deflate", window_bits=15) == "permessage-deflate"


@pytest.mark.parametrize("value", ["", " 9", "9 ", "\uff19", "1_0", "10\n", "9.0", "0x9"])
@pytest.mark.parametrize("name", ["server_max_window_bits", "client_max_window_bits"])
def test_7_1_2_a_window_is_a_decimal_integer_without_leading_zeroes(name: str, value: str) -> None:
    assert negotiate([("permessage-deflate", [(name, value)])], Compression()) is None


@pytest.mark.parametrize("name", ["server_no_context_takeover", "client_no_context_takeover"])
def test_7_1_1_an_empty_value_counts_as_a_value(name: str) -> None:
    assert negotiate([("permessage-deflate", [(name, "")])], Compression()) is None


def test_5_the_first_acceptable_offer_is_answered() -> None:
    best = "permessage-deflate; server_max_window_bits=8"
    middle = "permessage-deflate; server_max_window_bits=10; client_max_window_bits"
    last = "permessage-deflate"
    expected = "permessage-deflate; server_max_window_bits=10; client_max_window_bits=12"
    assert answer("permessage-foo", best, middle, last) == expected
    assert answer(f"{best}, {middle}, {last}") == expected
    assert answer(best, last, middle) == "permessage-deflate; server_max_window_bits=12"


FLAGS = (False, True)
OFFERS = list(
    itertools.product(FLAGS, FLAGS, [None, *range(8, 16)], [None, True, *range(9, 16)])
)  # every offer of websockets' client


@pytest.mark.parametrize("context_takeover", FLAGS)
@pytest.mark.parametrize("ours", range(9, 16))
def test_7_1_websockets_accepts_our_answer_to_every_offer_that_it_can_make(ours: int, context_takeover: bool) -> None:
    config = Compression(window_bits=ours, context_takeover=context_takeover, threshold=0)
    for server_no_context, client_no_context, server_bits, client_bits in OFFERS:
        factory = ClientPerMessageDeflateFactory(server_no_context, client_no_context, server_bits, client_bits)
        parameters = negotiate([(factory.name, list(factory.get_request_params()))], config)
        if server_bits == 8:
            assert parameters is None
            continue
        assert parameters is not None
        ((name, response),) = parse_extension(parameters.header())
        assert name == "permessage-deflate"
        try:
            theirs = factory.process_response_params(response, [])
        except NegotiationError as error:
            raise AssertionError(f"{factory.get_request_params()} -> {response}: {error}") from error
        # With the agreed parameters, both endpoints have to understand each other.
        assert theirs.remote_no_context_takeover is parameters.server_no_context_takeover
        assert theirs.local_no_context_takeover or not parameters.client_no_context_takeover
        assert theirs.remote_max_window_bits == (parameters.server_max_window_bits or 15)
        assert theirs.local_max_window_bits <= (parameters.client_max_window_bits or 15)
        assert theirs.remote_max_window_bits <= ours
        assert client_bits is None or theirs.local_max_window_bits <= ours


@pytest.mark.parametrize("value", [8, 16, 0, -12])
def test_a_configured_window_that_zlib_cannot_write_is_a_value_error(value: int) -> None:
    with pytest.raises(ValueError, match="from 9 to 15"):
        Compression(window_bits=value)


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 10}, {"memory_level": 0}, {"memory_level": 10}])
def test_a_configured_level_that_zlib_does_not_have_is_a_value_error(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="from 1 to 9"):
        Compression(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["threshold", "level", "window_bits", "memory_level"])
@pytest.mark.parametrize("value", [-1, "9", 9.0, True, None], ids=repr)
def test_configured_values_must_be_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number from . to .*, not {value!r}"):
        Compression(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [1, 6, 9])
@pytest.mark.parametrize("memory_level", [1, 9])
@pytest.mark.parametrize("bits", [9, 15])
def test_every_accepted_configuration_can_compress(level: int, memory_level: int, bits: int) -> None:
    config = Compression(threshold=0, level=level, memory_level=memory_level, window_bits=bits)
    parameters = negotiate([("permessage-deflate", [])], config)
    assert parameters is not None
    server = Protocol(deflate=Deflate(parameters, config))
    client = Protocol(is_client=True, deflate=Deflate(parameters, config, is_client=True))
    for message in ("a" * 1000, "", "é" * 70000):
        assert client.receive_data(server.send_text(message)) == [message]
        assert server.receive_data(client.send_text(message)) == [message]
