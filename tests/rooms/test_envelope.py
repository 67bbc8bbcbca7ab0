"""Messages between processes, as bytes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_uwsgi_websocket.rooms.envelope import (
    MOST_EXCLUDED,
    BadEnvelope,
    Command,
    Message,
    decode,
    encode,
    encode_command,
    seal,
    unseal,
)

IDS = st.uuids().map(lambda id: id.hex)


@given(st.text() | st.binary(), st.frozensets(IDS, max_size=5))
def test_a_message_comes_out_as_it_went_in(payload: str | bytes, excluded: frozenset[str]) -> None:
    assert decode(encode(payload, excluded)) == Message(payload, excluded)


@given(IDS, st.integers(0, 2**64 - 1), st.binary())
def test_a_sealed_message_has_its_publisher_and_number(publisher: str, number: int, data: bytes) -> None:
    assert unseal(seal(bytes.fromhex(publisher), number, data)) == (bytes.fromhex(publisher), number, data)


def test_a_command_comes_out_as_it_went_in() -> None:
    assert decode(encode_command("close", code=4000, reason="ü")) == Command("close", {"code": 4000, "reason": "ü"})


@given(st.binary() | st.binary().map(lambda data: b"t" + data) | st.binary().map(lambda data: b"c" + data))
def test_other_bytes_are_refused_or_are_a_message(data: bytes) -> None:
    with suppress(BadEnvelope):
        assert isinstance(decode(data), Message | Command)
    with suppress(BadEnvelope):
        assert data.endswith(unseal(data)[2])


@pytest.mark.parametrize(
    "data", [b"", b"t", b"t\0\0\xff", b"t\0\1", b"c", b"c[]", b'c["close"]', b"c[1,2]", b"c" + b"[" * 10**5, b"x\0\0"]
)
def test_bytes_of_another_kind_are_refused(data: bytes) -> None:
    with pytest.raises(BadEnvelope):
        decode(data)


def test_the_number_of_excluded_connections_is_bounded() -> None:
    ids = [f"{number:032x}" for number in range(MOST_EXCLUDED + 1)]
    assert decode(encode("x", ids[1:])) == Message("x", frozenset(ids[1:]))
    with pytest.raises(ValueError, match="at most"):
        encode("x", ids)
