"""The examples do what they show: each is started as a reader would, and used by another library's client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from websockets.sync.client import connect

import flask_uwsgi_websocket

DEADLINE = 30  # seconds, for what takes one or two on an idle machine
ROOT = Path(flask_uwsgi_websocket.__file__).parents[1]
EXAMPLES = Path(__file__).parents[1] / "examples"
ECHOES = ["echo", "echo-gevent", "echo-asyncio"]
CHATS = ["chat-gevent", "chat-asyncio"]

echoes = pytest.mark.parametrize("server", ECHOES, indirect=True)
chats = pytest.mark.parametrize("server", CHATS, indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, port: int) -> Iterator[str]:
    """Start an example by its name, and return its host and port."""
    with serving(EXAMPLES / request.param, port, tmp_path / "log") as address:
        yield address


@contextmanager
def serving(directory: Path, port: int, log: Path) -> Iterator[str]:
    """Serve the example in a directory, and return its host and port."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLASK_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=directory,
            env={**inherited, "PYTHONPATH": str(ROOT), "HOST": "127.0.0.1", "PORT": str(port)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            # Not only TCP, which uWSGI's router accepts long before the application is loaded.
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    """Start Chromium without a screen."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


def wait_for_text(browser: webdriver.Chrome, element: str, text: str) -> None:
    WebDriverWait(browser, DEADLINE).until(lambda driver: text in driver.find_element(By.ID, element).text)


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
