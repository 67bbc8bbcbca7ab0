"""Presence: who is in a room, with all windows, and who was there earlier."""

from collections.abc import Callable

import pytest
from community.chat.conversation import conversations
from conftest import DEADLINE, Person, next_of

from flask_uwsgi_websocket import WebSocketTestConnection


def changes(ws: WebSocketTestConnection, until: str) -> list[tuple[str, str]]:
    """Return who has come and left, up to the message with a text."""
    changes = []
    while (event := next_of(ws, "came", "left", "message"))["type"] != "message" or event["text"] != until:
        if event["type"] != "message":
            changes.append((event["type"], event["name"]))
    return changes


def test_who_comes_and_goes_is_reported_to_all(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with ann.talk() as anns:
        assert next_of(anns, "state")["here"] == {}
        assert next_of(anns, "came")["name"] == "Ann"
        with bob.talk() as bobs:
            assert list(next_of(bobs, "state")["here"]) == ["Ann"]
            came = next_of(anns, "came")
            assert next_of(bobs, "came") == came
            assert came["name"] == "Bob"
            assert "Ann, Bob" in bob.client.get("/rooms/").text
        left = next_of(anns, "left")
        assert (left["name"], left["since"]) == ("Bob", came["since"])
    with bob.talk() as bobs:
        assert next_of(bobs, "state")["earlier"]["Bob"] == left["at"]


def test_a_stay_has_the_same_beginning_in_the_state_as_in_the_events(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with ann.talk() as anns:
        came = next_of(anns, "came")
        with bob.talk() as bobs:
            assert next_of(bobs, "state")["here"] == {"Ann": came["since"]}
            anns.close()
            assert next_of(bobs, "left")["since"] == came["since"]


def test_somebody_with_two_windows_is_there_until_the_second_one_is_closed(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with ann.talk() as anns:
        assert next_of(anns, "came")["name"] == "Ann"
        with bob.talk() as first:
            assert next_of(anns, "came")["name"] == "Bob"
            with bob.talk() as second:
                assert list(next_of(second, "state")["here"]) == ["Ann", "Bob"]
                next_of(second, "ready")
                first.close()
                second.send_json({"text": "one window is left"})
                assert changes(anns, until="one window is left") == []
                assert "Ann, Bob" in ann.client.get("/rooms/").text
        assert next_of(anns, "came", "left")["type"] == "left"
        assert "Bob" not in ann.client.get("/rooms/").text.partition("<main")[2]


def test_who_comes_back_soon_was_never_gone(member: Callable[[str], Person], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "grace", DEADLINE)
    ann, bob = member("Ann"), member("Bob")
    with ann.talk() as anns:
        assert next_of(anns, "came")["name"] == "Ann"
        with bob.talk():
            last = next_of(anns, "came")
            assert last["name"] == "Bob"
        assert "Ann, Bob" in ann.client.get("/rooms/").text
        with bob.talk(since=last["position"]) as bobs:
            bobs.send_json({"text": "back again"})
            assert changes(anns, until="back again") == []
