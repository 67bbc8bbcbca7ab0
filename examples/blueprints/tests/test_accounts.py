"""Logins, and the end of WebSockets at a logout."""

from collections.abc import Callable

import pytest
from conftest import PASSWORD, Person, next_of

from flask_uwsgi_websocket import HandshakeRejected


def test_who_has_signed_up_is_logged_in_and_may_log_in_again(member: Callable[[str], Person]) -> None:
    ann = member("Ann")
    assert "Lobby" in ann.client.get("/rooms/").text
    assert ann.log_out().location == "/login"
    assert ann.client.get("/rooms/").location == "/login"
    assert ann.log_in("Ann").location == "/rooms/"


def test_a_form_that_is_wrong_comes_back_with_a_reason(member: Callable[[str], Person], stranger: Person) -> None:
    member("Ann")
    for name, password, complaint in (
        ("Ann", PASSWORD, "taken"),
        ("A b", PASSWORD, "32 letters"),
        ("Bob", "short", "at least 8 characters"),
    ):
        response = stranger.sign_up(name, password)
        assert response.status_code == 400
        assert complaint in response.text
    assert stranger.log_in("Ann", "a wrong password").status_code == 403


def test_who_was_on_the_way_to_a_room_gets_there_by_logging_in(member: Callable[[str], Person]) -> None:
    ann = member("Ann")
    ann.log_out()
    login = ann.client.get("/rooms/Lobby").location
    assert login == "/login?room=Lobby"
    assert "You are not logged in. Log in to enter Lobby." in ann.client.get(login).text
    assert ann.post(login, login, name="Ann", password=PASSWORD).location == "/rooms/Lobby"
    for elsewhere in ("//example.com", "https://example.com"):
        login = f"/login?room={elsewhere}"
        assert ann.post(login, login, name="Ann", password=PASSWORD).location.startswith("/rooms/")


def test_strangers_get_401_in_the_place_of_a_websocket(stranger: Person) -> None:
    for room in ("Lobby", "Cellar"):
        with pytest.raises(HandshakeRejected) as caught:
            stranger.talk(room)
        assert caught.value.response.status_code == 401


def test_who_logs_out_loses_all_websockets_and_nobody_else_does(member: Callable[[str], Person]) -> None:
    ann, bob = member("Ann"), member("Bob")
    with ann.talk() as anns, ann.talk() as anns_other, bob.talk() as bobs:
        next_of(bobs, "ready")
        ann.log_out()
        for ws in (anns, anns_other):
            list(ws)
            assert (ws.close_code, ws.close_reason) == (4401, "logged out")
        bobs.send_json({"text": "still here"})
        assert next_of(bobs, "message")["text"] == "still here"


def test_a_form_of_another_site_is_refused(member: Callable[[str], Person]) -> None:
    assert member("Ann").client.post("/logout", data={"csrf_token": "guessed"}).status_code == 400


def test_a_page_of_another_site_may_not_connect(member: Callable[[str], Person]) -> None:
    with pytest.raises(HandshakeRejected) as caught:
        member("Ann").client.websocket("/rooms/Lobby", origin="https://evil.example")
    assert caught.value.response.status_code == 403
