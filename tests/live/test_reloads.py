"""When a worker is replaced, every client gets a Close frame, comes back, and loses no message that was answered.

``PYTHONPATH=tests python tests/live/test_reloads.py`` prints the figures of ten reloads under load.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import websockets.exceptions

from flask_uwsgi_websocket.worker.shutdown import INTERVAL
from support.endings import (
    RELOADED,
    STOPPED,
    check_service,
    check_signals,
    connect,
    ends_of,
    expect_the_end,
    expect_the_end_of_stubborn,
    touch,
)
from support.live import DEADLINE, MODES, PATIENT, Mode, Raw, Server, in_threads, serving, wait_until
from support.ports import reserved_port

THREE_MODES = ["threads", "gevent", "asyncio"]

# uWSGI's log messages about a worker that ended unexpectedly, or that uWSGI had to kill.
_TROUBLE = re.compile(r"DAMN|NO MERCY|BOOM|\[BUG\]|Segmentation|Traceback")


def with_two_workers(mode: str) -> Mode:
    return MODES[mode]._replace(options=[*MODES[mode].options, "--processes", "2"], processes=2)


#: Faults in the log of a server whose workers are replaced. uWSGI logs the replacements.
serving_and_replacing = partial(serving, front="http-socket", module="live_reloads_app", trouble=_TROUBLE)


def in_all_modes(directory: Path, check: Callable[[Path, str], None]) -> None:
    """Call *check* for all modes at the same time, because it mostly waits."""
    for mode in THREE_MODES:
        (directory / mode).mkdir()
    in_threads(len(THREE_MODES), lambda number: check(directory / THREE_MODES[number], THREE_MODES[number]))


# Ten reloads under load

RELOADS = 10

#: Clients that stay until they are closed, and clients that come and go all the time.
STAYING = 12
VISITING = 12

#: The number of messages that a client sends before it waits for the answers, and its pause after them in seconds.
BURST = 3
PAUSE = 0.02
PAUSE_OF_VISITORS = 0.2

#: The number of exchanges that each staying client completes between two reloads.
EXCHANGES = 8


class Load:
    """Clients that exchange messages with a server all the time, and connect again when they are closed.

    The handler writes each message into the journal before it answers, and an answered message is acknowledged. A
    client that has connected again sends its unacknowledged messages again.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.acknowledged: set[str] = set()
        self.failures: Counter[str] = Counter()  # the attempts that did not become connections
        # The close codes of staying clients, and of visiting clients.
        self.staying: Counter[int | None] = Counter()
        self.visiting: Counter[int | None] = Counter()
        self._served = [0] * STAYING  # the number of connections on which each client completed its exchanges
        self._is_over = False

    async def run(self) -> None:
        """Reload the server, each time when all clients are served again."""
        clients = [asyncio.ensure_future(self._keep_coming(number)) for number in range(STAYING + VISITING)]
        await self._wait_until_served(1)
        for number in range(RELOADS):
            self.server.signal(signal.SIGHUP)
            await self._wait_until_served(2 + number)
        self._is_over = True
        await asyncio.gather(*clients)

    async def _wait_until_served(self, times: int) -> None:
        await until(lambda: min(self._served) >= times, lambda: f"{self._served}\n{self.server.log[-5000:]}")
        workers = self.server.mode.processes * (1 + self.server.reloads)
        await until(lambda: len(self.server.workers) == workers, lambda: self.server.log[-5000:])

    async def _keep_coming(self, number: int) -> None:
        messages = (f"{number}:{i}" for i in itertools.count())
        unacknowledged: deque[str] = deque()
        codes = self.staying if number < STAYING else self.visiting
        while not self._is_over:
            stack = AsyncExitStack()
            try:
                connection = await stack.enter_async_context(self.server.open("/ledger"))
            except (OSError, websockets.exceptions.WebSocketException) as error:
                self.failures[repr(error)] += 1
                await asyncio.sleep(PAUSE)
                continue
            async with stack:
                with suppress(websockets.exceptions.ConnectionClosed):
                    for exchanges in itertools.count(1):
                        unacknowledged.extend(itertools.islice(messages, BURST - len(unacknowledged)))
                        await self._exchange(connection, unacknowledged)
                        await asyncio.sleep(PAUSE if number < STAYING else PAUSE_OF_VISITORS)
                        if number < STAYING:
                            self._served[number] += exchanges == EXCHANGES
                        if number >= STAYING or self._is_over:
                            break
            codes[connection.close_code] += 1

    async def _exchange(self, connection: Any, messages: deque[str]) -> None:
        """Send messages, and remove those that are answered."""
        for message in messages:
            await connection.send(message)
        while messages:
            assert await connection.recv() == messages[0]
            self.acknowledged.add(messages.popleft())

    def figures(self) -> dict[str, Any]:
        written = [entry["message"] for entry in self.server.journal() if entry["event"] == "message"]
        return {
            "reloads": self.server.reloads,
            "staying clients": STAYING,
            "closes of their connections, by code": dict(self.staying),
            "visiting clients": VISITING,
            "closes of visits, by code": dict(self.visiting),
            "messages acknowledged": len(self.acknowledged),
            "acknowledged messages lost": len(self.acknowledged - set(written)),
            "messages handled and not acknowledged": len(written) - len(self.acknowledged),
            "attempts that failed": dict(self.failures),
        }


