"""Presence: the connected users are in the room."""

from collections.abc import Callable

from community.accounts.models import User
from community.chat.presence.models import Stay
from community.extensions import db
from conftest import Person
from flask import Flask

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


def test_a_window_whose_worker_was_killed_is_not_there_for_long(app: Flask, member: Callable[[str], Person]) -> None:
    app.config["WEBSOCKET_PING_INTERVAL"] = 1
    ann, _ = member("Ann"), member("Bob")
    with app.app_context():
        bob = db.session.scalars(db.select(User.id).filter_by(name="Bob")).one()
        db.session.add(Stay(id="of a worker that was killed", room="Lobby", user_id=bob, seen_at=1000.0))
        db.session.commit()
    assert "nobody here now" in ann.client.get("/rooms/").text
    with ann.watch() as anns:
        assert people(anns) == (["Ann", "Bob"], [])
        assert people(anns) == (["Ann"], ["Bob"])  # after the first ping


def test_a_window_that_was_taken_for_lost_is_told_to_connect_again(app: Flask, member: Callable[[str], Person]) -> None:
    app.config["WEBSOCKET_PING_INTERVAL"] = 1
    ann = member("Ann")
    with ann.watch() as anns:
        people(anns)
        with app.app_context():
            db.session.execute(db.update(Stay).values(ended_at=2000.0))
            db.session.commit()
        assert anns.receive() is None
        assert anns.close_code == 1013
