"""The example of a large application works in Chromium and for other clients, also for hostile ones."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import shutil
import signal
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from flask_uwsgi_websocket.rooms.rooms import PRESENCE_GRACE
from support.examples import DEADLINE, serving, wait_for_text
from support.paths import EXAMPLES

DIRECTORY = EXAMPLES / "blueprints"
PASSWORD = "a long password"
ROOM = "/rooms/Lobby"

Browser = webdriver.Chrome


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure the example like its users: with a key, and with a database of this test and one connection to it."""
    monkeypatch.setenv("COMMUNITY_SECRET_KEY", "a key of the test")
    monkeypatch.setenv("COMMUNITY_SQLALCHEMY_DATABASE_URI", f"sqlite:///{tmp_path}/community.sqlite")
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": DEADLINE, "connect_args": {"timeout": DEADLINE}}
    monkeypatch.setenv("COMMUNITY_SQLALCHEMY_ENGINE_OPTIONS", json.dumps(options))


def live(test: Callable[..., None]) -> Any:
    """Mark a test as live, and start the example for it: its ``server`` is the host and port."""
    return pytest.mark.live(pytest.mark.parametrize("server", ["blueprints"], indirect=True)(test))


class Member:
    """A user who has signed up, and whose client is not a browser."""

    def __init__(self, server: str, name: str) -> None:
        self.server = server
        self.cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))
        self.post("/signup", "/signup", name=name, password=PASSWORD)

    def get(self, path: str) -> tuple[str, str]:
        """Return the final address of a page, and its content."""
        with self._opener.open(f"http://{self.server}{path}", timeout=DEADLINE) as response:
            return urllib.parse.urlsplit(response.url).path, response.read().decode()

    def post(self, path: str, page: str, **form: str) -> str:
        """Send a form like the browser that shows *page*, and return the final address."""
        token = re.search(r'name="csrf_token" value="([^"]+)"', self.get(page)[1])
        assert token is not None
        data = urllib.parse.urlencode({"csrf_token": token[1], **form}).encode()
        with self._opener.open(f"http://{self.server}{path}", data, timeout=DEADLINE) as response:
            return urllib.parse.urlsplit(response.url).path

    def cookie(self) -> str:
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.cookies)

    def connect(self, path: str) -> ClientConnection:
        return connect_with(self.cookie(), self.server, path)


def connect_with(cookie: str, server: str, path: str, origin: str | None = None) -> ClientConnection:
    return connect(
        f"ws://{server}{path}",
        additional_headers={"Cookie": cookie} if cookie else {},
        origin=origin or f"http://{server}",
        max_queue=None,  # with a limit, many unread messages would stop the reading, and hide the end
    )


def next_of(ws: ClientConnection, *types: str) -> dict[str, Any]:
    """Return the next event of one of these types. Users may come at any moment, so other events are skipped."""
    while True:
        event: dict[str, Any] = json.loads(ws.recv(DEADLINE))
        if event["type"] in types:
            return event


def said(ws: ClientConnection) -> str:
    """Return the text of the next message."""
    text: str = next_of(ws, "message")["text"]
    return text


def texts_in(state: dict[str, Any]) -> list[str]:
    """Return the texts of all messages in the state of a room."""
    return [message["text"] for message in state["messages"]]


def change(ws: ClientConnection) -> tuple[str, str]:
    """Return who comes or leaves next."""
    event = next_of(ws, "came", "left")
    return event["type"], event["name"]


def close_code(ws: ClientConnection) -> int | None:
    """Return the code with which the server closes a connection, after any other messages."""
    with suppress(ConnectionClosed):
        while True:
            ws.recv(DEADLINE)
    return ws.close_code


@contextmanager
def on_two_workers(one: Member, other: Member) -> Iterator[dict[int, ClientConnection]]:
    """Connect two members to the conversation on different workers. Return the connections by process ids, in order."""
    with one.connect(ROOM) as ws:
        worker = next_of(ws, "ready")["process"]
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            with other.connect(ROOM) as second:
                other_worker = next_of(second, "ready")["process"]
                if other_worker != worker:
                    yield {worker: ws, other_worker: second}
                    return
        raise AssertionError(f"the worker {worker} has served all connections")


def until(browser: Browser, condition: Callable[[Browser], object]) -> None:
    WebDriverWait(browser, DEADLINE, 0.1).until(condition)


