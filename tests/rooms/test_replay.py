"""Positions as clients send them, histories with holes, and messages that wait for a member."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_uwsgi_websocket.protocol.protocol import SharedMessage
from flask_uwsgi_websocket.rooms import replay
from flask_uwsgi_websocket.rooms.brokers.base import Delivered, History, Position
from flask_uwsgi_websocket.rooms.replay import (
    LARGEST_OFFSET,
    NOTHING,
    Replay,
    follows,
    is_after,
    missed_since,
    position_of,
    text_of,
)


def messages(*offsets: int, epoch: str = "e") -> list[Delivered]:
    """Return messages of a room that follow each other, the first one after the first offset."""
    pairs = itertools.pairwise(offsets)
    return [Delivered("room", Position(epoch, offset), previous, b"") for previous, offset in pairs]


def at(offset: int, *, previous: int = 0, epoch: str = "e") -> Delivered:
    """Return a message at a position."""
    return Delivered("room", Position(epoch, offset), previous, b"")


@given(st.text(max_size=50), st.integers(0, LARGEST_OFFSET), st.text())
def test_a_position_comes_out_as_it_went_in(epoch: str, offset: int, room: str) -> None:
    assert position_of(text_of(Position(epoch, offset), room), room) == Position(epoch, offset)


@pytest.mark.parametrize(
    "text",
    [
        None, "", ".", ".e", "x.e", "-1.e", "+1.e", " 1.e", "1_0.e", "1e3.e", "0x1.e", "\xb9.e", "\u0661.e", "null",
        "undefined", f"{LARGEST_OFFSET + 1}.e", "9" * 5000, "1." + "e" * 100, "1.e", "1.e.", "1.e.room", "1.e.0",
    ],
)  # fmt: skip
def test_any_other_text_is_no_position(text: str | None) -> None:
    assert position_of(text, "room") is None


def test_a_position_of_another_room_is_none() -> None:
    text = text_of(Position("e", 1), "a:one")
    assert position_of(text, "a:two") is None
    digits, epoch, room_sum = text.split(".")
    for other in (f"+{digits}", f"{digits}0" * 20, f" {digits}", "\u0661"):
        assert position_of(f"{other}.{epoch}.{room_sum}", "a:one") is None
    assert position_of(f"{digits}.{room_sum}", "a:one") == Position("", 1)


@given(st.text(max_size=200))
def test_no_text_is_an_error(text: str) -> None:
    position = position_of(text, "room")
    assert position is None or 0 <= position.offset <= LARGEST_OFFSET


@pytest.mark.parametrize(
    ("event", "last", "expected"),
    [
        (at(3, previous=2), Position("e", 2), True),
        (at(2, previous=1), Position("e", 2), False),
        (at(5, previous=0), Position("e", 2), True),  # the broker has forgotten the room
        (at(1), NOTHING, True),
        (at(3, previous=2), NOTHING, None),  # of a memory that the broker has lost when it knew nothing
        (at(3, previous=2), Position("newer", 1), None),
        (at(1, epoch="newer"), Position("e", 2), None),
    ],
)
def test_between_two_memories_of_the_broker_nobody_knows_what_is_missing(
    event: Delivered, last: Position, expected: bool | None
) -> None:
    assert follows(event, last) is expected


def test_a_position_of_another_epoch_comes_after_all_of_this_one() -> None:
    assert is_after(Position("e", 3), Position("e", 2))
    assert not is_after(Position("e", 2), Position("e", 2))
    assert is_after(Position("f", 1), Position("e", 2))
    assert is_after(Position("e", 1), NOTHING)


@pytest.mark.parametrize(("after", "kept"), [(4, []), (3, [3, 4]), (1, [1, 2, 3, 4]), (0, [0, 1, 2, 3, 4])])
def test_an_unbroken_history_has_all_that_was_missed(after: int, kept: Sequence[int]) -> None:
    history = History(Position("e", 4), messages(*kept))
    assert missed_since(Position("e", after), history) == history.messages


@pytest.mark.parametrize(
    ("after", "history"),
    [
        (None, History(Position("e", 4), [])),  # the client has no position
        (Position("e", 1), History(Position("e", 4), messages(2, 3, 4))),  # too old
        (Position("e", 1), History(Position("e", 4), [])),
        (Position("e", 1), History(Position("e", 4), [*messages(1, 2), *messages(3, 4)])),  # one was not kept
        (Position("e", 1), History(Position("e", 4), messages(1, 2, 3))),  # the last one was not kept
        (Position("e", 1), History(Position("f", 4), messages(1, 2, 3, 4, epoch="f"))),  # the broker lost its memory
        (Position("e", 1), History(Position("e", 2), messages(1, 2, epoch="f"))),
        (Position("e", 5), History(Position("e", 4), [])),  # the client has what the broker does not know
        (Position("e", 1), History(None, [])),
        (Position("", 1), History(None, [])),
    ],
)
def test_a_history_with_a_hole_has_not(after: Position | None, history: History) -> None:
    assert missed_since(after, history) is None


def test_what_waits_for_a_member_is_bounded_by_its_number_and_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_HELD", 3)
    waiting, message = Replay(), SharedMessage("text")
    assert [waiting.hold(at(offset), message) for offset in range(4)] == [True, True, True, False]
    assert [event.position.offset for event, _ in waiting.take()] == [0, 1, 2]
    assert waiting.take() == []
    assert waiting.hold(at(4), message)
    monkeypatch.setattr(replay, "MOST_HELD_BYTES", 20)
    waiting.take()
    assert waiting.hold(at(5), SharedMessage("x" * 10))
    assert not waiting.hold(at(6), SharedMessage("x" * 10))
