"""Parked views under load: each gets its messages in order and once, then its end, and nothing of another client.

The views of ``live_parked_app`` note their calls, and compare them with what each message says of itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from support.live import DEADLINE, MODES, Mode, Server, serving, wait_until
from support.wire import CLOSE, TEXT, header

pytestmark = pytest.mark.once

#: The modes, with as many threads as there are by default in examples.
PARKING = {
    "threads": MODES["threads"]._replace(options=["--threads", "16"]),
    "gevent": MODES["gevent"],
    "asyncio": MODES["asyncio"],
}

#: The number of clients of each habit, and of handshakes at a time: uWSGI's backlog has 100 places.
CROWD = 77
HANDSHAKES = 50

#: The clients of the tests of reloads, and how many answers each of them gets between two faults.
STAYING = 60
ANSWERS = 3

_TROUBLE = re.compile(r"NO MERCY|\[BUG\]|Segmentation|Traceback")

REQUEST = (
    "GET {} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.fixture(autouse=True)
def _files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Client:
    """A client of a view that notes its calls.

    :param token: identifies it in the journal.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __init__(self, server: Server, token: str) -> None:
        self._server = server
        self.token = token
        self.sent = 0

    async def open(self, path: str = "/noted", limit: int = 2**16) -> None:
        """Open the connection.

        :raises OSError: when the server does not accept it.
        """
        self.reader, self.writer = await asyncio.open_connection(self._server.host, self._server.port, limit=limit)
        self.writer.write(REQUEST.format(f"{path}?token={self.token}").encode())
        try:
            response = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            raise ConnectionError("no response") from None
        if not response.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(response)

    def frame(self, what: str) -> bytes:
        payload = f"{self.token}:{self.sent}:{what}".encode()
        self.sent += 1
        return header(TEXT, len(payload), key=bytes(4)) + payload  # masked with zeros

    def send(self, *whats: str) -> list[str]:
        """Send messages at once, and return them."""
        first = self.sent
        self.writer.write(b"".join(map(self.frame, whats)))
        return [f"{self.token}:{number}:{what}" for number, what in enumerate(whats, first)]

    async def receive(self) -> tuple[int, bytes]:
        """Return the opcode and payload of the next frame."""
        first, length = await self.reader.readexactly(2)
        assert first & 0xF0 == 0x80
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 0x0F, await self.reader.readexactly(length)

    async def expect(self, *messages: str) -> None:
        for message in messages:
            opcode, payload = await self.receive()
            assert (opcode, payload.decode()) == (TEXT, message)

    async def expect_close(self, code: int) -> None:
        """Expect the Close frame and the end of TCP. Answer the frame."""
        opcode, payload = await self.receive()
        assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, code)
        await self.answer_close(payload)

    async def answer_close(self, payload: bytes) -> None:
        with suppress(ConnectionError):
            self.send_close(payload[:2])
            assert await self.reader.read() == b""
        self.writer.close()

    def send_close(self, body: bytes) -> None:
        self.writer.write(header(CLOSE, len(body), key=bytes(4)) + body)

    async def close(self, code: int = 1000) -> None:
        body = code.to_bytes(2, "big")
        self.send_close(body)
        assert await self.receive() == (CLOSE, body)
        assert await self.reader.read() == b""
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


# The habits of clients. Each returns the close code that the view gets. Those in VAGUE lose messages.


async def idle(client: Client) -> int:
    await asyncio.sleep(2)
    await client.close(1001)
    return 1001


async def chat(client: Client) -> int:
    for _ in range(20):
        await asyncio.sleep(random.random() / 10)
        await client.expect(*client.send("echo"))
    await client.close()
    return 1000


async def flood(client: Client) -> int:
    client.send(*["count"] * 300)
    await client.expect(*client.send("echo"))
    await client.close()
    return 1000


async def send_in_bursts(client: Client) -> int:
    """Send more messages than a view handles in one run, in pieces."""
    for _ in range(3):
        whats = ["echo"] * 90
        data, first = b"".join(map(client.frame, whats)), client.sent - 90
        for start in range(0, len(data), 700):
            client.writer.write(data[start : start + 700])
            await asyncio.sleep(0)
        await client.expect(*(f"{client.token}:{number}:echo" for number in range(first, client.sent)))
    await client.close()
    return 1000


