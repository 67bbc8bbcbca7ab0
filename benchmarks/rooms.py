"""The measures of rooms."""

from __future__ import annotations

from dataclasses import replace
from urllib.request import urlopen

from .measures import Bench, Load
from .servers import RoomServer, Running, Server, running

MEMBERS = 1_000

#: Messages a second to a room of two members, and beside echoes.
PAIR_RATE = 200
BESIDE_RATE = 1_000

#: Connections that echo beside the messages to a room, one message in flight on each.
ECHOES = 31

#: Connections that each join all rooms of ``/crowd``, and the number of these rooms.
CROWD = 500
CROWD_ROOMS = 100

#: The name under which the deliveries of broadcast() are recorded.
BROADCAST = "broadcast() to the members"


def measure_rooms(bench: Bench, server: Server) -> None:
    """Measure a server that serves rooms."""
    room = server.room
    assert room is not None
    if room.workers == 1:
        _measure_one_worker(bench, server, room)
        return
    paths = {"publish": room.publish, "receive": room.receive}
    with running(server, MEMBERS) as target:
        with bench.loaded(server, target, "room", connections=MEMBERS, rate=room.rate, **paths) as load:
            _record(bench, server, "room", load)
        with bench.loaded(server, target, "room", connections=2, rate=PAIR_RATE, **paths) as load:
            _record(bench, server, "pair", load, deliveries=2)
        if room.is_ours:
            bench.record(server, "publish cpu", _cost(target))
            _measure_beside(bench, server, target, paths)


def _record(bench: Bench, server: Server, name: str, load: Load, deliveries: int = 1) -> None:
    """Record the CPU time for so many deliveries, of the server and of Redis, and the latencies."""
    if load.count:
        bench.record(server, f"{name} cpu", 1e6 * load.server_cpu / load.count * deliveries)
        bench.record(server, f"{name} redis", 1e6 * load.redis_cpu / load.count * deliveries)
        bench.record(server, f"{name} p50", load.p50)
        bench.record(server, f"{name} p99", load.p99)


def _measure_one_worker(bench: Bench, server: Server, room: RoomServer) -> None:
    """Compare the deliveries in a room with those of broadcast() to its members, and measure a membership."""
    with bench.running(server, MEMBERS + 1) as target:
        for name, publish in ((server.name, room.publish), (BROADCAST, "/broadcast")):
            paths = {"publish": publish, "receive": room.receive}
            with bench.loaded(server, target, "fanout", connections=MEMBERS, **paths) as load:
                bench.record(replace(server, name=name), "one worker cpu", load.cpu_each)
    grown = bench.grown_kb(server, CROWD, "/crowd") - bench.grown_kb(server, CROWD)
    bench.record(server, "membership", 1024 * grown / (CROWD * CROWD_ROOMS))


def _measure_beside(bench: Bench, server: Server, target: Running, paths: dict[str, str]) -> None:
    """Compare the latency of echoes with and without messages to a room."""
    with bench.loaded(server, target, "echo", connections=ECHOES) as alone:
        pass
    with bench.loaded(server, target, "beside", connections=ECHOES, rate=BESIDE_RATE, **paths) as beside:
        bench.record(server, "beside p99", beside.p99)
        bench.record(server, "beside ratio", beside.p99 / alone.p99 if alone.count else None)


def _cost(target: Running) -> float:
    """Return the CPU microseconds of a call of publish(), until it returns."""
    with urlopen(f"http://127.0.0.1:{target.port}/cost", timeout=10) as response:
        return 1e6 * float(response.read())
