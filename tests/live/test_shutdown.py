"""When the server stops, clients get a Close frame, and every connected signal is followed by a closed signal."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.endings import COUNT, RELOADED, STOPPED, check_signals, connect, expect_the_end, expect_the_end_of_stubborn
from support.live import MODES, Server, serving, token_of, wait_until

pytestmark = pytest.mark.covered

#: Handlers that receive, that echo, that only send, and that only check whether the client is connected.
HABITS = ["/ends/receive", "/ends/echo", "/ends/push", "/ends/watch"]


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_stops_closes_its_clients_and_sends_the_closed_signals(tmp_path: Path, mode: str) -> None:
    with (
        serving(tmp_path, MODES[mode], "http-socket", module="live_blueprints_app") as server,
        ExitStack() as stack,
    ):
        clients = connect(server, stack, HABITS)
        stubborn = [stack.enter_context(server.raw("/ends/stubborn")) for _ in range(COUNT)]
        for client in stubborn:
            server.wait_for("connected", client)
        server.signal(signal.SIGTERM)  # with --die-on-term, like service managers
        assert {expect_the_end(client) for client in clients} == {STOPPED}
        assert {expect_the_end_of_stubborn(client) for client in stubborn} == {STOPPED}
        check_signals(server, clients, ("shutdown", 1001))
        for client in stubborn:
            server.wait_for("closed", client)
        server.stop()
        for client in stubborn:  # their handlers have not ended, but each client gets one Close frame
            entries = [entry for entry in server.journal() if entry.get("token") == token_of(client)]
            assert [entry["event"] for entry in entries if entry["event"] != "start"] == ["connected", "closed"]
            assert (entries[-1]["initiator"], entries[-1]["code"]) == ("shutdown", 1001)


@pytest.mark.parametrize("mode", [name for name, mode in MODES.items() if mode.processes == 1])
def test_a_server_without_a_master_that_stops_does_the_same(tmp_path: Path, mode: str) -> None:
    with (
        serving(tmp_path, MODES[mode], "http-socket", master=False, module="live_blueprints_app") as server,
        ExitStack() as stack,
    ):
        clients = connect(server, stack, HABITS)
        server.signal(signal.SIGINT)
        assert {expect_the_end(client) for client in clients} == {STOPPED}
        check_signals(server, clients, ("shutdown", 1001))


def decorated(server: Server) -> set[int]:
    """Return the processes in which a function with @postfork has run."""
    return {entry["pid"] for entry in server.journal() if entry["event"] == "decorated"}


@pytest.mark.parametrize("mode", MODES)
def test_workers_that_reload_close_their_clients_and_send_the_closed_signals(tmp_path: Path, mode: str) -> None:
    with (
        serving(tmp_path, MODES[mode], "http-socket", module="live_blueprints_app") as server,
        ExitStack() as stack,
    ):
        clients = connect(server, stack, HABITS)
        server.signal(signal.SIGHUP)
        assert {expect_the_end(client) for client in clients} == {RELOADED}
        check_signals(server, clients, ("shutdown", 1012))
        wait_until(
            lambda: len(server.workers) == server.mode.processes * (1 + server.reloads), lambda: server.log[-5000:]
        )
        wait_until(lambda: decorated(server) == server.workers, lambda: server.log[-5000:])
        with server.connect("/ends/echo") as client:  # the new workers serve
            client.send("hello")
            assert client.recv() == "hello"


@pytest.mark.parametrize("mode", MODES)
def test_behind_the_router_a_server_that_stops_also_sends_the_closed_signals(tmp_path: Path, mode: str) -> None:
    # The router stops at the same time as the workers, so clients may not see the Close frame, and a worker may first
    # see that the clients have gone.
    with serving(tmp_path, MODES[mode], "http", module="live_blueprints_app") as server, ExitStack() as stack:
        clients = connect(server, stack, HABITS)
        server.signal(signal.SIGINT)
        check_signals(server, clients, ("shutdown", 1001), ("client", 1006))


@pytest.mark.parametrize("mode", ["threads", "gevent-2-processes", "asyncio"])
def test_a_worker_that_gets_the_signal_to_reload_or_stop_while_it_starts_ends(tmp_path: Path, mode: str) -> None:
    server = Server(tmp_path, MODES[mode], "http-socket", module="live_starting_app")
    server.wait_until_ended()


def test_a_mule_is_not_treated_as_a_worker_and_keeps_its_signals(tmp_path: Path) -> None:
    script, blocked = tmp_path / "mule.py", tmp_path / "blocked"
    script.write_text(
        "import signal, time\n"
        f"with open({str(blocked)!r}, 'w') as file:\n"
        "    print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), file=file)\n"
        "time.sleep(1000)\n"
    )
    with serving(tmp_path, MODES["threads"], "http-socket", options=[f"--mule={script}"]):
        wait_until(lambda: blocked.exists() and blocked.read_text(), lambda: "the mule has not started")
        assert blocked.read_text() == "[]\n"
