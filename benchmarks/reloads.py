"""Reload the workers of the chat example while 200 windows follow its messages, and check that none misses anything.

    python -m benchmarks.reloads --reloads 10 --windows 200

The server is ``examples/blueprints``: uWSGI with two workers, which a chain reload replaces one after the other. Users
with several windows each follow one room. Some windows send messages all the time. A window whose connection ends comes
back after a random time of at most a second, and names the last position that it has, as the page of the example does.

At the end, each window must have every message that the database has, each once, all in the same order, and nobody may
have been reported to come or go meanwhile. The script prints the reloads and a verdict, and exits with 0 only if all of
its checks hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import re
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.typing import Origin

from .measures import raise_file_limit
from .soak import HOST, ROOT, free_port

#: The room of all windows.
ROOM = "/rooms/Lobby"

#: Windows of one user, and those that send, with the mean seconds between two messages of one of them.
WINDOWS_PER_USER = 10
SENDERS = 10
SEND_INTERVAL = 0.5

#: Seconds within which the server has to start, all windows have to be back after a reload, and have all messages.
PATIENCE = 60.0


class Server:
    """The example.

    :param directory: the directory of its log, its database and the FIFO of its master.
    :param broker: the address of the broker, or "auto".
    """

    def __init__(self, directory: Path, broker: str) -> None:
        self.port = free_port()
        self.database = directory / "community.sqlite"
        self._log = directory / "log"
        self._fifo = directory / "fifo"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=ROOT / "examples" / "blueprints",
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "HOST": HOST,
                    "PORT": str(self.port),
                    "UWSGI_MASTER_FIFO": str(self._fifo),
                    "UWSGI_DISABLE_LOGGING": "1",
                    "COMMUNITY_SECRET_KEY": "a key of the benchmark",
                    "COMMUNITY_SQLALCHEMY_DATABASE_URI": f"sqlite:///{self.database}",
                    "COMMUNITY_WEBSOCKET_BROKER": broker,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until the example answers.

        :raises SystemExit: when it does not.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{self.port}/", timeout=PATIENCE):
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.log()[-3000:]}\nthe example has not started")
            time.sleep(0.1)

    def reload(self) -> None:
        """Let the master replace one worker after the other."""
        self._fifo.write_text("c")

    def count_reloads(self) -> int:
        """Return how many chain reloads are complete. While one is not, uWSGI ignores the next one."""
        return self.log().count("chain reloading complete")

    def log(self) -> str:
        """Return the output of the server."""
        return self._log.read_text(errors="replace")

    def stored(self) -> list[int]:
        """Return the ids of all messages in the database."""
        with closing(sqlite3.connect(self.database)) as database:
            return [id for (id,) in database.execute("SELECT id FROM message ORDER BY id")]


def sign_up(port: int, name: str) -> str:
    """Sign up a user, and return the cookie of the session."""
    cookies = CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    url = f"http://{HOST}:{port}/signup"
    with opener.open(url, timeout=PATIENCE) as page:
        token = re.search(r'name="csrf_token" value="([^"]+)"', page.read().decode())
    assert token is not None
    form = {"csrf_token": token[1], "name": name, "password": "a long password"}
    opener.open(url, urllib.parse.urlencode(form).encode(), timeout=PATIENCE).close()
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in cookies)


class Window:
    """A window of a user, which follows the room as the page of the example does.

    :param cookie: the cookie of the user's session.
    :param name: what its own messages begin with.
    """

    def __init__(self, port: int, cookie: str, name: str) -> None:
        self.port = port
        self.cookie = cookie
        self.name = name
        #: The ids of the messages that it has shown, in their order.
        self.messages: list[int] = []
        #: The process that serves it, or None while it has not got everything that it has missed.
        self.process: int | None = None
        #: How often users were reported to go, or to come again.
        self.changes = 0
        self.states = self.sent = 0
        #: The close codes of its connections, and the status codes of handshakes that were refused: while a worker is
        #: replaced, the other one may be full.
        self.codes: Counter[int | None] = Counter()
        self.refused: Counter[int] = Counter()
        #: For each reconnect: the seconds from the end of a connection until it has got everything.
        self.gaps: list[float] = []
        #: Since when each user is there.
        self._here: dict[str, float] = {}
        self._position: str | None = None
        self._ws: ClientConnection | None = None

    async def follow(self) -> None:
        """Show what happens in the room, over as many connections as it takes."""
        ended_at: float | None = None
        while True:
            query = "" if self._position is None else f"?since={urllib.parse.quote(self._position)}"
            try:
                async with connect(
                    f"ws://{HOST}:{self.port}{ROOM}{query}",
                    additional_headers={"Cookie": self.cookie},
                    origin=Origin(f"http://{HOST}:{self.port}"),
                    compression=None,
                    proxy=None,
                    open_timeout=PATIENCE,
                ) as self._ws:
                    with suppress(ConnectionClosed):
                        async for text in self._ws:
                            self._take(json.loads(text))
                            if self.process is not None and ended_at is not None:
                                self.gaps.append(time.monotonic() - ended_at)
                                ended_at = None
                self.codes[self._ws.close_code] += 1
                self.process, ended_at = None, time.monotonic()
            except InvalidStatus as error:
                self.refused[error.response.status_code] += 1
            except (OSError, InvalidMessage):
                self.refused[0] += 1
            await asyncio.sleep(random.random())

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["type"]
        if kind == "state":
            self.states += 1
            self.messages += [each["id"] for each in event["messages"] if each["id"] not in self.messages]
            self._here = event["here"]
        elif kind == "ready":
            self.process = event["process"]
        elif kind == "message":
            self.messages.append(event["id"])
        elif kind == "came":
            self.changes += self._here.setdefault(event["name"], event["since"]) != event["since"]
        elif kind == "left":
            self.changes += 1
        self._position = event.get("position", self._position)

    async def talk(self) -> None:
        """Send messages, whenever there is a connection."""
        while True:
            await asyncio.sleep(random.uniform(0, 2 * SEND_INTERVAL))
            if self.process is not None and self._ws is not None:
                with suppress(ConnectionClosed):
                    await self._ws.send(json.dumps({"text": f"{self.name}: {self.sent}"}))
                    self.sent += 1


async def until(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """Wait for a condition.

    :raises SystemExit: when it does not hold in time.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"after {PATIENCE:.0f} s, {what()}")
        await asyncio.sleep(0.05)


