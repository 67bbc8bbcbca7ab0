"""For any input, the protocol does not raise, does not grow, and answers with valid frames."""

from __future__ import annotations

import tracemalloc
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_uwsgi_websocket.protocol.deflate import DeflateParameters
from flask_uwsgi_websocket.protocol.protocol import Close, Ping, Pong, Protocol, is_valid_close_code
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
    deflating,
    frame,
    header,
    key_to,
    xor,
)

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("functions")]

RSV1 = 4

#: The number of examples in the current profile of Hypothesis. A longer run uses another profile.
USUAL = settings().max_examples

#: The bytes that a protocol holds between two calls, besides the message that is arriving: itself, a part of a header
#: or of a control frame, and the Close frame that ended it.
KEPT = 4 * 1024
#: The same for a decompressor of permessage-deflate.
KEPT_BY_DEFLATE = 44 * 1024

both_roles = pytest.mark.parametrize("is_client", ROLES.values(), ids=ROLES)


def most_kept(max_message_size: int, *, deflate: bool) -> int:
    """Return the number of bytes that a protocol may hold. A ``bytearray`` takes an eighth more when it grows."""
    return max_message_size * 9 // 8 + KEPT + (KEPT_BY_DEFLATE if deflate else 0)


def make(is_client: bool, deflate: bool, limit: int, parameters: DeflateParameters | None = None) -> Protocol:
    extension = deflating(parameters, is_client=is_client) if deflate else None
    return Protocol(is_client=is_client, max_message_size=limit, deflate=extension)


def check_behaviour(protocol: Protocol, is_client: bool, parts: list[bytes], limit: int) -> None:
    """Feed *parts*, and check every event, attribute and answer."""
    for part in parts:
        was_over, was_sent = protocol.input_ended, protocol.close_sent
        events = protocol.receive_data(part)
        pongs = []
        for event in events:
            if isinstance(event, str):
                assert len(event.encode()) <= limit
            elif isinstance(event, bytes):
                assert len(event) <= limit
            elif isinstance(event, Ping):
                assert len(event.payload) <= 125
                pongs.append((PONG, event.payload))
            elif isinstance(event, Pong):
                assert len(event.payload) <= 125
            else:
                assert event is events[-1]
                assert event == protocol.close_received == protocol.closed
                assert event.code == 1005 or is_valid_close_code(event.code)
        if was_over:
            assert events == []
        assert protocol.input_ended == (protocol.closed is not None)
        # websockets parses valid frames only: here the Pongs, and one Close at the end.
        sent = bodies(protocol.replies(), is_client=is_client)
        if protocol.closed is not None and was_sent is None:
            opcode, body = sent.pop()
            assert opcode == CLOSE
            code = int.from_bytes(body[:2], "big") if body else 1005
            assert Close(code, body[2:].decode()) == protocol.closed == protocol.close_sent
            assert protocol.close_received is not None or code in {1002, 1007, 1009}
        assert sent == pongs
        assert protocol.replies() == b""
    code_before = protocol.closed and protocol.closed.code
    protocol.receive_eof()
    assert protocol.closed is not None
    assert protocol.closed.code == (code_before or 1006)
    assert protocol.replies() == b""


def most_held(is_client: bool, deflate: bool, limit: int, parts: list[bytes]) -> int:
    """Return the largest memory that a protocol held after one of *parts*."""
    most = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        protocol = make(is_client, deflate, limit)
        for part in parts:
            protocol.receive_data(part)
            protocol.replies()
            held, _ = tracemalloc.get_traced_memory()
            most = max(most, held - before)
    finally:
        tracemalloc.stop()
    return most


limits = st.sampled_from([0, 1, 10, 125, 126, 1000, 70000])
parameters = st.builds(DeflateParameters, st.booleans(), st.booleans())


def deflated(payload: bytes, flush: int) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
    return compressor.compress(payload) + compressor.flush(flush)


payloads = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=10).map(str.encode),
    st.integers(0, 3000).map(bytes),
    st.sampled_from([1000, 1005, 999, 3000, 65535]).map(lambda code: code.to_bytes(2, "big")),
    st.sampled_from([b"\xed\xa0", b"\xc0", b"\xf4\x90", b"\xe2\x82", b"\x00", b"\x03\x00", b"\x00\x00\xff\xff"]),
    st.builds(deflated, st.binary(max_size=20), st.sampled_from([zlib.Z_SYNC_FLUSH, zlib.Z_FINISH])),
    st.builds(deflated, st.integers(0, 100_000).map(bytes), st.just(zlib.Z_SYNC_FLUSH)),
)