def sign_up(browser: Browser, server: str, name: str) -> None:
    browser.get(f"http://{server}/")
    browser.find_element(By.LINK_TEXT, "Sign up").click()
    until(browser, lambda browser: browser.current_url.endswith("/signup"))
    browser.find_element(By.ID, "name").send_keys(name)
    browser.find_element(By.ID, "password").send_keys(f"{PASSWORD}\n")
    until(browser, lambda browser: browser.current_url.endswith("/rooms/"))


def enter_lobby(browser: Browser, server: str) -> None:
    browser.find_element(By.PARTIAL_LINK_TEXT, "Lobby").click()
    wait_until_connected(browser)


def wait_until_connected(browser: Browser) -> None:
    until(browser, lambda browser: browser.find_element(By.ID, "state").text == "connected")


def worker_of(browser: Browser) -> str:
    """Return what a window says of its worker."""
    until(browser, lambda browser: browser.find_element(By.ID, "worker").text)
    return browser.find_element(By.ID, "worker").text


def move_to_another_worker(browser: Browser, worker: str) -> None:
    """Reload a window until another worker than *worker* serves it."""

    def has_moved(browser: Browser) -> bool:
        if worker_of(browser) != worker:
            return True
        browser.refresh()
        return False

    until(browser, has_moved)


def say(browser: Browser, text: str) -> None:
    browser.find_element(By.ID, "text").send_keys(f"{text}\n")


def record_states(browser: Browser) -> None:
    """Let the page record, from now on, each state of its connection that it shows."""
    browser.execute_script(
        """
        window.states = [];
        new MutationObserver(() => states.push(state.textContent)).observe(state, { childList: true });
        """
    )


#: Let the page record, from now on, what is added to a list and removed from it. Return what is in the list.
RECORD = """
    const list = document.getElementById(arguments[0]), last = (item) => item.lastElementChild.textContent;
    window.recorded = [];
    new MutationObserver((mutations) => {
      for (const { addedNodes, removedNodes } of mutations) {
        recorded.push(...[...removedNodes].map((item) => `-${last(item)}`));
        recorded.push(...[...addedNodes].map((item) => `+${last(item)}`));
      }
    }).observe(list, { childList: true });
    return [...list.children].map(last);
"""

#: Let the page wait with its next connection until goOn() is called.
HOLD_BACK = """
    const original = window.fetch;
    window.fetch = async (...values) => {
      await new Promise((resolve) => { window.goOn = resolve; });
      return original(...values);
    };
"""

# In the browser


@live
def test_two_windows_chat_and_show_who_comes_and_goes(server: str, browser: Browser, other_browser: Browser) -> None:
    sign_up(browser, server, "Ann")
    enter_lobby(browser, server)
    wait_for_text(browser, "here", "Ann")
    sign_up(other_browser, server, "Bob")
    assert "Ann" in other_browser.find_element(By.CLASS_NAME, "rooms").text
    enter_lobby(other_browser, server)
    for window in (browser, other_browser):
        wait_for_text(window, "here", "Ann")
        wait_for_text(window, "here", "Bob")

    say(browser, "Grüße, <b>Bob</b> & all")
    say(other_browser, "<img src=x onerror=document.title=1>")
    for window in (browser, other_browser):
        wait_for_text(window, "log", "Grüße, <b>Bob</b> & all")
        wait_for_text(window, "log", "<img src=x onerror=document.title=1>")
        assert not window.find_elements(By.CSS_SELECTOR, "#log p *")

    other_browser.close()
    wait_for_text(browser, "earlier", "Bob")
    assert browser.find_element(By.ID, "here").text.split() == ["A", "Ann"]


@live
def test_two_windows_on_different_workers_chat_and_see_each_other(
    server: str, browser: Browser, other_browser: Browser
) -> None:
    sign_up(browser, server, "Ann")
    enter_lobby(browser, server)
    sign_up(other_browser, server, "Bob")
    enter_lobby(other_browser, server)
    worker = worker_of(browser)
    assert re.fullmatch(r"process \d+", worker)
    move_to_another_worker(other_browser, worker)
    say(browser, "from one worker")
    say(other_browser, "from the other")
    for window in (browser, other_browser):
        wait_for_text(window, "log", "from one worker")
        wait_for_text(window, "log", "from the other")
        wait_for_text(window, "here", "Ann")
        wait_for_text(window, "here", "Bob")
    assert worker_of(browser) == worker != worker_of(other_browser)


