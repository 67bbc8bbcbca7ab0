"""Faults of clients, handlers, workers and clocks on real uWSGI. Other live tests have the faults of single frames.

Most of these tests mostly wait, so each of them runs in all modes at the same time.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import struct
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from flask_uwsgi_websocket.servers import uwsgi as uwsgi_server
from support.live import DEADLINE, PATIENT, Mode, Raw, Server, in_threads, serving, wait_until
from support.paths import SUPPORT
from support.wire import KEY, PING, TEXT, frame


class Setup(NamedTuple):
    """The command line of a server."""

    extension: str
    options: list[str]
    front: str = "http-socket"


#: Servers with many connections in each process.
SETUPS = {
    "threads": Setup("WebSocket", ["--threads", "100"]),
    "gevent": Setup("GeventWebSocket", ["--gevent", "100", "--gevent-early-monkey-patch"]),
    "asyncio": Setup("AsyncioWebSocket", ["--asyncio", "100", "--greenlet"]),
}
SLEEP = {"WebSocket": "time", "GeventWebSocket": "time", "AsyncioWebSocket": "asyncio"}


def everywhere(
    tmp_path: Path,
    check: Callable[[Server], None],
    setups: dict[str, Setup] = SETUPS,
    *,
    processes: int = 1,
    options: list[str] | None = None,
    serve: Callable[..., AbstractContextManager[Server]] = serving,
) -> None:
    """Run a check in all modes at the same time."""

    def run(number: int) -> None:
        name, setup = list(setups.items())[number]
        directory = tmp_path / name
        directory.mkdir()
        mode = Mode(
            setup.extension,
            [*setup.options, "--processes", str(processes), *(options or [])],
            SLEEP[setup.extension],
            processes,
        )
        try:
            with serve(directory, mode, setup.front, module="live_faults_app") as server:
                check(server)
        except Exception as error:
            raise AssertionError(f"in the mode {name}") from error

    in_threads(len(setups), run)


#: Faults in the log of a server some of whose workers die. uWSGI logs their deaths.
serving_mortals = partial(serving, trouble=re.compile(r"\[BUG\]|Segmentation|Traceback"))


def check_service(server: Server, client: ClientConnection | None = None) -> None:
    """Check that the server serves an open WebSocket (or a new one) and HTTP."""
    if client is None:
        with server.connect("/echo") as other:
            check_service(server, other)
        return
    client.send("still there?")
    assert client.recv(DEADLINE) == "still there?"
    assert server.get("/").status == 200


# Clients


def test_a_client_that_sends_a_byte_a_second_stays_and_blocks_no_other_client(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        with server.raw("/impatient") as slow, server.connect("/echo") as other:
            for byte in frame(TEXT, b"x", key=KEY):  # a Pong cannot be sent within the frame
                slow.send(bytes([byte]))
                began = time.monotonic()
                while time.monotonic() - began < 1:
                    check_service(server, other)  # before the next byte
                    time.sleep(0.1)
            while (message := slow.receive())[0] == PING:
                pass
            assert message == (TEXT, b"x")

    everywhere(tmp_path, check)


@pytest.fixture
def many_files() -> Iterator[int]:
    """Let this process, and the servers that it starts, open as many files as the system allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_thousands_of_unfinished_handshakes_block_no_other_client(tmp_path: Path, many_files: int) -> None:
    count = min(2000, many_files // 4)  # this process has the clients of three servers
    setups = {
        # Each unfinished handshake takes one of uWSGI's cores until uWSGI gives it up, so there are more cores than
        # these. That would be too many threads, but behind uWSGI's router an incomplete request takes no core.
        "gevent": Setup("GeventWebSocket", ["--gevent", "2500", "--gevent-early-monkey-patch", *PATIENT]),
        "asyncio": Setup("AsyncioWebSocket", ["--asyncio", "2500", "--greenlet", *PATIENT]),
        "threads": Setup("WebSocket", ["--threads", "30"], "http"),
    }

    def check(server: Server) -> None:
        with server.connect("/echo") as other, ExitStack() as stack:
            before = server.open_files()
            sockets = []
            for number in range(count):
                sock = stack.enter_context(server.socket())
                sock.sendall(b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConn")
                sockets.append(sock)
                if number % 100 == 0:
                    check_service(server, other)
            poll = select.poll()
            for sock in sockets:
                poll.register(sock, select.POLLIN)
            for _ in range(5):
                check_service(server, other)
                check_service(server)
            assert not poll.poll(0)  # all connections are still open
            stack.close()
            wait_until(
                lambda: all(files <= before[pid] + 2 for pid, files in server.open_files().items()),
                lambda: f"descriptors stay open: {before} before, {server.open_files()} after",
            )
            check_service(server, other)

    everywhere(tmp_path, check, setups)


# Handlers


def test_a_handler_that_never_ends_blocks_no_other_one_and_keeps_no_client(tmp_path: Path) -> None:
    def connected(server: Server) -> int:
        return sum(server.json("/connections")["connected"])

    def check(server: Server) -> None:
        with ExitStack() as stack:
            paths = ["/hang/sleep", "/hang/lock"] * 3
            clients: list[Raw] = [stack.enter_context(server.raw(path)) for path in paths]
            with server.connect("/echo") as other:
                assert connected(server) == len(clients) + 1
                for client in clients[2:]:
                    client.reset()
                wait_until(lambda: connected(server) == 3, lambda: "the end of a connection is not detected")
                for _ in range(10):
                    check_service(server, other)
            server.signal(signal.SIGTERM)
            # These handlers do not delay the end of the server, and each connection has its closed signal.
            for client in clients[:2]:
                assert client.receive_close() == (1001, "the server stops")
            for number, client in enumerate(clients):
                assert server.wait_for("closed", client)["code"] == (1001 if number < 2 else 1006)
            server.stop()  # long before uWSGI kills the workers

    everywhere(tmp_path, check)


def test_a_handler_that_ends_its_process_ends_only_its_worker(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        with ExitStack() as stack:
            others = connect_to_both(server, stack)
            check_the_others_and_the_successor(server, others, exit_by(server, "os._exit"))

    everywhere(tmp_path, check, processes=2, serve=serving_mortals)


def exit_by(server: Server, how: str) -> int:
    """Let a handler exit, and return the process id of its worker."""
    with server.connect(f"/exit/{how}") as client:
        victim = int(client.recv(DEADLINE))
        client.send("go")
        with pytest.raises(ConnectionClosed):
            client.recv(DEADLINE)
        assert client.close_code == (1006 if how == "os._exit" else 1011)
    return victim


@pytest.mark.parametrize("mode", ["threads", "asyncio", "gevent"])
def test_an_exit_of_a_handler_hook_or_listener_ends_no_more_than_its_connection(tmp_path: Path, mode: str) -> None:
    setup = SETUPS[mode]
    mode = Mode(setup.extension, setup.options, SLEEP[setup.extension])
    expected = r"(SystemExit|RuntimeError): "
    with (
        serving(tmp_path, mode, setup.front, module="live_faults_app", expected=expected) as server,
        server.connect("/echo") as other,
    ):
        for _ in range(3):
            exit_by(server, "sys.exit")
            assert server.handshake("/exit/too%20early").status == 500
            for kind in ("before_websocket", "after_websocket"):
                assert server.handshake(f"/echo?exit={kind}").status == 500
            for kind in ("on_connect", "on_message", "on_close", "teardown_websocket"):
                with server.connect(f"/echo?exit={kind}") as client:
                    client.send("hello")
                    assert client.recv(DEADLINE) == "hello"
                assert server.wait_for_access_log(client) == 101
        other.send("still there?")
        assert other.recv(DEADLINE) == "still there?"


# Workers


def test_threads_that_start_at_the_same_time_open_the_null_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_slowly(path: str, flags: int) -> int:
        opened.append(path)
        time.sleep(0.1)
        return -1

    monkeypatch.setattr(uwsgi_server, "os", SimpleNamespace(open=open_slowly, devnull=os.devnull, O_RDWR=os.O_RDWR))
    uwsgi_server._open_null_device.cache_clear()
    try:
        in_threads(5, lambda _: uwsgi_server._null_device())
    finally:
        uwsgi_server._open_null_device.cache_clear()
    assert len(opened) == 1


def connect_to_both(server: Server, stack: ExitStack) -> dict[int, list[ClientConnection]]:
    """Open WebSockets until each of two workers has three, and return them by the process id of the worker."""
    clients = defaultdict(list)

    def are_enough() -> bool:
        with ExitStack() as opening:
            client = opening.enter_context(server.connect("/room/" + os.urandom(4).hex()))
            of_its_worker = clients[int(client.recv(DEADLINE))]
            if len(of_its_worker) < 3:  # one worker may start later than the other
                of_its_worker.append(client)
                stack.push(opening.pop_all())
        return sorted(map(len, clients.values())) == [3, 3]

    wait_until(are_enough, lambda: f"one worker gets all connections:\n{server.log[-5000:]}")
    return clients


def check_the_others_and_the_successor(server: Server, clients: dict[int, list[ClientConnection]], victim: int) -> None:
    """Check that the worker *victim* has died with its clients, and that all other clients are served."""
    for pid, each in clients.items():
        for client in each:
            if pid == victim:
                with pytest.raises(ConnectionClosed):
                    client.recv(DEADLINE)
                assert client.close_code == 1006
            else:
                check_service(server, client)
    (successor,) = wait_until(lambda: server.workers - clients.keys(), lambda: f"no new worker:\n{server.log[-5000:]}")

    def serves() -> bool:
        with server.connect("/room/" + os.urandom(4).hex()) as client:
            if client.recv(DEADLINE) != str(successor):
                return False
            check_service(server, client)
            return True

    wait_until(serves, lambda: f"the new worker gets no requests:\n{server.log[-5000:]}")
    assert not Path(f"/proc/{victim}").exists()
    assert len(server.workers) == 3


def test_a_killed_worker_is_replaced_and_the_other_one_continues(tmp_path: Path) -> None:
    def check(server: Server) -> None:
        with ExitStack() as stack:
            clients = connect_to_both(server, stack)
            victim = next(iter(clients))
            os.kill(victim, signal.SIGKILL)
            check_the_others_and_the_successor(server, clients, victim)

    setups = {**SETUPS, "gevent-http": SETUPS["gevent"]._replace(front="http")}
    everywhere(tmp_path, check, setups, processes=2, serve=serving_mortals)


@pytest.mark.parametrize("options", [[], ["--lazy-apps"]], ids=["eager", "lazy"])
def test_each_worker_serves_with_an_app_that_is_loaded_before_or_after_the_fork(
    tmp_path: Path, options: list[str]
) -> None:
    def check(server: Server) -> None:
        ids: dict[int, set[str]] = defaultdict(set)

        def have_served() -> bool:
            with server.connect("/who") as client:
                who = json.loads(client.recv(DEADLINE))
                ids[who["pid"]].add(who["id"])
                check_service(server, client)
            return len(ids) == 2 and min(map(len, ids.values())) >= 3

        wait_until(have_served, lambda: f"one worker gets all connections:\n{server.log[-5000:]}")
        assert ids.keys() == server.workers
        first, second = ids.values()
        assert not first & second

    everywhere(tmp_path, check, processes=2, options=options)


# Clocks


def test_a_clock_that_jumps_neither_ends_nor_delays_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", library, SUPPORT / "clock.c"]
    subprocess.run(command, check=True)
    offset.write_bytes(bytes(8))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("CLOCK_OFFSET", str(offset))

    def jump(seconds: int) -> None:
        with offset.open("rb+") as file:  # not truncated, because the clock maps this file
            file.write(struct.pack("q", seconds))

    jumps = iter([86_400, -86_400])
    together = threading.Barrier(len(SETUPS), timeout=DEADLINE)
    jumping = threading.Barrier(len(SETUPS), lambda: jump(next(jumps)), timeout=DEADLINE)

    def check(server: Server) -> None:
        with server.connect("/impatient") as client:
            for seconds in (86_400, -86_400):
                together.wait()
                with server.connect("/patience") as waiting:
                    assert waiting.recv(DEADLINE) == "waiting"
                    jumping.wait()
                    assert abs(server.json("/clock")["time"] - time.time() - seconds) < 60
                    assert float(waiting.recv(DEADLINE)) > 0.9
                began = time.monotonic()
                while time.monotonic() - began < 3.2:  # longer than a client may be silent
                    check_service(server, client)
                    time.sleep(0.1)

    everywhere(tmp_path, check)