@st.composite
def soup(draw: st.DrawFn, is_client: bool, deflate: bool) -> bytes:
    """Draw bytes with frames in them. Most frames are legal by themselves, and few are legal at their place."""
    data = b""
    opcodes = st.sampled_from([CONTINUATION, CONTINUATION, TEXT, BINARY, TEXT, BINARY, PING, PONG, CLOSE])
    for _ in range(draw(st.integers(0, 8))):
        kind = draw(st.integers(0, 19))
        if kind == 0:
            data += draw(st.binary(max_size=30))
            continue
        payload = draw(payloads)
        opcode = draw(opcodes) if kind > 1 else draw(st.integers(0, 15))
        fin = draw(st.booleans()) or (opcode >= 8 and kind > 2)
        rsv = RSV1 if deflate and opcode in {TEXT, BINARY} and draw(st.booleans()) else 0
        rsv = draw(st.integers(0, 7)) if kind == 3 else rsv
        key = key_to(is_client if kind != 4 else not is_client)
        if opcode >= 8 and kind > 5:
            payload = payload[:125]
        whole = frame(opcode, payload, fin=fin, rsv=rsv, key=key)
        if kind == 6:
            whole = whole[: draw(st.integers(0, len(whole)))]
        elif kind == 7:
            size = draw(st.one_of(st.integers(0, 70000), st.integers(0, 2**64 - 1)))
            whole = header(opcode, size, wide=64, fin=fin, rsv=rsv, key=key) + payload
        data += whole
    return data


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    if 0 < len(data) < 500 and draw(st.integers(0, 5)) == 0:
        return [data[i : i + 1] for i in range(len(data))]
    places = draw(st.lists(st.integers(0, len(data)), max_size=8))
    return [data[start:end] for start, end in pairwise([0, *sorted(places), len(data)])]


@settings(deadline=None, max_examples=3 * USUAL)
@given(
    parts=st.lists(st.binary(max_size=80), max_size=6),
    is_client=st.booleans(),
    deflate=st.booleans(),
    limit=limits,
)
def test_arbitrary_bytes_raise_no_exception_and_are_answered_with_valid_frames(
    parts: list[bytes], is_client: bool, deflate: bool, limit: int
) -> None:
    check_behaviour(make(is_client, deflate, limit), is_client, parts, limit)


@settings(deadline=None, max_examples=6 * USUAL)
@given(data=st.data(), is_client=st.booleans(), deflate=st.booleans(), limit=limits, parameters=parameters)
def test_a_soup_of_frames_raises_no_exception_and_is_answered_with_valid_frames(
    data: st.DataObject, is_client: bool, deflate: bool, limit: int, parameters: DeflateParameters
) -> None:
    parts = data.draw(cut(data.draw(soup(is_client, deflate))))
    check_behaviour(make(is_client, deflate, limit, parameters), is_client, parts, limit)


@settings(deadline=None, max_examples=2 * USUAL)
@given(data=st.data(), is_client=st.booleans(), deflate=st.booleans(), limit=limits)
def test_a_soup_of_frames_costs_no_more_memory_than_the_limit(
    data: st.DataObject, is_client: bool, deflate: bool, limit: int
) -> None:
    parts = data.draw(cut(data.draw(soup(is_client, deflate))))
    assert most_held(is_client, deflate, limit, parts) <= most_kept(limit, deflate=deflate)


@settings(deadline=None, max_examples=2 * USUAL)
@given(
    data=st.binary(max_size=300),
    is_client=st.booleans(),
    opcode=st.sampled_from([TEXT, BINARY]),
    context=st.booleans(),
    chunk=st.integers(1, 300),
    limit=limits,
)
def test_arbitrary_deflate_data_raises_no_exception(
    data: bytes, is_client: bool, opcode: int, context: bool, chunk: int, limit: int
) -> None:
    protocol = make(is_client, True, limit, DeflateParameters(context, context))
    key = key_to(is_client)
    # The next message can refer to the window of the previous one.
    stream = frame(opcode, deflated(b"Hello", zlib.Z_SYNC_FLUSH)[:-4], rsv=RSV1, key=key)
    stream += frame(opcode, data, rsv=RSV1, key=key) + frame(opcode, data, rsv=RSV1, key=key)
    parts = [stream[i : i + chunk] for i in range(0, len(stream), chunk)]
    check_behaviour(protocol, is_client, parts, limit)


@settings(deadline=None, max_examples=USUAL)
@given(data=st.data(), is_client=st.booleans(), deflate=st.booleans(), limit=limits)
def test_after_our_close_a_soup_of_frames_causes_no_message_and_no_second_close(
    data: st.DataObject, is_client: bool, deflate: bool, limit: int
) -> None:
    protocol = make(is_client, deflate, limit)
    protocol.send_close(1001, "going")
    for part in data.draw(cut(data.draw(soup(is_client, deflate)))):
        events = protocol.receive_data(part)
        assert not [event for event in events if isinstance(event, (str, bytes))]
        assert not [opcode for opcode, _ in bodies(protocol.replies(), is_client=is_client) if opcode != PONG]
        assert protocol.closed == protocol.close_sent == Close(1001, "going")


