"""Views work on uWSGI in both forms: parked, and inside their request."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from support.endings import RELOADED, STOPPED, check_service, check_signals, ends_of
from support.live import MODES, Mode, Raw, Server, in_threads, serving, token_of, wait_until
from support.wire import CLOSE, TEXT, close_body

# Coverage is not measured while workers with threads end. uWSGI runs Python code in the exit of its process, where
# coverage would ask greenlet for the current greenlet, although greenlet has ended by then.
pytestmark = pytest.mark.once

FORMS = ["/parked", "/in-request"]

#: The modes with one process.
SINGLE = {name: mode for name, mode in MODES.items() if mode.processes == 1}

serving_views = partial(serving, front="http-socket", module="live_views_app")

# uWSGI's log messages about a worker that ended unexpectedly, or that uWSGI had to kill.
_TROUBLE = re.compile(r"NO MERCY|BOOM|\[BUG\]|Segmentation|Traceback")


@pytest.fixture(scope="module", params=MODES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in each mode."""
    with serving_views(tmp_path_factory.mktemp(request.param), MODES[request.param]) as server:
        yield server


def in_modes(directory: Path, modes: dict[str, Mode], check: Callable[[Path, Mode], None]) -> None:
    """Call *check* for all modes at the same time, because it mostly waits."""
    names = list(modes)
    for name in names:
        (directory / name).mkdir()
    in_threads(len(names), lambda number: check(directory / names[number], modes[names[number]]))


def say(client: Raw, message: str) -> str:
    """Send a message, and return the answer."""
    client.send_frame(TEXT, message.encode())
    opcode, payload = client.receive()
    assert opcode == TEXT, payload
    return payload.decode()


def close(client: Raw, code: int = 1000) -> None:
    """Make the closing handshake, and expect the end of TCP."""
    client.send_frame(CLOSE, close_body(code))
    assert client.receive_close()[0] == code
    assert client.file.read() == b""


def events_of(server: Server, client: Raw) -> list[str]:
    """Return the events of a connection that has ended."""
    server.wait_for("torn down", client)
    return [entry["event"] for entry in server.journal() if entry.get("token") == token_of(client)]


OPENING = ["on_connect", "connected"]
EXCHANGE = ["message", "on_message", "sent"]
ENDING = ["on_close", "closed", "torn down"]


@pytest.mark.covered
@pytest.mark.parametrize("form", FORMS)
def test_each_method_and_each_signal_is_called_exactly_once(server: Server, form: str) -> None:
    with server.raw(f"{form}/talk?name=Ann") as client:
        for number in range(3):
            assert say(client, f"{number}") == f"Ann: {number}"
        close(client, 4000)
    assert events_of(server, client) == [*OPENING, *EXCHANGE * 3, *ENDING]
    assert server.wait_for("on_close", client)["code"] == 4000
    assert server.wait_for("closed", client)["initiator"] == "client"


@pytest.mark.covered
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("message", "end", "more"),
    [
        ("crash", (1011, "internal error"), ["on_close", "error", "closed", "torn down"]),
        ("abort", (4404, "Not Found"), ENDING),
        ("close", (4001, "bye"), ENDING),
    ],
)
def test_a_method_that_raises_or_closes_ends_its_own_connection_only(
    server: Server, form: str, message: str, end: tuple[int, str], more: list[str]
) -> None:
    with server.raw(f"{form}/talk") as other, server.raw(f"{form}/talk") as client:
        client.send_frame(TEXT, message.encode())
        assert client.receive_close() == end
        client.send_frame(CLOSE, close_body(end[0]))
        assert client.file.read() == b""
        assert events_of(server, client) == [*OPENING, "message", "on_message", *more]
        entry = server.wait_for("on_close", client)
        assert (entry["code"], entry["reason"]) == end
        assert say(other, "x") == "nobody: x"
        close(other)
        assert events_of(server, other) == [*OPENING, *EXCHANGE, *ENDING]


