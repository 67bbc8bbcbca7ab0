"""Rooms: a message reaches all in its room, and nobody else."""

import os
from collections.abc import Callable

import pytest
from conftest import Person, missed, next_of

from flask_uwsgi_websocket import HandshakeRejected, WebSocketTestConnection


def said(ws: WebSocketTestConnection) -> tuple[str, str]:
    """Return the author and text of the next message of a room."""
    message = next_of(ws, "message")
    return message["author"], message["text"]


def test_all_in_a_room_hear_what_is_said_and_who_comes_later_reads_it(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with ann.talk() as anns, bob.talk() as bobs:
        for ws in (anns, bobs):
            assert next_of(ws, "state")["messages"] == []
        anns.send_json({"text": " hello "})
        assert said(anns) == said(bobs) == ("Ann", "hello")
        bobs.send_json({"text": "hi"})
        assert said(anns) == said(bobs) == ("Bob", "hi")
    with bob.talk() as bobs:
        messages = next_of(bobs, "state")["messages"]
        assert [(each["author"], each["text"]) for each in messages] == [("Ann", "hello"), ("Bob", "hi")]


def test_a_window_that_comes_back_gets_what_it_has_missed_once_and_in_order(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with bob.talk() as bobs:
        with ann.talk() as anns:
            bobs.send_json({"text": "before"})
            last = next_of(anns, "message")["position"]
            said(bobs)
        for text in ("one", "two", "three"):
            bobs.send_json({"text": text})
            assert said(bobs) == ("Bob", text)
        with ann.talk(since=last) as anns:
            events = missed(anns)
            assert [event["text"] for event in events if event["type"] == "message"] == ["one", "two", "three"]
            assert all(event["type"] != "state" for event in events)
            bobs.send_json({"text": "after"})
            assert said(anns) == ("Bob", "after")
        with ann.talk(since=events[-1]["position"]) as anns:
            assert [event["text"] for event in missed(anns) if event["type"] == "message"] == ["after"]


@pytest.mark.parametrize("since", ["unknown", "", "1.of-another-broker", "9" * 1000])
def test_a_window_whose_position_is_unknown_gets_the_state(member: Callable[[str], Person], since: str) -> None:
    ann = member("Ann")
    with ann.talk() as ws:
        ws.send_json({"text": "hello"})
        next_of(ws, "message")
    with ann.talk(since=since) as ws:
        (state,) = missed(ws)
        assert (state["type"], [each["text"] for each in state["messages"]]) == ("state", ["hello"])


def test_a_window_learns_which_process_serves_it(member: Callable[[str], Person]) -> None:
    with member("Ann").talk() as ws:
        assert next_of(ws, "ready") == {"type": "ready", "process": os.getpid()}


def test_other_rooms_hear_nothing(member: Callable[[str], Person]) -> None:
    ann = member("Ann")
    assert ann.post("/rooms/", "/rooms/", name="Attic").location == "/rooms/Attic"
    with ann.talk("Lobby") as lobby, ann.talk("Attic") as attic:
        lobby.send_json({"text": "in the lobby"})
        attic.send_json({"text": "in the attic"})
        assert said(lobby) == ("Ann", "in the lobby")
        assert said(attic) == ("Ann", "in the attic")


def test_a_room_that_does_not_exist_is_not_found(member: Callable[[str], Person]) -> None:
    ann = member("Ann")
    assert ann.client.get("/rooms/Cellar").status_code == 404
    for name in ("Cellar", "x" * 300):
        with pytest.raises(HandshakeRejected) as caught:
            ann.talk(name)
        assert caught.value.response.status_code == 404


def test_what_our_page_would_not_send_gets_an_answer_that_says_so(member: Callable[[str], Person]) -> None:
    with member("Ann").talk() as ws:
        for message in (
            "",
            "hello",
            b"\xff",
            "[]",
            '{"text": 1}',
            '{"text": "  "}',
            r'{"text": "\ud800"}',
            "[" * 10_000,
        ):
            ws.send(message)
            assert next_of(ws, "error", "message")["type"] == "error", message
        ws.send_json({"text": "x" * 2001})
        assert next_of(ws, "error", "message")["type"] == "error"
        ws.send_json({"text": "x" * 2000})
        assert said(ws) == ("Ann", "x" * 2000)


def test_a_message_that_is_far_too_long_closes(member: Callable[[str], Person]) -> None:
    with member("Ann").talk() as ws:
        ws.send("x" * 20_000)
        list(ws)
        assert ws.close_code == 1009