@live
def test_a_user_who_goes_to_another_page_is_no_longer_present(server: str, browser: Browser) -> None:
    with Member(server, "Watcher").connect(ROOM) as ws:
        assert change(ws) == ("came", "Watcher")
        sign_up(browser, server, "Ann")
        enter_lobby(browser, server)
        assert change(ws) == ("came", "Ann")
        browser.find_element(By.LINK_TEXT, "←").click()
        assert change(ws) == ("left", "Ann")
        browser.back()
        assert change(ws) == ("came", "Ann")


@live
def test_messages_are_still_there_after_a_reload(server: str, browser: Browser) -> None:
    sign_up(browser, server, "Ann")
    enter_lobby(browser, server)
    say(browser, "first")
    wait_for_text(browser, "log", "first")
    say(browser, "second")
    wait_for_text(browser, "log", "second")
    browser.refresh()
    wait_for_text(browser, "log", "second")
    assert [each.text for each in browser.find_elements(By.CSS_SELECTOR, "#log p")] == ["first", "second"]


@live
def test_a_window_that_loses_its_connection_shows_this_and_connects_again(server: str, browser: Browser) -> None:
    sign_up(browser, server, "Ann")
    enter_lobby(browser, server)
    say(browser, "before")
    wait_for_text(browser, "log", "before")
    record_states(browser)
    browser.execute_script("conversation.close()")
    until(browser, lambda browser: browser.execute_script("return states.at(-1)") == "connected")
    states = browser.execute_script("return states")
    assert re.fullmatch(r"disconnected, next try in \d+ s", states[0])
    say(browser, "after")
    wait_for_text(browser, "log", "after")
    assert [each.text for each in browser.find_elements(By.CSS_SELECTOR, "#log p")] == ["before", "after"]


@live
def test_a_window_that_was_away_for_too_long_shows_the_state_of_the_room(server: str, browser: Browser) -> None:
    sign_up(browser, server, "Ann")
    enter_lobby(browser, server)
    say(browser, "before")
    wait_for_text(browser, "log", "before")
    assert browser.execute_script(RECORD, "log") == ["before"]
    browser.execute_script("position = 'unknown'; conversation.close()")
    until(browser, lambda browser: browser.execute_script("return recorded.length") == 2)
    assert browser.execute_script("return recorded") == ["-before", "+before"]
    wait_until_connected(browser)
    wait_for_text(browser, "here", "Ann")
    say(browser, "after")
    wait_for_text(browser, "log", "after")
    assert browser.execute_script("return recorded") == ["-before", "+before", "+after"]


