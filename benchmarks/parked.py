"""Parked views on one worker: thousands that are asked at once, come back at once, are in one room, or hold on.

    python -m benchmarks.parked --mode gevent --connections 50000 --seconds 600

holds so many connections, and prints how many were lost, the worker's CPU time while they are idle, and its memory for
each. The clients are processes of their own, each with an address of its own in 127.0.0.0/8, because an address has
28,000 ports. The server takes one file for each connection, so the script raises the limit as far as the system allows.

    python -m benchmarks.parked --memory docs/memory.svg

plots the memory of servers against the number of their connections. It needs the environment of ``make bench``.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from flask_uwsgi_websocket.worker.admission import descriptors_for, most_by_descriptors

from .measures import FANOUT_RECEIVERS, SETTLING, Bench, Loading, Plan, choose_cpus, compile_load, most_parked
from .report import plot_memory
from .servers import PARKED, SERVERS, Running, Server, cpu_seconds, longest_backlog

#: Clients that get pages, one after the other, while all parked connections are asked: fewer than threads.
PAGES = 8

#: Seconds within which all connections have to open, or to be back after a reload.
PATIENCE = 60

#: The most connections of one client process: fewer than the ports of an address.
MOST_OF_CLIENT = 15_000

#: The servers whose memory is plotted, in the order of the legend.
PLOTTED = [
    *(PARKED.format(mode) for mode in ("gevent", "threads", "asyncio")),
    "this package, gevent",
    "flask-sock on gunicorn, threads",
    "flask-sock on gunicorn, gevent",
    "Starlette on uvicorn",
    "uWSGI's C API, gevent",
]

#: The numbers of connections with which memory is measured, and the most of a server, where these are more.
STEPS = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


def measure_asked(bench: Bench, server: Server) -> None:
    """Ask all parked connections at once, again and again, and get pages meanwhile; before, beside idle ones."""
    options = {"connections": bench.plan.parked, "timeout": PATIENCE}
    pages = {"connections": PAGES, "warm_up": 0}
    with bench.running(server, bench.plan.parked) as target:
        with (
            bench.loaded(server, target, "idle", **options, warm_up=0),
            bench.loaded(server, target, "page", **pages) as load,
        ):
            bench.record(server, "page alone p99", load.p99 / 1e3)
        with bench.loading(server, target, "ask", **options, warm_up=1, seconds=bench.plan.seconds + 1) as asking:
            with bench.loaded(server, target, "page", **pages) as load:
                bench.record(server, "page beside p99", load.p99 / 1e3)
            load = asking.measured()
            bench.record(server, "asked longest", load.longest / 1e6)
            bench.record(server, "asked cpu", load.cpu_each)


def measure_crowd(bench: Bench, server: Server) -> None:
    """Compare the deliveries in a room with all parked connections with those of broadcast(), to fewer and to all."""
    with bench.running(server, bench.plan.parked) as target:
        for metric, publish, members in (
            ("broadcast cpu", "/broadcast", FANOUT_RECEIVERS),
            ("crowd cpu", "/room", bench.plan.parked),
            ("broadcast crowd cpu", "/broadcast", bench.plan.parked),
        ):
            paths = {"publish": publish, "receive": "/member"}
            with bench.loaded(server, target, "fanout", connections=members, timeout=PATIENCE, **paths) as load:
                bench.record(server, metric, load.cpu_each)


def measure_returns(bench: Bench, server: Server) -> None:
    """Reload the server. All clients come back at once. Only in the first round, because it takes half a minute."""
    if bench.is_repeating:
        return
    reloading = _with_master(server)
    with bench.running(reloading, bench.plan.parked) as target:
        master = target.pids[0]
        unwatched = Running([target.port], [], is_pinned=target.is_pinned)  # its processes change
        options = {"connections": bench.plan.parked, "warm_up": 0, "timeout": PATIENCE}
        with bench.loading(reloading, unwatched, "return", **options) as loading:
            os.kill(master, signal.SIGHUP)
            load = loading.measured()
            worker = max(Running([target.port], [master]).pids)  # which has started after the reload
            bench.record(server, "return cpu", cpu_seconds(worker))
    bench.record(server, "return s", load.seconds)
    bench.record(server, "return p50", load.p50 / 1e6)
    bench.record(server, "return abnormal", load.abnormal)
    bench.record(server, "return refused", load.refused)


def _with_master(server: Server) -> Server:
    """Return a server of uWSGI that can be reloaded, and where as many clients wait as the system allows.

    A client that finds no place tries again after a second, and then later and later. Its TCP connection may exist for
    itself and not for the server, so that its request comes too late: uWSGI waits 4 s for it.
    """
    backlog = str(longest_backlog())

    def commands(ports: Sequence[int], connections: int) -> list[list[str]]:
        return [[*each, "--master", "--listen", backlog] for each in server.commands(ports, connections)]

    return replace(server, commands=commands)


def raise_limit(connections: int) -> int:
    """Let this process and its children open enough files for so many connections, or as many as the system allows.

    :returns: the limit.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = int(Path("/proc/sys/fs/nr_open").read_text())
    wanted = min(max(most, descriptors_for(connections, own=0)), allowed)
    with suppress(ValueError):  # only root may raise the hard limit, and not everywhere
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