async def test(server: Server, windows: Sequence[Window], reloads: int) -> bool:
    """Reload the server under load, print the results, and return whether all checks hold."""

    def count_at_home(old: set[int]) -> int:
        return sum(window.process is not None and window.process not in old for window in windows)

    following = [asyncio.create_task(window.follow()) for window in windows]
    await until(
        lambda: count_at_home(set()) == len(windows),
        lambda: f"{count_at_home(set())} of {len(windows)} windows were connected",
    )
    sending = [asyncio.create_task(window.talk()) for window in windows[:SENDERS]]

    print("reload  seconds  processes        messages  shown by all")
    for number in range(1, reloads + 1):
        await asyncio.sleep(1)
        old = {window.process for window in windows if window.process is not None}
        began = time.monotonic()
        server.reload()
        await until(
            lambda old=old, number=number: server.count_reloads() == number and count_at_home(old) == len(windows),
            lambda old=old: f"{count_at_home(old)} of {len(windows)} windows were back after a reload",
        )
        processes = ", ".join(str(pid) for pid in sorted({window.process or 0 for window in windows}))
        print(
            f"{number:6} {time.monotonic() - began:8.1f}  {processes:15} {len(server.stored()):9,} "
            f"{sum(len(window.messages) for window in windows):13,}",
            flush=True,
        )

    for task in sending:
        task.cancel()
    await asyncio.sleep(1)  # what was sent is stored
    stored = server.stored()
    with suppress(SystemExit):  # what is missing is reported below
        await until(lambda: all(len(window.messages) >= len(stored) for window in windows), lambda: "")
    for task in following:
        task.cancel()
    await asyncio.gather(*following, *sending, return_exceptions=True)
    return verdict(server, windows, stored)


def verdict(server: Server, windows: Sequence[Window], stored: Sequence[int]) -> bool:
    """Print the results, and return whether all checks hold."""
    shown = [Counter(window.messages) for window in windows]
    lost = sum(len(set(stored) - each.keys()) for each in shown)
    repeated = sum(sum(each.values()) - len(each) for each in shown)
    orders = {tuple(window.messages) for window in windows}
    gaps = sorted(gap for window in windows for gap in window.gaps)
    snapshots = sum(window.states for window in windows) - len(windows)
    changes = sum(window.changes for window in windows)
    codes = sum((window.codes for window in windows), Counter())
    refused = sum((window.refused for window in windows), Counter())
    tracebacks = server.log().count("Traceback (most recent call last):")

    sent = sum(window.sent for window in windows)
    print(f"\nmessages stored {len(stored):,}, and {sent - len(stored):,} were on their way when a worker ended")
    print(f"messages shown {sum(len(window.messages) for window in windows):,} by {len(windows)} windows")
    print(f"reconnects {len(gaps):,}, close codes {dict(codes)}, refused {dict(refused)}")
    if gaps:
        late = gaps[int(0.99 * len(gaps))]
        print(f"away until everything was there: median {statistics.median(gaps):.2f} s, p99 {late:.2f} s")
    checks = {
        f"messages lost: {lost}": not lost,
        f"messages duplicated: {repeated}": not repeated,
        f"different orders of the messages: {len(orders)}": len(orders) == 1,
        f"reconnects that got the state instead of what they have missed: {snapshots}": not snapshots,
        f"reports that a user has come or gone, of users who were there all the time: {changes}": not changes,
        f"tracebacks in the log: {tracebacks}": not tracebacks,
    }
    print()
    for text, holds in checks.items():
        print("ok    " if holds else "FAILED", text)
    return all(checks.values())


@contextmanager
def serving(broker: str) -> Iterator[Server]:
    """Run the example."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory), broker)
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(20)
            with suppress(ProcessLookupError):  # the server has ended
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reloads", description=__doc__.partition("\n")[0])
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--broker", default="auto", help='"auto", or the address of a Redis')
    options = parser.parse_args()
    raise_file_limit()
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    with serving(options.broker) as server:
        cookies = [sign_up(server.port, f"user{number}") for number in range(-(-options.windows // WINDOWS_PER_USER))]
        windows = [
            Window(server.port, cookies[number // WINDOWS_PER_USER], f"window {number}")
            for number in range(options.windows)
        ]
        passed = asyncio.run(test(server, windows, options.reloads))
    sys.exit(not passed)


if __name__ == "__main__":
    main()