@pytest.mark.live
def test_a_restart_of_the_server_logs_out_no_user(
    tmp_path: Path, port: int, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMMUNITY_SECRET_KEY")
    directory = tmp_path / "blueprints"
    shutil.copytree(DIRECTORY, directory, ignore=shutil.ignore_patterns("instance"))  # the copy gets its own
    with serving(directory, port, tmp_path / "log") as server:
        sign_up(browser, server, "Ann")
        enter_lobby(browser, server)
        wait_for_text(browser, "here", "Ann")
        browser.find_element(By.ID, "text").send_keys("half a thought")
        record_states(browser)
    assert (directory / "instance/secret_key").stat().st_mode & 0o777 == 0o600

    wait_for_text(browser, "state", "disconnected")
    until(browser, lambda browser: not browser.find_element(By.ID, "here").text)
    assert not browser.find_element(By.XPATH, "//h2[text()='Here now']").is_displayed()
    countdown = "disconnected, next try in 2 s|disconnected, next try in 1 s|connecting"
    until(browser, lambda browser: countdown in "|".join(browser.execute_script("return states")))

    with serving(directory, port, tmp_path / "log"):
        wait_until_connected(browser)
        wait_for_text(browser, "here", "Ann")
        say(browser, ", finished")
        wait_for_text(browser, "log", "half a thought, finished")


@live
def test_a_draft_survives_a_reload_and_is_gone_after_it_was_sent(server: str, browser: Browser) -> None:
    sign_up(browser, server, "Ann")
    enter_lobby(browser, server)
    browser.find_element(By.ID, "text").send_keys("half a thought")
    browser.refresh()
    wait_until_connected(browser)
    say(browser, ", finished")
    wait_for_text(browser, "log", "half a thought, finished")
    browser.refresh()
    wait_for_text(browser, "log", "half a thought, finished")
    assert browser.find_element(By.ID, "text").get_property("value") == ""


@live
def test_logging_out_in_one_window_ends_the_chat_in_another_until_the_next_login(server: str, browser: Browser) -> None:
    sign_up(browser, server, "Ann")
    enter_lobby(browser, server)
    browser.find_element(By.ID, "text").send_keys("half a thought")
    chatting = browser.current_window_handle
    browser.switch_to.new_window("window")
    browser.get(f"http://{server}/rooms/")
    browser.find_element(By.ID, "logout").click()
    until(browser, lambda browser: browser.current_url.endswith("/login"))
    browser.switch_to.window(chatting)
    until(browser, lambda browser: browser.current_url.endswith("/login?room=Lobby"))
    assert "You are not logged in. Log in to enter Lobby." in browser.find_element(By.TAG_NAME, "main").text

    browser.find_element(By.ID, "name").send_keys("Ann")
    browser.find_element(By.ID, "password").send_keys(f"{PASSWORD}\n")
    until(browser, lambda browser: browser.current_url.endswith("/rooms/Lobby"))
    wait_until_connected(browser)
    say(browser, ", finished")
    wait_for_text(browser, "log", "half a thought, finished")


@live
def test_a_window_that_was_disconnected_during_the_logout_goes_to_the_login(server: str, browser: Browser) -> None:
    sign_up(browser, server, "Ann")
    enter_lobby(browser, server)
    browser.delete_all_cookies()
    browser.execute_script("conversation.close()")
    until(browser, lambda browser: browser.current_url.endswith("/login?room=Lobby"))


@live
def test_a_phone_shows_the_whole_name_of_a_room(server: str, browser: Browser) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    sign_up(browser, server, "Ann")
    name = "W" * 32
    browser.find_element(By.ID, "name").send_keys(f"{name}\n")
    wait_until_connected(browser)
    # The longest state is that of a window whose server has not answered for long.
    for state in ("connected", "disconnected, next try in 30 s"):
        browser.execute_script("document.getElementById('state').textContent = arguments[0]", state)
        assert browser.execute_script(
            """
            const title = document.querySelector("h1"), edge = state.getBoundingClientRect().right;
            return [title.textContent, title.scrollWidth <= title.clientWidth, edge <= innerWidth,
                document.documentElement.scrollWidth];
            """
        ) == [name, True, True, 390]


# Access


@live
def test_without_a_login_a_page_redirects_to_the_login_and_a_websocket_gets_401(server: str) -> None:
    with urllib.request.urlopen(f"http://{server}{ROOM}", timeout=DEADLINE) as response:
        assert urllib.parse.urlsplit(response.url).path == "/login"
    for path in (ROOM, "/rooms/missing"):
        with pytest.raises(InvalidStatus) as caught:
            connect_with("", server, path)
        assert caught.value.response.status_code == 401


@live
def test_logging_out_closes_the_users_websockets_and_refuses_new_ones(server: str) -> None:
    ann, bob = Member(server, "Ann"), Member(server, "Bob")
    cookie = ann.cookie()
    with ann.connect(ROOM) as talk, ann.connect(ROOM) as second, bob.connect(ROOM) as other:
        for ws in (talk, second, other):
            next_of(ws, "ready")
        assert ann.post("/logout", "/rooms/") == "/login"
        assert close_code(talk) == 4401
        assert close_code(second) == 4401
        for each in (cookie, ann.cookie()):  # also with the cookie from before the logout
            with pytest.raises(InvalidStatus) as caught:
                connect_with(each, server, ROOM)
            assert caught.value.response.status_code == 401
        other.send(json.dumps({"text": "still here"}))
        assert said(other) == "still here"
    assert ann.post("/login", "/login", name="Ann", password=PASSWORD) == "/rooms/"
    with ann.connect(ROOM) as ws:
        assert texts_in(next_of(ws, "state")) == ["still here"]


@live
def test_a_user_whose_login_has_ended_elsewhere_cannot_send_any_more(server: str, tmp_path: Path) -> None:
    with Member(server, "Ann").connect(ROOM) as ws:
        next_of(ws, "ready")
        with closing(sqlite3.connect(tmp_path / "community.sqlite")) as database, database:
            database.execute("UPDATE user SET login_key = 'another'")
        ws.send(json.dumps({"text": "hello"}))
        assert close_code(ws) == 4401


@live
def test_a_page_of_another_site_can_neither_connect_nor_log_a_user_in(server: str) -> None:
    ann = Member(server, "Ann")
    with pytest.raises(InvalidStatus) as caught:
        connect_with(ann.cookie(), server, ROOM, origin="http://example.com")
    assert caught.value.response.status_code == 403
    (cookie,) = ann.cookies
    assert cookie.get_nonstandard_attr("SameSite") == "Lax"
    assert cookie.has_nonstandard_attr("HttpOnly")
    for path in ("/login", "/signup", "/logout", "/rooms/"):
        for data in (b"name=Ann&password=x", b"name=Ann&password=x&csrf_token=guessed"):
            for request in (
                urllib.request.Request(f"http://{server}{path}", data),
                urllib.request.Request(f"http://{server}{path}", data, {"Cookie": ann.cookie()}),
            ):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(request, timeout=DEADLINE)
                refused.value.close()
                assert refused.value.code == 400


@live
def test_a_wrong_password_a_taken_name_and_a_strange_name_are_refused(server: str) -> None:
    ann = Member(server, "Ann")
    ann.post("/logout", "/rooms/")
    for path, form, status in (
        ("/login", {"name": "Ann", "password": "wrong password"}, 403),
        ("/login", {"name": "Nobody", "password": PASSWORD}, 403),
        ("/signup", {"name": "Ann", "password": PASSWORD}, 400),
        ("/signup", {"name": "<b>", "password": PASSWORD}, 400),
        ("/signup", {"name": "Eve", "password": "short"}, 400),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            ann.post(path, path, **form)
        caught.value.close()
        assert caught.value.code == status


# The WebSockets


@live
def test_a_message_reaches_only_its_room_and_a_missing_room_gets_404(server: str) -> None:
    ann, bob = Member(server, "Ann"), Member(server, "Bob")
    assert ann.post("/rooms/", "/rooms/", name="Gärten & Co") == "/rooms/"  # "&" is refused
    assert ann.post("/rooms/", "/rooms/", name="Gärten") == urllib.parse.quote("/rooms/Gärten")
    with ann.connect(urllib.parse.quote("/rooms/Gärten")) as garden, bob.connect(ROOM) as lobby:
        for ws, text in ((garden, "in the garden"), (lobby, "in the lobby")):
            ws.send(json.dumps({"text": text}))
        assert said(garden) == "in the garden"
        assert said(lobby) == "in the lobby"
    with pytest.raises(InvalidStatus) as caught:
        ann.connect("/rooms/missing")
    assert caught.value.response.status_code == 404


@live
def test_the_last_fifty_messages_of_a_room_are_shown(server: str) -> None:
    ann = Member(server, "Ann")
    with ann.connect(ROOM) as ws:
        for number in range(60):
            ws.send(json.dumps({"text": f"message {number}"}))
            assert said(ws) == f"message {number}"
    with ann.connect(ROOM) as ws:
        assert texts_in(next_of(ws, "state")) == [f"message {number}" for number in range(10, 60)]


@live
def test_an_invalid_message_gets_an_error_and_the_conversation_continues(server: str) -> None:
    bad = ["", "hello", "null", "[]", "{}", '{"text": 1}', '{"text": "\\ud800"}', "[" * 16_000, b"\x00\xff"]
    wrong_length = [json.dumps({"text": text}) for text in ("", " \n", "x" * 2001)]
    with Member(server, "Ann").connect(ROOM) as ws:
        for message in bad + wrong_length:
            ws.send(message)
            assert next_of(ws, "error", "message")["type"] == "error"
        longest = "🎉" * 2000
        ws.send(json.dumps({"text": longest}, ensure_ascii=False))
        assert said(ws) == longest
        ws.send("x" * 2**15)
        assert close_code(ws) == 1009


@live
def test_forty_idle_websockets_share_one_database_connection(server: str) -> None:
    ann = Member(server, "Ann")
    with ExitStack() as stack:
        talks = [stack.enter_context(ann.connect(ROOM)) for _ in range(40)]
        for ws in talks:
            next_of(ws, "ready")
        for number, ws in enumerate(talks[:20]):
            ws.send(json.dumps({"text": str(number)}))
            for each in talks:
                assert said(each) == str(number)
        assert ann.get("/rooms/")[0] == "/rooms/"


@live
def test_users_are_present_once_however_many_windows_they_have(server: str) -> None:
    ann, bob = Member(server, "Ann"), Member(server, "Bob")
    with bob.connect(ROOM) as ws:
        assert change(ws) == ("came", "Bob")
        with ann.connect(ROOM), ann.connect(ROOM) as second:
            assert change(ws) == ("came", "Ann")
            second.send(json.dumps({"text": "in two windows"}))
            assert next_of(ws, "came", "left", "message")["type"] == "message"
            assert ">Ann, Bob<" in bob.get("/rooms/")[1]
        assert change(ws) == ("left", "Ann")
        assert ">Bob<" in bob.get("/rooms/")[1]


# Two workers


@live
def test_a_message_reaches_the_members_on_the_other_worker_in_the_same_order(server: str) -> None:
    with on_two_workers(Member(server, "Ann"), Member(server, "Bob")) as connections:
        for number in range(20):
            for name, ws in zip(("Ann", "Bob"), connections.values(), strict=True):
                ws.send(json.dumps({"text": f"{name} {number}"}))
        heard = [[said(ws) for _ in range(40)] for ws in connections.values()]
        assert heard[0] == heard[1]
        for name in ("Ann", "Bob"):
            assert [text for text in heard[0] if name in text] == [f"{name} {number}" for number in range(20)]


@live
def test_a_logout_closes_the_websockets_on_both_workers(server: str) -> None:
    ann = Member(server, "Ann")
    with on_two_workers(ann, ann) as connections:
        ann.post("/logout", "/rooms/")
        assert [close_code(ws) for ws in connections.values()] == [4401, 4401]


@live
def test_the_members_on_the_other_worker_go_on_when_a_worker_is_killed(server: str) -> None:
    ann, bob = Member(server, "Ann"), Member(server, "Bob")
    with on_two_workers(ann, bob) as connections:
        (worker, anns), (_, bobs) = connections.items()
        os.kill(worker, signal.SIGKILL)
        assert close_code(anns) == 1006
        with ann.connect(ROOM) as again:
            for ws in (again, bobs):
                ws.send(json.dumps({"text": "still here"}))
            for ws in (again, bobs):
                assert said(ws) == said(ws) == "still here"


@live
def test_people_who_do_not_come_back_after_their_worker_was_killed_are_not_present_for_long(server: str) -> None:
    ann, bob = Member(server, "Ann"), Member(server, "Bob")
    with on_two_workers(ann, bob) as connections:
        (worker, _), (_, bobs) = connections.items()
        os.kill(worker, signal.SIGKILL)
        assert next_of(bobs, "left")["name"] == "Ann"
    with ann.connect(ROOM) as anns:
        assert "Ann" in next_of(anns, "state")["earlier"]


@pytest.mark.live
def test_a_window_whose_worker_is_killed_shows_what_it_missed_once_and_was_never_gone(
    broker: None, tmp_path: Path, port: int, browser: Browser, other_browser: Browser
) -> None:
    with serving(DIRECTORY, port, tmp_path / "log") as server:
        sign_up(browser, server, "Ann")
        enter_lobby(browser, server)
        sign_up(other_browser, server, "Bob")
        enter_lobby(other_browser, server)
        worker = worker_of(browser)
        move_to_another_worker(other_browser, worker)
        say(other_browser, "before")
        wait_for_text(browser, "log", "before")
        wait_for_text(other_browser, "here", "Bob")
        assert other_browser.execute_script(RECORD, "here") == ["Ann", "Bob"]
        assert browser.execute_script(RECORD, "log") == ["before"]
        browser.execute_script(HOLD_BACK)

        os.kill(int(worker.removeprefix("process ")), signal.SIGKILL)
        until(browser, lambda browser: browser.execute_script("return window.goOn !== undefined"))
        missed = [f"missed {number}" for number in range(3)]
        for text in missed:
            say(other_browser, text)
            wait_for_text(other_browser, "log", text)
        browser.execute_script("goOn()")
        wait_until_connected(browser)
        say(other_browser, "after")
        wait_for_text(browser, "log", "after")
        time.sleep(PRESENCE_GRACE + 5)  # by then, a user who has not come back would be gone
        assert browser.execute_script("return recorded") == [f"+{text}" for text in (*missed, "after")]
        assert other_browser.execute_script("return recorded") == []

        browser.get("about:blank")
        wait_for_text(other_browser, "earlier", "Ann")
        assert other_browser.execute_script("return recorded") == ["-Ann", "-Bob", "+Bob"]


# The files


def pages() -> Iterator[Path]:
    for suffix in ("html", "css", "js"):
        yield from DIRECTORY.rglob(f"*.{suffix}")


@pytest.mark.parametrize("path", sorted(pages()), ids=lambda path: path.name)
def test_a_file_loads_nothing_from_elsewhere_and_writes_no_html(path: Path) -> None:
    text = re.sub(r"(?m)(^|\s)// .*$", "", path.read_text())
    for forbidden in ("//", "@import", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "|safe"):
        assert forbidden not in text.replace("| safe", "|safe")
