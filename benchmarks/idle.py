"""Hold many idle connections on one gevent worker behind uWSGI's HTTP router, and print their cost.

    python benchmarks/idle.py --connections 1000 --seconds 90

The script prints how long the worker's loop was held up at most while the first pings were sent, the number of
connections that are open at the end, the worker's CPU time over the idle period after that, and its memory per
connection. The router drops a connection without traffic after 60 s, so pings must flow. The clients only answer pings.
9,300 connections need ``ulimit -n 20000``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

#: The seconds after the last handshake in which the first ping of each connection is sent.
FIRST_PINGS = 26

APP = """
import gc
from time import monotonic, sleep, thread_time

from flask import Flask
from flask_uwsgi_websocket import GeventWebSocket

app = Flask(__name__)
websocket = GeventWebSocket(app)

@websocket.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)

collections = []  # the CPU time at the start and the end of each

gc.callbacks.append(lambda phase, info: collections.append(thread_time()))

@app.route("/hold-up/<int:seconds>")
def hold_up(seconds):
    # CPU time, because other processes use the machine, too.
    longest = 0
    collections.clear()
    end = monotonic() + seconds
    while monotonic() < end:
        began = thread_time()
        sleep(0.002)
        longest = max(longest, thread_time() - began)
    collection = max((stop - start for start, stop in zip(collections[::2], collections[1::2])), default=0)
    return f"{1000 * longest:.1f} ms, longest garbage collection: {1000 * collection:.1f} ms"
"""

REQUEST = (
    b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Client(asyncio.Protocol):
    """A client that upgrades, and then answers pings. The payload of eight bytes is masked with zeros."""

    def __init__(self, opened: asyncio.Future[None]) -> None:
        self.opened = opened
        self.open = False
        self.pings = 0
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.open:
            head, end, self.buffer = self.buffer.partition(b"\r\n\r\n")
            if not end:
                self.buffer = head
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise SystemExit(f"the handshake failed: {head!r}")
            self.open = True
            self.opened.set_result(None)
        while len(self.buffer) >= 10 and self.buffer[:2] == b"\x89\x08":
            self.transport.write(b"\x8a\x88\0\0\0\0" + self.buffer[2:10])
            self.buffer = self.buffer[10:]
            self.pings += 1

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError("no Pss in smaps_rollup")


def worker_of(master: int) -> int:
    """Return the child of the master that is not the HTTP router: the process with the most memory."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return max(map(int, children), key=memory_kb)


async def hold_up(port: int, seconds: int) -> str:
    """Return what the worker reports about its loop after some seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /hold-up/{seconds} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    if " 200 " not in head:
        raise SystemExit(f"the measure failed: {head}")
    return body


async def hold(port: int, worker: int, connections: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    before = memory_kb(worker)
    clients = []
    for _ in range(connections):
        opened = loop.create_future()
        _, client = await loop.create_connection(lambda o=opened: Client(o), "127.0.0.1", port)
        await asyncio.wait_for(opened, 30)
        clients.append(client)
    memory = memory_kb(worker) - before
    print(f"longest hold-up of the loop in CPU time: {await hold_up(port, FIRST_PINGS)}")
    cpu, clock = cpu_seconds(worker), time.monotonic()
    await asyncio.sleep(seconds)
    cpu, clock = cpu_seconds(worker) - cpu, time.monotonic() - clock
    print(f"open after {clock:.0f} s: {sum(client.open for client in clients)} of {connections}")
    print(f"pings answered: {sum(client.pings for client in clients)}")
    print(f"CPU of the worker: {cpu:.2f} s, {100 * cpu / clock:.2f} %")
    print(f"memory of the worker: {memory / connections:.1f} kB per connection")
    for client in clients:
        client.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=90)
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "idle_app.py").write_text(APP)
        uwsgi = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("uwsgi")),
                *("--http", f"127.0.0.1:{port}", "--http-websockets", "--master", "--enable-threads"),
                *("--gevent", str(arguments.connections + 100), "--gevent-early-monkey-patch"),
                *("--listen", "100", "--disable-logging", "--need-app"),
                *("--pythonpath", directory, "--module", "idle_app:app"),
            ],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            time.sleep(2)  # until the application is loaded and the worker's memory has settled
            asyncio.run(hold(port, worker_of(uwsgi.pid), arguments.connections, arguments.seconds))
        finally:
            os.killpg(uwsgi.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
