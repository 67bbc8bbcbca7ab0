"""Show a server's work for one message: system calls (strace -c), and functions that take time (perf record).

    .venvs/bench/bin/python -m benchmarks.profile "this package, gevent"

The script needs strace and perf, and the right to trace.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

from .measures import FANOUT_RECEIVERS, SHAPES, compile_load
from .servers import SERVERS, Running, running

#: Seconds under each tool, which slows the server down.
SECONDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.partition("\n")[0])
    parser.add_argument("server", choices=[server.name for server in SERVERS], metavar="server")
    parser.add_argument("--fanout", action="store_true", help="measure one message to many connections, not 32x1 64 B")
    options = parser.parse_args()
    (server,) = (server for server in SERVERS if server.name == options.server)
    shape = SHAPES[0]
    mode, connections = ("fanout", FANOUT_RECEIVERS) if options.fanout else ("echo", shape.connections)
    with tempfile.TemporaryDirectory() as directory, running(server, FANOUT_RECEIVERS) as target:
        arguments = [f"--port={target.port}", f"--seconds={4 * SECONDS}", f"--connections={connections}"]
        with subprocess.Popen(
            [str(compile_load(Path(directory))), mode, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as load:
            assert load.stdout is not None
            assert load.stdout.readline() == "begin\n"
            perf = Path(directory, "perf.data")
            record(target, perf)
            calls = trace(target)
            measured = json.loads(load.stdout.readline())
        print(f"{server.name}, {mode}: {measured['count']} messages in {measured['seconds']:.0f} s")
        print("System calls for each message:")
        for name, count in calls.items():
            print(f"  {name:<12} {count / max(calls.values()):.2f}")
        print("CPU time:")
        print(*(f"  {line}" for line in shares(perf)), sep="\n")


def record(target: Running, path: Path) -> None:
    """Sample the server's process with the most work."""
    command = ["perf", "record", "--quiet", "--freq", "2000", "--output", str(path), "--pid", str(target.pids[-1])]
    subprocess.run([*command, "--", "sleep", str(SECONDS)], check=True)


def trace(target: Running) -> dict[str, int]:
    """Count the server's system calls."""
    command = ["timeout", "--signal=INT", str(SECONDS), "strace", "-f", "-c", "-p", str(target.pids[-1])]
    table = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    rows = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", table, re.MULTILINE)
    return {name: int(count) for count, name in rows if name != "total"}


def shares(path: Path) -> list[str]:
    """Return the shares of the kernel and of each library."""
    command = ["perf", "report", "--input", str(path), "--no-children", "--sort", "dso", "--percent-limit", "0.5"]
    report = subprocess.run([*command, "--stdio"], capture_output=True, text=True, check=True).stdout
    return [line.strip() for line in report.splitlines() if line.strip() and not line.startswith("#")]


if __name__ == "__main__":
    main()
