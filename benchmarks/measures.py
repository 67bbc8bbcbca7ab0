"""The measures and the run: each round has every server in turn, so that a slow minute of the machine affects all."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from flask_uwsgi_websocket.worker.admission import free_descriptors, most_by_descriptors

from .servers import BUILD, PLAIN, Running, Server, ServerError, compile_c, pinning, running

SOURCE = Path(__file__).with_name("load.c")
CALLS = Path(__file__).with_name("calls.c")

FANOUT_RECEIVERS = 1_000

#: Pages are read from two servers in turn, so many times.
PAGE_TURNS = 8

#: Seconds until the memory has settled.
SETTLING = 1.0


@dataclass(frozen=True)
class Shape:
    """Messages of ``size`` bytes: ``in_flight`` at a time on each of some connections, or ``rate`` a second on all."""

    name: str
    connections: int
    in_flight: int
    size: int
    rate: int | None = None


SHAPES = [
    Shape("32x1 64 B", 32, 1, 64),
    Shape("8x8 64 B", 8, 8, 64),
    Shape("8x1 16 KiB", 8, 1, 16384),
    Shape("open 64 B", 32, 1, 64, rate=40_000),
]

#: A server takes part in an open loop if it needs at most this share of a core. Otherwise messages pile up.
MOST_BUSY = 0.9


@dataclass(frozen=True)
class Plan:
    """The amount of measuring.

    :param measures: the names of measures.
    :param repeats: rounds of all servers. Memory does not vary, and is measured only in the first round.
    :param seconds: the duration of each measurement.
    :param warm_up: the seconds before each measurement.
    :param idle: the numbers of idle connections with which memory is measured.
    :param watch: the seconds for which a loop with idle connections is watched.
    :param cpus: the CPUs of the load generator and of the servers. None for all.
    :param parked: the number of connections that are parked, in measures of these.
    """

    measures: Sequence[str]
    repeats: int
    seconds: float
    warm_up: float
    idle: Sequence[int]
    watch: float = 28.0  # the first pings, and those of WEBSOCKET_PING_INTERVAL
    cpus: tuple[int, int] | None = None
    parked: int = 10_000


@dataclass
class Results:
    """The results: a value for each server, metric and round."""

    values: dict[tuple[str, str], dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    #: Errors, and measurements in which the load generator was the bottleneck.
    remarks: list[str] = field(default_factory=list)

    def value(self, server: str, metric: str) -> float | None:
        """Return the median of all rounds, or None if the metric was not measured."""
        values = self.values.get((server, metric))
        return median(values.values()) if values else None

    def ratio(self, server: str, to: str, metric: str, to_metric: str | None = None) -> float | None:
        """Return the median of the ratios of all rounds. Both servers have the same conditions in a round."""
        values, others = self.values.get((server, metric), {}), self.values.get((to, to_metric or metric), {})
        ratios = [values[round_] / others[round_] for round_ in values.keys() & others.keys() if others[round_]]
        return median(ratios) if ratios else None


@dataclass(frozen=True)
class Load:
    """The measurements of the load generator, see ``load.c``, and the CPU seconds of the server in the same time."""

    count: int
    seconds: float
    cpu: float
    p50: float
    p99: float
    longest: float
    late: float
    closed: int
    abnormal: int
    refused: int
    server_cpu: float
    redis_cpu: float

    @property
    def rate(self) -> float:
        """The number per second."""
        return self.count / self.seconds

    @property
    def cpu_each(self) -> float | None:
        """The CPU microseconds of the server for each, or None if there were none."""
        return 1e6 * self.server_cpu / self.count if self.count else None


class Loading:
    """A load generator that measures.

    :param process: the load generator, whose measurement has just begun.
    """

    def __init__(self, process: subprocess.Popen[str], target: Running) -> None:
        self._process = process
        self._target = target
        self._cpu, self._redis_cpu = target.cpu_seconds(), target.redis_cpu_seconds()

    def measured(self) -> Load:
        """Return the measurements, when their time is over. The connections stay until the block of the load ends.

        :raises ServerError: with the error of the load generator.
        """
        line = self._read_line()
        cpu, redis_cpu = self._target.cpu_seconds() - self._cpu, self._target.redis_cpu_seconds() - self._redis_cpu
        return Load(**json.loads(line), server_cpu=cpu, redis_cpu=redis_cpu)

    def end(self) -> dict[str, int]:
        """End the connections; return what became of them, in the mode hold.

        :raises ServerError: with the error of the load generator.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        ended: dict[str, int] = json.loads(self._read_line())
        return ended

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise _error_of(self._process)
        return line


def _error_of(process: subprocess.Popen[str]) -> ServerError:
    assert process.stderr is not None
    return ServerError(process.stderr.read().strip() or "the load generator crashed")


