"""Measure, print one table, and write the page of the docs. `make bench` runs this in its own environment."""

from __future__ import annotations

import argparse
import resource
import shlex
import sys
import tempfile
from pathlib import Path

from .latency import measure_housekeeping
from .measures import MEASURES, Bench, Plan, choose_cpus, compile_load, most_parked, raise_file_limit
from .parked import measure_asked, measure_crowd, measure_returns
from .report import report, write_page
from .rooms import measure_rooms
from .servers import ROOM_SERVERS, SERVERS

ROOT = Path(__file__).parent.parent
ALL = SERVERS + ROOM_SERVERS
ALL_MEASURES = {
    **MEASURES,
    "housekeeping": measure_housekeeping,
    "asked": measure_asked,
    "crowd": measure_crowd,
    "returns": measure_returns,
    "rooms": measure_rooms,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, to check that everything works")
    parser.add_argument(
        "--servers", nargs="+", metavar="NAME", help="only the servers whose names contain one of these"
    )
    names = list(ALL_MEASURES)
    parser.add_argument("--measures", nargs="+", choices=names, default=names, help="only these measures")
    parser.add_argument("--repeats", type=int, help="rounds of all servers (5)")
    parser.add_argument("--seconds", type=float, help="duration of each measurement (2)")
    parser.add_argument("--list", action="store_true", help="print the names of the servers")
    parser.add_argument("--output", type=Path, help="directory of the page (docs, or build for a part of the run)")
    options = parser.parse_args()

    if options.list:
        print(*(server.name for server in ALL), sep="\n")
        return
    servers = [
        server
        for server in ALL
        if any(measure in server.measures for measure in options.measures)
        and (options.servers is None or any(part.lower() in server.name.lower() for part in options.servers))
    ]
    if not servers:
        parser.error("no server with these measures has such a name: see --list")

    room = raise_file_limit()
    plan = Plan(
        measures=options.measures,
        repeats=options.repeats or (1 if options.quick else 5),
        seconds=options.seconds or (0.4 if options.quick else 2),
        warm_up=0.1 if options.quick else 0.5,
        idle=sorted({min(connections, room) for connections in ([2_000] if options.quick else [2_000, 10_000])}),
        watch=3 if options.quick else 28,
        cpus=choose_cpus(),
        parked=min(1_000 if options.quick else 10_000, most_parked(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),
    )
    with tempfile.TemporaryDirectory() as directory:
        results = Bench(plan, compile_load(Path(directory))).run(servers, ALL_MEASURES)

    is_shortened = options.quick or options.repeats or options.seconds
    is_complete = not is_shortened and servers == ALL and options.measures == names
    output = options.output or ROOT / ("docs" if is_complete else "build")
    command = "make bench" if is_complete else shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    text = report(results, servers, plan, command)
    print(text)
    page = write_page(output, text, results, servers)
    print(f"Written to {page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}.")


if __name__ == "__main__":
    main()
