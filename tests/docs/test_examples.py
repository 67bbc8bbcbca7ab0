"""The examples do what they show: each is started as a reader would, and used by another library's client."""

from __future__ import annotations

import json
import socket
import urllib.parse
import urllib.request
from contextlib import ExitStack

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from websockets.sync.client import connect

from support.examples import DEADLINE, wait_for_text
from support.paths import EXAMPLES

ECHOES = ["echo", "echo-gevent", "echo-asyncio"]
CHATS = ["chat-gevent", "chat-asyncio"]

echoes = pytest.mark.parametrize("server", ECHOES, indirect=True)
chats = pytest.mark.parametrize("server", CHATS, indirect=True)


@pytest.mark.parametrize("page", ["page.html", "echo.html", "chat.html"])
def test_a_page_downloads_nothing_from_elsewhere_and_writes_no_html(page: str) -> None:
    source = (EXAMPLES / "templates" / page).read_text()
    for text in ("src=", "//", "@import", "innerHTML", "insertAdjacentHTML"):
        assert text not in source.replace(" // ", " ")


@pytest.mark.live
@pytest.mark.parametrize("server", ECHOES + CHATS, indirect=True)
def test_the_page_is_served(server: str) -> None:
    with urllib.request.urlopen(f"http://{server}/", timeout=DEADLINE) as response:
        assert response.headers.get_content_type() == "text/html"
        assert b"new WebSocket(url)" in response.read()


@pytest.mark.live
@echoes
def test_every_message_is_echoed_as_it_was(server: str) -> None:
    with connect(f"ws://{server}/echo", origin=f"http://{server}") as ws:
        for message in ("hello", "", "Grüße 🎉", b"\x00\xff", b"", "x" * 100_000):
            ws.send(message)
            assert ws.recv(DEADLINE) == message


@pytest.mark.live
@echoes
def test_many_are_served_at_once(server: str) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(f"ws://{server}/echo")) for _ in range(10)]
        for i, ws in enumerate(connections):
            ws.send(str(i))
        for i, ws in reversed(list(enumerate(connections))):
            assert ws.recv(DEADLINE) == str(i)


@pytest.mark.live
@echoes
def test_a_browser_shows_the_echo_of_what_is_typed(server: str, browser: webdriver.Chrome) -> None:
    browser.get(f"http://{server}/")
    wait_for_text(browser, "state", "connected")
    browser.find_element(By.ID, "text").send_keys("Grüße & <b>tags</b>\n")
    wait_for_text(browser, "log", "Grüße & <b>tags</b>")


@pytest.mark.live
@chats
def test_a_message_reaches_the_members_of_its_room_and_nobody_else(server: str) -> None:
    with member(server, "a", "Ann") as ann, member(server, "b", "Eve") as eve:
        assert next_of(ann) == {"type": "join", "name": "Ann"}
        assert next_of(eve) == {"type": "join", "name": "Eve"}
        with member(server, "a", "<b>Bob") as bob:
            for each in (ann, bob):
                assert next_of(each) == {"type": "join", "name": "<b>Bob"}
            bob.send("<i>hello")
            for each in (ann, bob):
                assert next_of(each) == {"type": "message", "name": "<b>Bob", "text": "<i>hello"}
        assert next_of(ann) == {"type": "leave", "name": "<b>Bob"}
        eve.send("alone?")
        assert next_of(eve) == {"type": "message", "name": "Eve", "text": "alone?"}


@pytest.mark.live
@chats
def test_members_that_vanish_do_not_keep_a_message_from_the_others(server: str) -> None:
    with ExitStack() as stack:
        ann = stack.enter_context(member(server, "a", "Ann"))
        others = [stack.enter_context(member(server, "a", f"Bob {i}")) for i in range(5)]
        for _ in range(6):
            assert next_of(ann)["type"] == "join"
        for other in others:
            other.socket.shutdown(socket.SHUT_RDWR)  # no closing handshake
        ann.send("anybody there?")
        seen = [next_of(ann) for _ in range(6)]
        assert {"type": "message", "name": "Ann", "text": "anybody there?"} in seen
        assert sorted(m["name"] for m in seen if m["type"] == "leave") == [f"Bob {i}" for i in range(5)]


@pytest.mark.live
@chats
def test_a_member_without_a_name_is_anonymous_and_binary_messages_are_passed_over(server: str) -> None:
    with member(server, "a", " ") as ws:
        assert next_of(ws) == {"type": "join", "name": "Anonymous"}
        ws.send(b"\x00")
        ws.send("text")
        assert next_of(ws) == {"type": "message", "name": "Anonymous", "text": "text"}


def member(server, room, name):  # type: ignore[no-untyped-def]
    query = urllib.parse.urlencode({"name": name})
    return connect(f"ws://{server}/chat/{room}?{query}", origin=f"http://{server}")


def next_of(ws):  # type: ignore[no-untyped-def]
    return json.loads(ws.recv(DEADLINE))
