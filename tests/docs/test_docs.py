"""The documentation is correct: its names, its tables, and every block of code in it.

A test reads a page like a user: in an empty directory, from its first block to its last. It saves blocks that are
files, executes Python, runs commands, compares their output, and starts and uses servers. Then a function uses what the
page has defined.
"""

from __future__ import annotations

import ast
import ctypes
import http.client
import json
import logging
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from threading import Semaphore
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask, request, session
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from test_layers import ORDER
from websockets.sync.client import connect

import flask_uwsgi_websocket
from flask_uwsgi_websocket import AsyncioWebSocket, HandshakeRejected, WebSocket, WebSocketBlueprint
from flask_uwsgi_websocket.cli.doctor import read_ini
from flask_uwsgi_websocket.rooms.brokers.base import Outgoing
from flask_uwsgi_websocket.rooms.brokers.memory import MemoryBroker
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker
from flask_uwsgi_websocket.rooms.envelope import encode, seal
from flask_uwsgi_websocket.rooms.exchange import COUNTERS as ROOM_COUNTERS
from flask_uwsgi_websocket.settings import KEYS, Settings
from flask_uwsgi_websocket.worker.stats import NAMES as COUNTERS
from support.examples import DEADLINE, wait_for_text
from support.inprocess import wait_for_background, wait_until
from support.needs import require
from support.pages import BLOCKS, PACKAGE, PAGES, Block, block_not_run
from support.paths import DOCS, ROOT
from support.redis_server import RedisServer, running

#: The beginnings of blocks that are not run like the others, and what is done instead, or the reason.
NOT_RUN = {
    "README.md: make run": "test_the_makefile_has_the_goals_of_the_readme",
    "docs/installation.md: apt-get": "the tests need these packages themselves",
    "docs/installation.md: pip install": "test_package.py installs without a compiler",
    "docs/cli.md: cd /srv/chat": "test_the_printed_configuration_is_the_one_on_the_page",
    "docs/cli.md:  * Serving": "cli/test_cli.py reads this from a terminal",
    "docs/cli.md: ; /srv/chat/uwsgi.ini": "test_the_printed_configuration_is_the_one_on_the_page",
    "docs/cli.md: $ flask websocket stats": "live/test_stats.py tests the counters",
    "docs/cli.md: flask websocket publish": "cli/test_rooms.py runs these",
    "docs/cli.md: $ flask websocket rooms": "cli/test_rooms.py compares it",
    "docs/cli.md: $ flask websocket members": "cli/test_rooms.py compares it",
    "docs/deploying.md: adduser": "live/test_fronts.py installs the same files",
    "docs/deploying.md: apt-get install nginx": "live/test_fronts.py installs the same files",
    "docs/deploying.md: live=": "it needs a certificate of Let's Encrypt",
    "docs/how-it-works.md: __init__": "test_the_modules_are_listed_in_the_order_of_the_layers",
    "docs/migrating.md: import threading": "the reader's own code before the migration",
    "docs/modes.md: pip install greenlet": "test_uwsgi_is_compiled_as_in_the_makefile",
    "docs/observability.md: WebSocket": "test_the_log_is_the_one_on_the_page",
    "docs/resume.md: python follow.py": "live/test_resume_clients.py runs the clients of the page",
    "docs/scaling.md: bind": "test_the_redis_configuration_on_the_page_serves_rooms",
    "docs/observability.md: stats": "test_the_metrics_on_the_page_are_all_counters",
}

#: The counters that may also decrease.
GAUGES = {"open", "rooms", "members", "waiting"}

#: Commands that are not run, because the environment of the tests is already active and has the checkout installed.
ENVIRONMENT = {
    "python3 -m venv .venv",
    ". .venv/bin/activate",
    "git clone https://github.com/zeekay/flask-uwsgi-websocket",
}

#: The beginnings of commands that start a server.
SERVERS = r"python (app|serve)\.py|flask .*\brun\b|flask run|gunicorn |uwsgi "

#: The files that a page expects its reader to have.
GIVEN = {
    "docs/servers.md": {
        "app.py": """\
from flask import Flask
from flask_uwsgi_websocket import WebSocket

app = Flask(__name__)


@WebSocket(app).route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)
"""
    },
    "docs/cli.md": {
        "app.py": """\
from chat import create_app

app = create_app("development")
""",
        "chat.py": """\
from flask import Flask
from flask_uwsgi_websocket import GeventWebSocket, WebSocketBlueprint

websocket = GeventWebSocket()
chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")


@chat.websocket("/<room>")
def talk(ws, room):
    for message in ws:
        ws.send(message)


def create_app(kind):
    app = Flask(__name__)
    app.register_blueprint(chat)
    app.add_url_rule("/", "index", lambda: kind)
    websocket.init_app(app)
    return app
""",
        "uwsgi.ini": """\
[uwsgi]
master = true
enable-threads = true
gevent = 100
gevent-early-monkey-patch = true
harakiri = 30
""",
    },
}


