"""Measure what history, resume and presence cost, with the local broker and with Redis.

    python -m benchmarks.resume

It prints the memory of a message in a history besides its payload; the CPU time of a join, with and without presence,
of 10,000 connections to two workers; and the time until 1,000 clients that come back to two workers at once have 50
missed messages each, with the latency of echoes meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

from redis import Redis

from flask_uwsgi_websocket.rooms.brokers.base import Broker, Outgoing, Retention
from flask_uwsgi_websocket.rooms.brokers.local import LocalBroker
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker
from flask_uwsgi_websocket.rooms.envelope import encode, seal

from .measures import raise_file_limit
from .servers import HOST, Running, ServerError, _uwsgi, await_handshake, free_ports, start, start_redis

#: Rooms whose histories are full, the messages of each, and the bytes of each message.
ROOMS = 200
HISTORY = 100
SIZE = 100

#: Clients that come back, and what each has missed.
RETURNING = 1_000
MISSED = 50

#: Seconds between two echoes to each worker.
PAUSE = 0.005

#: Seconds for which members rest.
REST = 5

#: Seconds for the slowest step.
PATIENCE = 60

REQUEST = (
    "GET {} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Client(asyncio.Protocol):
    """A client that upgrades, and is done when it has got a number of messages."""

    def __init__(self, path: str, messages: int) -> None:
        self.path = path
        self.messages = messages
        self.done = asyncio.get_running_loop().create_future()
        self.last = b""
        self._is_open = False
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(REQUEST.format(self.path).encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_open:
            head, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise SystemExit(f"the handshake failed: {head!r}")
            self._is_open, self._buffer = True, rest
        while (frame := self._next_frame()) is not None:
            opcode, self.last = frame
            self.messages -= opcode in (1, 2)
        if self.messages <= 0 and not self.done.done():
            self.done.set_result(None)

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Return opcode and payload of the next frame, of less than 64 KiB, or None if it is not complete."""
        buffer = self._buffer
        if len(buffer) < 4 and not (len(buffer) >= 2 and buffer[1] < 126):
            return None
        start, size = (4, int.from_bytes(buffer[2:4], "big")) if buffer[1] == 126 else (2, buffer[1])
        if len(buffer) < start + size:
            return None
        self._buffer = buffer[start + size :]
        return buffer[0] & 15, buffer[start : start + size]

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionResetError(f"{self.path} has ended: {error}"))


async def connect(port: int, path: str, messages: int = 0) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(lambda: Client(path, messages), HOST, port)
    return client


async def connect_all(count: int, ports: Sequence[int], path: str, messages: int = 0, *, at_once: int) -> list[Client]:
    """Open connections to all workers in turn, some at a time, and return them when all are done."""
    clients: list[Client] = []
    while len(clients) < count:
        numbers = range(len(clients), min(count, len(clients) + at_once))
        some = await asyncio.gather(*(connect(ports[number % len(ports)], path, messages) for number in numbers))
        clients += some
        await asyncio.wait_for(asyncio.gather(*(client.done for client in some)), PATIENCE)
    return clients


def drop(clients: Sequence[Client]) -> None:
    for client in clients:
        client.transport.abort()


# Memory


