"""A parked view gets each message, and its end, whatever its client and its worker do meanwhile."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.live import DEADLINE, MODES, Raw, Server, serving, token_of, wait_until
from support.wire import CLOSE, PING, PONG, TEXT, header

pytestmark = pytest.mark.once

#: The modes, with fewer threads than there are connections.
FEW_THREADS = MODES["threads"]._replace(options=["--threads", "4"])
#: The exceptions that the views raise.
EXPECTED = (
    r"live_app.Deliberate|flask_uwsgi_websocket.exceptions.ConcurrencyError|OSError|KeyboardInterrupt|"
    r"asyncio.exceptions.CancelledError"
)

PARKING = {"threads": FEW_THREADS, "gevent": MODES["gevent"], "asyncio": MODES["asyncio"]}


@pytest.fixture(scope="module", params=PARKING)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp(request.param)
    with serving(
        directory, PARKING[request.param], "http-socket", module="live_parked_app", expected=EXPECTED
    ) as server:
        yield server


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        tmp_path_factory.mktemp("few"), FEW_THREADS, "http-socket", module="live_parked_app", expected=EXPECTED
    ) as server:
        yield server


class Talk:
    """A client of a view that notes its calls."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self.token = token_of(raw)
        self.count = 0

    def message(self, what: str) -> str:
        """Return the next message."""
        self.count += 1
        return f"{self.token}:{self.count - 1}:{what}"

    def frame(self, what: str) -> bytes:
        payload = self.message(what).encode()
        return header(TEXT, len(payload), key=bytes(4)) + payload  # masked with zeros, which costs no time

    def send(self, *whats: str) -> None:
        self.raw.send(b"".join(map(self.frame, whats)))

    def ask(self, what: str) -> None:
        """Send a message, and wait for its answer."""
        message = self.message(what)
        self.raw.send_frame(TEXT, message.encode())
        assert self.raw.receive() == (TEXT, message.encode())

    def close(self, code: int = 1000) -> None:
        self.raw.send_frame(CLOSE, code.to_bytes(2, "big"))
        assert self.raw.receive_close()[0] == code
        assert self.raw.file.read() == b""


@contextmanager
def talk(server: Server, path: str = "/noted") -> Iterator[Talk]:
    with server.raw(path) as raw:
        yield Talk(raw)


def check_close(client: Talk, code: int) -> None:
    """Expect the server's Close frame, answer it, and expect the end of TCP."""
    assert client.raw.receive_close()[0] == code
    client.raw.send_frame(CLOSE, code.to_bytes(2, "big"))
    assert client.raw.file.read() == b""


def check_end(server: Server, client: Talk, code: int) -> None:
    """Wait for the end of a view that was called once for each message."""
    end = server.wait_for("ended", client.raw)
    assert (end["count"], end["code"]) == (client.count, code)
    calls = [entry["event"] for entry in server.journal() if entry.get("token") == client.token]
    assert calls == ["opened", "ended"]


def test_what_arrives_while_many_messages_are_handled_is_read(server: Server) -> None:
    with talk(server) as client:
        name = client.token
        client.send(*["count"] * 9, f"hold:{name}", *["count"] * 100)
        client.raw.receive()  # on_message() runs
        client.send("echo")
        server.get(f"/release/{name}")
        assert client.raw.receive() == (TEXT, f"{client.token}:110:echo".encode())
        client.close()
        check_end(server, client, 1000)


def test_compressed_messages_that_take_many_reads_are_handled(server: Server) -> None:
    with server.connect("/compressed", compression="deflate") as client:
        for number in range(3):
            message = f"{token_of(client)}:{number}:echo:{random.randbytes(200_000).hex()}"
            client.send(message)
            assert client.recv(DEADLINE) == message


def test_what_comes_after_urgent_data_is_read(server: Server) -> None:
    with talk(server) as client:
        name = client.token
        client.send(f"hold:{name}")
        client.raw.receive()
        client.send("count")
        client.raw.sock.send(b"!", socket.MSG_OOB)  # a read ends before it
        client.send("echo")
        server.get(f"/release/{name}")
        assert client.raw.receive() == (TEXT, f"{client.token}:2:echo".encode())
        client.close()
        check_end(server, client, 1000)


def test_the_end_of_tcp_after_urgent_data_is_noticed(server: Server) -> None:
    with talk(server) as client:
        name = client.token
        client.send(f"hold:{name}")
        client.raw.receive()
        client.send("count")
        client.raw.sock.send(b"!", socket.MSG_OOB)
        client.send("count")
        client.raw.sock.shutdown(socket.SHUT_WR)
        server.get(f"/release/{name}")
        check_end(server, client, 1006)