@pytest.fixture
def network() -> Iterator[None]:
    """Give the test, and the processes that it starts, a network in which no other process uses port 5000."""
    require("ip", "namespaces")
    libc, clone_newnet = ctypes.CDLL(None), 0x40000000
    with open("/proc/thread-self/ns/net") as before:
        assert libc.unshare(clone_newnet) == 0
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            libc.setns(before.fileno(), clone_newnet)


class Reader:
    """Follows the instructions of a page.

    :param directory: an empty directory.
    :param server_uses: a function for each server that the page starts.
    """

    def __init__(self, directory: Path, server_uses: Iterable[Callable[[int], None]]) -> None:
        self._root = self._directory = directory
        self.server_uses = list(server_uses)
        self._output: str | None = None
        #: The module that runs the Python of the page. It has an app, in case the page does not define one.
        self.module = ModuleType("page")
        self.module.app = Flask("page")  # type: ignore[attr-defined]

    def read(self, block: Block) -> None:
        if block.where:
            self._save(block)
        elif block.language == "python":
            # A traceback then shows the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, ROOT / block.page, "exec"), vars(self.module))
        elif block.language == "sh":
            self._run(block.text)
        elif block.language == "console":
            command, expected = block.text.removeprefix("$ ").split("\n", 1)
            self._run(f"{command} || true")
            self._check(expected)
        elif block.language == "text":
            self._check(block.text)
        else:  # a directive of Sphinx
            assert block.language.startswith("{"), f"no test runs {block.name}, whose language is {block.language!r}"

    def _check(self, expected: str) -> None:
        """Compare the output of the last command."""
        assert self._output is not None, "no command comes before this output"
        output = "\n".join(map(str.rstrip, self._output.splitlines()))
        assert re.search(re.escape(expected.strip()).replace("…", ".*"), output), output

    def _save(self, block: Block) -> None:
        path = self._directory / block.where.split("`")[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        if block.where.startswith("At the end of"):
            path.write_text(f"{path.read_text()}\n\n{block.text}")
        else:
            path.write_text(block.text)

    def _run(self, commands: str) -> None:
        if re.match(SERVERS, commands):
            for command in re.split(r"(?<!\\)\n", commands.strip()):
                with self._serving(command) as port:
                    self.server_uses.pop(0)(port)
            return
        commands = "\n".join(line for line in commands.splitlines() if line not in ENVIRONMENT)
        commands = commands.replace(PACKAGE, "Flask-uWSGI-WebSocket")  # it is installed, so pip does nothing
        command = ["sh", "-ec", f'{commands}\npwd >"$WHERE"']
        result = subprocess.run(command, cwd=self._directory, env=self._environ(), capture_output=True, text=True)
        self._output = result.stdout
        assert result.returncode == 0, result.stdout + result.stderr
        self._directory = Path((self._root / "where").read_text().strip())

    @contextmanager
    def _serving(self, command: str) -> Iterator[int]:
        """Run a server while the block runs, and yield its port."""
        named = re.search(r":(\d+)", command)
        port = int(named[1]) if named else 8000 if command.startswith("gunicorn") else 5000
        log = self._root / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                cwd=self._directory,
                env=self._environ(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            wait_until(lambda: _answers(port) or process.poll() is not None, lambda: f"no answer:\n{log.read_text()}")
            yield port
            if not command.startswith("gunicorn"):  # gunicorn may hang, whatever it serves, if it is stopped so soon
                os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
                process.wait(DEADLINE)
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _environ(self) -> dict[str, str]:
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLASK_")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",  # the extra "dev" has all that a page installs: see setup.cfg
            "WHERE": str(self._root / "where"),
        }


def _answers(port: int) -> bool:
    client = http.client.HTTPConnection("localhost", port, timeout=DEADLINE)
    try:
        client.request("GET", "/")
        return client.getresponse().status < 500
    except OSError:
        return False
    finally:
        client.close()


def use_echo(request: pytest.FixtureRequest, port: int) -> None:
    with connect(f"ws://localhost:{port}/echo", origin=f"http://localhost:{port}") as ws:
        ws.send("hello")
        assert ws.recv(DEADLINE) == "hello"


def use_one_core(request: pytest.FixtureRequest, port: int) -> None:
    """Two parked connections, and a loop, which takes the only core and gives it back."""
    address = f"ws://localhost:{port}"
    with connect(f"{address}/echo") as ws, connect(f"{address}/echo") as other, connect(f"{address}/sum") as loop:
        for each in (ws, other, ws):
            each.send("hello")
            assert each.recv(DEADLINE) == "hello"
        for number in "12":
            loop.send(number)
        assert loop.recv(DEADLINE) == "3"


def use_echo_page(request: pytest.FixtureRequest, port: int) -> None:
    browser = request.getfixturevalue("browser")
    browser.get(f"http://localhost:{port}")
    entry = browser.find_element(By.TAG_NAME, "input")
    WebDriverWait(browser, DEADLINE).until(lambda browser: entry.is_enabled())
    entry.send_keys("Grüße & <b>tags</b>\n")
    WebDriverWait(browser, DEADLINE).until(
        lambda browser: browser.find_element(By.TAG_NAME, "pre").text == "Grüße & <b>tags</b>"
    )


def use_index(kind: str, request: pytest.FixtureRequest, port: int) -> None:
    with urllib.request.urlopen(f"http://localhost:{port}/") as response:
        assert response.read().decode() == kind


def use_accounts(request: pytest.FixtureRequest, port: int) -> None:
    browser = request.getfixturevalue("browser")
    browser.get(f"http://localhost:{port}")
    browser.find_element(By.LINK_TEXT, "signup").click()
    browser.find_element(By.NAME, "name").send_keys("Ann")
    browser.find_element(By.NAME, "password").send_keys("a long password\n")
    WebDriverWait(browser, DEADLINE).until(lambda browser: browser.find_element(By.TAG_NAME, "header").text == "Ann")


def use_chat(request: pytest.FixtureRequest, port: int) -> None:
    browser = request.getfixturevalue("browser")
    browser.get(f"http://localhost:{port}")  # known but not logged in, because the server has another secret key
    browser.find_element(By.NAME, "name").send_keys("Ann")
    browser.find_element(By.NAME, "password").send_keys("a long password\n")
    WebDriverWait(browser, DEADLINE).until(lambda browser: browser.find_elements(By.LINK_TEXT, "Lobby"))
    browser.find_element(By.LINK_TEXT, "Lobby").click()
    wait_for_text(browser, "here", "Ann")
    WebDriverWait(browser, DEADLINE).until(lambda browser: browser.find_element(By.ID, "send").is_enabled())
    browser.find_element(By.ID, "text").send_keys("Grüße & <b>tags</b>\n")
    wait_for_text(browser, "log", "Ann: Grüße & <b>tags</b>")
    page = browser.current_url
    browser.execute_script("window.open()")
    window = browser.current_window_handle
    browser.switch_to.window(browser.window_handles[1])
    browser.get(page)
    wait_for_text(browser, "log", "Ann: Grüße & <b>tags</b>")
    browser.find_element(By.TAG_NAME, "button").click()  # log out
    browser.switch_to.window(window)
    WebDriverWait(browser, DEADLINE).until(lambda browser: browser.current_url.endswith("/login"))


def use_two_workers(request: pytest.FixtureRequest, port: int) -> None:
    address = f"ws://localhost:{port}/news"
    members: dict[str, Any] = {}
    with ExitStack() as stack:

        def has_members_on_both_workers() -> bool:
            ws = stack.enter_context(connect(address, origin=f"http://localhost:{port}"))
            members.setdefault(str(ws.recv(DEADLINE)), ws)
            return len(members) == 2

        wait_until(has_members_on_both_workers)
        one, other = members.values()
        one.send("hello")
        assert one.recv(DEADLINE) == other.recv(DEADLINE) == "hello"
    use_reconnecting_client(request.getfixturevalue("browser"), port)


def use_reconnecting_client(browser: Any, port: int) -> None:
    """Kill the worker of the page's client, which then gets another one."""
    (module,) = (block.text for block in BLOCKS["docs/scaling.md"] if block.where == "`static/live.js`:")
    browser.get(f"http://localhost:{port}/")
    browser.execute_script(
        """
        window.received = [];
        window.opened = 0;
        import(URL.createObjectURL(new Blob([arguments[0]], {type: "text/javascript"}))).then((live) =>
          live.connect(arguments[1], {onOpen: () => window.opened++, onMessage: (text) => window.received.push(text)}));
        """,
        module,
        f"ws://localhost:{port}/news",
    )

    def first_messages() -> list[str]:
        received: list[str] = browser.execute_script("return window.received")
        return received

    wait_until(lambda: len(first_messages()) == 1)
    os.kill(int(first_messages()[0].split()[-1]), signal.SIGKILL)
    wait_until(lambda: len(first_messages()) == 2)
    assert len(set(first_messages())) == browser.execute_script("return window.opened") == 2


def use_presence(request: pytest.FixtureRequest, port: int) -> None:
    ann, bob = request.getfixturevalue("browser"), request.getfixturevalue("other_browser")

    def wait_for(browser: Any, *names: str) -> None:
        wait_until(lambda: shown(browser) == [*names], lambda: f"{shown(browser)}, not {[*names]}")

    def shown(browser: Any) -> list[str]:
        found: list[str] = browser.execute_script(f"return {names_on_page}")
        return found

    names_on_page = "[...document.querySelectorAll('li')].map((item) => item.textContent)"
    ann.get(f"http://localhost:{port}/as/Ann")
    wait_for(ann, "Ann")
    bob.get(f"http://localhost:{port}/as/Bob")
    for each in (ann, bob):
        wait_for(each, "Ann", "Bob")
    bob.refresh()
    wait_for(bob, "Ann", "Bob")
    # From now on, the pages may show no other list, whatever happens.
    for each in (ann, bob):
        each.execute_script(
            f"""
            window.shown = [];
            new MutationObserver(() => window.shown.push({names_on_page}.join()))
              .observe(document.querySelector("ul"), {{childList: true}});
            """
        )
    for pid in workers_of_this_test():
        os.kill(pid, signal.SIGKILL)
    for each in (ann, bob):  # they come back, and get a list
        wait_until(lambda each=each: each.execute_script("return window.shown.length"))
    assert set(bob.execute_script("return window.shown")) == {"Ann,Bob"}
    bob.get("about:blank")
    wait_for(ann, "Ann")  # ten seconds later
    assert set(ann.execute_script("return window.shown")) == {"Ann,Bob", "Ann"}


def workers_of_this_test() -> list[int]:
    """Return the process ids of the workers of the uWSGI that this process has started."""

    def children(pid: int) -> list[int]:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    servers = [pid for pid in children(os.getpid()) if b"uwsgi" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return [worker for server in servers for worker in children(server)]


def use_resuming(request: pytest.FixtureRequest, port: int) -> None:
    address = f"ws://localhost:{port}/rooms/lobby"
    with connect(address) as ws, connect(address) as other:
        state = json.loads(ws.recv(DEADLINE))
        assert state["state"] == []
        ws.send("one")
        one = json.loads(ws.recv(DEADLINE))
        assert one["text"] == "one"
        other.recv(DEADLINE)
        other.recv(DEADLINE)
        ws.close()
        for text in ("two", "three"):
            other.send(text)
            other.recv(DEADLINE)
        with connect(f"{address}?since={one['position']}") as again:
            assert [json.loads(again.recv(DEADLINE))["text"] for _ in range(2)] == ["two", "three"]
        with connect(f"{address}?since=nonsense") as again:
            assert [each["text"] for each in json.loads(again.recv(DEADLINE))["state"]] == ["one", "two", "three"]


#: The functions that use the servers of each page.
SERVER_USES: dict[str, list[Callable[[pytest.FixtureRequest, int], None]]] = {
    "README.md": [use_echo],
    "docs/cli.md": [partial(use_index, "production"), partial(use_index, "development")],
    "docs/quickstart.md": [use_echo_page, use_echo, use_echo],
    "docs/modes.md": [use_one_core],
    "docs/presence.md": [use_presence],
    "docs/resume.md": [use_resuming],
    "docs/scaling.md": [use_two_workers],
    "docs/servers.md": [use_echo] * 5,
    "docs/tutorial.md": [use_accounts, use_chat],
}


def use_app(names: dict[str, Any]) -> None:
    with names["app"].test_client().websocket("/echo") as ws:
        ws.send("hello")
        assert ws.receive() == "hello"


def use_migrating(names: dict[str, Any]) -> None:
    use_app(names)
    with names["app"].test_client().websocket("/old") as ws:
        ws.send("hello")
        assert ws.receive() == "hello"


def use_blueprints(names: dict[str, Any]) -> None:
    app = names["create_app"]()
    client = app.test_client()
    with client.websocket("/chat/lobby") as ws:
        assert ws.response.headers["X-Version"] == "2"
        ws.send("hello")
        assert ws.receive() == "lobby: hello"
    with client.websocket("/chat/games/chess") as ws:
        for number, move in enumerate(["e4", "e5"], 1):
            ws.send(move)
            assert ws.receive() == f"{number}. {move}"
    assert _refused(client, "/chat/games/dice") == 404
    assert _refused(client, "/chat/lobby?version=1") == 400
    assert client.get("/chat/lobby").status_code == 426
    assert app.url_map.bind("localhost").build("chat.talk", {"room": "lobby"}, url_scheme="ws").endswith("/chat/lobby")


def use_configuration(names: dict[str, Any]) -> None:
    with names["app"].test_client().websocket("/drawing") as ws:
        ws.send(bytes(2**20))
        assert len(ws.receive()) == 2**20
        ws.send(bytes(2**20 + 1))
        assert (ws.receive(), ws.close_code) == (None, 1009)


def use_connections(names: dict[str, Any]) -> None:
    client = names["app"].test_client()
    with client.websocket("/news/weather", subprotocols=["news.v1"]) as ws:
        assert ws.response.headers["X-Topic"] == "weather"
        assert list(ws) == ["news.v1: sunny"]
    assert _refused(client, "/news/sports") == 404
    with client.websocket("/sums") as ws:
        for number, total in [(1, 1), (2, 3)]:
            ws.send_json(number)
            assert ws.receive_json() == {"total": total}
        ws.send("two")
        assert (ws.receive(), ws.close_code) == (None, 1007)
    with client.websocket("/clock") as ws:
        assert ws.receive() is not None
    with client.websocket("/shout") as ws, client.websocket("/shout") as other:
        ws.send("hello")
        assert ws.receive() == other.receive() == "hello"
    with client.websocket("/alarms") as ws:
        wait_until(lambda: names["queues"])
        for queue in names["queues"]:
            queue.put("fire")
        assert ws.receive() == "fire"
    with client.websocket("/whisper/Ann/Bob") as ann:
        ann.send("hello")
        assert ann.receive() == "Bob has left"
        with client.websocket("/whisper/Bob/Ann", timeout=DEADLINE) as bob:
            bob.send("hello")
            assert ann.receive() == "hello"


def use_contexts(names: dict[str, Any]) -> None:
    visiting = Flask("visiting")
    WebSocket(visiting).add_url_rule("/visit", view_func=names["Visit"].as_view("visit"))
    with visiting.test_client().websocket("/visit?name=Ann") as ws:
        ws.send("")
        assert ws.receive() == "Ann has a new g: True"
    wait_until(lambda: names["gone"] == ["Ann"])
    app, db = names["app"], names["db"]
    client = app.test_client()
    with client.websocket("/notes") as ws:
        for number in "12":
            ws.send("a note")
            assert ws.receive() == number
    for number in (1, 2):
        with client.websocket("/visits") as ws:
            ws.send("")
            assert ws.receive() == f"Visit {number}"
    with app.app_context():
        assert db.session.scalars(db.select(names["Note"].text)).all() == [
            *("a note", "a note"),
            *("127.0.0.1 left with 1000",) * 3,
        ]
        db.session.remove()
        db.engine.dispose()


def use_signals(names: dict[str, Any]) -> None:
    client = names["app"].test_client()
    with client.websocket("/chat/lobby") as ws:
        with client.websocket("/chat/lobby") as other:
            wait_until(lambda: names["rooms"]["lobby"].count() == 2)  # they join after their handshakes
            other.send("hello")
            assert ws.receive() == other.receive() == "hello"
        assert ws.receive() == "Somebody has left."


def use_authentication(names: dict[str, Any]) -> None:
    names["app"].before_request(lambda: setattr(session, "permanent", True))
    is_pending, is_logged_out = Semaphore(0), Semaphore(0)

    @names["websocket"].route("/pending")
    def pending(ws: Any) -> None:
        is_pending.release()
        assert is_logged_out.acquire(timeout=DEADLINE)
        assert ws.receive() is None  # sends the handshake

    client, other = (names["app"].test_client() for _ in range(2))
    assert _refused(client, "/chat") == 401
    for each in (client, other):
        each.post("/login", data={"name": "Ann"})
    with client.websocket("/chat") as ws, ThreadPoolExecutor() as pool:
        ws.send("hello")
        assert ws.receive() == "Ann: hello"
        opening = pool.submit(other.websocket, "/pending")
        assert is_pending.acquire(timeout=DEADLINE)
        client.post("/logout")
        assert (ws.receive(), ws.close_code) == (None, 4401)
        is_logged_out.release()
        late = opening.result()
        assert "Set-Cookie" not in late.response.headers
        assert (late.receive(), late.close_code) == (None, 4401)
        late.close()
    assert _refused(client, "/chat") == 401
    with client.websocket("/public", origin="https://www.example.com") as ws:
        assert ws.receive() == "Welcome."
    assert _refused(client, "/public", origin="https://www.example.org") == 403
    assert _refused(client, "/feed") == 401
    token = "a long random token"
    with client.websocket("/feed", headers={"Authorization": f"Bearer {token}"}) as ws:
        assert ws.receive() == "Hello, Ann"
    for first, received, code in [(token, "Hello, Ann", None), ("a guess", None, 4401)]:
        with client.websocket("/with-token") as ws:
            ws.send(first)
            assert ws.receive() == received
            assert code in {None, ws.close_code}


def use_rooms(names: dict[str, Any]) -> None:
    app, rooms = names["create_app"](TESTING=True), names["rooms"]
    lobby, websocket = rooms["lobby"], names["websocket"]

    def member(user: str) -> Any:
        client = app.test_client()
        with client.session_transaction() as session:
            session["user"] = user
        return client

    ann, bob = member("Ann"), member("Bob")
    assert _refused(ann, "/rooms/staff") == 403
    with ExitStack() as stack:
        anns, bobs = (stack.enter_context(each.websocket("/rooms/lobby")) for each in (ann, bob))
        wait_until(lambda: lobby.count() == websocket.user("Ann").count() + websocket.user("Bob").count() == 2)
        for text in ("hello", "", "ü"):
            anns.send(text)
            assert anns.receive() == bobs.receive() == text
        assert ann.post("/rooms/lobby/announcements", data={"text": "Tea is ready."}).status_code == 204
        assert anns.receive() == bobs.receive() == "Tea is ready."
        ann.post("/rooms/garden/invitations/Bob")
        assert bobs.receive_json() == {"invitation": "garden"}
        flask_uwsgi_websocket.websocket_gap.send(app, room=lobby, missed=2)
        assert anns.receive_json() == bobs.receive_json() == {"reload": True}
        ann.post("/rooms/lobby/kicks/Bob")
        assert (bobs.receive(), bobs.close_code) == (None, 4403)
        assert anns.receive() == "Somebody has left."
        ann.post("/rooms/logout")
        assert (anns.receive(), anns.close_code) == (None, 4401)
    app = Flask("prices")
    names["prices"].init_app(app)
    with app.test_client().websocket("/prices") as ws:
        assert ws.receive() == "1 are here"
        with app.test_client().websocket("/prices") as other:
            assert ws.receive() == other.receive() == "2 are here"
            ws.send("7")
            assert other.receive() == "7"
    _use_signed_broker(names["SignedBroker"])


def use_audience(names: dict[str, Any]) -> None:
    app = Flask("audience", root_path=".")
    app.register_blueprint(names["live"])
    websocket = WebSocket(app)

    @websocket.route("/watch")
    def watch(ws: Any) -> None:
        names["audience"]["final"].join(ws)
        for _ in ws:
            pass

    client = app.test_client()
    with client.websocket("/watch") as ws, client.websocket("/watch") as other:
        for each in (ws, other):
            each.send("")
        wait_until(lambda: client.get("/live/final/audience").json == {"count": 2})


def use_resume(names: dict[str, Any]) -> None:
    app = Flask("prices")
    app.register_blueprint(names["prices"])
    AsyncioWebSocket(app)
    client = app.test_client()
    with client.websocket("/prices/nasdaq") as ws:
        assert ws.receive_json()["state"] == {"AAPL": 150}
        names["markets"]["nasdaq"].publish_json({"AAPL": 151}, stamp="position")
        first = ws.receive_json()
    names["markets"]["nasdaq"].publish_json({"AAPL": 152}, stamp="position")
    with client.websocket(f"/prices/nasdaq?since={first['position']}") as ws:
        assert ws.receive_json()["AAPL"] == 152


def _use_signed_broker(signed_broker: Callable[..., Any]) -> None:
    carrier = MemoryBroker()
    app = Flask("signed")
    app.config["WEBSOCKET_BROKER"] = lambda: signed_broker(carrier, b"a secret of your own")
    websocket = WebSocket(app)
    room = websocket.room("news")
    blueprint = WebSocketBlueprint("kept", __name__)
    kept = blueprint.rooms(history=10)["news"]

    @websocket.route("/news")
    def news(ws: Any) -> None:
        room.join(ws)
        for message in ws:
            room.publish(message)

    @blueprint.websocket("/kept")
    def keep(ws: Any) -> None:
        kept.join(ws, since=request.args.get("since"))
        for message in ws:
            kept.publish_json({"text": message}, stamp="position")

    app.register_blueprint(blueprint)
    with app.test_client().websocket("/kept") as ws:
        ws.send("one")
        one = ws.receive_json()
        ws.send("two")
        two = ws.receive_json()
    with app.test_client().websocket(f"/kept?since={one['position']}") as ws:
        assert ws.receive_json() == two
    with app.test_client().websocket("/news") as ws:
        ws.send("signed")
        assert ws.receive() == "signed"
        publisher = uuid4()
        made_up = bytes(32) + seal(publisher.bytes, 1, encode("made up"))
        carrier.publish([Outgoing(room.key, made_up, 1)], publisher.hex)
        ws.send("signed, too")
        assert ws.receive_json() == {"reload": True}  # since a message is missing
        assert ws.receive() == "signed, too"


def use_deploying(names: dict[str, Any]) -> None:
    names["app"].add_url_rule("/", view_func=lambda: request.remote_addr)
    response = names["app"].test_client().get("/", headers={"X-Forwarded-For": "192.0.2.7"})
    assert response.text == "192.0.2.7"


#: The functions that use what each page has defined.
USES: dict[str, Callable[[dict[str, Any]], None]] = {
    "docs/authentication.md": use_authentication,
    "docs/blueprints.md": use_blueprints,
    "docs/configuration.md": use_configuration,
    "docs/connections.md": use_connections,
    "docs/contexts.md": use_contexts,
    "docs/deploying.md": use_deploying,
    "docs/index.md": use_app,
    "docs/migrating.md": use_migrating,
    "docs/modes.md": use_app,
    "docs/presence.md": use_audience,
    "docs/resume.md": use_resume,
    "docs/rooms.md": use_rooms,
    "docs/signals.md": use_signals,
}


def _refused(client: Any, path: str, **options: Any) -> int:
    """Return the status of a refused handshake."""
    with pytest.raises(HandshakeRejected) as rejected:
        client.websocket(path, **options)
    return int(rejected.value.response.status_code)


@pytest.mark.live
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_every_block_of_a_page_works(
    page: str, tmp_path: Path, network: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path, [partial(use, request) for use in SERVER_USES.get(page, ())])
    monkeypatch.setitem(sys.modules, "page", reader.module)  # SQLAlchemy looks up annotations in this module
    for name, text in GIVEN.get(page, {}).items():
        (tmp_path / name).write_text(text)
    is_defining = False
    for block in BLOCKS[page]:
        if not block.name.startswith(tuple(NOT_RUN)):
            reader.read(block)
            is_defining |= block.language == "python" and not block.where
    assert not reader.server_uses
    assert is_defining == (page in USES), "USES must have a function for each page that defines something"
    if is_defining:
        USES[page](vars(reader.module))


# Blocks that are not run like the others


def test_no_block_is_left_out() -> None:
    for start in NOT_RUN:
        assert block_not_run(start)
    for path in PAGES:
        fences = re.findall(r"^\s*(?:```|~~~)", path.read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(BLOCKS[str(path.relative_to(ROOT))]), path


def test_the_makefile_has_the_goals_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall("^make ([a-z]+)", block_not_run("README.md: make run"), re.MULTILINE):
        assert re.search(f"^{goal}:", makefile, re.MULTILINE)


def test_every_page_installs_the_same_package() -> None:
    blocks = [block for blocks in BLOCKS.values() for block in blocks if block.language == "sh"]
    commands = [line for block in blocks for line in block.text.splitlines() if "pip install" in line]
    installed = {
        word for command in commands for word in re.findall(r"\S*flask-uwsgi-websocket", command, re.IGNORECASE)
    }
    assert {word.strip('"') for word in installed} == {PACKAGE}


def test_uwsgi_is_compiled_as_in_the_makefile() -> None:
    command = block_not_run("docs/modes.md: pip install greenlet").splitlines()[1]
    assert (
        command.replace("$(echo", "$$(echo").replace('"$VIRTUAL_ENV"', "$(CURDIR)/$*")
        in (ROOT / "Makefile").read_text()
    )


def test_every_signal_is_in_the_table() -> None:
    listed = re.findall(r"^\| `(websocket_\w+)`", (DOCS / "signals.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [name for name in flask_uwsgi_websocket.__all__ if name.startswith("websocket_")]


def modules_of(folder: str) -> list[str]:
    """Return the modules and folders in a folder of the package."""
    directory = ROOT / "flask_uwsgi_websocket" / folder
    folders = {path.parent.name for path in directory.glob("*/__init__.py")}
    return sorted({path.stem for path in directory.glob("*.py")} - {"__init__"} | folders)


def test_the_modules_are_listed_in_the_order_of_the_layers() -> None:
    listing = block_not_run("docs/how-it-works.md: __init__")
    assert re.findall(r"^\w+", listing, re.MULTILINE) == ORDER[::-1]
    for folder, modules in re.findall(r"^(\w+)/.*\n((?:  .*\n?)+)", listing, re.MULTILINE):
        assert re.findall(r"^  (\w+)", modules, re.MULTILINE) == modules_of(folder)
        for inner, modules_in_it in re.findall(r"^  (\w+)/.*\n((?:    .*\n?)+)", modules, re.MULTILINE):
            assert re.findall(r"^    (\w+)", modules_in_it, re.MULTILINE) == modules_of(f"{folder}/{inner}")
    assert re.findall(r"^(\w+)/", listing, re.MULTILINE) == [
        name for name in ORDER[::-1] if (ROOT / "flask_uwsgi_websocket" / name).is_dir()
    ]


def test_the_log_is_the_one_on_the_page(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__)

    @WebSocket(app).route("/chat/<room>")
    def talk(ws: Any, room: str) -> None:
        for _ in range(6):
            ws.send("before")
        for message in ws:
            ws.send(message)

    with caplog.at_level(logging.INFO):
        address = {"REMOTE_ADDR": "192.0.2.7"}
        with app.test_client().websocket("/chat/lobby", environ_overrides=address) as ws:
            for _ in range(17):
                ws.send("hello")
            for _ in range(23):
                ws.receive()
            ws.close(1001, "going away")
    lines = [line for logger, _, line in caplog.record_tuples if logger == "flask_uwsgi_websocket"]
    lines = [re.sub(r"\w{32}", "6f1c…d0", re.sub(r"[\d.]+ s,", "12.4 s,", line)) for line in lines]
    assert lines == block_not_run("docs/observability.md: WebSocket").splitlines()


def test_the_metrics_on_the_page_are_all_counters(tmp_path: Path) -> None:
    path = tmp_path / "uwsgi.ini"
    path.write_text("[uwsgi]\n" + block_not_run("docs/observability.md: stats"))
    options = read_ini(path)
    assert options["metric"] == [
        f"name=websocket.{name},type={'gauge' if name in GAUGES else 'counter'}" for name in (*COUNTERS, *ROOM_COUNTERS)
    ]


def test_the_redis_configuration_on_the_page_serves_rooms(tmp_path: Path) -> None:
    require("redis")
    bind, *options, default, user = block_not_run("docs/scaling.md: bind").splitlines()
    assert (bind, default) == ("bind 10.0.0.1", "user default off")
    with ExitStack() as stack:
        server = stack.enter_context(running(RedisServer(tmp_path, options=(*options, user))))
        server.run("ACL", "SETUSER", "default", "off")
        app = Flask(__name__)
        broker = RedisBroker(f"redis://chat:PASSWORD@127.0.0.1:{server.port}/0")
        app.config["WEBSOCKET_BROKER"] = lambda: stack.enter_context(closing(broker))
        websocket = WebSocket(app)

        @websocket.route("/news")
        def news(ws: Any) -> None:
            websocket.room("news").join(ws)
            for message in ws:
                websocket.room("news").publish(message)

        with app.test_client().websocket("/news", timeout=DEADLINE) as ws:
            ws.send("hello")
            assert ws.receive() == "hello"
            assert websocket.room("news").count() == 1
        wait_for_background()  # which would go on without the server


def test_the_printed_configuration_is_the_one_on_the_page(tmp_path: Path) -> None:
    directory = tmp_path / "chat"
    directory.mkdir()
    for name, text in GIVEN["docs/cli.md"].items():
        (directory / name).write_text(text)
    command = [sys.executable, "-m", "flask", "--app", "chat:create_app('production')", "uwsgi", "config", "ini"]
    printed = subprocess.run(command, cwd=directory, capture_output=True, check=True, text=True).stdout
    printed = printed.replace(sys.prefix, "/srv/chat/venv").replace(str(directory), "/srv/chat")
    printed = re.sub("pythonpath = .*\n", "", printed)  # the package is not installed here, so its path is printed
    assert printed.startswith(block_not_run("docs/cli.md: ; /srv/chat/uwsgi.ini").removesuffix("...\n"))


# Claims


def test_the_tutorial_is_a_smaller_version_of_the_example() -> None:
    def defined(sources: Iterable[str]) -> set[str]:
        nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
        return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}

    files = [block for block in BLOCKS["docs/tutorial.md"] if re.search(r"`community/.*\.py`", block.where)]
    example = ROOT / "examples/blueprints/community"
    of_the_tutorial = defined(block.text for block in files)
    of_the_example = defined(path.read_text() for path in example.glob("**/*.py"))
    assert of_the_tutorial - of_the_example == {"check_room", "talk"}
    assert "Talk" in of_the_example  # the handler as a class


def test_a_link_shows_the_name_of_its_page_and_not_of_its_file() -> None:
    for path in PAGES:
        assert not re.findall(r"\[[\w/-]+\.md\]", path.read_text()), path


def test_the_api_reference_has_every_public_name_once() -> None:
    page = (DOCS / "api.md").read_text()
    documented = re.findall(r"^\.\. auto\w+:: (?!.*\.brokers\.)(?:[\w.]+\.)?(\w+)$", page, re.MULTILINE)
    documented.remove("signals")  # these two are modules, and the page shows only their introductions
    documented.remove("exceptions")
    documented.remove("Settings")  # public by its fields, which are keywords and options
    assert sorted(documented) == sorted(flask_uwsgi_websocket.__all__)


def test_the_configuration_has_every_setting_with_its_type_and_default() -> None:
    page = (DOCS / "configuration.md").read_text()
    entries = re.findall(
        r"^### `(WEBSOCKET_\w+)`\n\nKeyword `(\w+)`, type `(.+)`(.*), default `(.+)`\.\n\n\w", page, re.MULTILINE
    )
    assert len(entries) == page.count("### `WEBSOCKET_")
    documented = {name: (key, type_.replace('"', "'"), eval(default)) for key, name, type_, _, default in entries}
    assert documented == {field.name: (KEYS[field.name], field.type, field.default) for field in fields(Settings)}
    for _, name, _, unit, _ in entries:
        is_time = name.endswith(("_timeout", "_interval", "_lifetime"))
        is_size = name.endswith(("_size", "_buffer"))
        assert unit == " in seconds" * is_time + " in bytes" * is_size + " in bytes per second" * name.endswith("_rate")
