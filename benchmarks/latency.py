"""Two latencies that throughput hides: two sends in a row, and an echo beside many connections that opened together.

    python -m benchmarks.latency --mode gevent --connections 3000

Echoes are timed until each idle connection has been pinged once. The idle clients run in their own process, open all at
the same time, and answer pings. The longest delay of the loop is CPU time of its thread between two looks at the clock,
which are due every millisecond. Threads have no loop.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.synchronize import Event
from statistics import median, quantiles

from .idle import Client
from .measures import Bench, raise_file_limit
from .servers import SERVERS, Running, Server, running

#: A masked text frame of 64 bytes, and the answer to it.
FRAME = b"\x81\xc0\0\0\0\0" + bytes(64)
ANSWER = b"\x81\x40" + bytes(64)

#: The default of WEBSOCKET_PING_INTERVAL, and a little more, in seconds.
PING_INTERVAL = 25.0
MARGIN = 3.0


def connect(port: int, path: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return sock


def exchange(sock: socket.socket, answers: int) -> float:
    """Send a message, read its answers, and return the time in seconds."""
    began = time.perf_counter()
    sock.sendall(FRAME)
    missing = answers * len(ANSWER)
    while missing:
        missing -= len(sock.recv(missing))
    return time.perf_counter() - began


def measure_pairs(server: Running, rounds: int) -> list[float]:
    with connect(server.port, "/pair") as sock:
        return [exchange(sock, 2) for _ in range(rounds)]


def hold(port: int, connections: int, opened: Event, done: Event) -> None:
    """Hold idle connections until *done* is set."""

    async def hold() -> None:
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(connections)]
        for future in futures:
            await loop.create_connection(lambda future=future: Client(future), "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.gather(*futures)
        opened.set()
        while not done.is_set():
            await asyncio.sleep(0.2)

    raise_file_limit()
    asyncio.run(hold())


def measure_beside(server: Running, connections: int) -> tuple[list[float], float, float]:
    """Measure beside idle connections.

    :returns: the round trips of an echo and the longest delay of the loop, in seconds; the server's share of a CPU,
        in percent.
    """
    context = multiprocessing.get_context("spawn")
    opened, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(server.port, connections, opened, done))
    process.start()
    opened.wait()
    times = []
    cpu, began = server.cpu_seconds(), time.monotonic()
    with connect(server.port, "/echo") as sock, connect(server.port, "/lag") as watching:
        while time.monotonic() < began + PING_INTERVAL + MARGIN:
            times.append(exchange(sock, 1))
            time.sleep(0.001)
        share = 100 * (server.cpu_seconds() - cpu) / (time.monotonic() - began)
        hold_up = longest_delay(watching)
    done.set()
    process.join()
    return times, hold_up, share


def longest_delay(watching: socket.socket) -> float:
    """Return the longest delay of the loop, in seconds, since a connection to ``/lag`` has watched it."""
    watching.sendall(FRAME)
    frames = b"".join(iter(partial(watching.recv, 100), b""))  # Pings, the answer, and the Close frame
    return float(frames.rpartition(b"\x81")[2][1:].partition(b"\x88")[0])


def measure_housekeeping(bench: Bench, server: Server) -> None:
    """Measure what idle connections, which have opened all at once, take of a loop: first delays, and then CPU time.

    In a run of its own, because who watches takes CPU time, too. Only in the first round, because it takes a minute.
    """
    if bench.is_repeating:
        return
    connections = max(bench.plan.idle)
    watched = with_latency_app(server)
    with (
        bench.running(watched, connections) as target,
        bench.loaded(watched, target, "idle", connections=connections, warm_up=0),
    ):
        with connect(target.port, "/lag") as watching:
            time.sleep(bench.plan.watch)
            bench.record(server, "housekeeping ms", 1e3 * longest_delay(watching))
        cpu, began = target.cpu_seconds(), time.monotonic()
        time.sleep(bench.plan.watch)
        bench.record(server, "housekeeping cpu", 100 * (target.cpu_seconds() - cpu) / (time.monotonic() - began))


def with_latency_app(server: Server) -> Server:
    """Return a server of this package with the handlers of ``latency_app.py``."""

    def commands(ports: Sequence[int], connections: int) -> list[list[str]]:
        (arguments,) = server.commands(ports, connections)
        return [["latency_app:app" if argument == "package_app:app" else argument for argument in arguments]]

    return replace(server, commands=commands)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", nargs="+", default=["gevent", "asyncio", "threads"], help="the modes to measure")
    parser.add_argument("--connections", type=int, default=3000)
    options = parser.parse_args()
    raise_file_limit()
    for mode in options.mode:
        (server,) = (server for server in SERVERS if server.name == f"this package, {mode}")
        with running(with_latency_app(server), options.connections) as process:
            pairs = measure_pairs(process, 100)
            beside, hold_up, share = measure_beside(process, options.connections)
        longest = ", ".join(f"{1e3 * each:.1f}" for each in sorted(beside)[-5:])
        print(
            f"{mode}: two sends in a row {1e3 * median(pairs):.2f} ms; an echo beside {options.connections} idle "
            f"connections: median {1e3 * median(beside):.2f} ms, 99.9 % {1e3 * quantiles(beside, n=1000)[-1]:.1f} ms, "
            f"longest {longest} ms; longest delay {1e3 * hold_up:.1f} ms; CPU {share:.1f} %"
        )


if __name__ == "__main__":
    main()
