"""What is measured, and the run: every server in turn, and again, so that a slow minute hits them all alike."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .servers import Running, Server, ServerError, running

SOURCE = Path(__file__).with_name("load.c")

#: Descriptors that a connection takes in the server that takes the most: uWSGI's and the duplicate of this package.
FILES_PER_CONNECTION = 2

FANOUT_RECEIVERS = 1_000

#: Seconds until memory has settled.
SETTLING = 1.0


@dataclass(frozen=True)
class Shape:
    """Messages of ``size`` bytes, ``in_flight`` at a time on each of some connections."""

    name: str
    connections: int
    in_flight: int
    size: int


SHAPES = [Shape("32x1 64 B", 32, 1, 64), Shape("8x8 64 B", 8, 8, 64), Shape("8x1 16 KiB", 8, 1, 16384)]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    :param measures: which of :data:`MEASURES`.
    :param repeats: rounds among the servers. Memory does not vary, and is measured in the first round only.
    :param seconds: of each measurement.
    :param warm_up: seconds before each.
    :param idle: with how many idle connections memory is measured.
    """

    measures: Sequence[str]
    repeats: int
    seconds: float
    warm_up: float
    idle: Sequence[int]


@dataclass
class Results:
    """What was measured: a value for each server, metric and round."""

    values: dict[tuple[str, str], dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    #: What went wrong, and when the load generator was the bottleneck.
    remarks: list[str] = field(default_factory=list)

    def value(self, server: str, metric: str) -> float | None:
        """Return the median over the rounds, or None if it was not measured."""
        values = self.values.get((server, metric))
        return median(values.values()) if values else None

    def ratio(self, server: str, to: str, metric: str) -> float | None:
        """Return the median of the ratios of each round, in which both had the same conditions."""
        values, others = self.values.get((server, metric), {}), self.values.get((to, metric), {})
        ratios = [values[round_] / others[round_] for round_ in values.keys() & others.keys() if others[round_]]
        return median(ratios) if ratios else None


@dataclass(frozen=True)
class Load:
    """What the load generator has measured, see ``load.c``; and the CPU seconds of the server in the same time."""

    count: int
    seconds: float
    cpu: float
    p50: float
    p99: float
    server_cpu: float

    @property
    def rate(self) -> float:
        """How many a second."""
        return self.count / self.seconds

    @property
    def cpu_each(self) -> float | None:
        """CPU microseconds of the server for each; None when there were none."""
        return 1e6 * self.server_cpu / self.count if self.count else None


class Bench:
    """One run.

    :param load: the compiled load generator.
    """

    def __init__(self, plan: Plan, load: Path) -> None:
        self.plan = plan
        self.results = Results()
        self._load = load
        self._round = 0

    def run(self, servers: Sequence[Server]) -> Results:
        """Measure everything of the plan."""
        for round_ in range(self.plan.repeats):
            self._round = round_
            for server in servers:
                for name in self.plan.measures:
                    print(f"round {round_ + 1} of {self.plan.repeats}: {server.name}: {name}", file=sys.stderr)
                    try:
                        MEASURES[name](self, server)
                    except (ServerError, OSError) as error:  # nothing in /proc of a process that has crashed
                        self._remark(f"{name}: {server.name}: {error}")
        return self.results

    def measure_echo(self, server: Server) -> None:
        with running(server, max(shape.connections for shape in SHAPES)) as target:
            for shape in SHAPES:
                with self._loaded(
                    server, target, "echo", connections=shape.connections, in_flight=shape.in_flight, size=shape.size
                ) as load:
                    self._record(server, f"{shape.name} cpu", load.cpu_each)
                    self._record(server, f"{shape.name} rate", load.rate)
                    self._record(server, f"{shape.name} p50", load.p50)
                    self._record(server, f"{shape.name} p99", load.p99)

    def measure_connect(self, server: Server) -> None:
        with running(server, 32) as target, self._loaded(server, target, "connect", connections=32) as load:
            self._record(server, "connect rate", load.rate)
            self._record(server, "connect cpu", load.cpu_each)

    def measure_flood(self, server: Server) -> None:
        with running(server, 32) as target:
            with self._loaded(server, target, "echo", connections=31) as alone:
                pass
            with self._loaded(server, target, "flood", connections=31) as beside_flood:
                self._record(server, "flood p99", beside_flood.p99)
                self._record(server, "flood ratio", beside_flood.p99 / alone.p99 if alone.count else None)

    def measure_fanout(self, server: Server) -> None:
        if server.fans_out:
            with (
                running(server, FANOUT_RECEIVERS + 1) as target,
                self._loaded(server, target, "fanout", connections=FANOUT_RECEIVERS) as load,
            ):
                self._record(server, "fan-out cpu", load.cpu_each)
                self._record(server, "fan-out rate", load.rate)

    def measure_idle(self, server: Server) -> None:
        if self._round > 0:
            return
        for connections in self.plan.idle:
            if connections > server.most_connections:
                continue
            with running(server, connections) as target:
                with self._loaded(server, target, "idle", connections=100, warm_up=0):
                    pass  # what is made once, by the first connections, is not theirs
                time.sleep(SETTLING)
                before = target.memory_kb()
                with self._loaded(server, target, "idle", connections=connections, warm_up=0):
                    time.sleep(SETTLING)
                    self._record(server, f"idle {connections}", (target.memory_kb() - before) / connections)

    @contextmanager
    def _loaded(self, server: Server, target: Running, mode: str, **options: float) -> Iterator[Load]:
        """Load a server, and hold the connections while the block runs.

        :raises ServerError: with what the load generator had to say.
        """
        options = {"port": target.port, "seconds": self.plan.seconds, "warm_up": self.plan.warm_up, **options}
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        process = subprocess.Popen(
            [str(self._load), mode, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with process:  # leaving it closes stdin, which ends the process
            if process.stdout.readline() == "begin\n":
                cpu = target.cpu_seconds()
                measured = process.stdout.readline()
                cpu = target.cpu_seconds() - cpu
                if measured:
                    load = Load(**json.loads(measured), server_cpu=cpu)
                    self._check_bottleneck(server, mode, load)
                    yield load
                    return
            raise ServerError(process.stderr.read().strip() or "the load generator crashed")

    def _check_bottleneck(self, server: Server, mode: str, load: Load) -> None:
        if mode != "idle" and load.cpu > 0.9 * load.seconds and load.server_cpu < load.cpu:
            self._remark(
                f"{mode}: {server.name}: the load generator was the bottleneck, with {load.cpu / load.seconds:.0%} of "
                f"a core to the server's {load.server_cpu / load.seconds:.0%}"
            )

    def _record(self, server: Server, metric: str, value: float | None) -> None:
        if value is not None:
            self.results.values[server.name, metric][self._round] = value

    def _remark(self, text: str) -> None:
        print(text, file=sys.stderr)
        self.results.remarks.append(text)


#: By their names on the command line.
MEASURES: dict[str, Callable[[Bench, Server], None]] = {
    "echo": Bench.measure_echo,
    "connect": Bench.measure_connect,
    "flood": Bench.measure_flood,
    "fanout": Bench.measure_fanout,
    "idle": Bench.measure_idle,
}


def raise_file_limit() -> int:
    """Let this process and the servers open as many files as the system allows; return how many connections fit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return (most - 500) // FILES_PER_CONNECTION


def compile_load(directory: Path) -> Path:
    """Compile the load generator, and return where it is."""
    binary = directory / "load"
    command: list[Any] = ["gcc", "-O2", "-Wall", "-Wextra", "-o", binary, SOURCE]
    subprocess.run(command, check=True)
    return binary
