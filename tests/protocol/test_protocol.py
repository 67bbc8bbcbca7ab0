"""RFC 6455, sentence by sentence: each test is named by the section that it holds the engine to.

``is_client`` is the role of the engine under test; its peer has the other one.
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import pytest

from flask_uwsgi_websocket.exceptions import ConnectionClosed
from flask_uwsgi_websocket.protocol import protocol
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

pytestmark = pytest.mark.usefixtures("engine")

both_roles = pytest.mark.parametrize("is_client", ROLES.values(), ids=ROLES)

UNKNOWN_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 5001, 65535]
KNOWN_CODES = [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999]


def assert_failed(engine: Protocol, code: int, *, is_client: bool) -> None:
    """Assert that the engine failed the connection, tells the peer so once, and is deaf from then on."""
    assert engine.closed is not None
    assert engine.closed.code == code
    assert engine.input_ended
    assert engine.close_received is None
    ((opcode, body),) = bodies(engine.replies(), is_client=is_client)
    assert opcode == CLOSE
    assert body == close_body(code, engine.closed.reason.encode())
    assert engine.close_sent == engine.closed
    assert engine.replies() == b""
    assert engine.send_close() == b""
    # 7.1.7: "An endpoint MUST NOT continue to attempt to process data (including a responding Close frame)"
    key = key_to(is_client)
    late = frame(TEXT, b"late", key=key) + frame(PING, key=key) + frame(CLOSE, close_body(1000), key=key)
    assert engine.receive_data(late) == []
    assert engine.closed.code == code
    assert engine.close_received is None
    assert engine.replies() == b""


def failing(data: bytes, code: int, *, is_client: bool, max_message_size: int = MAX_MESSAGE_SIZE) -> Protocol:
    """Feed *data*, which must deliver nothing and fail the connection."""
    engine = Protocol(is_client=is_client, max_message_size=max_message_size)
    assert engine.receive_data(data) == []
    assert_failed(engine, code, is_client=is_client)
    return engine


# Section 5.7, Examples, and what else is fed in every split.


class Sample(NamedTuple):
    """Bytes for one role, and all that they must come to."""

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
    engine = Protocol(is_client=sample.is_client, max_message_size=sample.max_message_size)
    assert engine.receive_data(sample.data) == sample.events
    assert (engine.closed and engine.closed.code) == sample.closed


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_5_4_it_does_not_matter_how_the_bytes_of_a_sample_are_split(sample: Sample) -> None:
    whole = Protocol(is_client=sample.is_client, max_message_size=sample.max_message_size)
    whole.receive_data(sample.data)
    replies = bodies(whole.replies(), is_client=sample.is_client)
    for parts in splits(sample.data):
        engine = Protocol(is_client=sample.is_client, max_message_size=sample.max_message_size)
        assert feed(engine, parts) == sample.events
        assert engine.closed == whole.closed
        assert engine.close_received == whole.close_received
        assert engine.input_ended == whole.input_ended
        assert bodies(engine.replies(), is_client=sample.is_client) == replies


def test_5_7_the_server_builds_the_samples() -> None:
    engine = Protocol()
    assert engine.send_text("Hello") == h("8105 48656c6c6f")
    assert engine.send_ping(b"Hello") == h("8905 48656c6c6f")
    assert engine.send_binary(bytes(range(256))) == h("827e 0100") + bytes(range(256))
    assert engine.send_binary(bytes(65536)) == h("827f 0000000000010000") + bytes(65536)


def test_5_7_the_server_answers_the_ping_of_the_sample() -> None:
    engine = Protocol()
    assert engine.receive_data(frame(PING, b"Hello", key=KEY)) == [Ping(b"Hello")]
    assert engine.replies() == h("8a05 48656c6c6f")


def test_5_7_the_client_answers_the_ping_of_the_sample_masked() -> None:
    engine = Protocol(is_client=True)
    engine.receive_data(h("8905 48656c6c6f"))
    reply = engine.replies()
    assert reply[:2] == h("8a85")
    assert reply[6:] == xor(b"Hello", reply[2:6])


@both_roles
def test_5_1_no_bytes_give_no_events(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(b"") == []
    assert engine.replies() == b""
    assert engine.closed is None
    assert not engine.input_ended


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
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(TEXT, b"a", fin=False, key=key_to(is_client)))
    engine.receive_data(frame(CONTINUATION, b"b", key=key_to(not is_client)))
    assert_failed(engine, 1002, is_client=is_client)


def test_5_1_a_server_must_not_mask_any_frames() -> None:
    engine = Protocol()
    engine.receive_data(frame(PING, b"p", key=KEY))
    frames = engine.send_text("t") + engine.send_binary(b"b") + engine.send_ping() + engine.replies()
    assert frames == h("810174 820162 8900 8a0170")
    assert engine.send_close(1000, "bye") == h("8805 03e8 627965")


def test_5_1_a_client_must_mask_all_frames() -> None:
    engine = Protocol(is_client=True)
    engine.receive_data(frame(PING, b"p"))
    frames = engine.send_text("t") + engine.send_binary(b"b") + engine.send_ping() + engine.replies()
    frames += engine.send_close(1000, "bye")
    sent = [(TEXT, b"t"), (BINARY, b"b"), (PING, b""), (PONG, b"p"), (CLOSE, close_body(1000, b"bye"))]
    assert bodies(frames, is_client=True) == sent


def test_5_3_the_masking_key_is_chosen_anew_for_each_frame() -> None:
    engine = Protocol(is_client=True)
    assert len({engine.send_binary(b"")[2:6] for _ in range(50)}) == 50


@pytest.mark.parametrize("size", [*range(20), 125, 126, 4095, 4096, 65537])
def test_5_3_the_same_algorithm_masks_and_unmasks(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    masked = protocol.apply_mask(data, KEY)
    assert masked == xor(data, KEY)
    assert protocol.apply_mask(masked, KEY) == data
    assert protocol.apply_mask(data, bytes(4)) == data


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
    engine = Protocol(is_client=is_client)
    message = payload.decode() if opcode == TEXT else payload
    for _ in range(2):
        assert engine.receive_data(frame(opcode, payload, key=key_to(is_client))) == [message]
    assert engine.closed is None


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
def test_5_2_a_long_length_is_no_error_but_too_big(is_client: bool, size: int) -> None:
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
    engine = Protocol(is_client=is_client)
    message = frame(TEXT, b"a", fin=False, key=key) + frame(CONTINUATION, b"b", key=key)
    assert engine.receive_data(message + frame(CONTINUATION, b"c", key=key)) == ["ab"]
    assert_failed(engine, 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("started", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
@pytest.mark.parametrize("payload", [b"", b"a"])
def test_5_4_the_fragments_of_one_message_must_not_be_interleaved_with_those_of_another(
    is_client: bool, opcode: int, started: int, fin: bool, payload: bytes
) -> None:
    key = key_to(is_client)
    data = frame(started, payload, fin=False, key=key) + frame(opcode, payload, fin=fin, key=key)
    failing(data, 1002, is_client=is_client)


@both_roles
def test_5_4_an_endpoint_must_handle_control_frames_in_the_middle_of_a_message(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(frame(BINARY, b"1", fin=False, key=key)) == []
    assert engine.receive_data(frame(PING, b"p", key=key)) == [Ping(b"p")]
    assert bodies(engine.replies(), is_client=is_client) == [(PONG, b"p")]
    assert engine.receive_data(frame(CONTINUATION, b"2", fin=False, key=key)) == []
    assert engine.receive_data(frame(PONG, b"q", key=key)) == [Pong(b"q")]
    assert engine.receive_data(frame(CONTINUATION, b"3", key=key)) == [b"123"]
    assert engine.receive_data(frame(TEXT, b"next", key=key)) == ["next"]
    assert engine.closed is None


@both_roles
def test_5_4_messages_of_both_types_follow_each_other_fragmented_or_not(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    text = frame(TEXT, b"\xc3", fin=False, key=key) + frame(CONTINUATION, b"\xa9", key=key)
    # What is not UTF-8 must pass as binary right after text, and the other way round.
    binary = frame(BINARY, b"\xc3", fin=False, key=key) + frame(CONTINUATION, b"\xc3", key=key)
    single = frame(BINARY, b"\xff", key=key) + frame(TEXT, b"z", key=key)
    assert engine.receive_data(text + binary + single + binary + text) == [
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
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(data) == []
    assert engine.receive_data(frame(CONTINUATION, key=key)) == ["ab" * 1000]


# Section 5.5: control frames.


@both_roles
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_5_5_control_frames_must_not_be_fragmented(is_client: bool, opcode: int) -> None:
    failing(frame(opcode, fin=False, key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize("size", [126, 65536, 1 << 62])
def test_5_5_control_frames_must_have_125_bytes_or_less(is_client: bool, opcode: int, size: int) -> None:
    # The first two bytes tell: neither the length nor the payload is waited for.
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
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(frame(PING, payload, key=key_to(is_client))) == [Ping(payload)]
    assert bodies(engine.replies(), is_client=is_client) == [(PONG, payload)]
    assert engine.replies() == b""


@both_roles
def test_5_5_2_each_of_several_pings_is_answered_in_their_order(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(PING, b"1", key=key) + frame(TEXT, b"t", key=key) + frame(PING, b"2", key=key))
    engine.receive_data(frame(PING, b"", key=key))
    assert bodies(engine.replies(), is_client=is_client) == [(PONG, b"1"), (PONG, b"2"), (PONG, b"")]
    assert engine.replies() == b""


@both_roles
def test_5_5_2_pings_before_a_close_are_answered_before_the_close(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(PING, b"1", key=key) + frame(CLOSE, close_body(1000), key=key))
    assert bodies(engine.replies(), is_client=is_client) == [(PONG, b"1"), (CLOSE, close_body(1000))]


@both_roles
def test_5_5_2_pings_before_an_error_are_answered_before_the_close(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(frame(PING, b"1", key=key) + frame(0xB, key=key)) == [Ping(b"1")]
    (pong, (opcode, body)) = bodies(engine.replies(), is_client=is_client)
    assert pong == (PONG, b"1")
    assert (opcode, body[:2]) == (CLOSE, close_body(1002))


@both_roles
def test_5_5_2_a_ping_is_answered_unless_a_close_frame_was_already_received(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    engine.send_close(1000)
    # Our own Close frame does not lift the duty: only that of the peer does.
    assert engine.receive_data(frame(PING, b"still there?", key=key)) == [Ping(b"still there?")]
    assert bodies(engine.replies(), is_client=is_client) == [(PONG, b"still there?")]
    last = frame(PING, b"1", key=key) + frame(CLOSE, close_body(1000), key=key) + frame(PING, b"2", key=key)
    assert engine.receive_data(last) == [Ping(b"1"), Close(1000)]
    assert bodies(engine.replies(), is_client=is_client) == [(PONG, b"1")]
    assert engine.replies() == b""


@both_roles
def test_5_5_2_a_ping_after_the_close_of_the_peer_is_not_answered(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(CLOSE, close_body(1000), key=key) + frame(PING, b"1", key=key))
    assert engine.receive_data(frame(PING, b"2", key=key)) == []
    assert bodies(engine.replies(), is_client=is_client) == [(CLOSE, close_body(1000))]


@both_roles
def test_5_5_3_a_response_to_an_unsolicited_pong_is_not_expected(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(frame(PONG, b"hi", key=key_to(is_client))) == [Pong(b"hi")]
    assert engine.receive_data(frame(PONG, key=key_to(is_client))) == [Pong(b"")]
    assert engine.replies() == b""
    assert engine.closed is None


@both_roles
def test_5_5_2_a_ping_of_125_bytes_is_sent_and_one_of_126_is_refused(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    assert bodies(engine.send_ping(b"p" * 125), is_client=is_client) == [(PING, b"p" * 125)]
    with pytest.raises(ValueError, match="125 bytes, not 126"):
        engine.send_ping(b"p" * 126)


# Section 5.6, 8.1: UTF-8.

#: Bytes of which the last is the first that no UTF-8 text can have there.
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
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(data) == ["ok"]
    assert_failed(engine, 1007, is_client=is_client)


@both_roles
@bad_utf8
@pytest.mark.parametrize("before", [b"", b"123", "é€😀".encode()])
def test_8_1_the_first_bad_byte_fails_the_connection_before_the_rest_of_its_frame(
    is_client: bool, digits: str, before: bytes
) -> None:
    payload = before + h(digits)
    start = header(TEXT, 1000, key=key_to(is_client))
    masked = payload if is_client else xor(payload, KEY)
    engine = Protocol(is_client=is_client)
    for i in range(len(payload) - 1):
        assert engine.receive_data(start + masked[i : i + 1]) == []
        assert engine.closed is None
        start = b""
    assert engine.receive_data(start + masked[-1:]) == []
    assert_failed(engine, 1007, is_client=is_client)


@both_roles
@bad_utf8
def test_8_1_the_first_bad_byte_fails_the_connection_before_the_next_fragment(is_client: bool, digits: str) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    good, bad = h(digits)[:-1], h(digits)[-1:]
    assert engine.receive_data(frame(TEXT, b"ok" + good, fin=False, key=key)) == []
    assert engine.closed is None
    engine.receive_data(frame(CONTINUATION, bad, fin=False, key=key))
    assert_failed(engine, 1007, is_client=is_client)


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
def test_5_6_the_bytes_of_binary_messages_are_not_looked_at(is_client: bool) -> None:
    payload = bytes(range(256)) + h("eda0 c0 f490 f5")
    data = frame(BINARY, payload, key=key_to(is_client))
    assert Protocol(is_client=is_client).receive_data(data) == [payload]


@both_roles
@pytest.mark.parametrize("text", ["", "a", "é", "€", "😀", "\0", "a\ufeff"])
def test_5_6_text_is_sent_as_utf8(is_client: bool, text: str) -> None:
    engine = Protocol(is_client=is_client)
    assert bodies(engine.send_text(text), is_client=is_client) == [(TEXT, text.encode())]


@both_roles
def test_5_6_a_byte_order_mark_is_part_of_the_text(is_client: bool) -> None:
    data = frame(TEXT, "\ufeffa".encode(), key=key_to(is_client))
    assert Protocol(is_client=is_client).receive_data(data) == ["\ufeffa"]


@both_roles
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\udc80b"])
def test_8_1_a_lone_surrogate_cannot_be_sent_and_leaves_the_connection_open(is_client: bool, text: str) -> None:
    engine = Protocol(is_client=is_client)
    with pytest.raises(UnicodeEncodeError):
        engine.send_text(text)
    with pytest.raises(ValueError, match="surrogates"):
        engine.send_close(1000, text)
    assert engine.closed is None
    assert engine.close_sent is None
    assert bodies(engine.send_text("b"), is_client=is_client) == [(TEXT, b"b")]


# Section 10.4: implementation-specific limits.


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("limit", [0, 1, 125, 126, 65535, 65536])
def test_10_4_a_message_of_the_limit_passes_and_one_byte_more_is_refused_at_its_header(
    is_client: bool, opcode: int, limit: int
) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client, max_message_size=limit)
    (message,) = engine.receive_data(frame(opcode, b"x" * limit, key=key))
    assert message == ("x" * limit if opcode == TEXT else b"x" * limit)
    # No byte of the payload has come: there is nothing that the engine could have kept.
    engine.receive_data(header(opcode, limit + 1, key=key))
    assert_failed(engine, 1009, is_client=is_client)


@both_roles
@pytest.mark.parametrize("sizes", [(10, 1), (5, 6), (0, 11), (10, 0, 0, 1), (1,) * 11, (4, 4, 100)])
def test_10_4_the_limit_is_on_the_message_after_reassembly(is_client: bool, sizes: tuple[int, ...]) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client, max_message_size=10)
    opcode = BINARY
    for size in sizes[:-1]:
        assert engine.receive_data(frame(opcode, b"x" * size, fin=False, key=key)) == []
        assert engine.closed is None
        opcode = CONTINUATION
    engine.receive_data(header(CONTINUATION, sizes[-1], key=key))
    assert_failed(engine, 1009, is_client=is_client)


@both_roles
def test_10_4_the_limit_is_counted_afresh_for_each_message_and_not_for_control_frames(
    is_client: bool,
) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client, max_message_size=4)
    message = (
        frame(BINARY, b"12", fin=False, key=key)
        + frame(PING, b"p" * 125, key=key)
        + frame(CONTINUATION, b"34", key=key)
        + frame(BINARY, b"1234", key=key)
    )
    for _ in range(3):
        assert engine.receive_data(message) == [Ping(b"p" * 125), b"1234", b"1234"]
    assert engine.closed is None


def test_10_4_the_default_limit_is_one_mebibyte() -> None:
    assert MAX_MESSAGE_SIZE == 2**20
    engine = Protocol(is_client=True)
    assert engine.receive_data(frame(BINARY, bytes(2**20))) == [bytes(2**20)]
    engine.receive_data(header(BINARY, 2**20 + 1))
    assert_failed(engine, 1009, is_client=True)


# Section 5.5.1 and 7: closing.


def may_be_sent(code: int) -> bool:
    """Section 7.4 and the IANA registry, written down a second time."""
    return code in {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014} or (
        code // 1000 in {3, 4} and code < 5000
    )


def test_7_4_every_code_that_a_close_frame_can_carry_is_accepted_or_refused_as_registered() -> None:
    for code in range(65536):
        assert is_valid_close_code(code) == may_be_sent(code)
        engine = Protocol(is_client=True)
        events = engine.receive_data(frame(CLOSE, close_body(code, b"why")))
        assert engine.closed is not None
        if may_be_sent(code):
            assert events == [engine.closed] == [engine.close_received] == [Close(code, "why")]
        else:
            assert (events, engine.closed.code, engine.close_received) == ([], 1002, None)


@both_roles
@pytest.mark.parametrize("code", UNKNOWN_CODES)
def test_7_4_a_close_frame_with_an_invalid_code_is_answered_with_1002(is_client: bool, code: int) -> None:
    failing(frame(CLOSE, close_body(code), key=key_to(is_client)), 1002, is_client=is_client)


@both_roles
@pytest.mark.parametrize("code", KNOWN_CODES)
@pytest.mark.parametrize("reason", ["", "bye", "é" * 61])
def test_5_5_1_a_close_frame_is_answered_with_the_code_that_it_had(is_client: bool, code: int, reason: str) -> None:
    engine = Protocol(is_client=is_client)
    body = close_body(code, reason.encode())
    assert engine.receive_data(frame(CLOSE, body, key=key_to(is_client))) == [Close(code, reason)]
    assert engine.closed == engine.close_received == Close(code, reason)
    assert engine.input_ended
    assert bodies(engine.replies(), is_client=is_client) == [(CLOSE, body)]
    assert engine.close_sent == Close(code, reason)
    assert engine.replies() == b""


@both_roles
def test_7_1_5_a_close_frame_without_a_code_counts_as_1005_and_is_answered_without_one(
    is_client: bool,
) -> None:
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(frame(CLOSE, key=key_to(is_client))) == [Close(1005, "")]
    assert engine.closed == engine.close_received == Close(1005, "")
    assert bodies(engine.replies(), is_client=is_client) == [(CLOSE, b"")]


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
    engine = Protocol(is_client=is_client)
    late = frame(TEXT, b"late", key=key) + frame(PING, key=key) + frame(CLOSE, close_body(1001), key=key)
    events = engine.receive_data(frame(TEXT, b"t", key=key) + frame(CLOSE, close_body(1000), key=key) + late)
    assert events == ["t", Close(1000)]
    # Whatever comes then, legal or not, changes nothing.
    assert feed(engine, [late, b"\xff" * 100, frame(CONTINUATION, key=key_to(not is_client))]) == []
    assert engine.closed == engine.close_received == Close(1000)
    assert bodies(engine.replies(), is_client=is_client) == [(CLOSE, close_body(1000))]


@both_roles
@pytest.mark.parametrize("code", KNOWN_CODES)
@pytest.mark.parametrize("reason", ["", "x" * 123, "é" * 61])
def test_5_5_1_a_close_frame_is_sent_with_its_code_and_reason(is_client: bool, code: int, reason: str) -> None:
    engine = Protocol(is_client=is_client)
    data = engine.send_close(code, reason)
    assert bodies(data, is_client=is_client) == [(CLOSE, close_body(code, reason.encode()))]
    assert engine.closed == engine.close_sent == Close(code, reason)
    assert engine.close_received is None
    assert not engine.input_ended


def test_5_5_1_the_default_close_is_1000_without_a_reason() -> None:
    assert Protocol().send_close() == h("8802 03e8")


@both_roles
def test_7_4_every_code_that_must_not_be_sent_is_a_value_error(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    for code in range(-2, 70000):
        if not may_be_sent(code):
            with pytest.raises(ValueError, match="is not a close code"):
                engine.send_close(code)
    assert engine.closed is None
    assert engine.close_sent is None


@pytest.mark.parametrize("reason", ["x" * 124, "é" * 62, "😀" * 31])
def test_5_5_a_reason_of_more_than_123_bytes_is_a_value_error(reason: str) -> None:
    engine = Protocol()
    with pytest.raises(ValueError, match="123 bytes"):
        engine.send_close(1000, reason)
    with pytest.raises(ValueError, match="123 bytes"):
        check_close(1000, reason)
    assert engine.closed is None
    assert engine.close_sent is None
    assert engine.send_close(1000) == h("8802 03e8")


@both_roles
def test_5_5_1_a_second_close_frame_is_not_sent(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    assert engine.send_close(1001, "first")
    assert engine.send_close(1000, "second") == b""
    assert engine.replies() == b""
    assert engine.closed == engine.close_sent == Close(1001, "first")
    with pytest.raises(ValueError, match="is not a close code"):
        engine.send_close(1005)


@both_roles
def test_5_5_1_a_close_frame_that_answers_ours_is_seen_and_not_answered(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.send_close(1001, "going")
    answer = frame(CLOSE, close_body(1000, b"gone"), key=key_to(is_client))
    assert engine.receive_data(answer) == [Close(1000, "gone")]
    assert engine.replies() == b""
    assert engine.closed == engine.close_sent == Close(1001, "going")
    assert engine.close_received == Close(1000, "gone")
    assert engine.input_ended


@both_roles
def test_5_5_1_a_close_of_our_own_may_be_the_answer_to_that_of_the_peer(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(CLOSE, close_body(1000), key=key_to(is_client)))
    assert bodies(engine.send_close(4000, "mine"), is_client=is_client) == [(CLOSE, close_body(4000, b"mine"))]
    assert engine.replies() == b""
    assert (engine.closed, engine.close_received, engine.close_sent) == (
        Close(1000),
        Close(1000),
        Close(4000, "mine"),
    )


@both_roles
def test_7_1_messages_after_our_close_are_dropped_and_the_close_of_the_peer_is_seen(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    assert engine.receive_data(frame(TEXT, b"ha", fin=False, key=key)) == []
    engine.send_close(1000)
    events = feed(
        engine,
        [
            frame(CONTINUATION, b"lf", key=key),
            frame(TEXT, b"whole", key=key),
            frame(BINARY, b"in ", fin=False, key=key) + frame(PONG, b"p", key=key),
            frame(CONTINUATION, b"two", key=key),
            frame(CLOSE, close_body(1000), key=key),
        ],
    )
    assert events == [Pong(b"p"), Close(1000)]
    assert engine.close_received == Close(1000)


def test_7_1_a_close_in_the_midst_of_a_read_leaves_no_gap() -> None:
    parameters = DeflateParameters()
    sender = Protocol(is_client=True, deflate=Deflate(parameters, Compression(threshold=0), is_client=True))

    class Closing(Deflate):
        """Another thread closes while this one inflates."""

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
    engine = Protocol(is_client=is_client)
    engine.send_close(1000)
    assert engine.receive_data(frame(0xB, key=key) + frame(CLOSE, close_body(1000), key=key)) == []
    assert engine.input_ended
    assert engine.closed == Close(1000)
    assert engine.close_received is None
    assert engine.replies() == b""


@both_roles
def test_5_5_1_nothing_more_is_sent_after_our_close(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.send_close(4001, "mine")
    assert_sending_raises(engine, 4001, "mine")


@both_roles
def test_5_5_1_nothing_more_is_sent_after_the_close_of_the_peer(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(CLOSE, close_body(4002, b"yours"), key=key_to(is_client)))
    assert_sending_raises(engine, 4002, "yours")
    engine.replies()
    assert_sending_raises(engine, 4002, "yours")


@both_roles
def test_7_1_7_nothing_more_is_sent_after_an_error(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(TEXT, b"\xff", key=key_to(is_client)))
    assert engine.closed is not None
    assert_sending_raises(engine, 1007, engine.closed.reason)


@both_roles
def test_7_1_7_nothing_more_is_sent_after_the_end_of_the_input(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.receive_eof()
    assert engine.closed is not None
    assert_sending_raises(engine, 1006, engine.closed.reason)


def assert_sending_raises(engine: Protocol, code: int, reason: str) -> None:
    for send in (
        lambda: engine.send_text("late"),
        lambda: engine.send_text(""),
        lambda: engine.send_binary(b"late"),
        lambda: engine.send_ping(),
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
def test_7_1_5_the_end_of_the_input_without_a_close_frame_is_1006_and_is_not_answered(
    is_client: bool, before: bytes
) -> None:
    engine = Protocol(is_client=is_client)
    if is_client:
        engine.receive_data(before)
    engine.replies()
    engine.receive_eof()
    assert engine.closed is not None
    assert engine.closed.code == 1006
    assert engine.close_received is None
    assert engine.close_sent is None
    assert engine.input_ended
    assert engine.replies() == b""
    assert engine.receive_data(frame(TEXT, b"late", key=key_to(is_client))) == []
    engine.receive_eof()
    assert engine.closed.code == 1006


@both_roles
def test_7_1_5_the_end_of_the_input_may_be_given_a_reason(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.receive_eof("no Pong in time")
    assert engine.closed == Close(1006, "no Pong in time")
    assert engine.replies() == b""


@both_roles
def test_7_1_5_the_end_of_the_input_keeps_the_code_of_the_peer(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(CLOSE, close_body(4000, b"r"), key=key_to(is_client)))
    engine.receive_eof()
    assert engine.closed == engine.close_received == Close(4000, "r")
    assert bodies(engine.replies(), is_client=is_client) == [(CLOSE, close_body(4000, b"r"))]


@both_roles
def test_7_1_5_the_end_of_the_input_keeps_our_code(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.send_close(4000, "r")
    engine.receive_eof()
    assert engine.closed == engine.close_sent == Close(4000, "r")
    assert engine.close_received is None
    assert engine.input_ended
    assert engine.replies() == b""


@both_roles
def test_7_1_7_the_end_of_the_input_keeps_the_code_of_an_error(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.receive_data(frame(0x3, key=key_to(is_client)))
    engine.receive_eof()
    assert_failed(engine, 1002, is_client=is_client)


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
def test_7_1_7_messages_before_an_error_are_delivered_and_those_after_it_are_not(
    is_client: bool, data: bytes, code: int
) -> None:
    key = key_to(is_client)
    if not is_client:
        # Mask what was built unmasked: all of these are short enough for a header of two or ten bytes.
        size = 10 if data[1] == 127 else 2
        data = data[:1] + bytes([data[1] | 0x80]) + data[2:size] + KEY + xor(data[size:], KEY)
    engine = Protocol(is_client=is_client)
    before = frame(TEXT, b"1", key=key) + frame(BINARY, b"2", fin=False, key=key)
    before += frame(CONTINUATION, b"3", key=key)
    assert engine.receive_data(before + data + frame(TEXT, b"late", key=key)) == ["1", b"23"]
    assert_failed(engine, code, is_client=is_client)


@both_roles
def test_7_1_7_the_answer_to_an_error_says_what_broke_in_a_reason_that_fits(is_client: bool) -> None:
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
        engine = Protocol(is_client=is_client, max_message_size=2**62)
        engine.receive_data(data)
        assert engine.closed is not None
        assert 0 < len(engine.closed.reason.encode()) <= 123
        assert_failed(engine, engine.closed.code, is_client=is_client)


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


# What the application gives


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
def test_another_message_is_a_type_error_with_a_hint(make: Any, hint: str) -> None:
    message = make()
    with pytest.raises(TypeError, match=rf"a message is str \(text\) or bytes \(binary\), {hint}"):
        payload_of(message)
    if hasattr(message, "close"):
        message.close()


@both_roles
@pytest.mark.parametrize("size", [0, 1])
def test_10_4_a_message_of_the_most_fragments_passes_and_one_more_is_refused(is_client: bool, size: int) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client, max_fragments=3)
    start, middle, end = (
        frame(BINARY, b"x" * size, fin=False, key=key),
        frame(CONTINUATION, b"x" * size, fin=False, key=key),
        frame(CONTINUATION, b"x" * size, key=key),
    )
    ping = frame(PING, b"p", key=key)  # is no fragment
    for _ in range(2):  # each message has its own count
        assert engine.receive_data(start + ping + middle + ping + end) == [Ping(b"p"), Ping(b"p"), b"x" * 3 * size]
    assert engine.receive_data(frame(BINARY, b"whole", key=key)) == [b"whole"]
    assert engine.receive_data(start + middle + middle) == []
    assert [opcode for opcode, _ in bodies(engine.replies(), is_client=is_client)] == [PONG] * 4
    assert engine.receive_data(middle + end) == []
    assert_failed(engine, 1008, is_client=is_client)


def test_10_4_four_mebibytes_in_fragments_of_64_bytes_are_a_message_by_default() -> None:
    assert MAX_FRAGMENTS == 65_536
    engine = Protocol(max_message_size=2**22)
    middle = frame(CONTINUATION, b"x" * 64, fin=False, key=KEY)
    engine.receive_data(frame(BINARY, b"x" * 64, fin=False, key=KEY) + middle * 65_534)
    assert engine.receive_data(frame(CONTINUATION, b"x" * 64, key=KEY)) == [b"x" * 2**22]
    engine.receive_data(frame(BINARY, fin=False, key=KEY) + middle * 65_535)
    assert not engine.input_ended
    engine.receive_data(middle)
    assert_failed(engine, 1008, is_client=False)


# A piece of the work at a time.


def pieces(engine: Protocol, data: bytes, most: int) -> list[list[object]]:
    """Return what each call says until nothing is left."""
    said: list[list[object]] = [list(engine.receive_some(data, most))]
    while engine.has_input:
        said.append(list(engine.receive_some(b"", most)))
    return said


#: Of 12 frames each.
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
def test_a_call_parses_no_more_frames_than_it_may_and_the_next_ones_the_rest(
    is_client: bool, flood: str, most: int
) -> None:
    data = b"".join(frame(opcode, body, fin=fin, key=key_to(is_client)) for opcode, body, fin in FLOODS[flood])
    whole = Protocol(is_client=is_client)
    events = whole.receive_data(data)
    assert (whole.frames, whole.has_input) == (12, False)
    replies = bodies(whole.replies(), is_client=is_client)
    for cut in (0, 3, len(data) - 1):  # within the first and the last frame, too
        engine = Protocol(is_client=is_client)
        said = [*pieces(engine, data[:cut], most), *pieces(engine, data[cut:], most)]
        assert [event for piece in said for event in piece] == events
        assert max(map(len, said)) <= most + 1  # of a frame that an earlier call has begun, the message
        assert len(said) >= 12 // most
        assert bodies(engine.replies(), is_client=is_client) == replies


@both_roles
def test_a_message_whose_last_fragment_is_empty_does_not_wait_for_more_input(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    data = frame(TEXT, b"a", fin=False, key=key) + frame(CONTINUATION, b"", key=key)
    assert pieces(engine, data, 2) == [[], ["a"]]
    assert engine.is_between_messages


@both_roles
def test_input_that_is_left_is_parsed_before_what_comes_later(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    numbers = [frame(TEXT, str(number).encode(), key=key) for number in range(9)]
    assert engine.receive_some(b"".join(numbers[:5]), 2) == ["0", "1"]
    assert engine.has_input
    assert not engine.is_between_messages
    assert engine.receive_some(b"".join(numbers[5:]), 2) == ["2", "3"]
    assert pieces(engine, b"", 2) == [["4", "5"], ["6", "7"], ["8"]]
    assert engine.is_between_messages


@both_roles
@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_input_that_is_left_is_dropped_after_a_close_frame_and_after_an_error(is_client: bool, most: int) -> None:
    key = key_to(is_client)
    message = frame(TEXT, b"m", key=key)
    for end, code in [(frame(CLOSE, close_body(4000), key=key), 4000), (frame(0xB, key=key), 1002)]:
        engine = Protocol(is_client=is_client)
        said = [event for piece in pieces(engine, message * 3 + end + message * 3, most) for event in piece]
        assert said[:3] == ["m"] * 3
        assert len(said) == (4 if code == 4000 else 3)
        assert engine.closed is not None
        assert engine.closed.code == code
        assert engine.receive_some(message, most) == []


@both_roles
def test_input_that_is_left_is_dropped_at_the_end_of_the_input(is_client: bool) -> None:
    engine = Protocol(is_client=is_client)
    engine.receive_some(frame(TEXT, b"m", key=key_to(is_client)) * 3, 1)
    engine.receive_eof()
    assert not engine.has_input
    assert engine.receive_some(b"", 1) == []
    assert engine.closed == Close(1006, "the connection was lost without a Close frame")


@both_roles
def test_5_5_1_of_what_is_left_messages_are_dropped_after_our_close_and_its_answer_is_found(is_client: bool) -> None:
    key = key_to(is_client)
    engine = Protocol(is_client=is_client)
    data = frame(TEXT, b"m", key=key) * 3 + frame(PING, b"p", key=key) + frame(CLOSE, close_body(1000), key=key)
    assert engine.receive_some(data, 1) == ["m"]
    engine.send_close()
    assert pieces(engine, b"", 1) == [[], [], [Ping(b"p")], [Close(1000)]]