async def until(find: Callable[[], Any], complain: Callable[[], str]) -> None:
    """Wait until *find* returns something true, and let the clients run."""
    for _ in range(DEADLINE * 50):
        if find():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(complain())


@pytest.mark.timeout(240)
def test_ten_reloads_under_load_lose_no_message_that_was_answered(tmp_path: Path) -> None:
    async def run(loads: list[Load]) -> None:
        await asyncio.gather(*(load.run() for load in loads))

    with ExitStack() as stack:
        loads = []
        for mode in THREE_MODES:
            directory = tmp_path / mode
            directory.mkdir()
            server = serving(directory, with_two_workers(mode), "http-socket", module="live_reloads_app")
            loads.append(Load(stack.enter_context(server)))
        asyncio.run(run(loads))
        figures = {mode: load.figures() for mode, load in zip(THREE_MODES, loads, strict=True)}
        sys.stdout.write("\n" + json.dumps(figures, indent=2) + "\n")
        for load in loads:
            check_journal(load.server, load.staying + load.visiting)
    for load in loads:
        assert load.figures()["acknowledged messages lost"] == 0
        assert not load.failures
        # Each reload closes each staying client, and at last the client closes itself. It is closed twice if it comes
        # back to a worker that the signal has not reached yet.
        assert load.staying.keys() == {1012, 1000}
        assert STAYING * RELOADS <= load.staying[1012] <= STAYING * RELOADS * load.server.mode.processes
        assert load.staying[1000] == STAYING
        assert load.visiting.keys() <= {1012, 1000}


def check_journal(server: Server, codes: Counter[int | None]) -> None:
    """Check that the receivers of the signals got the same events as the clients."""
    wait_until(lambda: count(server, "torn down") == codes.total(), lambda: server.log[-5000:])
    closed = Counter((entry["initiator"], entry["code"]) for entry in server.journal() if entry["event"] == "closed")
    assert closed == {("shutdown", 1012): codes[1012], ("client", 1000): codes[1000]}


def count(server: Server, event: str) -> int:
    return sum(entry["event"] == event for entry in server.journal())


# Other reasons to replace workers


def test_workers_with_lazy_apps_close_their_clients_whenever_they_are_replaced(tmp_path: Path) -> None:
    in_all_modes(tmp_path, check_replacements)


