"""RFC 6455, sentence by sentence: the name of each test has the section that the test checks.

``is_client`` is the role of the protocol under test. Its peer has the other role.
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import pytest

from flask_uwsgi_websocket.exceptions import ConnectionClosed
from flask_uwsgi_websocket.protocol import protocol as protocol_module
from flask_uwsgi_websocket.protocol.deflate import Compression, Deflate, DeflateParameters
from flask_uwsgi_websocket.protocol.protocol import (
    MAX_FRAGMENTS,
    MAX_MESSAGE_SIZE,
    Close,
    Ping,
    Pong,
    Protocol,
    check_close,
    is_valid_close_code,
    payload_of,
)
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
    feed,
    frame,
    header,
    key_to,
    splits,
    xor,
)

pytestmark = pytest.mark.usefixtures("functions")

both_roles = pytest.mark.parametrize("is_client", ROLES.values(), ids=ROLES)

UNKNOWN_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 5001, 65535]
KNOWN_CODES = [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999]


def assert_failed(protocol: Protocol, code: int, *, is_client: bool) -> None:
    """Assert that the protocol failed the connection, sends one Close frame, and ignores all further input."""
    assert protocol.closed is not None
    assert protocol.closed.code == code
    assert protocol.input_ended
    assert protocol.close_received is None
    ((opcode, body),) = bodies(protocol.replies(), is_client=is_client)
    assert opcode == CLOSE
    assert body == close_body(code, protocol.closed.reason.encode())
    assert protocol.close_sent == protocol.closed
    assert protocol.replies() == b""
    assert protocol.send_close() == b""
    # 7.1.7: "An endpoint MUST NOT continue to attempt to process data (including a responding Close frame)"
    key = key_to(is_client)
    late = frame(TEXT, b"late", key=key) + frame(PING, key=key) + frame(CLOSE, close_body(1000), key=key)
    assert protocol.receive_data(late) == []
    assert protocol.closed.code == code
    assert protocol.close_received is None
    assert protocol.replies() == b""


def failing(data: bytes, code: int, *, is_client: bool, max_message_size: int = MAX_MESSAGE_SIZE) -> Protocol:
    """Feed *data*, which must deliver no event and fail the connection."""
    protocol = Protocol(is_client=is_client, max_message_size=max_message_size)
    assert protocol.receive_data(data) == []
    assert_failed(protocol, code, is_client=is_client)
    return protocol


# Section 5.7, Examples, and more samples that are fed in every split.


class Sample(NamedTuple):
    """Bytes for one role, and the events and close code that they must cause."""

    is_client: bool
    data: bytes
    events: list[object]
    closed: int | None = None
    max_message_size: int = MAX_MESSAGE_SIZE


def h(digits: str) -> bytes:
    return bytes.fromhex(digits)


SAMPLES = {
    # "A single-frame unmasked text message"
    "5.7 unmasked text": Sample(True, h("8105 48656c6c6f"), ["Hello"]),
    # "A single-frame masked text message"
    "5.7 masked text": Sample(False, h("8185 37fa213d 7f9f4d5158"), ["Hello"]),
    # "A fragmented unmasked text message"
    "5.7 fragmented text": Sample(True, h("0103 48656c 8002 6c6f"), ["Hello"]),
    # "Unmasked Ping request and masked Ping response"
    "5.7 unmasked ping": Sample(True, h("8905 48656c6c6f"), [Ping(b"Hello")]),
    "5.7 masked pong": Sample(False, h("8a85 37fa213d 7f9f4d5158"), [Pong(b"Hello")]),
    # "256 bytes binary message in a single unmasked frame"
    "5.7 256 bytes": Sample(True, h("827e 0100") + bytes(range(256)), [bytes(range(256))]),
    # "64KiB binary message in a single unmasked frame"
    "5.7 64 KiB": Sample(True, h("827f 0000000000010000") + bytes(range(256)) * 256, [bytes(range(256)) * 256]),
    "empty text": Sample(False, h("8180 37fa213d"), [""]),
    "empty binary": Sample(False, h("8280 37fa213d"), [b""]),
    "empty fragments": Sample(True, h("0100 0000 0000 8000"), [""]),
    "masked fragments, each with its own key": Sample(
        False,
        frame(TEXT, b"One ", fin=False, key=KEY)
        + frame(CONTINUATION, b"and two ", fin=False, key=h("01020304"))
        + frame(CONTINUATION, b"and three", key=h("fffefdfc")),
        ["One and two and three"],
    ),
    "control frames within a fragmented message": Sample(
        False,
        frame(TEXT, b"a\xe2", fin=False, key=KEY)
        + frame(PING, b"1", key=KEY)
        + frame(CONTINUATION, b"\x82", fin=False, key=KEY)
        + frame(PONG, b"2", key=KEY)
        + frame(PING, b"", key=KEY)
        + frame(CONTINUATION, b"\xac.", key=KEY)
        + frame(BINARY, b"\xff", key=KEY),
        [Ping(b"1"), Pong(b"2"), Ping(b""), "a€.", b"\xff"],
    ),
    "close within a fragmented message": Sample(
        False,
        frame(TEXT, b"half", fin=False, key=KEY) + frame(CLOSE, close_body(1001, b"bye"), key=KEY),
        [Close(1001, "bye")],
        1001,
    ),
    "a 16-bit length, masked": Sample(
        False,
        frame(TEXT, "é".encode() * 200, key=KEY) + frame(PING, b"p" * 125, key=KEY),
        ["é" * 200, Ping(b"p" * 125)],
    ),
    "text, close, more": Sample(
        True,
        frame(TEXT, b"last") + frame(CLOSE, close_body(1000)) + frame(TEXT, b"late"),
        ["last", Close(1000)],
        1000,
    ),
    "close without a code": Sample(True, h("8800"), [Close(1005)], 1005),
    "text, then a reserved opcode": Sample(True, h("810161 8300"), ["a"], 1002),
    "text, then bad UTF-8 in a later fragment": Sample(True, h("810161 0102c3a9 0002eda0"), ["a"], 1007),
    "fragments over the limit": Sample(True, h("0102aaaa".replace("aaaa", "6161")) + h("8002 6161"), [], 1009, 3),
    "fragments at the limit": Sample(True, h("01026161 00016161".replace("00016161", "800161")), ["aaa"], None, 3),
}


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_5_7_a_sample_gives_its_events(sample: Sample) -> None:
    protocol = Protocol(is_client=sample.is_client, max_message_size=sample.max_message_size)
    assert protocol.receive_data(sample.data) == sample.events
    assert (protocol.closed and protocol.closed.code) == sample.closed


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_5_4_every_split_of_a_sample_gives_the_same_events(sample: Sample) -> None:
    whole = Protocol(is_client=sample.is_client, max_message_size=sample.max_message_size)
    whole.receive_data(sample.data)
    replies = bodies(whole.replies(), is_client=sample.is_client)
    for parts in splits(sample.data):
        protocol = Protocol(is_client=sample.is_client, max_message_size=sample.max_message_size)
        assert feed(protocol, parts) == sample.events
        assert protocol.closed == whole.closed
        assert protocol.close_received == whole.close_received
        assert protocol.input_ended == whole.input_ended
        assert bodies(protocol.replies(), is_client=sample.is_client) == replies


def test_5_7_the_server_builds_the_samples() -> None:
    protocol = Protocol()
    assert protocol.send_text("Hello") == h("8105 48656c6c6f")
    assert protocol.send_ping(b"Hello") == h("8905 48656c6c6f")
    assert protocol.send_binary(bytes(range(256))) == h("827e 0100") + bytes(range(256))
    assert protocol.send_binary(bytes(65536)) == h("827f 0000000000010000") + bytes(65536)


def test_5_7_the_server_answers_the_ping_of_the_sample() -> None:
    protocol = Protocol()
    assert protocol.receive_data(frame(PING, b"Hello", key=KEY)) == [Ping(b"Hello")]
    assert protocol.replies() == h("8a05 48656c6c6f")


def test_5_7_the_client_answers_the_ping_of_the_sample_with_a_masked_pong() -> None:
    protocol = Protocol(is_client=True)
    protocol.receive_data(h("8905 48656c6c6f"))
    reply = protocol.replies()
    assert reply[:2] == h("8a85")
    assert reply[6:] == xor(b"Hello", reply[2:6])


@both_roles
def test_5_1_an_empty_input_gives_no_events(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(b"") == []
    assert protocol.replies() == b""
    assert protocol.closed is None
    assert not protocol.input_ended


# Section 5.1 and 5.3: masking.


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize("payload", [b"", b"abcd"])
def test_5_1_a_server_must_close_the_connection_upon_an_unmasked_frame(opcode: int, payload: bytes) -> None:
    failing(frame(opcode, payload), 1002, is_client=False)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize("payload", [b"", b"abcd"])
def test_5_1_a_client_must_close_the_connection_upon_a_masked_frame(opcode: int, payload: bytes) -> None:
    failing(frame(opcode, payload, key=KEY), 1002, is_client=True)


@both_roles
def test_5_1_masking_is_enforced_in_continuations(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(TEXT, b"a", fin=False, key=key_to(is_client)))
    protocol.receive_data(frame(CONTINUATION, b"b", key=key_to(not is_client)))
    assert_failed(protocol, 1002, is_client=is_client)


def test_5_1_a_server_must_not_mask_any_frames() -> None:
    protocol = Protocol()
    protocol.receive_data(frame(PING, b"p", key=KEY))
    frames = protocol.send_text("t") + protocol.send_binary(b"b") + protocol.send_ping() + protocol.replies()
    assert frames == h("810174 820162 8900 8a0170")
    assert protocol.send_close(1000, "bye") == h("8805 03e8 627965")


def test_5_1_a_client_must_mask_all_frames() -> None:
    protocol = Protocol(is_client=True)
    protocol.receive_data(frame(PING, b"p"))
    frames = protocol.send_text("t") + protocol.send_binary(b"b") + protocol.send_ping() + protocol.replies()
    frames += protocol.send_close(1000, "bye")
    sent = [(TEXT, b"t"), (BINARY, b"b"), (PING, b""), (PONG, b"p"), (CLOSE, close_body(1000, b"bye"))]
    assert bodies(frames, is_client=True) == sent


def test_5_3_the_masking_key_is_chosen_anew_for_each_frame() -> None:
    protocol = Protocol(is_client=True)
    assert len({protocol.send_binary(b"")[2:6] for _ in range(50)}) == 50


@pytest.mark.parametrize("size", [*range(20), 125, 126, 4095, 4096, 65537])
def test_5_3_the_same_algorithm_masks_and_unmasks(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    masked = protocol_module.apply_mask(data, KEY)
    assert masked == xor(data, KEY)
    assert protocol_module.apply_mask(masked, KEY) == data
    assert protocol_module.apply_mask(data, bytes(4)) == data


# Section 5.2: the header.


@both_roles
@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF])
@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("payload", [b"", b"abc"])
def test_5_2_an_unknown_opcode_fails_the_connection(is_client: bool, opcode: int, fin: bool, payload: bytes) -> None:
    failing(frame(opcode, payload, fin=fin, key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize("rsv", range(1, 8))
def test_5_2_a_reserved_bit_without_an_extension_fails_the_connection(is_client: bool, opcode: int, rsv: int) -> None:
    failing(frame(opcode, rsv=rsv, key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("rsv", range(1, 8))
def test_5_2_a_reserved_bit_of_a_continuation_fails_the_connection(is_client: bool, rsv: int) -> None:
    key = key_to(is_client)
    data = frame(TEXT, b"a", fin=False, key=key) + frame(CONTINUATION, b"b", rsv=rsv, key=key)
    failing(data, 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_5_2_a_message_of_each_length_boundary_is_received(is_client: bool, opcode: int, size: int) -> None:
    payload = b"x" * size
    protocol = Protocol(is_client=is_client)
    message = payload.decode() if opcode == TEXT else payload
    for _ in range(2):
        assert protocol.receive_data(frame(opcode, payload, key=key_to(is_client))) == [message]
    assert protocol.closed is None


@both_roles
@pytest.mark.parametrize(
    ("size", "start"),
    [
        (0, "00"),
        (125, "7d"),
        (126, "7e 007e"),
        (127, "7e 007f"),
        (65535, "7e ffff"),
        (65536, "7f 0000000000010000"),
    ],
)
def test_5_2_a_message_is_sent_with_the_fewest_bytes_of_length(is_client: bool, size: int, start: str) -> None:
    length = bytearray(h(start))
    length[0] |= 0x80 if is_client else 0
    payload = b"x" * size
    for first, data in (
        (0x81, Protocol(is_client=is_client).send_text("x" * size)),
        (0x82, Protocol(is_client=is_client).send_binary(payload)),
    ):
        assert data.startswith(bytes([first]) + length)
        ((opcode, body),) = bodies(data, is_client=is_client)
        assert (opcode, body) == (first & 0xF, payload)
        assert len(data) == 1 + len(length) + (4 if is_client else 0) + size


@both_roles
@pytest.mark.parametrize(("wide", "size"), [(16, 0), (16, 1), (16, 125), (64, 0), (64, 125), (64, 126), (64, 65535)])
@pytest.mark.parametrize("fin", [True, False])
def test_5_2_the_minimal_number_of_bytes_must_encode_the_length(
    is_client: bool, wide: int, size: int, fin: bool
) -> None:
    failing(header(BINARY, size, wide=wide, fin=fin, key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, 1 << 63 | 65536])
def test_5_2_the_most_significant_bit_of_a_64_bit_length_must_be_0(is_client: bool, size: int) -> None:
    failing(header(BINARY, size, key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("size", [65536, 1 << 32, (1 << 63) - 1])
def test_5_2_a_very_long_length_fails_with_1009(is_client: bool, size: int) -> None:
    data = header(BINARY, size, key=key_to(is_client))
    failing(data, 1009, is_client=is_client, max_message_size=65535)


# Section 5.4: fragmentation.


@both_roles
def test_5_4_a_continuation_without_a_message_fails_the_connection(is_client: bool) -> None:
    for fin in (True, False):
        failing(frame(CONTINUATION, b"a", fin=fin, key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
def test_5_4_a_continuation_after_the_last_fragment_fails_the_connection(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    message = frame(TEXT, b"a", fin=False, key=key) + frame(CONTINUATION, b"b", key=key)
    assert protocol.receive_data(message + frame(CONTINUATION, b"c", key=key)) == ["ab"]
    assert_failed(protocol, 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("started", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("payload", [b"", b"a"])
def test_5_4_the_fragments_of_two_messages_must_not_be_interleaved(
    is_client: bool, opcode: int, started: int, fin: bool, payload: bytes
) -> None:
    key = key_to(is_client)
    data = frame(started, payload, fin=False, key=key) + frame(opcode, payload, fin=fin, key=key)
    failing(data, 1002, is_client=is_client)


@both_roles
def test_5_4_an_endpoint_must_handle_control_frames_in_the_middle_of_a_message(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(frame(BINARY, b"1", fin=False, key=key)) == []
    assert protocol.receive_data(frame(PING, b"p", key=key)) == [Ping(b"p")]
    assert bodies(protocol.replies(), is_client=is_client) == [(PONG, b"p")]
    assert protocol.receive_data(frame(CONTINUATION, b"2", fin=False, key=key)) == []
    assert protocol.receive_data(frame(PONG, b"q", key=key)) == [Pong(b"q")]
    assert protocol.receive_data(frame(CONTINUATION, b"3", key=key)) == [b"123"]
    assert protocol.receive_data(frame(TEXT, b"next", key=key)) == ["next"]
    assert protocol.closed is None


@both_roles
def test_5_4_messages_of_both_types_may_follow_each_other_fragmented_or_not(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    text = frame(TEXT, b"\xc3", fin=False, key=key) + frame(CONTINUATION, b"\xa9", key=key)
    # Bytes that are not UTF-8 must pass as binary directly after text, and the other way round.
    binary = frame(BINARY, b"\xc3", fin=False, key=key) + frame(CONTINUATION, b"\xc3", key=key)
    single = frame(BINARY, b"\xff", key=key) + frame(TEXT, b"z", key=key)
    assert protocol.receive_data(text + binary + single + binary + text) == [
        "é",
        b"\xc3\xc3",
        b"\xff",
        "z",
        b"\xc3\xc3",
        "é",
    ]


@both_roles
def test_5_4_a_message_of_a_thousand_fragments_is_one_message(is_client: bool) -> None:
    key = key_to(is_client)
    data = frame(TEXT, fin=False, key=key) + frame(CONTINUATION, b"ab", fin=False, key=key) * 1000
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(data) == []
    assert protocol.receive_data(frame(CONTINUATION, key=key)) == ["ab" * 1000]


# Section 5.5: control frames.


@both_roles
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_5_5_control_frames_must_not_be_fragmented(is_client: bool, opcode: int) -> None:
    failing(frame(opcode, fin=False, key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize("size", [126, 65536, 1 << 62])
def test_5_5_control_frames_must_have_125_bytes_or_less(is_client: bool, opcode: int, size: int) -> None:
    # The first two bytes suffice: the protocol waits neither for the length nor for the payload.
    failing(header(opcode, size, key=key_to(is_client))[:2], 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize("wide", [16, 64])
def test_5_5_control_frames_have_no_extended_length(is_client: bool, opcode: int, wide: int) -> None:
    failing(header(opcode, 5, wide=wide, key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_5_5_2_a_pong_has_the_application_data_of_the_ping(is_client: bool, size: int) -> None:
    payload = bytes(range(size))
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(frame(PING, payload, key=key_to(is_client))) == [Ping(payload)]
    assert bodies(protocol.replies(), is_client=is_client) == [(PONG, payload)]
    assert protocol.replies() == b""


@both_roles
def test_5_5_2_several_pings_are_answered_in_their_order(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(PING, b"1", key=key) + frame(TEXT, b"t", key=key) + frame(PING, b"2", key=key))
    protocol.receive_data(frame(PING, b"", key=key))
    assert bodies(protocol.replies(), is_client=is_client) == [(PONG, b"1"), (PONG, b"2"), (PONG, b"")]
    assert protocol.replies() == b""


@both_roles
def test_5_5_2_pings_before_a_close_are_answered_before_the_close(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(PING, b"1", key=key) + frame(CLOSE, close_body(1000), key=key))
    assert bodies(protocol.replies(), is_client=is_client) == [(PONG, b"1"), (CLOSE, close_body(1000))]


@both_roles
def test_5_5_2_pings_before_an_error_are_answered_before_the_close(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(frame(PING, b"1", key=key) + frame(0xB, key=key)) == [Ping(b"1")]
    (pong, (opcode, body)) = bodies(protocol.replies(), is_client=is_client)
    assert pong == (PONG, b"1")
    assert (opcode, body[:2]) == (CLOSE, close_body(1002))


@both_roles
def test_5_5_2_a_ping_is_answered_unless_a_close_frame_was_already_received(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    protocol.send_close(1000)
    # Our own Close frame does not end this duty. Only the peer's does.
    assert protocol.receive_data(frame(PING, b"still there?", key=key)) == [Ping(b"still there?")]
    assert bodies(protocol.replies(), is_client=is_client) == [(PONG, b"still there?")]
    last = frame(PING, b"1", key=key) + frame(CLOSE, close_body(1000), key=key) + frame(PING, b"2", key=key)
    assert protocol.receive_data(last) == [Ping(b"1"), Close(1000)]
    assert bodies(protocol.replies(), is_client=is_client) == [(PONG, b"1")]
    assert protocol.replies() == b""


@both_roles
def test_5_5_2_a_ping_after_the_close_of_the_peer_is_not_answered(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(CLOSE, close_body(1000), key=key) + frame(PING, b"1", key=key))
    assert protocol.receive_data(frame(PING, b"2", key=key)) == []
    assert bodies(protocol.replies(), is_client=is_client) == [(CLOSE, close_body(1000))]


@both_roles
def test_5_5_3_a_response_to_an_unsolicited_pong_is_not_expected(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(frame(PONG, b"hi", key=key_to(is_client))) == [Pong(b"hi")]
    assert protocol.receive_data(frame(PONG, key=key_to(is_client))) == [Pong(b"")]
    assert protocol.replies() == b""
    assert protocol.closed is None


@both_roles
def test_5_5_2_a_ping_of_125_bytes_is_sent_and_one_of_126_is_refused(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    assert bodies(protocol.send_ping(b"p" * 125), is_client=is_client) == [(PING, b"p" * 125)]
    with pytest.raises(ValueError, match="125 bytes, not 126"):
        protocol.send_ping(b"p" * 126)


# Section 5.6, 8.1: UTF-8.

#: Byte sequences whose last byte cannot come at this place in UTF-8.
NOT_UTF8 = {
    "a continuation byte alone": "80",
    "the last continuation byte alone": "bf",
    "an overlong slash, C0 AF": "c0",
    "an overlong C1": "c1",
    "an overlong sequence of three": "e09f",
    "the first surrogate": "eda0",
    "the last surrogate": "edbf",
    "an overlong sequence of four": "f08f",
    "above U+10FFFF, F4 90": "f490",
    "above U+10FFFF, F5": "f5",
    "F8, which began five bytes": "f8",
    "FE": "fe",
    "FF": "ff",
    "two bytes cut short": "c341",
    "three bytes cut short": "e28241",
    "four bytes cut short": "f09f9841",
    "a sequence within a sequence": "e282c3",
    "one continuation byte too many": "c3a9a9",
}

bad_utf8 = pytest.mark.parametrize("digits", NOT_UTF8.values(), ids=NOT_UTF8)


@both_roles
@bad_utf8
def test_8_1_text_in_one_frame_that_is_not_utf8_fails_the_connection(is_client: bool, digits: str) -> None:
    key = key_to(is_client)
    data = frame(TEXT, b"ok", key=key) + frame(TEXT, b"ok" + h(digits) + b"ok", key=key)
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(data) == ["ok"]
    assert_failed(protocol, 1007, is_client=is_client)


@both_roles
@bad_utf8
@pytest.mark.parametrize("before", [b"", b"123", "é€😀".encode()])
def test_8_1_the_first_bad_byte_fails_the_connection_before_the_rest_of_its_frame(
    is_client: bool, digits: str, before: bytes
) -> None:
    payload = before + h(digits)
    start = header(TEXT, 1000, key=key_to(is_client))
    masked = payload if is_client else xor(payload, KEY)
    protocol = Protocol(is_client=is_client)
    for i in range(len(payload) - 1):
        assert protocol.receive_data(start + masked[i : i + 1]) == []
        assert protocol.closed is None
        start = b""
    assert protocol.receive_data(start + masked[-1:]) == []
    assert_failed(protocol, 1007, is_client=is_client)


@both_roles
@bad_utf8
def test_8_1_the_first_bad_byte_fails_the_connection_before_the_next_fragment(is_client: bool, digits: str) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    good, bad = h(digits)[:-1], h(digits)[-1:]
    assert protocol.receive_data(frame(TEXT, b"ok" + good, fin=False, key=key)) == []
    assert protocol.closed is None
    protocol.receive_data(frame(CONTINUATION, bad, fin=False, key=key))
    assert_failed(protocol, 1007, is_client=is_client)


@both_roles
@pytest.mark.parametrize("digits", ["c3", "e2", "e282", "f0", "f09f", "f09f98"])
def test_8_1_text_must_not_end_within_a_character(is_client: bool, digits: str) -> None:
    key = key_to(is_client)
    failing(frame(TEXT, h(digits), key=key), 1007, is_client=is_client)
    data = frame(TEXT, h(digits), fin=False, key=key)
    failing(data + frame(CONTINUATION, key=key), 1007, is_client=is_client)
    failing(frame(TEXT, fin=False, key=key) + frame(CONTINUATION, h(digits), key=key), 1007, is_client=is_client)


@both_roles
def test_5_6_a_fragment_might_not_be_whole_utf8_but_the_message_must(is_client: bool) -> None:
    text = "κόσμε\u0000\u007f\u0080\u07ff\u0800\ud7ff\ue000\ufffe\uffff\U00010000\U0010ffff"
    payload, key = text.encode(), key_to(is_client)
    data = frame(TEXT, payload[:1], fin=False, key=key)
    for i in range(1, len(payload) - 1):
        data += frame(CONTINUATION, payload[i : i + 1], fin=False, key=key)
    data += frame(CONTINUATION, payload[-1:], key=key)
    assert Protocol(is_client=is_client).receive_data(data) == [text]
    assert Protocol(is_client=is_client).receive_data(frame(TEXT, payload, key=key)) == [text]


@both_roles
def test_5_6_binary_messages_may_have_any_bytes(is_client: bool) -> None:
    payload = bytes(range(256)) + h("eda0 c0 f490 f5")
    data = frame(BINARY, payload, key=key_to(is_client))
    assert Protocol(is_client=is_client).receive_data(data) == [payload]


@both_roles
@pytest.mark.parametrize("text", ["", "a", "é", "€", "😀", "\0", "a\ufeff"])
def test_5_6_text_is_sent_as_utf8(is_client: bool, text: str) -> None:
    protocol = Protocol(is_client=is_client)
    assert bodies(protocol.send_text(text), is_client=is_client) == [(TEXT, text.encode())]


@both_roles
def test_5_6_a_byte_order_mark_is_part_of_the_text(is_client: bool) -> None:
    data = frame(TEXT, "\ufeffa".encode(), key=key_to(is_client))
    assert Protocol(is_client=is_client).receive_data(data) == ["\ufeffa"]


@both_roles
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc80b"])
def test_8_1_a_lone_surrogate_cannot_be_sent_and_leaves_the_connection_open(is_client: bool, text: str) -> None:
    protocol = Protocol(is_client=is_client)
    with pytest.raises(UnicodeEncodeError):
        protocol.send_text(text)
    with pytest.raises(ValueError, match="surrogates"):
        protocol.send_close(1000, text)
    assert protocol.closed is None
    assert protocol.close_sent is None
    assert bodies(protocol.send_text("b"), is_client=is_client) == [(TEXT, b"b")]


# Section 10.4: implementation-specific limits.


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("limit", [0, 1, 125, 126, 65535, 65536])
def test_10_4_a_message_of_the_limit_passes_and_one_byte_more_is_refused_at_its_header(
    is_client: bool, opcode: int, limit: int
) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client, max_message_size=limit)
    (message,) = protocol.receive_data(frame(opcode, b"x" * limit, key=key))
    assert message == ("x" * limit if opcode == TEXT else b"x" * limit)
    # No byte of the payload has arrived, so the protocol cannot have kept any.
    protocol.receive_data(header(opcode, limit + 1, key=key))
    assert_failed(protocol, 1009, is_client=is_client)


@both_roles
@pytest.mark.parametrize("sizes", [(10, 1), (5, 6), (0, 11), (10, 0, 0, 1), (1,) * 11, (4, 4, 100)])
def test_10_4_the_limit_applies_to_the_reassembled_message(is_client: bool, sizes: tuple[int, ...]) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client, max_message_size=10)
    opcode = BINARY
    for size in sizes[:-1]:
        assert protocol.receive_data(frame(opcode, b"x" * size, fin=False, key=key)) == []
        assert protocol.closed is None
        opcode = CONTINUATION
    protocol.receive_data(header(CONTINUATION, sizes[-1], key=key))
    assert_failed(protocol, 1009, is_client=is_client)


@both_roles
def test_10_4_the_limit_applies_to_each_message_and_not_to_control_frames(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client, max_message_size=4)
    message = (
        frame(BINARY, b"12", fin=False, key=key)
        + frame(PING, b"p" * 125, key=key)
        + frame(CONTINUATION, b"34", key=key)
        + frame(BINARY, b"1234", key=key)
    )
    for _ in range(3):
        assert protocol.receive_data(message) == [Ping(b"p" * 125), b"1234", b"1234"]
    assert protocol.closed is None


def test_10_4_the_default_limit_is_one_mebibyte() -> None:
    assert MAX_MESSAGE_SIZE == 2**20
    protocol = Protocol(is_client=True)
    assert protocol.receive_data(frame(BINARY, bytes(2**20))) == [bytes(2**20)]
    protocol.receive_data(header(BINARY, 2**20 + 1))
    assert_failed(protocol, 1009, is_client=True)


# Section 5.5.1 and 7: closing.


def may_be_sent(code: int) -> bool:
    """Section 7.4 and the IANA registry, written a second time for the test."""
    return code in {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014} or (
        code // 1000 in {3, 4} and code < 5000
    )


def test_7_4_every_registered_code_is_accepted_and_every_other_code_refused() -> None:
    for code in range(65536):
        assert is_valid_close_code(code) == may_be_sent(code)
        protocol = Protocol(is_client=True)
        events = protocol.receive_data(frame(CLOSE, close_body(code, b"why")))
        assert protocol.closed is not None
        if may_be_sent(code):
            assert events == [protocol.closed] == [protocol.close_received] == [Close(code, "why")]
        else:
            assert (events, protocol.closed.code, protocol.close_received) == ([], 1002, None)


@both_roles
@pytest.mark.parametrize("code", UNKNOWN_CODES)
def test_7_4_a_close_frame_with_an_invalid_code_is_answered_with_1002(is_client: bool, code: int) -> None:
    failing(frame(CLOSE, close_body(code), key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("code", KNOWN_CODES)
@pytest.mark.parametrize("reason", ["", "bye", "é" * 61])
def test_5_5_1_a_close_frame_is_answered_with_its_own_code(is_client: bool, code: int, reason: str) -> None:
    protocol = Protocol(is_client=is_client)
    body = close_body(code, reason.encode())
    assert protocol.receive_data(frame(CLOSE, body, key=key_to(is_client))) == [Close(code, reason)]
    assert protocol.closed == protocol.close_received == Close(code, reason)
    assert protocol.input_ended
    assert bodies(protocol.replies(), is_client=is_client) == [(CLOSE, body)]
    assert protocol.close_sent == Close(code, reason)
    assert protocol.replies() == b""


@both_roles
def test_7_1_5_a_close_frame_without_a_code_counts_as_1005_and_is_answered_without_one(
    is_client: bool,
) -> None:
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(frame(CLOSE, key=key_to(is_client))) == [Close(1005, "")]
    assert protocol.closed == protocol.close_received == Close(1005, "")
    assert bodies(protocol.replies(), is_client=is_client) == [(CLOSE, b"")]


@both_roles
def test_5_5_1_a_close_body_of_one_byte_fails_the_connection(is_client: bool) -> None:
    failing(frame(CLOSE, b"\x03", key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@bad_utf8
def test_5_5_1_a_close_reason_that_is_not_utf8_fails_the_connection(is_client: bool, digits: str) -> None:
    body = close_body(1000, b"a" + h(digits))
    failing(frame(CLOSE, body, key=key_to(is_client)), 1007, is_client=is_client)


@both_roles
def test_5_5_1_a_close_reason_must_not_end_within_a_character(is_client: bool) -> None:
    failing(frame(CLOSE, close_body(1000, b"\xe2\x82"), key=key_to(is_client)), 1007, is_client=is_client)


@both_roles
def test_5_5_1_a_close_frame_of_125_bytes_is_received(is_client: bool) -> None:
    reason = "x" * 123
    data = frame(CLOSE, close_body(4999, reason.encode()), key=key_to(is_client))
    assert Protocol(is_client=is_client).receive_data(data) == [Close(4999, reason)]


@both_roles
def test_1_4_data_after_a_close_frame_is_discarded(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    late = frame(TEXT, b"late", key=key) + frame(PING, key=key) + frame(CLOSE, close_body(1001), key=key)
    events = protocol.receive_data(frame(TEXT, b"t", key=key) + frame(CLOSE, close_body(1000), key=key) + late)
    assert events == ["t", Close(1000)]
    # No later input changes anything, whether it is legal or not.
    assert feed(protocol, [late, b"\xff" * 100, frame(CONTINUATION, key=key_to(not is_client))]) == []
    assert protocol.closed == protocol.close_received == Close(1000)
    assert bodies(protocol.replies(), is_client=is_client) == [(CLOSE, close_body(1000))]


@both_roles
@pytest.mark.parametrize("code", KNOWN_CODES)
@pytest.mark.parametrize("reason", ["", "x" * 123, "é" * 61])
def test_5_5_1_a_close_frame_is_sent_with_its_code_and_reason(is_client: bool, code: int, reason: str) -> None:
    protocol = Protocol(is_client=is_client)
    data = protocol.send_close(code, reason)
    assert bodies(data, is_client=is_client) == [(CLOSE, close_body(code, reason.encode()))]
    assert protocol.closed == protocol.close_sent == Close(code, reason)
    assert protocol.close_received is None
    assert not protocol.input_ended


def test_5_5_1_the_default_close_is_1000_without_a_reason() -> None:
    assert Protocol().send_close() == h("8802 03e8")


@both_roles
def test_7_4_a_code_that_must_not_be_sent_is_a_value_error(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    for code in range(-2, 70000):
        if not may_be_sent(code):
            with pytest.raises(ValueError, match="is not a close code"):
                protocol.send_close(code)
    assert protocol.closed is None
    assert protocol.close_sent is None


@pytest.mark.parametrize("reason", ["x" * 124, "é" * 62, "😀" * 31])
def test_5_5_a_reason_of_more_than_123_bytes_is_a_value_error(reason: str) -> None:
    protocol = Protocol()
    with pytest.raises(ValueError, match="123 bytes"):
        protocol.send_close(1000, reason)
    with pytest.raises(ValueError, match="123 bytes"):
        check_close(1000, reason)
    assert protocol.closed is None
    assert protocol.close_sent is None
    assert protocol.send_close(1000) == h("8802 03e8")


@both_roles
def test_5_5_1_a_second_close_frame_is_not_sent(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    assert protocol.send_close(1001, "first")
    assert protocol.send_close(1000, "second") == b""
    assert protocol.replies() == b""
    assert protocol.closed == protocol.close_sent == Close(1001, "first")
    with pytest.raises(ValueError, match="is not a close code"):
        protocol.send_close(1005)


@both_roles
def test_5_5_1_a_close_frame_that_answers_ours_is_reported_and_not_answered(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.send_close(1001, "going")
    answer = frame(CLOSE, close_body(1000, b"gone"), key=key_to(is_client))
    assert protocol.receive_data(answer) == [Close(1000, "gone")]
    assert protocol.replies() == b""
    assert protocol.closed == protocol.close_sent == Close(1001, "going")
    assert protocol.close_received == Close(1000, "gone")
    assert protocol.input_ended


@both_roles
def test_5_5_1_a_close_of_our_own_may_answer_the_close_of_the_peer(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(CLOSE, close_body(1000), key=key_to(is_client)))
    assert bodies(protocol.send_close(4000, "mine"), is_client=is_client) == [(CLOSE, close_body(4000, b"mine"))]
    assert protocol.replies() == b""
    assert (protocol.closed, protocol.close_received, protocol.close_sent) == (
        Close(1000),
        Close(1000),
        Close(4000, "mine"),
    )


@both_roles
def test_7_1_messages_after_our_close_are_dropped_and_the_close_of_the_peer_is_reported(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    assert protocol.receive_data(frame(TEXT, b"ha", fin=False, key=key)) == []
    protocol.send_close(1000)
    events = feed(
        protocol,
        [
            frame(CONTINUATION, b"lf", key=key),
            frame(TEXT, b"whole", key=key),
            frame(BINARY, b"in ", fin=False, key=key) + frame(PONG, b"p", key=key),
            frame(CONTINUATION, b"two", key=key),
            frame(CLOSE, close_body(1000), key=key),
        ],
    )
    assert events == [Pong(b"p"), Close(1000)]
    assert protocol.close_received == Close(1000)


def test_7_1_a_close_by_another_thread_during_a_read_loses_no_message_of_that_read() -> None:
    parameters = DeflateParameters()
    sender = Protocol(is_client=True, deflate=Deflate(parameters, Compression(threshold=0), is_client=True))

    class Closing(Deflate):
        """A decompressor that closes the connection while it inflates, like another thread."""

        def decompress(self, *args: Any, **options: Any) -> bytes:
            receiver.send_close()
            return super().decompress(*args, **options)

    receiver = Protocol(deflate=Closing(parameters))
    data = sender.send_text("inflated") + frame(TEXT, b"plain", key=KEY)
    assert receiver.receive_data(data) == ["inflated", "plain"]
    assert receiver.receive_data(data) == []


@both_roles
def test_7_1_an_error_after_our_close_ends_the_input_and_keeps_our_code(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    protocol.send_close(1000)
    assert protocol.receive_data(frame(0xB, key=key) + frame(CLOSE, close_body(1000), key=key)) == []
    assert protocol.input_ended
    assert protocol.closed == Close(1000)
    assert protocol.close_received is None
    assert protocol.replies() == b""


@both_roles
def test_5_5_1_nothing_more_is_sent_after_our_close(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.send_close(4001, "mine")
    assert_sending_raises(protocol, 4001, "mine")


@both_roles
def test_5_5_1_nothing_more_is_sent_after_the_close_of_the_peer(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(CLOSE, close_body(4002, b"yours"), key=key_to(is_client)))
    assert_sending_raises(protocol, 4002, "yours")
    protocol.replies()
    assert_sending_raises(protocol, 4002, "yours")


@both_roles
def test_7_1_7_nothing_more_is_sent_after_an_error(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(TEXT, b"\xff", key=key_to(is_client)))
    assert protocol.closed is not None
    assert_sending_raises(protocol, 1007, protocol.closed.reason)


@both_roles
def test_7_1_7_nothing_more_is_sent_after_the_end_of_the_input(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_eof()
    assert protocol.closed is not None
    assert_sending_raises(protocol, 1006, protocol.closed.reason)


def assert_sending_raises(protocol: Protocol, code: int, reason: str) -> None:
    for send in (
        lambda: protocol.send_text("late"),
        lambda: protocol.send_text(""),
        lambda: protocol.send_binary(b"late"),
        lambda: protocol.send_ping(),
    ):
        with pytest.raises(ConnectionClosed) as raised:
            send()
        assert (raised.value.code, raised.value.reason) == (code, reason)


@both_roles
@pytest.mark.parametrize(
    "before",
    [b"", b"\x81", frame(PING, b"p" * 9), frame(TEXT, b"half", fin=False), header(TEXT, 100) + b"part"],
    ids=["at once", "in a header", "after a ping", "in a message", "in a frame"],
)
def test_7_1_5_the_end_of_the_input_without_a_close_frame_is_1006_without_an_answer(
    is_client: bool, before: bytes
) -> None:
    protocol = Protocol(is_client=is_client)
    if is_client:
        protocol.receive_data(before)
    protocol.replies()
    protocol.receive_eof()
    assert protocol.closed is not None
    assert protocol.closed.code == 1006
    assert protocol.close_received is None
    assert protocol.close_sent is None
    assert protocol.input_ended
    assert protocol.replies() == b""
    assert protocol.receive_data(frame(TEXT, b"late", key=key_to(is_client))) == []
    protocol.receive_eof()
    assert protocol.closed.code == 1006


@both_roles
def test_7_1_5_the_end_of_the_input_may_have_a_reason(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_eof("no Pong in time")
    assert protocol.closed == Close(1006, "no Pong in time")
    assert protocol.replies() == b""


@both_roles
def test_7_1_5_the_end_of_the_input_keeps_the_code_of_the_peer(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(CLOSE, close_body(4000, b"r"), key=key_to(is_client)))
    protocol.receive_eof()
    assert protocol.closed == protocol.close_received == Close(4000, "r")
    assert bodies(protocol.replies(), is_client=is_client) == [(CLOSE, close_body(4000, b"r"))]


@both_roles
def test_7_1_5_the_end_of_the_input_keeps_our_code(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.send_close(4000, "r")
    protocol.receive_eof()
    assert protocol.closed == protocol.close_sent == Close(4000, "r")
    assert protocol.close_received is None
    assert protocol.input_ended
    assert protocol.replies() == b""


@both_roles
def test_7_1_7_the_end_of_the_input_keeps_the_code_of_an_error(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_data(frame(0x3, key=key_to(is_client)))
    protocol.receive_eof()
    assert_failed(protocol, 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(0x3), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (header(TEXT, 2**40), 1009),
        (frame(CLOSE, b"\xff"), 1002),
        (frame(CLOSE, close_body(1000, b"\xff")), 1007),
    ],
)
def test_7_1_7_messages_before_an_error_are_delivered_and_messages_after_it_are_not(
    is_client: bool, data: bytes, code: int
) -> None:
    key = key_to(is_client)
    if not is_client:
        # Mask the unmasked data. All of it is short enough for a header of two or ten bytes.
        size = 10 if data[1] == 127 else 2
        data = data[:1] + bytes([data[1] | 0x80]) + data[2:size] + KEY + xor(data[size:], KEY)
    protocol = Protocol(is_client=is_client)
    before = frame(TEXT, b"1", key=key) + frame(BINARY, b"2", fin=False, key=key)
    before += frame(CONTINUATION, b"3", key=key)
    assert protocol.receive_data(before + data + frame(TEXT, b"late", key=key)) == ["1", b"23"]
    assert_failed(protocol, code, is_client=is_client)


@both_roles
def test_7_1_7_the_close_frame_for_an_error_names_the_error_in_a_reason_that_fits(is_client: bool) -> None:
    key = key_to(is_client)
    for data in (
        frame(0x3, key=key),
        frame(0xF, key=key),
        frame(TEXT, rsv=1, key=key),
        frame(TEXT, b"\xff", key=key),
        header(TEXT, (1 << 63) - 1, key=key),
        header(TEXT, 1, wide=64, key=key),
        header(PING, 126, key=key),
        frame(PING, fin=False, key=key),
        frame(CONTINUATION, key=key),
        frame(TEXT, key=key_to(not is_client)),
        frame(CLOSE, b"1", key=key),
        frame(CLOSE, close_body(65535), key=key),
    ):
        protocol = Protocol(is_client=is_client, max_message_size=2**62)
        protocol.receive_data(data)
        assert protocol.closed is not None
        assert 0 < len(protocol.closed.reason.encode()) <= 123
        assert_failed(protocol, protocol.closed.code, is_client=is_client)


def test_the_two_roles_understand_each_other() -> None:
    ends = Protocol(), Protocol(is_client=True)
    for ours, theirs in (ends, ends[::-1]):
        assert theirs.receive_data(ours.send_text("é") + ours.send_binary(b"\xff")) == ["é", b"\xff"]
        assert theirs.receive_data(ours.send_ping(b"p")) == [Ping(b"p")]
        assert ours.receive_data(theirs.replies()) == [Pong(b"p")]
    server, client = ends
    assert client.receive_data(server.send_close(1001, "going")) == [Close(1001, "going")]
    assert server.receive_data(client.replies()) == [Close(1001, "going")]
    assert (server.replies(), client.replies()) == (b"", b"")
    assert server.closed == client.closed == Close(1001, "going")


def test_7_1_when_both_sides_close_at_once_each_keeps_its_own_code() -> None:
    server, client = Protocol(), Protocol(is_client=True)
    ours, theirs = server.send_close(1001), client.send_close(4000)
    assert server.receive_data(theirs) == [Close(4000)]
    assert client.receive_data(ours) == [Close(1001)]
    assert (server.replies(), client.replies()) == (b"", b"")
    assert (server.closed, server.close_received) == (Close(1001), Close(4000))
    assert (client.closed, client.close_received) == (Close(4000), Close(1001))


# Messages of the application


@pytest.mark.parametrize("message", ["text", b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), array("B", b"bytes")])
def test_a_message_is_text_or_bytes_like(message: Any) -> None:
    assert payload_of(message) == ("text" if message == "text" else b"bytes")


async def answer() -> None: ...


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: {"a": 1}, r"not dict: use send_json\(\), or app.json.dumps\(\)"),
        (lambda: None, r"not NoneType: use send_json\(\), or app.json.dumps\(\)"),
        (answer, "not coroutine: is an await missing"),
    ],
)
def test_a_message_of_another_type_is_a_type_error_with_a_hint(make: Any, hint: str) -> None:
    message = make()
    with pytest.raises(TypeError, match=rf"a message is str \(text\) or bytes \(binary\), {hint}"):
        payload_of(message)
    if hasattr(message, "close"):
        message.close()


@both_roles
@pytest.mark.parametrize("size", [0, 1])
def test_10_4_a_message_with_the_maximum_of_fragments_passes_and_one_more_is_refused(
    is_client: bool, size: int
) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client, max_fragments=3)
    start, middle, end = (
        frame(BINARY, b"x" * size, fin=False, key=key),
        frame(CONTINUATION, b"x" * size, fin=False, key=key),
        frame(CONTINUATION, b"x" * size, key=key),
    )
    ping = frame(PING, b"p", key=key)  # a Ping is no fragment
    for _ in range(2):  # each message has its own count
        assert protocol.receive_data(start + ping + middle + ping + end) == [Ping(b"p"), Ping(b"p"), b"x" * 3 * size]
    assert protocol.receive_data(frame(BINARY, b"whole", key=key)) == [b"whole"]
    assert protocol.receive_data(start + middle + middle) == []
    assert [opcode for opcode, _ in bodies(protocol.replies(), is_client=is_client)] == [PONG] * 4
    assert protocol.receive_data(middle + end) == []
    assert_failed(protocol, 1008, is_client=is_client)


def test_10_4_four_mebibytes_in_fragments_of_64_bytes_are_allowed_by_default() -> None:
    assert MAX_FRAGMENTS == 65_536
    protocol = Protocol(max_message_size=2**22)
    middle = frame(CONTINUATION, b"x" * 64, fin=False, key=KEY)
    protocol.receive_data(frame(BINARY, b"x" * 64, fin=False, key=KEY) + middle * 65_534)
    assert protocol.receive_data(frame(CONTINUATION, b"x" * 64, key=KEY)) == [b"x" * 2**22]
    protocol.receive_data(frame(BINARY, fin=False, key=KEY) + middle * 65_535)
    assert not protocol.input_ended
    protocol.receive_data(middle)
    assert_failed(protocol, 1008, is_client=False)


# Input in several calls


def pieces(protocol: Protocol, data: bytes, most: int) -> list[list[object]]:
    """Return the events of each call, until no input is left."""
    said: list[list[object]] = [list(protocol.receive_some(data, most))]
    while protocol.has_input:
        said.append(list(protocol.receive_some(b"", most)))
    return said


#: Floods of 12 frames each.
FLOODS: dict[str, list[tuple[int, bytes, bool]]] = {
    "pings": [(PING, b"p", True)] * 12,
    "empty pings": [(PING, b"", True)] * 12,
    "pongs": [(PONG, b"p", True)] * 12,
    "messages": [(TEXT, b"m", True)] * 12,
    "empty messages": [(BINARY, b"", True)] * 12,
    "fragments": [(TEXT, b"f", False), *[(CONTINUATION, b"f", False)] * 10, (CONTINUATION, b"f", True)],
    "empty fragments": [(TEXT, b"", False), *[(CONTINUATION, b"", False)] * 10, (CONTINUATION, b"", True)],
    "all of them": [(PING, b"", True), (TEXT, b"m", True), (TEXT, b"", False), (CONTINUATION, b"f", True)] * 3,
}


@both_roles
@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("most", [1, 2, 5, 11, 12, 13])
def test_a_call_parses_no_more_frames_than_its_limit_and_the_next_calls_parse_the_rest(
    is_client: bool, flood: str, most: int
) -> None:
    data = b"".join(frame(opcode, body, fin=fin, key=key_to(is_client)) for opcode, body, fin in FLOODS[flood])
    whole = Protocol(is_client=is_client)
    events = whole.receive_data(data)
    assert (whole.frames, whole.has_input) == (12, False)
    replies = bodies(whole.replies(), is_client=is_client)
    for cut in (0, 3, len(data) - 1):  # also within the first and the last frame
        protocol = Protocol(is_client=is_client)
        said = [*pieces(protocol, data[:cut], most), *pieces(protocol, data[cut:], most)]
        assert [event for piece in said for event in piece] == events
        assert max(map(len, said)) <= most + 1  # one more is the message of a frame that an earlier call began
        assert len(said) >= 12 // most
        assert bodies(protocol.replies(), is_client=is_client) == replies


@both_roles
def test_a_message_whose_last_fragment_is_empty_does_not_wait_for_more_input(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    data = frame(TEXT, b"a", fin=False, key=key) + frame(CONTINUATION, b"", key=key)
    assert pieces(protocol, data, 2) == [[], ["a"]]
    assert protocol.is_between_messages


@both_roles
def test_remaining_input_is_parsed_before_later_input(is_client: bool) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    numbers = [frame(TEXT, str(number).encode(), key=key) for number in range(9)]
    assert protocol.receive_some(b"".join(numbers[:5]), 2) == ["0", "1"]
    assert protocol.has_input
    assert not protocol.is_between_messages
    assert protocol.receive_some(b"".join(numbers[5:]), 2) == ["2", "3"]
    assert pieces(protocol, b"", 2) == [["4", "5"], ["6", "7"], ["8"]]
    assert protocol.is_between_messages


@both_roles
@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_remaining_input_is_dropped_after_a_close_frame_and_after_an_error(is_client: bool, most: int) -> None:
    key = key_to(is_client)
    message = frame(TEXT, b"m", key=key)
    for end, code in [(frame(CLOSE, close_body(4000), key=key), 4000), (frame(0xB, key=key), 1002)]:
        protocol = Protocol(is_client=is_client)
        said = [event for piece in pieces(protocol, message * 3 + end + message * 3, most) for event in piece]
        assert said[:3] == ["m"] * 3
        assert len(said) == (4 if code == 4000 else 3)
        assert protocol.closed is not None
        assert protocol.closed.code == code
        assert protocol.receive_some(message, most) == []


@both_roles
def test_remaining_input_is_dropped_at_the_end_of_the_input(is_client: bool) -> None:
    protocol = Protocol(is_client=is_client)
    protocol.receive_some(frame(TEXT, b"m", key=key_to(is_client)) * 3, 1)
    protocol.receive_eof()
    assert not protocol.has_input
    assert protocol.receive_some(b"", 1) == []
    assert protocol.closed == Close(1006, "the connection was lost without a Close frame")


@both_roles
def test_5_5_1_after_our_close_messages_in_the_remaining_input_are_dropped_and_the_answer_is_found(
    is_client: bool,
) -> None:
    key = key_to(is_client)
    protocol = Protocol(is_client=is_client)
    data = frame(TEXT, b"m", key=key) * 3 + frame(PING, b"p", key=key) + frame(CLOSE, close_body(1000), key=key)
    assert protocol.receive_some(data, 1) == ["m"]
    protocol.send_close()
    assert pieces(protocol, b"", 1) == [[], [], [Ping(b"p")], [Close(1000)]]
