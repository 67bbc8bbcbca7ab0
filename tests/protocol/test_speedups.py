"""The compiled functions and the pure-Python ones give the same results for all bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_uwsgi_websocket.protocol import frames, protocol
from flask_uwsgi_websocket.protocol.protocol import Protocol
from flask_uwsgi_websocket.protocol.speedups import COMPILED
from support.wire import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, frame, header, key_to, xor

pytestmark = pytest.mark.heavy

_frames = pytest.importorskip("flask_uwsgi_websocket.protocol._frames")

NAMES = ("apply_mask", "frame", "take_messages")
both_twins = pytest.mark.parametrize("functions", [frames, _frames], ids=["pure", "compiled"])

#: Sizes around the words that are masked at a time, and around the sizes where a length takes more bytes.
SIZES = [*range(18), 63, 64, 65, 125, 126, 127, 128, 4095, 4096, 65535, 65536, 65537]

#: The number of examples in the current profile of Hypothesis. A longer run uses another profile.
USUAL = settings().max_examples


def some_bytes(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def outcome(function: Callable[..., Any], *arguments: Any) -> object:
    """Return the result of a function, or the type and text of its exception."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error), str(error)


# The choice of the functions.


def test_the_compiled_functions_are_used_unless_the_environment_asks_for_pure_python() -> None:
    assert COMPILED is (os.environ.get("FLASK_UWSGI_WEBSOCKET_PURE") != "1")
    twin = _frames if COMPILED else frames
    assert [getattr(protocol, name) for name in NAMES] == [getattr(twin, name) for name in NAMES]


@pytest.mark.parametrize(("value", "compiled"), [("1", False), ("0", True), ("", True), (None, True)])
def test_the_environment_chooses_the_functions(value: str | None, compiled: bool) -> None:
    assert compiled_in_another_process(value) is compiled


def test_without_the_extension_the_pure_functions_are_used() -> None:
    assert compiled_in_another_process(None, "sys.modules['flask_uwsgi_websocket.protocol._frames'] = None") is False


def compiled_in_another_process(pure: str | None, code: str = "") -> bool:
    environ = {key: value for key, value in os.environ.items() if key != "FLASK_UWSGI_WEBSOCKET_PURE"}
    if pure is not None:
        environ["FLASK_UWSGI_WEBSOCKET_PURE"] = pure
    code = f"import sys; {code}\nfrom flask_uwsgi_websocket.protocol.speedups import COMPILED; print(COMPILED)"
    command = [sys.executable, "-W", "error", "-c", code]
    site = Path(protocol.__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=site, check=True, timeout=60)
    return {"True": True, "False": False}[done.stdout.strip()]


# Masking.


@both_twins
@pytest.mark.parametrize("size", SIZES)
def test_masking_follows_the_rfc_at_every_size(functions: Any, size: int) -> None:
    data = some_bytes(size)
    assert functions.apply_mask(data, KEY) == xor(data, KEY)
    assert functions.apply_mask(data, bytes(4)) == data


@both_twins
@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1001])
def test_masking_accepts_bytes_that_are_not_aligned(functions: Any, offset: int, size: int) -> None:
    data = some_bytes(offset + size + 3)
    expected = xor(data[offset : offset + size], KEY)
    for whole in (data, bytearray(data)):
        assert functions.apply_mask(memoryview(whole)[offset : offset + size], KEY) == expected
    assert type(functions.apply_mask(bytearray(data), KEY)) is bytes


@both_twins
@pytest.mark.parametrize("mask", [b"", b"abc", b"abcde"])
def test_a_mask_has_four_bytes(functions: Any, mask: bytes) -> None:
    with pytest.raises(ValueError, match="four bytes"):
        functions.apply_mask(b"data", mask)


@given(data=st.binary(max_size=300), mask=st.binary(min_size=4, max_size=4))
def test_both_mask_alike(data: bytes, mask: bytes) -> None:
    assert _frames.apply_mask(data, mask) == frames.apply_mask(data, mask) == xor(data, mask)