# Each way in which a peer can try to make a protocol keep much.

LIMIT = 100_000


def greedy(key: bytes | None) -> dict[str, tuple[bool, bytes, bytes]]:
    """Return attacks by name: whether they need permessage-deflate, the start of the stream, and a part to repeat.

    :param key: None, or four zeros, which mask frames without changing their payloads.
    """

    def data(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
        return frame(opcode, payload, fin=fin, rsv=rsv, key=key)

    def start(opcode: int, length: int, *, rsv: int = 0) -> bytes:
        return header(opcode, length, rsv=rsv, key=key)

    compressed = deflated(bytes(50_000), zlib.Z_SYNC_FLUSH)[:-4]
    return {
        "a message": (False, start(BINARY, LIMIT), bytes(1000)),
        "text": (False, start(TEXT, LIMIT), b"x" * 1000),
        "empty fragments": (False, data(TEXT, fin=False), data(CONTINUATION, fin=False) * 100),
        "small fragments": (False, data(BINARY, fin=False), data(CONTINUATION, b"x", fin=False) * 100),
        "pings": (False, b"", data(PING, b"p" * 125) * 10),
        "pongs": (False, b"", data(PONG, b"p" * 125) * 10),
        "pings within a message": (False, data(TEXT, b"x", fin=False), data(PING, b"p" * 125) * 10),
        "messages": (False, b"", data(TEXT, b"x" * 1000) * 2),
        "messages too big": (False, b"", start(BINARY, LIMIT + 1) + bytes(1000)),
        "a close, then more": (False, data(CLOSE), data(BINARY, bytes(1000))),
        "an error, then more": (False, b"\xff", data(BINARY, bytes(1000))),
        "blocks of nothing": (True, start(BINARY, 2**40, rsv=RSV1), b"\x00\x00\x00\xff\xff" * 200),
        "blocks with BFINAL": (True, start(BINARY, 2**40, rsv=RSV1), b"\x03\x00" * 500),
        "compressed messages": (True, b"", data(BINARY, compressed, rsv=RSV1)),
        "compressed fragments": (True, data(TEXT, fin=False, rsv=RSV1), data(CONTINUATION, fin=False) * 100),
        "a bomb": (True, start(TEXT, 2**40, rsv=RSV1), deflated(bytes(10_000), zlib.Z_FULL_FLUSH)),
        "no deflate data": (True, start(TEXT, 2**40, rsv=RSV1) + b"\x07", bytes(1000)),
    }


@both_roles
@pytest.mark.parametrize("size", [None, 1, 1009])
@pytest.mark.parametrize("name", greedy(None))
def test_10_4_the_memory_of_a_protocol_has_a_limit_for_every_attack(
    name: str, size: int | None, is_client: bool
) -> None:
    deflate, start, again = greedy(None if is_client else bytes(4))[name]
    stream = again * (150 if size != 1 else 5)
    size = size or len(again)
    parts = [start, *(stream[i : i + size] for i in range(0, len(stream), size))]
    assert most_held(is_client, deflate, LIMIT, parts) <= most_kept(LIMIT, deflate=deflate)


@both_roles
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_10_4_a_message_of_the_limit_takes_its_size_in_memory_once_while_it_arrives(
    is_client: bool, opcode: int
) -> None:
    limit = 2**20
    data = frame(opcode, b"x" * limit, key=key_to(is_client))
    parts = [data[i : i + 65536] for i in range(0, len(data) - 1, 65536)]
    parts[-1] = parts[-1][:-1]  # without the last byte, so that the protocol keeps the message
    held = most_held(is_client, False, limit, parts)
    assert limit - 1 <= held <= most_kept(limit, deflate=False)


@both_roles
def test_10_4_nothing_of_a_message_that_is_too_big_is_kept(is_client: bool) -> None:
    key = key_to(is_client)
    start = frame(BINARY, bytes(LIMIT), fin=False, key=key)
    tracemalloc.start()
    try:
        protocol = make(is_client, False, LIMIT)
        protocol.receive_data(start)
        with_message, _ = tracemalloc.get_traced_memory()
        protocol.receive_data(header(CONTINUATION, 1, key=key))
        without, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert with_message > LIMIT
    assert protocol.closed is not None
    assert protocol.closed.code == 1009
    assert without < KEPT


@both_roles
def test_10_4_the_payload_of_a_refused_frame_is_not_kept_while_it_arrives(is_client: bool) -> None:
    key = key_to(is_client)
    payload = bytes(65536)
    parts = [header(BINARY, 2**30, key=key)] + [payload if is_client else xor(payload, KEY)] * 64
    assert most_held(is_client, False, LIMIT, parts) < KEPT
