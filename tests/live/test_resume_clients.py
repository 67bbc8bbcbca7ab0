"""The clients of docs/resume.md, in Chromium, Node.js and Python: nothing is lost, and nothing comes twice.

The page's own code runs: its application in two workers, and each client through a proxy of the first worker. The
second worker serves the publisher.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest
from selenium.webdriver.common.by import By
from websockets.sync.client import connect

from support.endings import touch
from support.examples import browsing
from support.live import DEADLINE, MODES, wait_until
from support.needs import require
from support.pages import BLOCKS
from support.paths import SUPPORT
from support.rooms import AnyServer, mapped, serving_rooms
from support.tcp_proxy import TcpProxy

PAGE = "docs/resume.md"

#: More messages than the page's history has, and the number of those in its state.
MANY, IN_STATE = 101, 50

pytestmark = pytest.mark.once


class ChatServer(AnyServer):
    """The application of the page. Each of its two workers has an address of its own.

    :param directory: where the files of the page are.
    """

    broker = "auto"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._reload = directory / "reload"
        self._reload.touch()
        plain = MODES["gevent"]
        mode = plain._replace(options=[*plain.options, "--processes", "2", *mapped(2)], processes=2)
        place = ["--chdir", str(directory), "--pythonpath", str(directory)]
        options = [*place, "--lazy-apps", "--touch-chain-reload", str(self._reload)]
        super().__init__(
            directory, mode, "http-socket", hosts=[self.address(2)], module="live_resume_app", options=options
        )

    def address(self, worker: int) -> str:
        return f"127.0.0.{worker}"

    def stats(self) -> dict[str, int]:
        """Return the process id of the first worker, and its counters of rooms."""
        stats: dict[str, int] = self.request("/stats")
        return stats

    def publish(self, room: str, texts: Sequence[str]) -> None:
        """Publish messages through the second worker, and wait until the broker has them."""
        address = f"ws://{self.address(2)}:{self.port}/rooms/{room}"
        with connect(address, open_timeout=DEADLINE) as publisher:
            publisher.recv(DEADLINE)  # the state
            for text in texts:
                publisher.send(text)
                assert json.loads(publisher.recv(DEADLINE))["text"] == text

    def kill_first_worker(self) -> None:
        before = self.workers
        os.kill(self.stats()["pid"], signal.SIGKILL)
        wait_until(lambda: len(self.workers - before) == 1, lambda: self.log)

    def reload(self) -> None:
        before = self.workers
        touch(self._reload)
        wait_until(lambda: len(self.workers - before) == 2, lambda: self.log)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    directory = tmp_path_factory.mktemp("chat")
    save_files(directory)
    make = partial(ChatServer, directory)
    with serving_rooms(make, are_mortal=True) as (server,):
        assert isinstance(server, ChatServer)
        yield server


def save_files(directory: Path) -> None:
    """Save the files of the page."""
    for block in BLOCKS[PAGE]:
        if block.where:
            path = directory / block.where.split("`")[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text)


# Clients


class Client(Protocol):
    """A client of the page."""

    def follow(self, url: str) -> None:
        """Start."""

    def messages(self) -> list[dict[str, Any]]:
        """Return all messages that it has handled."""


class Program:
    """A client that writes each message in a line.

    :param directory: where it runs.
    :param command: its arguments, but for the URL.
    """

    def __init__(self, directory: Path, stack: ExitStack, *command: str) -> None:
        self._directory, self._stack, self._command = directory, stack, command
        self._output, self._errors = directory / "output", directory / "errors"

    def follow(self, url: str) -> None:
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            process = subprocess.Popen([*self._command, url], cwd=self._directory, stdout=output, stderr=errors)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)

    def messages(self) -> list[dict[str, Any]]:
        complete, newline, _ = self._output.read_text().rpartition("\n")
        assert not (errors := self._errors.read_text()), errors
        return [json.loads(line) for line in (complete + newline).splitlines()]


class Browser:
    """The module of the page in Chromium."""

    def __init__(self, stack: ExitStack) -> None:
        self._driver = stack.enter_context(browsing())

    def follow(self, url: str) -> None:
        self._driver.get(f"{url.partition('/rooms')[0].replace('ws', 'http')}/")
        self._driver.execute_script(
            """
            window.handled = [];
            import("/static/resume.js").then(({ follow }) => {
              follow(arguments[0], (message) => window.handled.push(message));
            });
            """,
            url,
        )

    def messages(self) -> list[dict[str, Any]]:
        handled: list[dict[str, Any]] = self._driver.execute_script("return window.handled")
        return handled


def in_browser(directory: Path, stack: ExitStack) -> Client:
    return Browser(stack)


def in_node(directory: Path, stack: ExitStack) -> Client:
    require("node")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(SUPPORT / "npm" / name, directory)
    install = ["npm", "ci", "--prefer-offline", "--ignore-scripts", "--no-audit", "--no-fund"]
    result = subprocess.run(install, cwd=directory, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (directory / "main.mjs").write_text(
        """\