def check_replacements(directory: Path, mode: str) -> None:
    files = {option: directory / option for option in ("touch-reload", "touch-chain-reload")}
    options = ["--master", "--lazy-apps"]  # SIGTERM reloads, because there is no --die-on-term
    for option, file in files.items():
        file.touch()
        options += [f"--{option}", str(file)]
    with serving_and_replacing(directory, with_two_workers(mode), master=False, options=options) as server:
        check_service(server, with_lazy_apps=True)
        for file in files.values():
            with ExitStack() as stack:
                clients = connect(server, stack)
                stubborn = stack.enter_context(server.raw("/stubborn"))
                server.wait_for("connected", stubborn)
                touch(file)
                assert ends_of(clients) == {RELOADED}
                assert expect_the_end_of_stubborn(stubborn) == RELOADED
                check_signals(server, clients, ("shutdown", 1012))
                entry = server.wait_for("closed", stubborn)
                assert (entry["initiator"], entry["code"]) == ("shutdown", 1012)
            server.reloads += 1
            check_service(server, with_lazy_apps=True)
        with ExitStack() as stack:
            clients = connect(server, stack)
            server.signal(signal.SIGTERM)
            assert ends_of(clients) == {RELOADED}
            check_signals(server, clients, ("shutdown", 1012))
            server.reloads += 1
            check_service(server, with_lazy_apps=True)
            clients = connect(server, stack)
            server.signal(signal.SIGINT)
            assert ends_of(clients) == {STOPPED}
            check_signals(server, clients, ("shutdown", 1001))


def test_a_worker_that_has_served_its_maximum_of_requests_closes_its_clients(tmp_path: Path) -> None:
    def check(directory: Path, mode: str) -> None:
        with reserved_port() as port:
            check_most_requests(directory, mode, port)

    in_all_modes(tmp_path, check)


def check_most_requests(directory: Path, mode: str, port: int) -> None:
    options = ["--max-requests", "10", "--min-worker-lifetime", "0"]
    options += ["--stats", f"127.0.0.1:{port}", "--metric", "name=websocket.open,type=gauge"]

    def count_open() -> int:
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock, sock.makefile("rb") as file:
            return int(json.load(file)["metrics"]["websocket.open"]["value"])

    with serving_and_replacing(directory, MODES[mode], options=options) as server, ExitStack() as stack:
        clients = connect(server, stack)
        wait_until(lambda: count_open() == len(clients), lambda: f"{count_open()} connections are open")
        for _ in range(9):  # one more request has found that the server is ready
            assert server.get("/").status == 200
        assert ends_of(clients) == {RELOADED}
        check_signals(server, clients, ("shutdown", 1012))
        server.reloads += 1
        check_service(server)
        wait_until(lambda: count_open() == 0, lambda: f"{count_open()} connections are still open")


def test_an_upgrade_request_that_arrives_while_the_worker_ends_becomes_a_connection(tmp_path: Path) -> None:
    in_all_modes(tmp_path, check_late_request)


def check_late_request(directory: Path, mode: str) -> None:
    with (
        serving(directory, MODES[mode], "http-socket", module="live_reloads_app", options=PATIENT) as server,
        ExitStack() as stack,
    ):
        clients = connect(server, stack)
        late = stack.enter_context(half_a_request(server))
        server.signal(signal.SIGHUP)
        assert ends_of(clients) == {RELOADED}
        check_signals(server, clients, ("shutdown", 1012))
        time.sleep(4 * INTERVAL)  # so that the worker has seen that no connection is left
        assert late.handshake({}).status == 101
        assert expect_the_end(late) == RELOADED
        check_signals(server, [late], ("shutdown", 1012))
        check_service(server)


@contextmanager
def half_a_request(server: Server) -> Iterator[Raw]:
    """Connect a client that has sent the beginning of its request."""
    client = Raw(server, server.path("/ledger"))
    try:
        client.send(f"GET {client.path} HTTP/1.1\r\nX-Again: ".encode())  # the value will be the next request line
        assert server.get("/").status == 200  # so the connection was accepted, because the worker accepts them in order
        yield client
    finally:
        client.close()


def test_in_gevent_the_first_connection_of_a_worker_that_already_ends_is_closed_too(tmp_path: Path) -> None:
    with serving(tmp_path, MODES["gevent"], "http-socket", module="live_reloads_app", options=PATIENT) as server:
        with half_a_request(server) as client:
            server.signal(signal.SIGHUP)
            wait_until(lambda: "Gracefully killing worker" in server.log, lambda: server.log[-5000:])
            assert client.handshake({}).status == 101
            assert expect_the_end(client) == RELOADED
            check_signals(server, [client], ("shutdown", 1012))
        check_service(server)


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-s", "-k", "ten_reloads", __file__]))
