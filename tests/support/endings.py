"""Clients that see their server stop or reload, for the live tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from support.live import Raw, Server, in_threads, token_of, wait_until
from support.wire import CLOSE, TEXT

#: Handlers of ``live_reloads_app`` that receive, that echo, that only send, and that only look whether the client is
#: there.
HABITS = ["/receive", "/ledger", "/push", "/watch"]

#: How many clients each handler gets.
COUNT = 3

STOPPED = (1001, "the server stops")
RELOADED = (1012, "the server restarts")


def connect(server: Server, stack: ExitStack, habits: Sequence[str] = HABITS) -> list[Raw]:
    """Open a few connections to each kind of handler, each of them told of."""
    clients = [stack.enter_context(server.raw(habit)) for habit in habits for _ in range(COUNT)]
    for client in clients:
        server.wait_for("connected", client)
    return clients


def expect_the_end(client: Raw) -> tuple[int, str]:
    """Return the code and reason with which a client is closed, answer them, and expect the end of TCP."""
    while (message := client.receive())[0] == TEXT:
        pass
    opcode, payload = message
    assert opcode == CLOSE
    client.send_frame(CLOSE, payload)
    assert client.file.read() == b""
    return int.from_bytes(payload[:2], "big"), payload[2:].decode()


def ends_of(clients: list[Raw]) -> set[tuple[int, str]]:
    """Let all clients see the end, in whatever order, and return the codes and reasons of their Close frames."""
    ends = []
    in_threads(len(clients), lambda number: ends.append(expect_the_end(clients[number])))
    return set(ends)


def expect_the_end_of_stubborn(client: Raw) -> tuple[int, str]:
    """Do so for a client whose handler never ends: its worker may be gone before it has answered."""
    code, reason = client.receive_close()
    with suppress(ConnectionError):
        client.send_frame(CLOSE, code.to_bytes(2, "big"))
        assert client.file.read() == b""
    return code, reason


def check_signals(server: Server, clients: list[Raw], *endings: tuple[str, int]) -> None:
    tokens = {token_of(client) for client in clients}
    for client in clients:
        server.wait_for("torn down", client)
    entries = [entry for entry in server.journal() if entry.get("token") in tokens]
    connected = {entry["id"]: entry["token"] for entry in entries if entry["event"] == "connected"}
    closed = [entry for entry in entries if entry["event"] == "closed"]
    assert set(connected.values()) == tokens
    assert sorted(entry["id"] for entry in closed) == sorted(connected)
    assert {(entry["initiator"], entry["code"]) for entry in closed} <= set(endings)
    ended = sorted(entry["token"] for entry in entries if entry["event"] == "torn down")
    assert ended == sorted(tokens)  # each handler has ended, and once


def touch(file: Path) -> None:
    """Give *file* a time that differs by seconds: uWSGI looks at no fractions."""
    later = file.stat().st_mtime + 10
    os.utime(file, (later, later))


def check_service(server: Server, *, with_lazy_apps: bool = False) -> None:
    """Wait until all workers are there, after so many reloads, and are served by one."""
    workers = server.mode.processes * (1 + server.reloads)
    wait_until(lambda: len(server.workers) == workers, lambda: server.log[-5000:])
    if with_lazy_apps:  # what comes while a worker loads the application, meets uWSGI's own handlers
        wait_until(lambda: server.log.count("WSGI app 0 (") == workers, lambda: server.log[-5000:])
    with server.connect("/ledger") as client:
        client.send("hello")
        assert client.recv() == "hello"