import WS from "ws";
import { follow } from "./resume.mjs";

const print = (message) => console.log(JSON.stringify(message));
follow(process.argv[2], print, { WebSocket: WS });
"""
    )
    return Program(directory, stack, "node", "main.mjs")


def in_python(directory: Path, stack: ExitStack) -> Client:
    return Program(directory, stack, sys.executable, "follow.py")


CLIENTS: dict[str, Callable[[Path, ExitStack], Client]] = {
    "browser": in_browser,
    "partysocket": in_node,
    "python": in_python,
}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    save_files(tmp_path)
    with ExitStack() as stack:
        yield CLIENTS[request.param](tmp_path, stack)


class Scene:
    """A client in a room, behind a proxy, and what is published in the room."""

    def __init__(self, server: ChatServer, client: Client, proxy: TcpProxy, room: str) -> None:
        self.server, self.client, self.proxy = server, client, proxy
        self._room = room
        self.published: list[str] = []
        client.follow(f"ws://127.0.0.1:{proxy.port}/rooms/{room}")
        wait_until(client.messages, lambda: "the client gets nothing")

    @property
    def states(self) -> list[list[str]]:
        """The texts in each state that the client got."""
        return [[each["text"] for each in message["state"]] for message in self.client.messages() if "state" in message]

    @property
    def texts(self) -> list[str]:
        """The texts of the messages that the client got."""
        return [message["text"] for message in self.client.messages() if "text" in message]

    def publish(self, count: int) -> None:
        """Publish messages, and wait until the broker has them."""
        texts = [str(len(self.published) + number) for number in range(count)]
        self.server.publish(self._room, texts)
        self.published += texts

    def publish_while_it_is_away(self, count: int, end: Callable[[], None]) -> None:
        """Turn the client away, end its connection, and publish messages before it may come back."""
        refused = self.proxy.refused
        self.proxy.turn_away()
        end()
        wait_until(lambda: self.proxy.refused > refused, lambda: "the client does not try again")
        self.publish(count)
        self.proxy.come_back()

    def wait_for(self, find: Callable[[], object]) -> None:
        wait_until(find, lambda: f"{self.texts}\n{self.server.log[-5000:]}")


@pytest.fixture
def scene(server: ChatServer, client: Client) -> Iterator[Scene]:
    with closing(TcpProxy(server.port)) as proxy:
        yield Scene(server, client, proxy, uuid4().hex)


def test_a_client_that_comes_back_has_every_message_once_and_in_order(scene: Scene) -> None:
    scene.publish(1)
    scene.wait_for(lambda: scene.texts == scene.published)
    for end in (scene.proxy.cut, scene.server.kill_first_worker, scene.server.reload):
        scene.publish_while_it_is_away(10, end)
        scene.publish(1)
        scene.wait_for(lambda: scene.texts[-1:] == scene.published[-1:])
        assert scene.texts == scene.published
    assert scene.states == [[]]


def test_a_client_that_has_missed_more_than_the_history_has_gets_the_state(scene: Scene) -> None:
    scene.publish(1)
    scene.wait_for(lambda: scene.texts == scene.published)
    scene.publish_while_it_is_away(MANY, scene.proxy.cut)
    scene.wait_for(lambda: len(scene.states) == 2)
    assert scene.states == [[], scene.published[-IN_STATE:]]
    scene.publish(1)
    scene.wait_for(lambda: scene.texts == [scene.published[0], scene.published[-1]])


def test_the_page_shows_what_its_user_writes_and_what_it_has_missed(server: ChatServer) -> None:
    with ExitStack() as stack:
        proxy = stack.enter_context(closing(TcpProxy(server.port)))
        driver = stack.enter_context(browsing())
        driver.get(f"http://127.0.0.1:{proxy.port}/")
        entry = driver.find_element(By.TAG_NAME, "input")

        def shows(*texts: str) -> None:
            script = "return [...document.querySelectorAll('li')].map((item) => item.textContent)"
            wait_until(lambda: driver.execute_script(script) == [*texts], lambda: driver.execute_script(script))

        entry.send_keys("<b>one")
        wait_until(lambda: not entry.get_property("value") or entry.send_keys("\n"), lambda: "nothing is sent")
        shows("<b>one")
        proxy.leave()
        wait_until(lambda: proxy.refused, lambda: "the page does not try again")
        server.publish("lobby", ["two", "three"])
        entry.send_keys("four\n")  # stays, because there is no connection
        proxy.come_back()
        shows("<b>one", "two", "three")
        entry.send_keys("\n")
        shows("<b>one", "two", "three", "four")
