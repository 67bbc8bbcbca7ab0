"""Rooms: a message reaches all in its room, and nobody else."""

import os
from collections.abc import Callable

import pytest
from conftest import Person

from flask_uwsgi_websocket import HandshakeRejected, WebSocketTestConnection


def said(ws: WebSocketTestConnection) -> list[tuple[str, str]]:
    """Return the authors and texts in the next message of a room."""
    news = ws.receive_json()
    assert news["type"] == "messages"
    return [(message["author"], message["text"]) for message in news["messages"]]


def test_all_in_a_room_hear_what_is_said_and_who_comes_later_reads_it(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with ann.talk() as anns, bob.talk() as bobs:
        assert said(anns) == said(bobs) == []
        anns.send_json({"text": " hello "})
        assert said(anns) == said(bobs) == [("Ann", "hello")]
        bobs.send_json({"text": "hi"})
        assert said(anns) == said(bobs) == [("Bob", "hi")]
    with bob.talk() as bobs:
        assert said(bobs) == [("Ann", "hello"), ("Bob", "hi")]


def test_the_first_message_has_the_process_that_serves_the_websocket(member: Callable[[str], Person]) -> None:
    with member("Ann").talk() as ws:
        assert ws.receive_json() == {"type": "messages", "messages": [], "worker": os.getpid()}


def test_other_rooms_hear_nothing(member: Callable[[str], Person]) -> None:
    ann = member("Ann")
    assert ann.post("/rooms/", "/rooms/", name="Attic").location == "/rooms/Attic"
    with ann.talk("Lobby") as lobby, ann.talk("Attic") as attic:
        assert said(lobby) == said(attic) == []
        lobby.send_json({"text": "in the lobby"})
        attic.send_json({"text": "in the attic"})
        assert said(lobby) == [("Ann", "in the lobby")]
        assert said(attic) == [("Ann", "in the attic")]


def test_a_room_that_does_not_exist_is_not_found(member: Callable[[str], Person]) -> None:
    ann = member("Ann")
    assert ann.client.get("/rooms/Cellar").status_code == 404
    for name in ("Cellar", "x" * 300):
        for connect in (ann.talk, ann.watch):
            with pytest.raises(HandshakeRejected) as caught:
                connect(name)
            assert caught.value.response.status_code == 404


def test_what_our_page_would_not_send_gets_an_answer_that_says_so(member: Callable[[str], Person]) -> None:
    with member("Ann").talk() as ws:
        assert said(ws) == []
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
            assert ws.receive_json()["type"] == "error", message
        ws.send_json({"text": "x" * 2001})
        assert ws.receive_json()["type"] == "error"
        ws.send_json({"text": "x" * 2000})
        assert said(ws) == [("Ann", "x" * 2000)]


def test_a_message_that_is_far_too_long_closes(member: Callable[[str], Person]) -> None:
    with member("Ann").talk() as ws:
        ws.send("x" * 20_000)
        list(ws)
        assert ws.close_code == 1009
