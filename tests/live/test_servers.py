"""Servers other than uWSGI: reloads, stops, and the number of connections.

``every_server`` has the tests that these servers share with uWSGI.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.endings import (
    RELOADED,
    STOPPED,
    check_service,
    check_signals,
    connect,
    ends_of,
    expect_the_end_of_stubborn,
    touch,
)
from support.live import OTHERS, SERVERS_PAGE, Mode, Raw, Server, check_room, in_threads, serving, wait_until

pytestmark = pytest.mark.once

# Reloads and stops


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the reloader watches."""
    file = tmp_path_factory.mktemp("watched") / "file"
    file.touch()
    return file


@pytest.fixture(scope="module")
def debugged(tmp_path_factory: pytest.TempPathFactory, watched: Path) -> Iterator[Server]:
    """``flask run`` with its debugger and reloader."""
    options = ["--debug", "--extra-files", str(watched)]
    directory = tmp_path_factory.mktemp("debugged")
    with serving(directory, OTHERS["flask-run"], None, module="live_reloads_app", options=options) as server:
        yield server


def test_the_debugger_shows_an_exception_of_a_handler_before_the_handshake(debugged: Server) -> None:
    response = debugged.handshake("/raise-before")
    assert response.status == 500
    assert b"Werkzeug Debugger" in response.body
    with debugged.raw("/raise") as client:
        assert client.receive_close() == (1011, "internal error")


def connect_all(server: Server, stack: ExitStack) -> list[Raw]:
    clients = connect(server, stack)
    # While the standard library's server passes a connection to a thread, a signal makes the server end that
    # connection. And gunicorn's handler of SIGQUIT waits for ever for a lock if its own main thread holds it.
    server.wait_until_idle()
    return clients


def test_a_reload_closes_clients_with_1012_and_ctrl_c_with_1001(debugged: Server, watched: Path) -> None:
    with ExitStack() as stack:
        clients = connect_all(debugged, stack)
        stubborn = stack.enter_context(debugged.raw("/stubborn"))
        debugged.wait_for("connected", stubborn)
        touch(watched)
        assert ends_of(clients) == {RELOADED}
        assert expect_the_end_of_stubborn(stubborn) == RELOADED
        check_signals(debugged, clients, ("shutdown", 1012))
        assert debugged.wait_for("closed", stubborn)["code"] == 1012
        debugged.reloads += 1
        check_service(debugged)
        clients = connect_all(debugged, stack)
        (pid,) = debugged.running_workers()
        os.kill(pid, signal.SIGINT)  # not its parent, which would give it only a quarter of a second
        assert ends_of(clients) == {STOPPED}
        check_signals(debugged, clients, ("shutdown", 1001))


@pytest.mark.parametrize("name", ["flask-run", "flask-run-asyncio", "gevent"])
def test_a_server_that_stops_closes_its_clients_and_waits_for_its_handlers(tmp_path: Path, name: str) -> None:
    with serving(tmp_path, OTHERS[name], None, module="live_reloads_app") as server, ExitStack() as stack:
        clients = connect_all(server, stack)
        server.signal(signal.SIGTERM)
        assert ends_of(clients) == {STOPPED}
        check_signals(server, clients, ("shutdown", 1001))


#: The signal that stops each of gunicorn's servers. A worker gets SIGTERM for a reload, too.
STOPS = {
    "gunicorn-threads": signal.SIGINT,
    "gunicorn-threads-asyncio": signal.SIGTERM,
    "gunicorn-gevent": signal.SIGINT,
}


def test_workers_of_gunicorn_close_their_clients_when_they_are_replaced_and_when_they_stop(tmp_path: Path) -> None:
    def check(name: str) -> None:
        directory = tmp_path / name
        directory.mkdir()
        with serving(directory, OTHERS[name], None, module="live_reloads_app") as server, ExitStack() as stack:
            clients = connect_all(server, stack)
            server.signal(signal.SIGHUP)
            assert ends_of(clients) == {RELOADED}
            check_signals(server, clients, ("shutdown", 1012))
            check_service(server)
            wait_until(lambda: len(server.running_workers()) == 1, lambda: server.log)
            clients = connect_all(server, stack)
            server.signal(STOPS[name])
            assert ends_of(clients) == {RELOADED}  # the worker cannot know that no other one replaces it
            check_signals(server, clients, ("shutdown", 1012))

    in_threads(len(STOPS), lambda number: check(list(STOPS)[number]))


# Refusals


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [("gunicorn-threads", ["--threads", "10"], 9), ("gunicorn-gevent", ["--worker-connections", "20"], 18)],
)
def test_a_worker_of_gunicorn_reserves_some_of_its_threads_and_greenlets_for_http(
    tmp_path: Path, name: str, options: list[str], most: int
) -> None:
    with serving(tmp_path, OTHERS[name], None, options=options) as server:
        check_room(server, most)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        (Mode("WebSocket", ["flask", "--app", "app", "run", "--without-threads"], "time"), "without --without-threads"),
        (Mode("WebSocket", ["gunicorn", "app:app"], "time"), "start gunicorn with --threads 100"),
        (Mode("AsyncioWebSocket", ["python", "serve.py"], "asyncio"), "or a server with threads"),
    ],
    ids=["flask-run", "gunicorn", "gevent"],
)
def test_a_server_that_was_started_without_support_for_websockets_says_so(
    tmp_path: Path, mode: Mode, sentence: str
) -> None:
    expected = r"RuntimeError|flask_uwsgi_websocket\.exceptions\.AsyncioNotAvailable"
    with serving(tmp_path, mode, None, expected=expected) as server:
        assert server.handshake("/echo").status == 500
        assert server.get("/").status == 200
        assert sentence in server.log
        server.signal(signal.SIGTERM)  # SIGINT could interrupt the sync worker that still sends its last response


@pytest.mark.parametrize("name", OTHERS)
def test_the_documentation_has_the_tested_command(name: str) -> None:
    assert " ".join(OTHERS[name].options) in SERVERS_PAGE.read_text()
