"""Compare the CPU time of the workers on four machines with what docs/scaling.md predicts from three of them.

    python -m benchmarks.scaling

A machine is a network namespace with one worker. All of them use one Redis. Rooms on one and on three machines show
what a delivery, a publication and a read take, and then rooms have members on all four. It needs root, because of the
namespaces, and the environment of ``make bench``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .measures import Bench, Plan, compile_load, raise_file_limit
from .servers import HOST, ROOM_SERVERS, Running, Server, await_handshake, free_ports, start, start_redis

#: The live tests have the machines.
SUPPORT = Path(__file__).parent.parent / "tests" / "support"

MACHINES = 4

#: The most members of a room.
MOST = 1_000


class Shape(NamedTuple):
    """A room, and how much is published to it.

    :param members: the number of its members in all workers.
    :param rate: messages per second.
    """

    members: int
    rate: int


class Constants(NamedTuple):
    """What docs/scaling.md multiplies, in microseconds of CPU time."""

    delivery: float
    publish: float
    read: float

    def predict(self, shape: Shape, workers: int) -> float:
        """Return the CPU time of all workers for one message."""
        return shape.members * self.delivery + self.publish + workers * self.read


#: The room that shows what a delivery takes, on as many machines as the next one.
MANY = Shape(MOST, 20)

#: The members of rooms that show what a publication and a read take: one on each of three machines, and one with the
#: publisher.
FEW, SINGLE = 3, 1


def shapes(rate: int) -> list[Shape]:
    """Return the rooms on four machines."""
    return [Shape(4, rate), Shape(40, rate // 2), Shape(200, rate // 4), MANY]


def measure(bench: Bench, server: Server, target: Running, shape: Shape) -> float:
    """Return the CPU microseconds of all workers for one message."""
    room = server.room
    assert room is not None
    paths = {"publish": room.publish, "receive": room.receive}
    with bench.loaded(server, target, "room", connections=shape.members, rate=shape.rate, **paths) as load:
        return 1e6 * load.server_cpu / load.count * shape.members


def measure_constants(bench: Bench, server: Server, targets: Sequence[Running], rate: int) -> Constants:
    many, few = (measure(bench, server, targets[FEW - 1], shape) for shape in (MANY, Shape(FEW, rate)))
    single = measure(bench, server, targets[SINGLE - 1], Shape(SINGLE, rate))
    delivery = (many - few) / (MANY.members - FEW)
    read = (few - single) / (FEW - SINGLE) - delivery
    return Constants(delivery, single - delivery - read, read)


@contextmanager
def machines(server: Server) -> Iterator[Sequence[Running]]:
    """Run a worker of a server on each of some machines, and a Redis for all of them.

    Yields the first machine, the first two of them, and so on.
    """
    sys.path.append(str(SUPPORT))
    from namespaces import places

    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        address, made = stack.enter_context(places(MACHINES))
        url, redis = stack.enter_context(start_redis(address))
        environ = {**os.environ, **server.environ, "REDIS": url}
        ports = free_ports(MACHINES)
        pids = []
        for place, port in zip(made, ports, strict=True):
            (command,) = server.commands([port], MOST)
            command = [part.replace(HOST, "0.0.0.0") for part in command]
            process = stack.enter_context(start([*place.command(), *command], environ, log))
            await_handshake(process, port, "/member", place.address)
            pids.append(process.pid)
        hosts = [place.address for place in made]
        yield [Running(ports[:count], pids[:count], redis, hosts[:count]) for count in range(1, MACHINES + 1)]


def main() -> None:
    names = {server.name: server for server in ROOM_SERVERS if server.room and server.room.is_ours}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="this package, gevent, redis", choices=[*names], help="which to measure")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of all measurements")
    parser.add_argument("--seconds", type=float, default=2.0, help="the duration of each measurement")
    parser.add_argument("--rate", type=int, default=200, help="messages a second to the smallest rooms")
    options = parser.parse_args()
    if os.geteuid() or not shutil.which("ip"):
        parser.error("network namespaces need root and the command ip")

    raise_file_limit()
    server = names[options.server]
    rounds: list[Constants] = []
    measured: dict[Shape, list[float]] = {shape: [] for shape in shapes(options.rate)}
    with tempfile.TemporaryDirectory() as directory:
        plan = Plan(["rooms"], options.repeats, options.seconds, warm_up=0.5, idle=[])
        bench = Bench(plan, compile_load(Path(directory)))
        for _ in range(options.repeats):
            with machines(server) as targets:
                rounds.append(measure_constants(bench, server, targets, options.rate))
                for shape, values in measured.items():
                    values.append(measure(bench, server, targets[-1], shape))
    constants = Constants(*map(median, zip(*rounds, strict=True)))
    print(*(f"{name}: {value:.0f} µs" for name, value in constants._asdict().items()), sep=", ")
    print("members  per second  predicted µs  measured µs  ratio")
    for shape, values in measured.items():
        predicted, value = constants.predict(shape, MACHINES), median(values)
        print(f"{shape.members:7}  {shape.rate:10}  {predicted:12,.0f}  {value:11,.0f}  {predicted / value:5.2f}")


if __name__ == "__main__":
    main()