async def vanish(client: Client) -> int:
    client.send(*["count"] * 5, "echo")
    await asyncio.sleep(random.random() / 10)
    client.reset()
    return 1006


async def close_half(client: Client) -> int:
    client.send(*["count"] * 80)
    client.writer.write_eof()
    with suppress(ConnectionError):
        await client.reader.read()
    client.writer.close()
    return 1006


async def read_slowly(client: Client) -> int:
    client.send(*["send:100000"] * 4)
    for _ in range(4):
        await asyncio.sleep(0.1)
        assert await client.receive() == (TEXT, b"x" * 100_000)
    await client.close()
    return 1000


async def leave_with_a_code(client: Client) -> int:
    code = random.randrange(3000, 5000)
    await client.expect(*client.send("echo"))
    client.send(*["count"] * 70)
    client.send_close(code.to_bytes(2, "big"))
    assert await client.receive() == (CLOSE, code.to_bytes(2, "big"))
    client.writer.close()
    return code


async def doze(client: Client) -> int:
    await client.expect(*client.send(*["sleep:0.02"] * 3))
    await client.close()
    return 1000


async def end_by(client: Client, message: str, code: int) -> int:
    """Send a message after which the view ends the connection with *code*."""
    await client.expect(*client.send("echo"))
    client.send(message)
    await client.expect_close(code)
    return code


async def anger(client: Client) -> int:
    return await end_by(client, "raise", 1011)


async def be_refused(client: Client) -> int:
    return await end_by(client, "abort", 4404)


async def be_closed(client: Client) -> int:
    return await end_by(client, "close:3001", 3001)


async def be_closed_at_once(client: Client) -> int:
    return await end_by(client, "close_at_once:3002", 3002)


HABITS: Sequence[Callable[[Client], Awaitable[int]]] = [
    idle,
    chat,
    flood,
    send_in_bursts,
    vanish,
    close_half,
    read_slowly,
    leave_with_a_code,
    doze,
    anger,
    be_refused,
    be_closed,
    be_closed_at_once,
]
VAGUE = [vanish]


@pytest.mark.parametrize("mode", PARKING)
def test_clients_of_all_habits_at_once(tmp_path: Path, mode: str) -> None:
    with serving(tmp_path, PARKING[mode], "http-socket", module="live_parked_app") as server:
        asyncio.run(asyncio.wait_for(crowd(server), 2 * DEADLINE))
        before = files_at_rest(server)
        asyncio.run(asyncio.wait_for(come_and_go(server, 600), 2 * DEADLINE))
        assert files_at_rest(server) == before


def files_at_rest(server: Server) -> dict[int, int]:
    """Wait until all connections have ended and with them the housekeeper; return the number of open descriptors."""
    wait_until(lambda: rests(server), lambda: server.log[-5000:])
    return server.open_files()


