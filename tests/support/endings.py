"""Clients of servers that stop or reload, for the live tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from support.live import Raw, Server, in_threads, token_of, wait_until
from support.wire import CLOSE, TEXT

#: Handlers of ``live_reloads_app`` that receive, that echo, that only send, and that only check whether the client is
#: connected.
HABITS = ["/receive", "/ledger", "/push", "/watch"]

#: The number of clients of each handler.
COUNT = 3

STOPPED = (1001, "the server stops")
RELOADED = (1012, "the server restarts")


def connect(server: Server, stack: ExitStack, habits: Sequence[str] = HABITS) -> list[Raw]:
    """Open a few connections to each kind of handler, and wait for their ``connected`` signals."""
    clients = [stack.enter_context(server.raw(habit)) for habit in habits for _ in range(COUNT)]
    for client in clients:
        server.wait_for("connected", client)
    return clients


def expect_the_end(client: Raw) -> tuple[int, str]:
    """Return the code and reason of the Close frame that a client gets, answer it, and expect the end of TCP."""
    while (message := client.receive())[0] == TEXT:
        pass
    opcode, payload = message
    assert opcode == CLOSE
    client.send_frame(CLOSE, payload)
    assert client.file.read() == b""
    return int.from_bytes(payload[:2], "big"), payload[2:].decode()


def ends_of(clients: list[Raw]) -> set[tuple[int, str]]:
    """Let all clients see the end, in any order, and return the codes and reasons of their Close frames."""
    ends = []
    in_threads(len(clients), lambda number: ends.append(expect_the_end(clients[number])))
    return set(ends)


def expect_the_end_of_stubborn(client: Raw) -> tuple[int, str]:
    """Do the same for a client whose handler never ends. Its worker may end before it has answered."""
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
    assert ended == sorted(tokens)  # each handler has ended, and only once


def touch(file: Path) -> None:
    """Give *file* another modification time, in whole seconds, because uWSGI ignores fractions."""
    later = file.stat().st_mtime + 10
    os.utime(file, (later, later))


def check_service(server: Server, *, with_lazy_apps: bool = False) -> None:
    """Wait until all workers of the last reload have started, and one of them serves."""
    workers = server.mode.processes * (1 + server.reloads)
    wait_until(lambda: len(server.workers) == workers, lambda: server.log[-5000:])
    if with_lazy_apps:  # while a worker loads the application, uWSGI itself answers its requests
        wait_until(lambda: server.log.count("WSGI app 0 (") == workers, lambda: server.log[-5000:])
    with server.connect("/ledger") as client:
        client.send("hello")
        assert client.recv() == "hello"