def test_a_decorator_that_raises_after_the_view_ends_the_connection(server: Server) -> None:
    for _ in range(3):  # there is room for two at a time
        check_failure(server, "/decorated")


def check_failure(server: Server, path: str) -> None:
    with talk(server, path) as client:
        check_close(client, 1011)
        server.wait_for("ended", client.raw)
    wait_until(lambda: server.json("/parked") == 0, lambda: server.log)


def test_a_connection_from_which_another_receives_is_not_parked(server: Server) -> None:
    check_failure(server, "/receiving")


@pytest.mark.parametrize("mode", PARKING)
def test_a_connection_that_cannot_be_parked_ends(tmp_path: Path, mode: str) -> None:
    with serving(tmp_path, PARKING[mode], "http-socket", module="live_parked_app", expected=EXPECTED) as server:
        check_failure(server, "/starving")
        with talk(server) as client:
            client.ask("echo")


def test_an_exception_that_ends_the_thread_ends_the_connection_too(server: Server) -> None:
    for _ in range(20):  # more often than there are threads
        with talk(server) as client:
            client.raw.send(client.frame("exit") + header(CLOSE, 2, key=bytes(4)) + (1000).to_bytes(2, "big"))
            assert client.raw.receive_close()[0] == 1000
            assert client.raw.file.read() == b""
            check_end(server, client, 1000)
    wait_until(lambda: server.json("/parked") == 0, lambda: server.log)


@pytest.mark.parametrize(("what", "code"), [("raise", 1011), ("abort", 4404), ("close:3000", 3000)])
def test_an_ended_connection_is_freed_at_once(server: Server, what: str, code: int) -> None:
    def is_empty() -> bool:
        return bool(server.json("/views") == 0)

    server.get("/collect/0")
    wait_until(is_empty, lambda: server.log)
    with talk(server) as client:
        client.send(what)
        check_close(client, code)
        check_end(server, client, code)
    wait_until(is_empty, lambda: server.log)
    server.get("/collect/1")


def flood(client: Talk, is_over: threading.Event) -> None:
    """Send as much as the server takes, and vanish."""
    while not is_over.is_set():
        client.send(*["count"] * 1000)
    client.raw.reset()


def test_clients_that_flood_do_not_hold_up_others(server: Server) -> None:
    is_over = threading.Event()
    with ExitStack() as stack:
        flooding = [stack.enter_context(talk(server)) for _ in range(8)]
        floods = [threading.Thread(target=flood, args=(client, is_over), daemon=True) for client in flooding]
        for thread in floods:
            thread.start()
        try:
            for _ in range(5):
                with talk(server) as client:
                    for _ in range(5):
                        client.ask("echo")
                        time.sleep(0.02)
                    client.close()
                    check_end(server, client, 1000)
        finally:
            is_over.set()
            for thread in floods:
                thread.join(DEADLINE)
        for client in flooding:
            assert server.wait_for("ended", client.raw)["code"] == 1006


def test_clients_are_looked_after_while_all_threads_are_busy(threads: Server) -> None:
    with ExitStack() as stack:
        holding = [stack.enter_context(talk(threads)) for _ in range(4)]
        waiting, leaving, vanishing, asking = (stack.enter_context(talk(threads)) for _ in range(4))
        idle = stack.enter_context(talk(threads, "/impatient"))
        name = holding[0].token
        for client in holding:
            client.ask(f"hold:{name}")
        asking.send("echo", "echo")
        for client in (*holding, waiting):
            client.raw.send_frame(PING, b"ping")
            assert client.raw.receive() == (PONG, b"ping")
        leaving.close()
        vanishing.raw.reset()
        assert idle.raw.receive_close()[0] == 1001
        assert threads.get("/").status == 200
        with talk(threads) as late:
            late.send("echo")
            threads.get(f"/release/{name}")
            late.raw.receive()
            late.close()
        for number in range(2):
            assert asking.raw.receive() == (TEXT, f"{asking.token}:{number}:echo".encode())
        idle.raw.send_frame(CLOSE, (1001).to_bytes(2, "big"))
        for client in (*holding, waiting, asking):
            client.ask("echo")
            client.close()
            check_end(threads, client, 1000)
        check_end(threads, leaving, 1000)
        check_end(threads, vanishing, 1006)
        check_end(threads, idle, 1001)


def test_clients_that_read_nothing_free_their_threads(threads: Server) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(talk(threads, "/impatient"))
            client.send("send:20000000", "send:1")
        with talk(threads) as client:
            client.ask("echo")
            client.close()
            check_end(threads, client, 1000)