@pytest.mark.parametrize("data", ["text", None, 3, memoryview(b"abcdef")[::2]], ids=repr)
def test_the_compiled_functions_mask_only_contiguous_bytes(data: Any) -> None:
    with pytest.raises((TypeError, BufferError)):
        _frames.apply_mask(data, KEY)


@both_twins
def test_masking_keeps_no_memory_of_bytes_that_form_a_small_number(functions: Any) -> None:
    size = 2**16
    masked = [functions.apply_mask(bytes([number]).ljust(size, b"\0"), KEY) for number in range(256)]
    functions.apply_mask(masked[0], KEY)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        sizes = [
            len(functions.apply_mask(data, KEY)) for data in masked
        ]  # the sizes are integers, which take memory, too
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes == [size] * len(masked)
    assert after - before < size


# Building frames.


@both_twins
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [None, KEY], ids=["server", "client"])
def test_a_frame_follows_the_rfc_at_every_size(functions: Any, size: int, key: bytes | None) -> None:
    data = some_bytes(size)
    assert functions.frame(0x80 | BINARY, data, key or b"") == frame(BINARY, data, key=key)
    for text in ("a" * size, "é" * (size // 2), "☃" * (size // 3), "🐍" * (size // 4)):
        assert functions.frame(0x80 | TEXT, text, key or b"") == frame(TEXT, text.encode(), key=key)


@given(
    first=st.integers(0, 255),
    payload=st.one_of(st.binary(max_size=200), st.text(st.characters(), max_size=100)),  # with surrogates
    mask=st.one_of(st.just(b""), st.binary(min_size=4, max_size=4)),
)
def test_both_build_the_same_frames(first: int, payload: str | bytes, mask: bytes) -> None:
    assert outcome(_frames.frame, first, payload, mask) == outcome(frames.frame, first, payload, mask)


@both_twins
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "é\udc80☃"], ids=ascii)
def test_a_lone_surrogate_raises_the_same_exception_as_encode(functions: Any, text: str) -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        functions.frame(0x80 | TEXT, text)
    with pytest.raises(UnicodeEncodeError) as expected:
        text.encode()
    assert caught.value.args == expected.value.args


@both_twins
def test_a_sent_text_keeps_no_copy_of_its_bytes(functions: Any) -> None:
    text = "é" * 1000
    before = sys.getsizeof(text)
    functions.frame(0x80 | TEXT, text)
    assert sys.getsizeof(text) == before


@both_twins
def test_a_text_may_be_a_subclass_of_str(functions: Any) -> None:
    class Markup(str):
        __slots__ = ()

    assert functions.frame(0x80 | TEXT, Markup("<p>")) == frame(TEXT, b"<p>")
    assert functions.frame(0x80 | TEXT, Markup("é")) == frame(TEXT, "é".encode())


# Taking messages.


def take(
    functions: Any, data: bytes, *, position: int = 0, masked: bool = True, max_size: int = 2**20, most: int = 1000
) -> Any:
    messages: list[str | bytes] = []
    return functions.take_messages(data, position, masked, max_size, most, messages), messages