class Clients:
    """The client processes of a server, each with its own address."""

    def __init__(self, bench: Bench, server: Server, target: Running, most: int) -> None:
        self._bench = bench
        self._server = server
        self._target = target
        self._most = most
        self._stack = ExitStack()
        self._loadings: list[Loading] = []
        #: The number of connections that have opened.
        self.connections = 0

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def open(self, connections: int) -> None:
        """Open more connections, until there are so many."""
        while self.connections < connections:
            count = min(connections - self.connections, self._most)
            source = f"127.0.1.{1 + len(self._loadings)}"
            loading = self._stack.enter_context(
                self._bench.loading(
                    self._server,
                    self._target,
                    "hold",
                    connections=count,
                    source=source,
                    warm_up=0,
                    timeout=PATIENCE,
                )
            )
            loading.measured()
            self._loadings.append(loading)
            self.connections += count

    def end(self) -> Counter[str]:
        """End all connections; return what became of them."""
        ends: Counter[str] = Counter()
        for loading in self._loadings:
            ends.update(loading.end())
        return ends


@contextmanager
def holding(bench: Bench, server: Server, connections: int) -> Iterator[tuple[Running, Clients]]:
    """Run a server, with a first hundred connections, whose memory is not counted."""
    most = min(MOST_OF_CLIENT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100)
    with bench.running(server, connections) as target:
        with Clients(bench, server, target, most) as first:
            first.open(100)
        time.sleep(SETTLING)
        with Clients(bench, server, target, most) as clients:
            yield target, clients


def hold(bench: Bench, server: Server, connections: int, seconds: float) -> None:
    """Hold parked connections, and print what they take."""
    with holding(bench, server, connections) as (target, clients):
        before, began = target.memory_kb(), time.monotonic()
        clients.open(connections)
        print(f"opened {connections:,} connections in {time.monotonic() - began:.1f} s", flush=True)
        time.sleep(SETTLING)
        print(f"memory of the worker: {(target.memory_kb() - before) / connections:.1f} kB for each", flush=True)
        cpu, began = target.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        cpu, passed = target.cpu_seconds() - cpu, time.monotonic() - began
        ends = clients.end()
    print(f"CPU of the worker in {passed:.0f} s: {cpu:.1f} s, {100 * cpu / passed:.2f} %")
    print(f"answered {ends['pings']:,} pings")
    print(f"lost {ends['closed'] + ends['abnormal']:,} connections, {ends['abnormal']:,} of them without a Close frame")


def grow(bench: Bench, server: Server, most: int) -> list[tuple[int, float]]:
    """Return by how many MB the memory of a server grows with its connections, for some numbers of them."""
    points = [(0, 0.0)]
    with holding(bench, server, most) as (target, clients):
        before = target.memory_kb()
        for connections in [*(step for step in STEPS if step < most), most]:
            clients.open(connections)
            time.sleep(SETTLING)
            points.append((connections, (target.memory_kb() - before) / 1024))
            print(f"{server.name}: {connections:,}: {points[-1][1]:.1f} MB", flush=True)
    return points


def plot(bench: Bench, most: int, path: Path) -> None:
    """Plot the memory of all servers in :data:`PLOTTED`.

    :param most: the most connections of a server that parks them.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    servers: Mapping[str, Server] = {server.name: server for server in SERVERS}
    grown = {}
    for name in PLOTTED:
        server = servers[name]
        parks = "returns" in server.measures
        fits = most if parks else min(most, server.most_connections, most_by_descriptors(limit, own=0) // 100 * 100)
        grown[name] = grow(bench, server, fits)
    path.write_text(plot_memory(grown))
    print(f"Written to {path}.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parked", description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=["gevent", "threads", "asyncio"], default="gevent")
    parser.add_argument("--connections", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=600, help="the time for which the connections are idle")
    parser.add_argument("--memory", type=Path, metavar="FILE", help="plot the memory of all servers instead")
    options = parser.parse_args()

    limit = raise_limit(options.connections)
    connections = min(options.connections, most_parked(limit))
    if connections < options.connections:
        print(
            f"a process may open {limit:,} files here, which is enough for {connections:,} parked connections, and not "
            f"for {options.connections:,}",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as directory:
        plan = Plan([], repeats=1, seconds=0, warm_up=0, idle=[], cpus=choose_cpus())
        bench = Bench(plan, compile_load(Path(directory)))
        if options.memory is not None:
            plot(bench, connections, options.memory)
            return
        (server,) = (server for server in SERVERS if server.name == PARKED.format(options.mode))
        hold(bench, server, connections, options.seconds)


if __name__ == "__main__":
    main()