@pytest.mark.covered
@pytest.mark.parametrize("form", FORMS)
def test_a_client_that_vanishes_ends_the_view_with_1006(server: Server, form: str) -> None:
    with server.raw(f"{form}/talk") as client:
        assert say(client, "x")
        client.reset()
    assert events_of(server, client) == [*OPENING, *EXCHANGE, *ENDING]
    assert server.wait_for("on_close", client)["code"] == 1006


@pytest.mark.covered
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "status"), [("refused", 403), ("gone", 410)])
def test_on_connect_may_refuse(server: Server, form: str, name: str, status: int) -> None:
    path = server.path(f"{form}/talk?name={name}")
    assert server.handshake(path).status == status
    assert server.wait_for_access_log(path) == status


@pytest.mark.covered
def test_the_access_log_has_101_when_the_request_of_a_parked_view_has_ended(server: Server) -> None:
    with server.raw("/parked/talk") as client:
        assert server.wait_for_access_log(client) == 101
        assert say(client, "x") == "nobody: x"
        close(client)
    events_of(server, client)
    assert server.log.count(f"token={token_of(client)} ") == 1


@pytest.mark.covered
def test_parked_views_know_their_requests_while_the_worker_serves_others(server: Server) -> None:
    with ExitStack() as stack:
        clients = {}
        for number in range(12):
            form = FORMS[number % 3 == 0]
            client = Raw(server, server.path(f"{form}/identity?name=n{number}"))
            stack.callback(client.close)
            host = f"host{number}.example"
            assert client.handshake({"Cookie": f"name=c{number}", "Host": host}).status == 101
            clients[client] = [f"n{number}", f"c{number}", f"n{number}", f"n{number}", f"{form}/identity", host]
        for _ in range(3):
            for client, expected in clients.items():
                assert server.get(server.path("/")).status == 200
                answer = json.loads(say(client, "who"))
                assert answer[:4] + answer[5:] == expected[:4] + expected[5:]
                assert answer[4].endswith(f"{expected[5]}{expected[4]}")
        for client in clients:
            close(client)


#: Fewer cores than connections, in each mode.
CORES = {
    "threads": ["--threads", "4"],
    "one core": [],
    "gevent": ["--gevent", "4", "--gevent-early-monkey-patch"],
    "plain-in-gevent": ["--gevent", "4"],
    "asyncio": ["--asyncio", "4", "--greenlet"],
}
FEW = {name: MODES.get(name, MODES["threads"])._replace(options=options) for name, options in CORES.items()}


def test_more_parked_connections_than_cores_are_served_and_pages_too(tmp_path: Path) -> None:
    in_modes(tmp_path, FEW, check_few_cores)


def check_few_cores(directory: Path, mode: Mode) -> None:
    with serving_views(directory, mode) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.raw("/parked/talk")) for _ in range(20)]
        for _ in range(2):
            for client in clients:
                assert say(client, "x") == "nobody: x"
            assert server.get("/").status == 200
        for client in clients:
            client.send_frame(TEXT, b"wait")
        server.wait_for("waits", clients[0])
        assert server.get("/go-on").status == 200  # although all threads for views wait
        waiting = [*OPENING, *EXCHANGE * 2, "message", "on_message", "waits", "sent"]
        for client in clients:
            assert client.receive() == (TEXT, b"nobody: wait")
            close(client)
            assert events_of(server, client) == [*waiting, *ENDING]


# Ends of workers


def talk(server: Server, stack: ExitStack, count: int = 6) -> list[Raw]:
    """Open connections of parked views, and exchange a message with each."""
    clients = [stack.enter_context(server.raw("/parked/talk")) for _ in range(count)]
    for client in clients:
        assert say(client, "x") == "nobody: x"
    return clients


def check_ends(server: Server, clients: list[Raw], end: tuple[int, str]) -> None:
    """Check that a worker that ends closes its connections, and that each view is notified."""
    assert ends_of(clients) == {end}
    check_signals(server, clients, ("shutdown", end[0]))
    for client in clients:
        assert events_of(server, client) == [*OPENING, *EXCHANGE, *ENDING]
        entry = server.wait_for("on_close", client)
        assert (entry["code"], entry["reason"]) == end