@both_twins
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [size for size in SIZES if size < 65536])
def test_whole_messages_are_taken_at_every_size(functions: Any, size: int, masked: bool) -> None:
    key = KEY if masked else None
    text, data = "a" * (size % 2) + "é" * (size // 2), some_bytes(size)
    stream = frame(TEXT, b"a" * size, key=key) + frame(BINARY, data, key=key) + frame(TEXT, text.encode(), key=key)
    assert take(functions, stream, masked=masked) == (len(stream), ["a" * size, data, text])
    assert take(functions, b"??" + stream, masked=masked, position=2)[0] == len(stream) + 2
    # Without its last byte a message is not taken, wherever the memory of the bytes ends.
    last = len(stream) - len(frame(TEXT, text.encode(), key=key))
    for cut in {1, 2, 3, 4, 7, 8, 9, len(stream) - last} & set(range(len(stream) - last + 1)):
        assert take(functions, stream[:-cut], masked=masked) == (last, ["a" * size, data])


@both_twins
@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, sys.maxsize // 2])
def test_no_more_messages_are_taken_than_asked_for(functions: Any, most: int) -> None:
    each = frame(TEXT, b"a", key=KEY)
    messages = ["before"]
    count = min(most, 3)
    assert functions.take_messages(each * 3, 0, True, 1, most, messages) == count * len(each)
    assert messages == ["before", *["a"] * count]


STOPS = {
    "nothing": b"",
    "half a header": b"\x81",
    "half a length": header(TEXT, 200, key=KEY)[:3],
    "half a mask": header(TEXT, 0, key=KEY)[:-1],
    "an unmasked frame": frame(TEXT, b"a"),
    "a fragment": frame(TEXT, b"a", fin=False, key=KEY),
    "a continuation": frame(CONTINUATION, b"a", key=KEY),
    "a compressed message": frame(TEXT, b"a", rsv=4, key=KEY),
    "a reserved bit": frame(TEXT, b"a", rsv=1, key=KEY),
    "a reserved opcode": frame(3, b"a", key=KEY),
    "a ping": frame(PING, b"a", key=KEY),
    "a pong": frame(PONG, b"a", key=KEY),
    "a close": frame(CLOSE, b"\x03\xe8", key=KEY),
    "a length of too many bytes": frame(TEXT, b"a", key=KEY, wide=16),
    "a length of eight bytes": frame(TEXT, b"a" * 65536, key=KEY),
    "the largest length": header(BINARY, 2**64 - 1, key=KEY),
    "a message that is too big": frame(BINARY, bytes(1001), key=KEY),
    "text that is not UTF-8": frame(TEXT, b"a\xff", key=KEY),
    "text that ends too early": frame(TEXT, "a☃".encode()[:-1], key=KEY),
    "a surrogate": frame(TEXT, b"\xed\xa0\x80", key=KEY),
}


@both_twins
@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_rare_and_invalid_frames_are_left_alone(functions: Any, stop: bytes) -> None:
    before = frame(TEXT, b"before", key=KEY)
    assert take(functions, before + stop, max_size=1000) == (len(before), ["before"])


@both_twins
@pytest.mark.parametrize("limit", [2**31, 2**63 - 1, 2**63, 2**200])
def test_a_limit_may_be_as_large_as_an_int(functions: Any, limit: int) -> None:
    assert take(functions, frame(TEXT, b"a", key=KEY), max_size=limit)[1] == ["a"]


@both_twins
def test_the_input_is_not_changed(functions: Any) -> None:
    stream = frame(TEXT, b"text", key=KEY) + frame(BINARY, b"bytes", key=KEY)
    copy = bytes(bytearray(stream))
    assert take(functions, stream) == take(functions, stream)
    assert stream == copy


def test_the_compiled_functions_refuse_a_position_outside_the_data() -> None:
    with pytest.raises(ValueError, match="negative"):
        take(_frames, b"data", position=-1)
    for position in (4, 5, sys.maxsize):
        assert take(_frames, b"data", position=position) == (position, [])


keys = st.one_of(st.just(None), st.just(KEY), st.binary(min_size=4, max_size=4))
lengths = st.one_of(st.integers(0, 20), st.sampled_from([125, 126, 127, 128, 1000, 65535, 65536]))
texts = st.one_of(st.text(max_size=40).map(str.encode), lengths.map(lambda size: b"a" * size))
pieces = st.one_of(
    st.builds(frame, st.just(TEXT), texts, key=keys),
    st.builds(frame, st.just(BINARY), lengths.map(some_bytes), key=keys),
    st.builds(
        frame,
        st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG, 3]),
        st.binary(max_size=130),
        fin=st.booleans(),
        rsv=st.sampled_from([0, 0, 0, 4, 1]),
        key=keys,
        wide=st.sampled_from([0, 0, 16, 64]),
    ),
    st.binary(max_size=20),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bool, bytes]:
    """Draw a role, and bytes that its peer may send. Most of the frames are masked correctly."""
    is_client = draw(st.booleans())
    key = key_to(is_client)
    usual = st.one_of(
        st.builds(frame, st.just(TEXT), texts, key=st.just(key)),
        st.builds(frame, st.just(BINARY), lengths.map(some_bytes), key=st.just(key)),
        st.builds(frame, st.just(TEXT), st.binary(max_size=9), key=st.just(key)),
        st.builds(frame, st.just(PING), st.binary(max_size=9), key=st.just(key)),
        st.builds(frame, st.just(CONTINUATION), texts, fin=st.booleans(), key=st.just(key)),
        st.builds(frame, st.just(TEXT), texts, fin=st.just(False), key=st.just(key)),
    )
    return is_client, b"".join(draw(st.lists(st.one_of(usual, usual, usual, pieces), max_size=8)))