class Bench:
    """One run.

    :param load: the compiled load generator.
    """

    def __init__(self, plan: Plan, load: Path) -> None:
        self.plan = plan
        self.results = Results()
        self._load = load
        self._round = 0

    def run(self, servers: Sequence[Server], measures: Mapping[str, Measure]) -> Results:
        """Measure everything in the plan."""
        for round_ in range(self.plan.repeats):
            self._round = round_
            for server in servers:
                for name in self.plan.measures:
                    if name not in server.measures:
                        continue
                    print(f"round {round_ + 1} of {self.plan.repeats}: {server.name}: {name}", file=sys.stderr)
                    try:
                        measures[name](self, server)
                    except Exception as error:  # whatever it is, it must not cost the results of an hour
                        self._remark(f"{name}: {server.name}: {str(error) or repr(error)}")
        return self.results

    @property
    def is_repeating(self) -> bool:
        """Whether this is not the first round. What varies little or takes long is measured only once."""
        return self._round > 0

    def running(self, server: Server, connections: int) -> AbstractContextManager[Running]:
        """Run a server on its CPU."""
        return running(server, connections, self.plan.cpus[1] if self.plan.cpus else None)

    def measure_echo(self, server: Server) -> None:
        with self.running(server, max(shape.connections for shape in SHAPES)) as target:
            for shape in self._shapes(server):
                with self._shaped(server, target, shape) as load:
                    self.record(server, f"{shape.name} cpu", load.cpu_each)
                    self.record(server, f"{shape.name} rate", load.rate)
                    self.record(server, f"{shape.name} p50", load.p50)
                    self.record(server, f"{shape.name} p99", load.p99)
                    self.record(server, f"{shape.name} late", load.late)

    def measure_calls(self, server: Server) -> None:
        """Count the system calls, which do not vary, in a run of its own, because counting takes time."""
        if self.is_repeating:
            return
        BUILD.mkdir(exist_ok=True)
        library = BUILD / "calls.so"
        compile_c(CALLS, library, "-shared", "-fPIC")
        with tempfile.NamedTemporaryFile(buffering=0) as file:
            file.write(bytes(24))
            environ = {**server.environ, "LD_PRELOAD": str(library), "CALLS": file.name}

            def numbers() -> tuple[int, ...]:
                return struct.unpack("3Q", os.pread(file.fileno(), 24, 0))

            with self.running(replace(server, environ=environ), max(shape.connections for shape in SHAPES)) as target:
                for shape in self._shapes(server):
                    before = numbers()
                    with self._shaped(server, target, shape, seconds=self.plan.seconds / 4, warm_up=0) as load:
                        received, empty, sent = (late - early for early, late in zip(before, numbers(), strict=True))
                    if received and sent:
                        self.record(server, f"{shape.name} per recv", load.count / received)
                        self.record(server, f"{shape.name} per send", load.count / sent)
                        self.record(server, f"{shape.name} EAGAIN", empty / (received + empty))

    def _shapes(self, server: Server) -> Iterator[Shape]:
        """Yield the shapes that a server can serve, which depends on the figures of the first one."""
        for shape in SHAPES:
            cpu = self.results.value(server.name, f"{SHAPES[0].name} cpu")
            if shape.rate is None or (cpu is not None and shape.rate * cpu < 1e6 * MOST_BUSY):
                yield shape

    def _shaped(self, server: Server, target: Running, shape: Shape, **options: float) -> AbstractContextManager[Load]:
        options |= {"connections": shape.connections, "in_flight": shape.in_flight, "size": shape.size}
        if shape.rate is None:
            return self.loaded(server, target, "echo", **options)
        return self.loaded(server, target, "open", rate=shape.rate, **options)

    def measure_connect(self, server: Server) -> None:
        with self.running(server, 32) as target, self.loaded(server, target, "connect", connections=32) as load:
            self.record(server, "connect rate", load.rate)
            self.record(server, "connect cpu", load.cpu_each)

    def measure_page(self, server: Server) -> None:
        """Measure a page beside the same page without this package. They differ by little, so both take many turns."""
        with self.running(server, 32) as ours, self.running(PLAIN, 32) as plain:
            turns = [(server, ours), (PLAIN, plain)]
            loads: dict[str, list[Load]] = {server.name: [], PLAIN.name: []}
            for _ in range(1 + PAGE_TURNS):
                for each, target in turns:
                    seconds = self.plan.seconds / PAGE_TURNS
                    with self.loaded(each, target, "page", connections=32, seconds=seconds, warm_up=0.05) as load:
                        loads[each.name].append(load)
                turns.reverse()
        for each in (server, PLAIN):
            _, *measured = loads[each.name]  # the first turn is the warm-up
            cpu, count = sum(load.server_cpu for load in measured), sum(load.count for load in measured)
            self.record(each, "page cpu", 1e6 * cpu / count if count else None)

    def measure_flood(self, server: Server) -> None:
        with self.running(server, 32) as target:
            with self.loaded(server, target, "echo", connections=31) as alone:
                pass
            with self.loaded(server, target, "flood", connections=31) as beside_flood:
                self.record(server, "flood p99", beside_flood.p99)
                self.record(server, "flood ratio", beside_flood.p99 / alone.p99 if alone.count else None)

    def measure_fanout(self, server: Server) -> None:
        with (
            self.running(server, FANOUT_RECEIVERS + 1) as target,
            self.loaded(server, target, "fanout", connections=FANOUT_RECEIVERS) as load,
        ):
            self.record(server, "fan-out cpu", load.cpu_each)
            self.record(server, "fan-out rate", load.rate)

    def measure_idle(self, server: Server) -> None:
        if self.is_repeating:
            return
        for connections in self.plan.idle:
            if connections > server.most_connections:
                continue
            each = self.grown_kb(server, connections) / connections
            self.record(server, f"idle {connections}", each)
            if connections == max(self.plan.idle):
                self.record(server, "idle most", each)

    def grown_kb(self, server: Server, connections: int, path: str = "/echo") -> float:
        """Return by how much the memory of a server grows with idle connections."""
        with self.running(server, connections) as target:
            with self.loaded(server, target, "idle", connections=100, warm_up=0, timeout=30, echo=path):
                pass  # memory that the first connections allocate for all does not count
            time.sleep(SETTLING)
            before = target.memory_kb()
            with self.loaded(server, target, "idle", connections=connections, warm_up=0, timeout=30, echo=path):
                time.sleep(SETTLING)
                return target.memory_kb() - before

    @contextmanager
    def loaded(self, server: Server, target: Running, mode: str, **options: float | str) -> Iterator[Load]:
        """Load a server, and hold the connections while the block runs.

        :raises ServerError: with the error of the load generator.
        """
        with self.loading(server, target, mode, **options) as loading:
            load = loading.measured()
            self._check_bottleneck(server, mode, load)
            yield load

    @contextmanager
    def loading(self, server: Server, target: Running, mode: str, **options: float | str) -> Iterator[Loading]:
        """Load a server while the block runs.

        :raises ServerError: with the error of the load generator.
        """
        options = {"seconds": self.plan.seconds, "warm_up": self.plan.warm_up, **options}
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        arguments += [f"--port={place}" for place in target.places]
        if server.room and server.room.has_socketio:
            arguments.append("--socketio")
        process = subprocess.Popen(
            [str(self._load), mode, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=pinning(self.plan.cpus[0] if self.plan.cpus and target.is_pinned else None),
        )
        assert process.stdout is not None
        with process:  # leaving the block closes stdin, which ends the process
            if process.stdout.readline() != "begin\n":
                raise _error_of(process)
            yield Loading(process, target)

    def _check_bottleneck(self, server: Server, mode: str, load: Load) -> None:
        if mode != "idle" and load.cpu > 0.9 * load.seconds and load.server_cpu < load.cpu:
            self._remark(
                f"{mode}: {server.name}: the load generator was the bottleneck, with {load.cpu / load.seconds:.0%} of "
                f"a core to the server's {load.server_cpu / load.seconds:.0%}"
            )

    def record(self, server: Server, metric: str, value: float | None) -> None:
        if value is not None:
            self.results.values[server.name, metric][self._round] = value

    def _remark(self, text: str) -> None:
        print(text, file=sys.stderr)
        self.results.remarks.append(text)


Measure = Callable[[Bench, Server], None]

#: The measures of servers without rooms, by their names on the command line.
MEASURES: Mapping[str, Measure] = {
    "echo": Bench.measure_echo,
    "calls": Bench.measure_calls,
    "connect": Bench.measure_connect,
    "page": Bench.measure_page,
    "flood": Bench.measure_flood,
    "fanout": Bench.measure_fanout,
    "idle": Bench.measure_idle,
}


def raise_file_limit() -> int:
    """Let this process and the servers open as many files as the system allows, and return how many connections fit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most_by_descriptors(most, own=0) // 100 * 100  # this package takes more files than the others


def most_parked(limit: int) -> int:
    """Return how many parked connections fit in a process that may open *limit* files.

    A connection takes two files during its request, and the load generator keeps some itself.
    """
    return free_descriptors(limit, own=0) // 100 * 100 - 100


def choose_cpus() -> tuple[int, int] | None:
    """Return a CPU for the load generator and one for the servers, of another core if there is one, or None."""
    own, *others = sorted(os.sched_getaffinity(0))
    return (own, min(others, key=lambda cpu: _core(cpu) == _core(own))) if others else None


def _core(cpu: int) -> str:
    """Return what all CPUs of one core have in common."""
    with suppress(OSError):  # the kernel does not know
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    return str(cpu)


def compile_load(directory: Path) -> Path:
    """Compile the load generator, and return its path."""
    binary = directory / "load"
    compile_c(SOURCE, binary)
    return binary