@pytest.mark.parametrize("options", [[], ["--lazy-apps"]], ids=["forked", "lazy-apps"])
def test_workers_that_reload_and_stop_close_parked_connections(tmp_path: Path, options: list[str]) -> None:
    in_modes(tmp_path, MODES if not options else SINGLE, partial(check_reload, options=options))


def check_reload(directory: Path, mode: Mode, options: list[str]) -> None:
    with serving_views(directory, mode, options=options) as server, ExitStack() as stack:
        clients = talk(server, stack)
        server.signal(signal.SIGHUP)
        check_ends(server, clients, RELOADED)
        check_service(server, with_lazy_apps=bool(options))
        clients = talk(server, stack)
        server.signal(signal.SIGINT)
        check_ends(server, clients, STOPPED)


def test_a_worker_with_one_core_and_one_without_a_master_close_parked_connections(tmp_path: Path) -> None:
    check_one_core(tmp_path)
    in_modes(tmp_path, SINGLE, check_stop)


def check_one_core(directory: Path) -> None:
    (directory / "one core").mkdir()
    check_reload(directory / "one core", FEW["one core"], [])


def check_stop(directory: Path, mode: Mode) -> None:
    with serving_views(directory, mode, master=False) as server, ExitStack() as stack:
        clients = talk(server, stack)
        server.signal(signal.SIGINT)
        check_ends(server, clients, STOPPED)


def test_a_worker_that_has_served_its_maximum_of_requests_closes_parked_connections(tmp_path: Path) -> None:
    in_modes(tmp_path, SINGLE, check_most_requests)


def check_most_requests(directory: Path, mode: Mode) -> None:
    options = ["--max-requests", "10", "--min-worker-lifetime", "0"]
    with serving_views(directory, mode, options=options, trouble=_TROUBLE) as server, ExitStack() as stack:
        clients = talk(server, stack, 4)
        for _ in range(5):  # one more request has found that the server is ready
            assert server.get("/").status == 200
        check_ends(server, clients, RELOADED)
        server.reloads += 1
        check_service(server)


def test_a_worker_whose_last_request_becomes_a_parked_connection_closes_it(tmp_path: Path) -> None:
    in_modes(tmp_path, SINGLE, check_last_request)


def check_last_request(directory: Path, mode: Mode) -> None:
    options = ["--max-requests", "5", "--min-worker-lifetime", "0"]
    with serving_views(directory, mode, options=options, trouble=_TROUBLE) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.raw("/parked/talk")) for _ in range(4)]
        assert ends_of(clients) == {RELOADED}
        check_signals(server, clients, ("shutdown", 1012))
        server.reloads += 1
        check_service(server)


def test_a_killed_worker_takes_only_its_own_connections_with_it(tmp_path: Path) -> None:
    two = {
        name: MODES[name]._replace(options=[*MODES[name].options, "--processes", "2"], processes=2)
        for name in ("threads", "gevent", "asyncio")
    }
    in_modes(tmp_path, two, check_kill)


def check_kill(directory: Path, mode: Mode) -> None:
    with serving_views(directory, mode, trouble=_TROUBLE) as server, ExitStack() as stack:
        clients: dict[int, list[Raw]] = {}

        def are_on_both() -> bool:
            client = stack.enter_context(server.raw("/parked/talk"))
            clients.setdefault(server.wait_for("connected", client)["pid"], []).append(client)
            return len(clients) == 2

        wait_until(are_on_both, lambda: f"all connections are on one worker:\n{server.log}")
        killed, other = clients
        os.kill(killed, signal.SIGKILL)
        for client in clients[killed]:
            assert client.file.read() == b""
        wait_until(lambda: len(server.workers) == 3, lambda: server.log[-5000:])
        for client in clients[other]:
            assert say(client, "x") == "nobody: x"
            close(client)
            assert events_of(server, client) == [*OPENING, *EXCHANGE, *ENDING]