def rests(server: Server) -> bool:
    """Ask the application. When this returns, the server has closed the connection of the request, too."""
    with server.socket() as sock, sock.makefile("rb") as file:
        sock.sendall(b"GET /rests HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return file.read().endswith(b"true")


async def crowd(server: Server) -> None:
    """Let clients of all habits come at once, and check what their views have noted."""
    door = asyncio.Semaphore(HANDSHAKES)
    expected: dict[str, tuple[int, int | None]] = {}

    async def run(habit: Callable[[Client], Awaitable[int]], number: int) -> None:
        client = Client(server, f"{habit.__name__}-{number}")
        async with door:
            await client.open()
        code = await habit(client)
        expected[client.token] = code, None if habit in VAGUE else client.sent

    clients = [run(habit, number) for habit in HABITS for number in range(CROWD)]
    random.shuffle(clients)
    await asyncio.gather(*clients)
    ends = await asyncio.to_thread(wait_for_ends, server, set(expected))
    for token, (code, count) in expected.items():
        assert ends[token]["code"] == code, (token, ends[token])
        assert count is None or ends[token]["count"] == count, (token, count, ends[token])


def wait_for_ends(server: Server, tokens: set[str]) -> dict[str, dict[str, int]]:
    """Wait for the ends of the views, check that each has begun and ended once, and return the ends."""

    def ends() -> list[dict[str, int]]:
        return [entry for entry in server.journal() if entry["event"] == "ended" and entry["token"] in tokens]

    wait_until(lambda: len(ends()) >= len(tokens), lambda: f"{missing()}\n{server.log[-3000:]}")

    def missing() -> set[str]:
        return tokens - {str(end["token"]) for end in ends()}

    assert not missing()
    events = [(entry["event"], entry.get("token")) for entry in server.journal()]
    assert not [entry for entry in server.journal() if entry["event"] == "wrong"]
    assert len(events) == len({*events}) + events.count(("worker", None)) - 1, "a view has begun or ended twice"
    assert {("opened", token) for token in tokens} <= {*events}
    return {str(end["token"]): end for end in ends()}


async def come_and_go(server: Server, count: int, prefix: str = "guest", at_once: int = HANDSHAKES) -> None:
    """Let clients come, send, and leave in one of three ways."""

    async def visit(first: int) -> None:
        for number in range(first, count, at_once):
            client = Client(server, f"{prefix}-{number}")
            await client.open()
            await client.expect(*client.send("echo"))
            if number % 3 == 0:
                await client.close()
            elif number % 3 == 1:
                client.reset()
            else:
                client.writer.close()

    await asyncio.gather(*map(visit, range(at_once)))


# Faults of the worker


class Staying:
    """Clients that exchange messages all the time, and connect again when they are closed."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.is_over = False
        self.answers = [0] * STAYING
        #: The close code of each connection that got an answer; 1006 without a Close frame.
        self.codes: dict[str, int] = {}

    async def run(self, *faults: Callable[[], None]) -> None:
        clients = asyncio.gather(*map(self._stay, range(STAYING)))
        for fault in faults:
            self.answers = [0] * STAYING
            while min(self.answers) < ANSWERS and not clients.done():
                await asyncio.sleep(0.05)
            self.is_over = fault is faults[-1]
            fault()
        await clients

    async def _stay(self, number: int) -> None:
        visits = 0
        while not self.is_over or not visits:
            visits += 1
            client = Client(self.server, f"staying-{number}-{visits}")
            answered = False
            try:
                await client.open()
                while True:
                    (message,) = client.send("echo")
                    opcode, payload = await client.receive()
                    if opcode == CLOSE:
                        self.codes[client.token] = int.from_bytes(payload[:2], "big")
                        await client.answer_close(payload)
                        break
                    assert payload.decode() == message
                    answered = True
                    self.answers[number] += 1
                    await asyncio.sleep(random.random() / 10)
            except (OSError, asyncio.IncompleteReadError):
                if answered:
                    self.codes[client.token] = 1006
                await asyncio.sleep(random.random() / 5)
            finally:
                if hasattr(client, "writer"):
                    client.writer.close()


def with_two_workers(mode: Mode) -> Mode:
    return mode._replace(options=[*mode.options, "--processes", "2"], processes=2)


@pytest.mark.parametrize("mode", PARKING)
def test_reloads_a_killed_worker_and_the_stop_under_load(tmp_path: Path, mode: str) -> None:
    two_workers = with_two_workers(PARKING[mode])
    with serving(tmp_path, two_workers, "http-socket", module="live_parked_app", trouble=_TROUBLE) as server:
        load = Staying(server)
        killed = min(server.running_workers())
        asyncio.run(
            asyncio.wait_for(
                load.run(
                    lambda: kill(killed),
                    lambda: server.signal(signal.SIGHUP),
                    lambda: server.signal(signal.SIGINT),
                ),
                3 * DEADLINE,
            )
        )
        server.wait_until_ended()
        journal = server.journal()
        pids = {entry["token"]: entry["pid"] for entry in journal if entry["event"] == "opened"}
        of_others = {token for token, pid in pids.items() if pid != killed}
        wait_for_ends(server, of_others)
        codes = {token: code for token, code in load.codes.items() if token in of_others}
        assert set(codes.values()) == {1001, 1012}
        assert {code for token, code in load.codes.items() if token not in of_others} == {1006}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
