"""An app for each test, and people who use it. The tests need neither a server nor gevent's patches."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from community import create_app
from community.chat.conversation import conversations
from flask import Flask
from werkzeug.test import TestResponse

from flask_uwsgi_websocket import WebSocketTestClient, WebSocketTestConnection

PASSWORD = "a long password"

DEADLINE = 30  # seconds, for what takes one or two on an idle machine


class Person:
    """A person with a browser."""

    def __init__(self, client: WebSocketTestClient) -> None:
        self.client = client

    def post(self, path: str, page: str, **form: str) -> TestResponse:
        """Send the form of a page."""
        token = re.search('name="csrf_token" value="([^"]+)"', self.client.get(page).text)
        assert token is not None
        return self.client.post(path, data={"csrf_token": token[1], **form})

    def sign_up(self, name: str, password: str = PASSWORD) -> TestResponse:
        return self.post("/signup", "/signup", name=name, password=password)

    def log_in(self, name: str, password: str = PASSWORD) -> TestResponse:
        return self.post("/login", "/login", name=name, password=password)

    def log_out(self) -> TestResponse:
        return self.post("/logout", "/rooms/")

    def talk(self, room: str = "Lobby", since: str | None = None) -> WebSocketTestConnection:
        """Open the WebSocket of a window.

        :param since: the position of the last event that the window has.
        """
        query = "" if since is None else f"?since={since}"
        return self.client.websocket(f"/rooms/{room}{query}", origin="http://localhost", timeout=DEADLINE)


Event = dict[str, Any]


def next_of(ws: WebSocketTestConnection, *types: str) -> Event:
    """Return the next event of one of these types. Users may come at any moment, so other events are skipped."""
    while True:
        event: Event = ws.receive_json()
        if event["type"] in types:
            return event


def missed(ws: WebSocketTestConnection) -> list[Event]:
    """Return what a window gets first, before it is ready: what it has missed, or the state."""
    events: list[Event] = []
    while not events or events[-1]["type"] != "ready":
        events.append(ws.receive_json())
    return events[:-1]


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let users be gone at once, unless a test waits for their return."""
    monkeypatch.setattr(conversations, "grace", 0)


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    database = f"sqlite:///{tmp_path}/community.sqlite"
    return create_app(TESTING=True, SECRET_KEY="a key of the test", SQLALCHEMY_DATABASE_URI=database)


@pytest.fixture
def stranger(app: Flask) -> Person:
    """A person who has not signed up."""
    return Person(app.test_client())


@pytest.fixture
def member(app: Flask) -> Callable[[str], Person]:
    """A function that signs up a person by name and returns the person, logged in."""

    def sign_up(name: str) -> Person:
        person = Person(app.test_client())
        assert person.sign_up(name).location == "/rooms/"
        return person

    return sign_up