@settings(max_examples=5 * USUAL)
@given(
    stream=streams(),
    position=st.integers(0, 30),
    limit=st.sampled_from([0, 10, 126, 70000]),
    most=st.integers(0, 9),
)
def test_both_take_the_same_messages(stream: tuple[bool, bytes], position: int, limit: int, most: int) -> None:
    is_client, data = stream
    arguments: dict[str, Any] = {"position": position, "masked": not is_client, "max_size": limit, "most": most}
    assert take(_frames, data, **arguments) == take(frames, data, **arguments)


@contextmanager
def using(functions: Any) -> Iterator[None]:
    """Let the protocol use these functions. None leaves all frames to the general parser."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.setattr(protocol, name, getattr(functions or frames, name))
        if functions is None:
            patch.setattr(protocol, "take_messages", lambda data, position, *others: position)
        yield


@settings(max_examples=5 * USUAL)
@given(data=st.data(), stream=streams(), limit=st.sampled_from([0, 10, 126, 1000, 70000, 2**20]))
def test_a_protocol_gives_the_same_results_with_both_twins_and_with_the_general_parser(
    data: st.DataObject, stream: tuple[bool, bytes], limit: int
) -> None:
    is_client, received = stream
    cuts = data.draw(st.lists(st.integers(0, len(received)), max_size=6))
    parts = [received[start:end] for start, end in pairwise([0, *sorted(cuts), len(received)])]
    closing = data.draw(st.one_of(st.none(), st.integers(0, len(parts) - 1)))  # we close before this part
    answers = []
    for functions in (None, frames, _frames):
        with using(functions):
            subject = Protocol(is_client=is_client, max_message_size=limit)
            said: list[object] = []
            for number, part in enumerate(parts):
                if number == closing:
                    subject.send_close()
                said += [(type(event), event) for event in subject.receive_data(part)]
                if not is_client:  # a client masks with random bytes
                    said.append(subject.replies())
            said += [subject.closed, subject.close_received, subject.close_sent, subject.input_ended]
            answers.append(said)
    assert answers[0] == answers[1] == answers[2]


@both_twins
def test_the_functions_leave_no_memory_behind(functions: Any) -> None:
    good = frame(TEXT, b"a" * 100, key=KEY) + frame(TEXT, "é".encode() * 50, key=KEY) + frame(BINARY, b"b", key=KEY)
    stream = good * 20 + frame(TEXT, b"\xff" * 1000, key=KEY)

    def work() -> None:
        for _ in range(100):
            take(functions, stream)
            functions.frame(0x81, "a" * 1000)
            functions.frame(0x81, "é" * 1000, KEY)
            functions.apply_mask(stream, KEY)
            outcome(functions.frame, 0x81, "\ud800" * 1000)

    work()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        work()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000
