"""uWSGI may start with and without processes, threads, a master and lazy apps."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from support.live import DEADLINE, FRONTS, MODES, Mode, Raw, Server, serving
from support.wire import KEY, TEXT, frame

ASYNCIO = MODES["asyncio"]


def check_echo(server: Server) -> None:
    with server.connect("/echo") as client:
        for message in ("text ☃", b"binary", ""):
            client.send(message)
            assert client.recv(DEADLINE) == message
    assert server.wait_for_access_log(client) == 101


@pytest.mark.parametrize("front", FRONTS)
def test_one_process_without_threads_serves_one_connection_after_the_other(tmp_path: Path, front: str) -> None:
    with serving(tmp_path, Mode("WebSocket", [], "time"), front) as server:
        for _ in range(3):
            check_echo(server)
            assert server.get("/").status == 200
            for habit in ("/receive", "/push", "/watch"):  # the process is free again after its client has vanished
                with server.raw(habit) as client:
                    server.wait_for("start", client)
                    client.reset()
                    server.wait_for("end", client)


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize(
    "mode",
    [
        Mode("WebSocket", ["--processes", "2", "--threads", "6"], "time", processes=2),
        Mode("AsyncioWebSocket", [*ASYNCIO.options, "--processes", "2"], "asyncio", processes=2),
    ],
    ids=["threads", "asyncio"],
)
def test_two_processes_serve_at_the_same_time(tmp_path: Path, mode: Mode, front: str) -> None:
    with serving(tmp_path, mode, front) as server:
        # The kernel chooses the process that accepts, so one process has room for all.
        with ExitStack() as stack:
            clients = [stack.enter_context(server.connect("/room/everybody")) for _ in range(5)]
            pids = {client.recv(DEADLINE) for client in clients}
            assert pids <= {str(pid) for pid in server.workers}
        for _ in range(10):
            check_echo(server)


#: Whether there is a master, and whether the app is loaded after the fork. All other tests have a master and no lazy
#: app.
STARTS = {"lazy-apps": (True, True), "no-master": (False, False), "no-master-lazy-apps": (False, True)}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mode", [name for name, mode in MODES.items() if mode.processes == 1])
def test_apps_may_be_loaded_lazily_and_the_master_is_optional(tmp_path: Path, mode: str, start: str) -> None:
    # On Python 3.12 and later the asyncio engine has only the loop that init_app() creates.
    master, lazy = STARTS[start]
    options = ["--lazy-apps"] if lazy else []
    with serving(tmp_path, MODES[mode], "http-socket", options=options, master=master) as server:
        check_echo(server)
        with server.connect("/latency") as client:
            assert client.recv(DEADLINE) == "answered"


@pytest.mark.parametrize("front", FRONTS)
@pytest.mark.parametrize("mode", MODES)
def test_a_server_with_open_connections_stops_without_warnings(tmp_path: Path, mode: str, front: str) -> None:
    with serving(tmp_path, MODES[mode], front) as server, ExitStack() as stack:
        for habit in ("/receive", "/push", "/watch", "/echo"):
            for _ in range(3):
                stack.enter_context(server.raw(habit))
        server.stop()


@pytest.mark.parametrize("options", [[], ["--lazy-apps"]], ids=["", "lazy-apps"])
def test_the_asyncio_engine_runs_the_event_loop_of_uvloop(tmp_path: Path, options: list[str]) -> None:
    with serving(tmp_path, ASYNCIO, "http-socket", options=options, module="live_uvloop_app") as server:
        assert server.get("/event-loop").body == b"uvloop"
        check_echo(server)
        with ExitStack() as stack:
            for habit in ("/receive", "/push", "/watch", "/echo"):
                for _ in range(3):
                    stack.enter_context(server.raw(habit))
            server.stop()


def test_asyncio_handlers_without_the_asyncio_engine_get_an_error_that_names_it(tmp_path: Path) -> None:
    mode = Mode("AsyncioWebSocket", ["--threads", "2"], "asyncio")
    expected = r"flask_uwsgi_websocket\.exceptions\.AsyncioNotAvailable"
    with serving(tmp_path, mode, "http-socket", expected=expected) as server:
        assert server.handshake("/echo").status == 500
        assert server.get("/").status == 200
        assert "AsyncioWebSocket needs uWSGI's asyncio engine" in server.log


def test_a_router_in_raw_mode_never_drops_data_that_is_sent_with_the_handshake(tmp_path: Path) -> None:
    with serving(tmp_path, MODES["gevent"], "http", options=["--http-raw-body"]) as server:
        for size in (1, 3000, 100_000):
            message = b"e" * size
            with closing(Raw(server, server.path("/echo"))) as client:
                try:
                    response = client.handshake({}, rest=frame(TEXT, message, key=KEY))
                except ConnectionError:
                    continue
                if response.status == 101:
                    assert client.receive() == (TEXT, message)
                else:
                    assert response.status == 400


def test_a_router_that_would_drop_data_of_a_client_is_refused_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FRONTS, "bare router", ["--http"])
    with serving(tmp_path, MODES["gevent"], "bare router", expected="RuntimeError") as server:
        assert server.handshake("/echo").status == 500
        assert server.get("/").status == 200
        assert "start uwsgi with --http-websockets" in server.log


@pytest.mark.parametrize(("front", "status"), [("http", 400), ("http-socket", 101)])
def test_a_client_whose_data_the_router_would_not_pass_on_is_refused(tmp_path: Path, front: str, status: int) -> None:
    # The router wants two of Upgrade, Connection and the version to have exactly the value that it expects.
    with serving(tmp_path, MODES["gevent"], front) as server:
        lists = {"Upgrade": "h2c, websocket", "Connection": "keep-alive, Upgrade"}
        assert server.handshake("/echo", lists).status == status