def measure_local_memory() -> float:
    """Return the bytes by which the file grows for each message that is kept, besides its payload."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        sizes = []
        for name, retention in (("without", None), ("with", Retention(HISTORY, 300, 2**20))):
            broker = LocalBroker(Path(directory, name))
            fill(broker, retention)
            broker.close()
            (log,) = Path(directory, name).glob("log-*/log")
            with closing(sqlite3.connect(log)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            sizes.append(log.stat().st_size)
        return (sizes[1] - sizes[0]) / (ROOMS * HISTORY) - SIZE


def measure_redis_memory() -> float:
    """Return the bytes of a history for each message, besides its payload."""
    with start_redis() as (url, _):
        broker = RedisBroker(url)
        fill(broker, Retention(HISTORY, 300, 2**20))
        broker.close()
        with Redis.from_url(url) as client:
            keys = list(client.scan_iter("*history*", count=1000))
            total = sum(client.memory_usage(key, samples=0) or 0 for key in keys)
        assert len(keys) == ROOMS, keys
        return total / (ROOMS * HISTORY) - SIZE


def fill(broker: Broker, retention: Retention | None) -> None:
    publisher = uuid4()
    numbers = iter(range(1, 10**9))
    for room in range(ROOMS):
        messages = []
        for _ in range(HISTORY):
            number = next(numbers)
            data = seal(publisher.bytes, number, encode("x" * SIZE))
            messages.append(Outgoing(f"room {room}", data, number, retention))
        broker.publish(messages, publisher.hex)


# Servers


@contextmanager
def serving(broker: str, connections: int) -> Iterator[tuple[Running, Sequence[int]]]:
    """Run two workers in the gevent mode, and yield them and their ports."""
    commands = _uwsgi("resume_app:app", "--gevent", "{}", "--gevent-early-monkey-patch", "--master", "--lazy-apps")
    ports = free_ports(2)
    with ExitStack() as stack:
        redis = None
        if broker == "redis":
            address, redis = stack.enter_context(start_redis())
        else:
            address = f"local://{stack.enter_context(tempfile.TemporaryDirectory(dir='/dev/shm'))}/rooms"
        log = stack.enter_context(tempfile.TemporaryFile())
        environ = {**os.environ, "MODE": "gevent", "BROKER": address}
        (command,) = commands(ports, connections + 100)
        process = stack.enter_context(start(command, environ, log))
        for port in ports:
            await_handshake(process, port, "/echo")
        yield Running(ports, [process.pid], redis), ports


def get(port: int, path: str) -> str:
    with urlopen(f"http://{HOST}:{port}{path}", timeout=PATIENCE) as response:
        return str(response.read().decode())


# Joins


async def measure_joins(broker: str, count: int) -> None:
    """Print the CPU time of a join, and that each was announced once."""
    with serving(broker, count) as (target, ports):
        plain = await measure_join(broker, target, ports, "/plain", count)
        attended = await measure_join(broker, target, ports, "/attend", count)
        print(f"{broker}: presence costs {attended - plain:.0f} us for each join")


async def measure_join(broker: str, target: Running, ports: Sequence[int], path: str, count: int) -> float:
    """Return the CPU microseconds of the server for a join, until all workers know all members and have announced them.

    The CPU time of a handshake is in it.
    """
    has_presence = path == "/attend"
    drop(await connect_all(200, ports, path, at_once=100))  # what is made once does not count
    if has_presence:
        await wait_for(lambda: members(ports) == 0)
    before = announced(ports)
    cpu, redis_cpu, began = target.cpu_seconds(), target.redis_cpu_seconds(), time.monotonic()
    clients = await connect_all(count, ports, path, at_once=100)
    if has_presence:
        await wait_for(lambda: members(ports) == count and announced(ports) - before >= count)
    cpu, redis_cpu = target.cpu_seconds() - cpu, target.redis_cpu_seconds() - redis_cpu
    each, redis_each, seconds = 1e6 * cpu / count, 1e6 * redis_cpu / count, time.monotonic() - began
    print(
        f"{broker}: {count:,} connections to {path} in {seconds:.1f} s: {each:.0f} us each, {redis_each:.0f} of Redis"
    )
    if has_presence:
        cpu, began = target.cpu_seconds(), time.monotonic()
        await asyncio.sleep(REST)
        cpu, seconds = target.cpu_seconds() - cpu, time.monotonic() - began
        received = -sum(client.messages for client in clients)
        print(
            f"{broker}: {announced(ports) - before:,} joins were announced, {received} messages were sent to clients; "
            f"at rest, {count:,} members take {100 * cpu / seconds:.1f} % of a core"
        )
    drop(clients)
    return each


def members(ports: Sequence[int]) -> int:
    return int(json.loads(get(ports[0], "/attendance"))["members"])


def announced(ports: Sequence[int]) -> int:
    return sum(int(json.loads(get(port, "/attendance"))["announced"]) for port in ports)


async def wait_for(find: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await asyncio.to_thread(find):
        if time.monotonic() > deadline:
            raise ServerError("the server does not finish")
        await asyncio.sleep(0.1)


# Clients that come back


ECHO = """
import socket, struct, sys, time
socks = []
for port in sys.argv[2:]:
    sock = socket.create_connection(("127.0.0.1", int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall({request!r})
    while b"\\r\\n\\r\\n" not in sock.recv(4096):
        pass
    socks.append(sock)
sys.stdin.readline()
times, end = [], time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for sock in socks:
        began = time.monotonic()
        sock.sendall(b"\\x81\\x84\\0\\0\\0\\0echo")
        if sock.recv(100) != b"\\x81\\x04echo":
            sys.exit("no echo")
        times.append(time.monotonic() - began)
    time.sleep({pause})
times.sort()
print(*(1000 * times[int(len(times) * share)] for share in (0.5, 0.99)), 1000 * times[-1])
"""


async def measure_returns(broker: str, count: int) -> None:
    """Print how long it takes until all have what they have missed, and the latency of echoes meanwhile."""
    with serving(broker, 2 * count) as (target, ports):
        get(ports[0], "/publish?count=10")
        drop(await connect_all(count, ports, "/resume", 1, at_once=100))
        client = await connect(ports[0], "/resume", 1)
        await client.done
        since = client.last.decode()
        drop([client])
        await asyncio.to_thread(get, ports[0], f"/publish?count={MISSED}")
        await asyncio.sleep(1)
        resume = f"/resume?since={since}"
        for path, returning, messages in ((resume, 0, 0), ("/plain", count, 0), (resume, count, MISSED)):
            echo = ECHO.format(request=REQUEST.format("/echo").encode(), pause=PAUSE)
            with subprocess.Popen(
                [sys.executable, "-c", echo, "3", *map(str, ports)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                await asyncio.sleep(1)
                assert process.stdin is not None
                process.stdin.write("begin\n")
                process.stdin.flush()
                cpu, began = target.cpu_seconds(), time.monotonic()
                clients = await connect_all(returning, ports, path, messages, at_once=count)
                cpu, seconds = target.cpu_seconds() - cpu, time.monotonic() - began
                assert process.stdout is not None
                p50, p99, most = map(float, (await asyncio.to_thread(process.stdout.readline)).split())
            drop(clients)
            print(
                f"{broker}: {returning:,} clients come back, {messages} missed messages each: {seconds:.2f} s, "
                f"{cpu:.2f} s of CPU; echo p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {most:.1f} ms"
            )
            assert all(client.messages == 0 for client in clients)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=10_000, help="connections that join a room (10,000)")
    parser.add_argument("--brokers", nargs="+", choices=["local", "redis"], default=["local", "redis"])
    arguments = parser.parse_args()
    raise_file_limit()
    memory = {"local": measure_local_memory, "redis": measure_redis_memory}
    for broker in arguments.brokers:
        print(f"{broker}: a message of {SIZE} bytes in a history takes {memory[broker]():.0f} bytes besides them")
        asyncio.run(measure_returns(broker, RETURNING))
        asyncio.run(measure_joins(broker, arguments.members))


if __name__ == "__main__":
    main()
