"""Presence: the connected users are in the room."""

from collections.abc import Callable

from conftest import Person

from flask_uwsgi_websocket import WebSocketTestConnection


def people(ws: WebSocketTestConnection) -> tuple[list[str], list[str]]:
    """Return who is in the room and who was there earlier, from the next message."""
    news = ws.receive_json()
    assert news["type"] == "people"
    return news["here"], [each["name"] for each in news["earlier"]]


def test_who_comes_and_goes_is_told_to_all(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with ann.watch() as anns:
        assert people(anns) == (["Ann"], [])
        with bob.watch() as bobs:
            assert people(anns) == people(bobs) == (["Ann", "Bob"], [])
            assert "Ann, Bob" in bob.client.get("/rooms/").text
        assert people(anns) == (["Ann"], ["Bob"])


def test_somebody_with_two_windows_is_there_until_the_second_one_is_closed(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with ann.watch() as anns:
        people(anns)
        with bob.watch():
            assert people(anns) == (["Ann", "Bob"], [])
            with bob.watch():
                assert people(anns) == (["Ann", "Bob"], [])
            assert people(anns) == (["Ann", "Bob"], [])
        assert people(anns) == (["Ann"], ["Bob"])
