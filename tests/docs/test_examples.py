"""The examples work: each test starts one like a reader, and uses it with the client of another library."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from websockets.sync.client import ClientConnection, connect

from support.examples import DEADLINE, run_script, serving, wait_for_text
from support.paths import EXAMPLES

ECHOES = ["echo", "echo-gevent", "echo-asyncio"]
CHATS = ["chat-gevent", "chat-asyncio"]

echoes = pytest.mark.parametrize("server", ECHOES, indirect=True)
chats = pytest.mark.parametrize("server", CHATS, indirect=True)


@pytest.mark.parametrize("page", ["page.html", "echo.html", "chat.html", "pubsub.html"])
def test_a_page_loads_nothing_from_elsewhere_and_writes_no_html(page: str) -> None:
    source = (EXAMPLES / "templates" / page).read_text()
    for text in ("src=", "//", "@import", "innerHTML", "insertAdjacentHTML"):
        assert text not in source.replace(" // ", " ")


@pytest.mark.live
@pytest.mark.parametrize("server", [*ECHOES, *CHATS, "pubsub"], indirect=True)
def test_the_page_is_served(server: str) -> None:
    with urllib.request.urlopen(f"http://{server}/", timeout=DEADLINE) as response:
        assert response.headers.get_content_type() == "text/html"
        assert b"new WebSocket(url)" in response.read()


@pytest.mark.live
@echoes
def test_every_message_comes_back_unchanged(server: str) -> None:
    with connect(f"ws://{server}/echo", origin=f"http://{server}") as ws:
        for message in ("hello", "", "Grüße 🎉", b"\x00\xff", b"", "x" * 100_000):
            ws.send(message)
            assert ws.recv(DEADLINE) == message


@pytest.mark.live
@echoes
def test_many_clients_are_served_at_the_same_time(server: str) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(f"ws://{server}/echo")) for _ in range(10)]
        for i, ws in enumerate(connections):
            ws.send(str(i))
        for i, ws in reversed(list(enumerate(connections))):
            assert ws.recv(DEADLINE) == str(i)


@pytest.mark.live
@echoes
def test_a_browser_shows_the_echo_of_the_text_that_a_user_types(server: str, browser: webdriver.Chrome) -> None:
    browser.get(f"http://{server}/")
    wait_for_text(browser, "state", "connected")
    browser.find_element(By.ID, "text").send_keys("Grüße & <b>tags</b>\n")
    wait_for_text(browser, "log", "Grüße & <b>tags</b>")


@pytest.mark.live
@chats
def test_a_message_reaches_only_the_members_of_its_room(server: str) -> None:
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
def test_members_that_vanish_do_not_stop_a_message_to_the_others(server: str) -> None:
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
def test_a_member_without_a_name_is_anonymous_and_binary_messages_are_ignored(server: str) -> None:
    with member(server, "a", " ") as ws:
        assert next_of(ws) == {"type": "join", "name": "Anonymous"}
        ws.send(b"\x00")
        ws.send("text")
        assert next_of(ws) == {"type": "message", "name": "Anonymous", "text": "text"}


@pytest.fixture
def pubsub(tmp_path: Path) -> Path:
    """Return a copy of the example, which no other server serves: a script publishes to the only server of its app."""
    for name in ("pubsub", "templates"):
        shutil.copytree(EXAMPLES / name, tmp_path / name)
    return tmp_path / "pubsub"


@pytest.mark.live
def test_a_script_publishes_to_the_subscribers_of_a_topic_in_all_workers(
    broker: None, pubsub: Path, port: int, tmp_path: Path, browser: webdriver.Chrome
) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(serving(pubsub, port, tmp_path / "log"))
        browser.get(f"http://{server}/")
        wait_for_text(browser, "log", "Subscribed to news")
        news = [stack.enter_context(subscriber(server, "news")) for _ in range(4)]
        sports = stack.enter_context(subscriber(server, "sports"))
        for topic, message in (("news", "Grüße & <b>tags</b>"), ("sports", "1:0"), ("news", "")):
            result = run_script(pubsub, "publish.py", topic, message)
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        for ws in news:
            assert [ws.recv(DEADLINE), ws.recv(DEADLINE)] == ["Grüße & <b>tags</b>", ""]
        assert sports.recv(DEADLINE) == "1:0"
        wait_for_text(browser, "log", "Grüße & <b>tags</b>")


@pytest.mark.live
def test_a_script_that_publishes_without_a_server_reports_it(pubsub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEBSOCKET_BROKER", raising=False)
    result = run_script(pubsub, "publish.py", "news", "hello")
    assert result.returncode == 1
    assert result.stderr.startswith("Nothing was published: no server ")
    usage = run_script(pubsub, "publish.py", "news")
    assert usage.returncode == 1
    assert usage.stderr.startswith("Usage: ")


@contextmanager
def subscriber(server: str, topic: str) -> Iterator[ClientConnection]:
    """Connect to a topic, and wait until it is subscribed to."""
    with connect(f"ws://{server}/topics/{topic}", origin=f"http://{server}") as ws:
        assert ws.recv(DEADLINE) == f"Subscribed to {topic}"
        yield ws


def member(server, room, name):  # type: ignore[no-untyped-def]
    query = urllib.parse.urlencode({"name": name})
    return connect(f"ws://{server}/chat/{room}?{query}", origin=f"http://{server}")


def next_of(ws):  # type: ignore[no-untyped-def]
    return json.loads(ws.recv(DEADLINE))
