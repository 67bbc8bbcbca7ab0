"""Servers other than uWSGI: how each of them reloads and stops, and how many connections it takes.

``every_server`` has what they share with uWSGI.
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


def test_the_debugger_shows_what_a_handler_raises_before_the_handshake(debugged: Server) -> None:
    response = debugged.handshake("/raise-before")
    assert response.status == 500
    assert b"Werkzeug Debugger" in response.body
    with debugged.raw("/raise") as client:
        assert client.receive_close() == (1011, "internal error")


def connect_all(server: Server, stack: ExitStack) -> list[Raw]:
    clients = connect(server, stack)
    # While the standard library's server hands a connection to a thread, a signal makes it end that connection; and
    # gunicorn's handler of SIGQUIT waits for ever for a lock of its own main thread, which then holds it.
    server.wait_until_idle()
    return clients


def test_the_reloader_tells_clients_that_the_server_restarts_and_ctrl_c_that_it_stops(
    debugged: Server, watched: Path
) -> None:
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
        os.kill(pid, signal.SIGINT)  # and not its parent, which gives it a quarter of a second
        assert ends_of(clients) == {STOPPED}
        check_signals(debugged, clients, ("shutdown", 1001))


@pytest.mark.parametrize("name", ["flask-run", "flask-run-asyncio", "gevent"])
def test_a_server_that_stops_tells_its_clients_and_waits_for_its_handlers(tmp_path: Path, name: str) -> None:
    with serving(tmp_path, OTHERS[name], None, module="live_reloads_app") as server, ExitStack() as stack:
        clients = connect_all(server, stack)
        server.signal(signal.SIGTERM)
        assert ends_of(clients) == {STOPPED}
        check_signals(server, clients, ("shutdown", 1001))


#: How each of gunicorn's servers is stopped. In the worker, SIGTERM is what it gets for a reload, too.
STOPS = {
    "gunicorn-threads": signal.SIGINT,
    "gunicorn-threads-asyncio": signal.SIGTERM,
    "gunicorn-gevent": signal.SIGINT,
}


def test_workers_of_gunicorn_tell_their_clients_when_they_are_replaced_and_when_they_stop(tmp_path: Path) -> None:
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
            assert ends_of(clients) == {RELOADED}  # a worker cannot know that no other takes its place
            check_signals(server, clients, ("shutdown", 1012))

    in_threads(len(STOPS), lambda number: check(list(STOPS)[number]))


# What is refused


@pytest.mark.parametrize(
    ("name", "options", "most"),
    [("gunicorn-threads", ["--threads", "10"], 9), ("gunicorn-gevent", ["--worker-connections", "20"], 18)],
)
def test_a_worker_of_gunicorn_keeps_some_of_its_threads_and_greenlets_for_http(
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
def test_a_server_that_cannot_serve_websockets_as_it_was_started_says_so(
    tmp_path: Path, mode: Mode, sentence: str
) -> None:
    expected = r"RuntimeError|flask_uwsgi_websocket\.exceptions\.AsyncioNotAvailable"
    with serving(tmp_path, mode, None, expected=expected) as server:
        assert server.handshake("/echo").status == 500
        assert server.get("/").status == 200
        assert sentence in server.log
        server.signal(signal.SIGTERM)  # SIGINT could interrupt the sync worker that is still sending its last response


@pytest.mark.parametrize("name", OTHERS)
def test_the_documentation_has_the_command_that_is_tested(name: str) -> None:
    assert " ".join(OTHERS[name].options) in SERVERS_PAGE.read_text()
