"""The results of a run: the comparisons, the tables, the plot, and the page of the docs."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .measures import FANOUT_RECEIVERS, MOST_BUSY, SHAPES, Plan, Results, Shape
from .rooms import BESIDE_RATE, BROADCAST, CROWD, CROWD_ROOMS, ECHOES, MEMBERS, PAIR_RATE
from .servers import BARE, CHANNELS, FLASK_SOCKETIO, PARKED, PLAIN, REFERENCE, Server, longest_backlog

BEGIN = "<!-- Written by `make bench`, from here to the end mark. -->\n"
END = "<!-- End of what `make bench` wrote. -->\n"

PAGE = f"""# Performance

`make bench` compares this package with other servers. All servers run on the same machine in the same run, each in one
worker process, or two for rooms. The ratios hold from run to run; the absolute figures depend on the machine and on its
other load.

{BEGIN}{END}"""

NOTES = f"""## What the figures mean

- *CPU* is the time in microseconds that all processes of the server, in user space and in the kernel, take for one
  echoed message; *ratio*, in the tables of all figures, compares it with
  {REFERENCE}. *Latency* is the time from a message to its echo.
- With messages *in flight* (a closed loop), each connection sends its next message when an echo arrives. In the *open
  loop*, messages are due at random times (Poisson) at a fixed rate, each on a random connection. Latency begins when
  a message is due. A server takes part if, after the first table, this rate takes at most {MOST_BUSY:.0%} of a core.
- *Messages per recv* are those of a call that received something, *per send* those of a call that sent something,
  and *EAGAIN* is the share of the calls to receive that found nothing. They are counted in a run of their own.
- Every figure is the median of the rounds; in a round, all servers have their turn. A ratio is the median of the
  ratios of each round, so it may differ from the quotient of two figures in the table.
- A *connection* is TCP's and WebSocket's handshakes, one echo and both closing handshakes, 32 at a time. A *page* is
  TCP's handshake, a request, the answer "Hello" and the end of TCP, also 32 at a time.
- *Broadcast* is the CPU time for one delivery of a message of 64 bytes to {FANOUT_RECEIVERS:,} connections.
- *Flood* is the 99th percentile of the latency of 31 connections with one message in flight, beside one more that
  writes and reads as fast as it can, divided by the same without it. A client that gets no echo at all counts with the
  time of the measurement.
- *A bare C program* is `benchmarks/apps/bare.c`, which calls `send(2)` for each connection.
- *Delay of the loop* is the longest CPU time of its thread between two turns of a timer of a millisecond. It is watched
  from the moment when all idle connections have opened, as many as in the last column, until all have been pinged. *CPU
  of idle connections* is a share of one core, while they are pinged again.
- *Idle* is the growth of the server's memory (Pss, without the kernel's socket buffers) by one connection that has
  echoed one message.
- *Parked* connections are those of a `WebSocketView`, on a worker with 100 cores (gevent and asyncio) or 16 threads,
  whatever their number. *Asked at once* is the longest time to an echo, when all of them send a message at the same
  time, again and again, and 8 clients get pages. *All are back* is the time from a reload of uWSGI until all of
  them, which come back at once, have an echo of the new worker; *lost* ones ended without a Close frame (1006). The
  queue of the listening socket has {longest_backlog():,} places (`net.core.somaxconn`).
"""

ROOM_NOTES = f"""## Rooms

A room has its members on two workers, half on each, and every worker has a port of its own. One more connection
publishes messages of 64 bytes to the first worker, at a fixed rate: 20 a second to {MEMBERS:,} members (5 with
Channels, which cannot do more), {PAIR_RATE} a second to two members. The servers of other packages are two processes,
and Redis carries their messages. Nothing is pinned, because the workers, Redis and the load generator may be more than
the CPUs.

- *CPU* is the time of all processes of the server: for one delivery to one of {MEMBERS:,} members, or for one message
  to two members. The CPU time of Redis is in a column of its own.
- *Latency* is the time from the publisher to a member on the other worker.
- *Publish* is the CPU time of one call of `publish()` in a handler.
- *Echoes beside* is the 99th percentile of the latency of {ECHOES} connections on the first worker with one message in
  flight, while {BESIDE_RATE:,} messages a second go to a room with two members, divided by the same without the room.
- *Membership* is the growth of a worker's memory by one membership: {CROWD} connections are in {CROWD_ROOMS} rooms.
"""


#: Microseconds by which the messages of an open loop may be late.
MOST_LATE = 100


def _title(shape: Shape) -> str:
    size = shape.name.partition(" ")[2]
    if shape.rate is not None:
        return f"{shape.connections} connections, {shape.rate:,} messages of {size} a second in an open loop"
    messages = "1 message" if shape.in_flight == 1 else f"{shape.in_flight} messages"
    return f"{shape.connections} connections, {messages} of {size} in flight on each"


@dataclass(frozen=True)
class Comparison:
    """The cost of an operation in a server of this package, compared with another server.

    :param target: what the ratio should not exceed, or the figure itself if it is compared with no other server.
    :param other_title: what is compared with, if it is not the same operation.
    :param other_metric: its metric.
    """

    title: str
    metric: str
    server: str
    other: str | None
    show: str
    target: float | None = None
    other_title: str | None = None
    other_metric: str | None = None

    def ratio(self, results: Results) -> float | None:
        """Return the cost in the server of this package divided by the other one's, or None if it was not measured."""
        if self.other is None:
            return None
        return results.ratio(self.server, self.other, self.metric, self.other_metric)

    def row(self, results: Results) -> list[str]:
        def cell(server: str, metric: str, title: str | None = None) -> str:
            return (
                f"{title or server.removeprefix('this package, ')}: {_show(results.value(server, metric), self.show)}"
            )

        other = "-" if self.other is None else cell(self.other, self.other_metric or self.metric, self.other_title)
        return [self.title, cell(self.server, self.metric), other, _show(self.ratio(results), "{:.2f}")]

    def target_row(self, results: Results) -> list[str]:
        """Return the row with the target."""
        show = self.show if self.other is None else "{:.2f}"
        return [*self.row(results), "at most " + _show(self.target, show)]


_GEVENT = "this package, gevent"
_MEMORY, _LOCAL, _REDIS = (f"{_GEVENT}, {broker}" for broker in ("memory", "local", "redis"))
_PICOWS = "picows + uvloop"
_WEBSOCKETS = "websockets (asyncio)"
_UVLOOP = "this package, asyncio on uvloop"
_CONNECTION = "CPU per connection, with one echo"
_PARKED_MODES = ("gevent", "threads", "asyncio")
_PARKED_GEVENT, _PARKED_THREADS, _ = (PARKED.format(mode) for mode in _PARKED_MODES)
_SMALL, _PIPELINED, _LARGE, _OPEN = SHAPES


def _messages(shape: Shape, server: str, other: str, target: float | None = None) -> Comparison:
    return Comparison(
        f"CPU per message: {_title(shape)}", f"{shape.name} cpu", server, other, "{:,.1f} µs", target=target
    )


def _fan_out(other: str, target: float) -> Comparison:
    title = f"CPU per delivery of a broadcast to {FANOUT_RECEIVERS:,}"
    return Comparison(title, "fan-out cpu", _GEVENT, other, "{:,.2f} µs", target=target)


#: What a release should reach, compared with other servers.
TARGETS = [
    _messages(_SMALL, _GEVENT, _PICOWS, 1.0),
    _messages(_PIPELINED, _GEVENT, REFERENCE, 0.45),
    _messages(_OPEN, _GEVENT, _PICOWS, 1.0),
    _messages(_SMALL, "this package, asyncio", _WEBSOCKETS, 0.3),
    _messages(_SMALL, _UVLOOP, _WEBSOCKETS, 0.25),
    _messages(_SMALL, "this package, asyncio", "aiohttp", 0.6),
    _messages(_SMALL, "this package, threads", "flask-sock on gunicorn, threads", 0.2),
    _fan_out(_WEBSOCKETS, 0.55),
    _fan_out(BARE, 1.25),
    _messages(_SMALL, _PARKED_GEVENT, _PICOWS, 0.9),
]

#: What it should reach compared with itself.
OWN_TARGETS = [
    Comparison(
        _CONNECTION,
        "connect cpu",
        _GEVENT,
        _GEVENT,
        "{:,.0f} µs",
        target=2.2,
        other_title="a page on the same server",
        other_metric="page cpu",
    ),
    Comparison("CPU per page of the same application", "page cpu", _GEVENT, PLAIN.name, "{:,.1f} µs", target=1.01),
    *(
        Comparison(title, metric, server, None, show, target=target)
        for server in (_GEVENT, "this package, asyncio")
        for title, metric, show, target in (
            ("Longest delay of the loop, idle connections", "housekeeping ms", "{:.1f} ms", 5),
            ("CPU of idle connections", "housekeeping cpu", "{:.1f} %", 1),
        )
    ),
    _messages(_SMALL, _PARKED_THREADS, "this package, threads", 0.75),
    Comparison(_CONNECTION, "connect cpu", _PARKED_GEVENT, _GEVENT, "{:,.0f} µs", target=0.9),
    *(
        Comparison("Memory of an idle connection", "idle most", PARKED.format(mode), None, "{:.1f} kB", target=8)
        for mode in _PARKED_MODES
    ),
    Comparison(
        "Echoes of all parked connections, asked at once", "asked longest", _PARKED_THREADS, None, "{:.2f} s", 2
    ),
    Comparison(
        "99th percentile of a page meanwhile",
        "page beside p99",
        _PARKED_THREADS,
        _PARKED_THREADS,
        "{:,.1f} ms",
        target=2,
        other_title="a page beside idle ones",
        other_metric="page alone p99",
    ),
    Comparison(
        "CPU per delivery in a room of all parked connections",
        "crowd cpu",
        _PARKED_GEVENT,
        _PARKED_GEVENT,
        "{:,.2f} µs",
        target=1.1,
        other_title=f"broadcast() to {FANOUT_RECEIVERS:,}",
        other_metric="broadcast cpu",
    ),
    *(
        Comparison(title, metric, PARKED.format(mode), None, show, target=target)
        for mode in _PARKED_MODES
        for title, metric, show, target in (
            ("All parked connections are back after a reload", "return s", "{:.1f} s", 15),
            ("Connections lost in the reload (1006)", "return abnormal", "{:.0f}", 0),
        )
    ),
]

COMPARISONS = [
    *TARGETS,
    _messages(_SMALL, _GEVENT, REFERENCE),
    _messages(_PIPELINED, _GEVENT, _PICOWS),
    _messages(_LARGE, _GEVENT, _PICOWS),
    _messages(_OPEN, _GEVENT, REFERENCE),
    _messages(_SMALL, "this package, drop-in for flask-sock, gevent", "flask-sock on gunicorn, gevent"),
    _messages(_SMALL, _UVLOOP, "websockets on uvloop"),
    _messages(_SMALL, "this package, gevent, pure Python", "Starlette on uvicorn"),
    Comparison("CPU per delivery in a room on one worker", "one worker cpu", _MEMORY, BROADCAST, "{:,.2f} µs"),
    *(
        Comparison("CPU per delivery in a room on two workers", "room cpu", server, other, "{:,.2f} µs")
        for other in (FLASK_SOCKETIO, CHANNELS, BARE)
        for server in (_LOCAL, _REDIS)
    ),
    Comparison("Slow-down of 31 clients beside one that floods", "flood ratio", _GEVENT, _WEBSOCKETS, "x {:,.1f}"),
    Comparison("Memory of an idle connection", "idle 2000", _GEVENT, _WEBSOCKETS, "{:,.1f} kB"),
    Comparison(_CONNECTION, "connect cpu", _GEVENT, _PICOWS, "{:,.0f} µs"),
]


def report(results: Results, servers: Sequence[Server], plan: Plan, command: str) -> str:
    """Return the measured part of the page, in Markdown."""
    return "\n".join(
        [
            f"Measured {time.strftime('%Y-%m-%d')} with `{command}` on {_machine()}: {_plan(plan)}. {_pins(plan)}.\n",
            f"{_versions(servers)}.\n",
            "![CPU time for each message](performance.svg)\n",
            *_target_table(results),
            *_comparison_tables(results),
            *_figure_tables(results, [server for server in servers if not server.room], plan),
            *(f"- {remark}\n" for remark in results.remarks),
            NOTES,
            *_room_tables(results, [server for server in servers if server.room]),
        ]
    )


def write_page(directory: Path, text: str, results: Results, servers: Sequence[Server]) -> Path:
    """Write the plot and the page, or replace the measured part of an existing page, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance.svg").write_text(plot(results, [each for each in servers if "echo" in each.measures]))
    path = directory / "performance.md"
    page = path.read_text() if path.exists() else PAGE
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has lost the marks between which the measured part belongs")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    return path


def _target_table(results: Results) -> Iterator[str]:
    """Yield what this package should reach."""
    targets = [*TARGETS, *OWN_TARGETS]
    rows = [each.target_row(results) for each in targets if results.value(each.server, each.metric) is not None]
    if rows:
        yield "## Targets\n"
        yield "The ratio is what this package takes, divided by what it is compared with.\n"
        yield _markdown_table(["measured", "this package", "compared with", "ratio", "target"], rows)


def _comparison_tables(results: Results) -> Iterator[str]:
    """Yield the operations in which this package is faster than others, and then those in which it is slower."""
    ratios = [(ratio, each) for each in COMPARISONS if (ratio := each.ratio(results)) is not None]
    ratios.sort(key=lambda pair: pair[0])
    for heading, is_faster in (("Where this package is faster", True), ("Where others are faster", False)):
        rows = [each.row(results) for ratio, each in ratios if (ratio < 1) == is_faster]
        if rows:
            yield f"## {heading}\n"
            yield "The ratio is what this package takes, divided by what the other server takes.\n"
            yield _markdown_table(["measured", "this package", "compared with", "ratio"], rows)


def _figure_tables(results: Results, servers: Sequence[Server], plan: Plan) -> Iterator[str]:
    """Yield a table for each shape of messages, and one for all other measures."""
    if not servers:
        return
    yield "## All figures\n"
    if "echo" in plan.measures:
        for shape in SHAPES:
            columns = [
                ("CPU µs", "cpu", "{:,.1f}"),
                ("per second", "rate", "{:,.0f}"),
                ("median latency µs", "p50", "{:,.0f}"),
                ("99th percentile µs", "p99", "{:,.0f}"),
                ("messages per recv", "per recv", "{:,.2f}"),
                ("per send", "per send", "{:,.2f}"),
                ("EAGAIN", "EAGAIN", "{:.0%}"),
            ]
            titles = ["server", *(title for title, _, _ in columns)]
            titles.insert(2, "ratio")
            rows = []
            for server in servers:
                figures = [_show(results.value(server.name, f"{shape.name} {key}"), show) for _, key, show in columns]
                ratio = _show(results.ratio(server.name, REFERENCE, f"{shape.name} cpu"), "{:,.2f}")
                if figures[0] != "-":
                    rows.append([server.name, figures[0], ratio, *figures[1:]])
            if rows:
                yield f"### {_title(shape)}\n"
                yield _markdown_table(titles, rows)
            late = max((results.value(server.name, f"{shape.name} late") or 0 for server in servers), default=0)
            if late > MOST_LATE:
                yield (
                    f"The load generator was late, by up to {late:,.0f} µs on average: the machine was busy, and the "
                    "messages came in bunches.\n"
                )
    others = [
        ("connect", "connections per second", "connect rate", "{:,.0f}"),
        ("connect", "connection µs", "connect cpu", "{:,.0f}"),
        ("fanout", "broadcast µs", "fan-out cpu", "{:.2f}"),
        ("flood", "flood", "flood ratio", "x {:,.1f}"),
        *(("idle", f"{count:,} idle: kB each", f"idle {count}", "{:.1f}") for count in plan.idle),
    ]
    measured = [column for measure, *column in others if measure in plan.measures]
    if measured:
        yield "### Connections, broadcasts, floods and memory\n"
        yield _markdown_table(
            ["server", *(title for title, _, _ in measured)],
            [
                [server.name, *(_show(results.value(server.name, m), show) for _, m, show in measured)]
                for server in servers
            ],
        )
    yield from _parked_table(results, servers, plan)


def _parked_table(results: Results, servers: Sequence[Server], plan: Plan) -> Iterator[str]:
    """Yield what many parked connections take at once."""
    columns = {
        "asked at once s": ("asked longest", "{:.2f}"),
        "CPU µs of each echo": ("asked cpu", "{:,.1f}"),
        "p99 of a page meanwhile ms": ("page beside p99", "{:,.1f}"),
        "beside idle ones ms": ("page alone p99", "{:,.1f}"),
        "delivery in a room µs": ("crowd cpu", "{:,.2f}"),
        "broadcast to them µs": ("broadcast crowd cpu", "{:,.2f}"),
        "all are back s": ("return s", "{:.1f}"),
        "median s": ("return p50", "{:.1f}"),
        "CPU s": ("return cpu", "{:.1f}"),
        "lost": ("return abnormal", "{:,.0f}"),
        "handshakes repeated": ("return refused", "{:,.0f}"),
    }
    rows = [
        [server.name, *(_show(results.value(server.name, metric), show) for metric, show in columns.values())]
        for server in servers
    ]
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    if rows:
        yield f"### {plan.parked:,} parked connections\n"
        yield _markdown_table(["server", *columns], rows)


def _room_tables(results: Results, servers: Sequence[Server]) -> Iterator[str]:
    """Yield what there is to say about rooms: a table has the servers with figures for it."""
    if not servers:
        return
    yield ROOM_NOTES
    common = [("CPU µs", "cpu"), ("of Redis µs", "redis"), ("median latency µs", "p50"), ("99th percentile µs", "p99")]
    ours = {
        "publish µs": ("publish cpu", "{:,.1f}"),
        "echoes beside": ("beside ratio", "x {:,.1f}"),
        "membership bytes": ("membership", "{:,.0f}"),
    }
    delivery, latency = "{:,.2f}", "{:,.0f}"
    tables = {
        f"A room of {MEMBERS:,} members: each delivery": {
            title: (f"room {key}", delivery if key in {"cpu", "redis"} else latency) for title, key in common
        },
        "A room of two members: each message": {title: (f"pair {key}", latency) for title, key in common},
        "What a room takes in a worker": ours,
    }
    for heading, columns in tables.items():
        rows = [
            [server.name, *(_show(results.value(server.name, metric), show) for metric, show in columns.values())]
            for server in servers
        ]
        rows = [row for row in rows if set(row[1:]) != {"-"}]
        if rows:
            yield f"### {heading}\n"
            yield _markdown_table(["server", *columns], rows)


def _show(value: float | None, show: str) -> str:
    return "-" if value is None else show.format(value)


def _markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [list(titles), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    # Names are on the left, and figures on the right.
    table.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = (
        " | ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in table
    )
    return "".join(f"| {line} |\n" for line in lines)


def _machine() -> str:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cpu = model[1] if model else platform.machine()
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{len(os.sched_getaffinity(0))} cores of {cpu}, Linux {kernel}"


def _pins(plan: Plan) -> str:
    if plan.cpus is None:
        return "Nothing was pinned, because there is one CPU only"
    return "The load generator was pinned to CPU {}, and each server to CPU {}".format(*plan.cpus)


def _plan(plan: Plan) -> str:
    rounds = "1 round" if plan.repeats == 1 else f"{plan.repeats} rounds"
    return f"{rounds}, {plan.seconds:g} s for each measurement after {plan.warm_up:g} s of warm-up"


def _versions(servers: Sequence[Server]) -> str:
    packages = dict.fromkeys(package for server in servers for package in server.packages)
    versions = [f"{package} {_version(package)}" for package in packages]
    functions = "compiled" if find_spec("flask_uwsgi_websocket.protocol._frames") else "pure Python"
    return f"CPython {platform.python_version()}, {', '.join(versions)}; the functions of this package: {functions}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


# The plot: a panel for each shape, a bar for each server.

_ROW, _LABELS, _PANEL, _BAR = 22, 260, 220, 130
_OURS, _OTHERS = "#c2410c", "#94a3b8"

#: A bar of more than this multiple of the shortest one is cut, so that the differences of the others stay visible.
_LONGEST = 12


def plot(results: Results, servers: Sequence[Server]) -> str:
    """Return an SVG of the CPU time for each message."""
    height = _ROW * (len(servers) + 3)
    title = "CPU time for each message in µs: connections x messages in flight on each x size"
    parts = [_text(_LABELS, _ROW, title, weight="bold")]
    parts += [_text(_LABELS - 8, _ROW * (row + 3), server.name, "end") for row, server in enumerate(servers)]
    for index, shape in enumerate(SHAPES):
        left = _LABELS + index * _PANEL
        values = [results.value(server.name, f"{shape.name} cpu") for server in servers]
        measured = [value for value in values if value is not None]
        longest = min(max(measured, default=1), _LONGEST * min(measured, default=1))
        size = shape.name.partition(" ")[2]
        head = f"{shape.in_flight} x {size}" if shape.rate is None else f"{size}, {shape.rate:,} a second"
        parts.append(_text(left, _ROW * 2, f"{shape.connections} x {head}"))
        for row, (server, value) in enumerate(zip(servers, values, strict=True)):
            if value is not None:
                width = _BAR * min(value, longest) / longest
                colour = _OURS if server.name.startswith("this package") else _OTHERS
                y = _ROW * (row + 3)
                parts.append(f'<rect x="{left}" y="{y - 11}" width="{width:.1f}" height="14" fill="{colour}"/>')
                cut = " (cut)" if value > longest else ""
                parts.append(_text(left + width + 5, y, f"{value:,.1f}{cut}"))
    return _svg(_LABELS + len(SHAPES) * _PANEL, height, parts)


# The plot of memory: a line for each server, with its name at the end.

_LEFT, _TOP, _WIDE, _HIGH, _NAMES, _LEAST = 60, 60, 560, 340, 300, 15


def plot_memory(grown: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Return an SVG of the memory of servers against the number of their connections.

    :param grown: for each server the points of its line: a number of connections, and the MB that they take.
    """
    most = max(count for points in grown.values() for count, _ in points)
    largest = max(memory for points in grown.values() for _, memory in points)
    bottom = _TOP + _HIGH

    def place(count: float, memory: float) -> tuple[float, float]:
        return _LEFT + _WIDE * count / most, bottom - _HIGH * memory / largest

    parts = [_text(_LEFT, _ROW, "Memory of one worker in MB, by the number of its idle connections", weight="bold")]
    for tick in _ticks(most):
        x, _ = place(tick, 0)
        parts.append(_line([(x, bottom), (x, bottom + 5)], _OTHERS))
        parts.append(_text(x, bottom + 20, f"{tick:,}", "middle"))
    for tick in _ticks(largest):
        _, y = place(0, tick)
        parts.append(_line([(_LEFT, y), (_LEFT + _WIDE, y)], "#e2e8f0"))
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:,}", "end"))
    ends = {}
    for name, points in grown.items():
        ours = name.startswith("this package")
        line = [place(*point) for point in points]
        dashed = ours and "parked" not in name
        parts.append(_line(line, _OURS if ours else _OTHERS, width=2, dashed=dashed))
        ends[name] = line[-1]
    # From the lowest to the highest, each name is at least a line above the one before that it would touch.
    taken: list[tuple[float, float]] = []
    for name, (x, y) in sorted(ends.items(), key=lambda item: -item[1][1]):
        while any(abs(y - other) < _LEAST and abs(x - left) < _NAMES for left, other in taken):
            y -= 1
        taken.append((x, y))
        count, memory = grown[name][-1]
        parts.append(_text(x + 8, y + 4, f"{name}: {1024 * memory / count:,.1f} kB each"))
    return _svg(_LEFT + _WIDE + _NAMES, bottom + 2 * _ROW, parts)


def _ticks(most: float) -> list[int]:
    """Return round numbers from 0 to *most*."""
    step = next(step for power in range(9) for digit in (1, 2, 5) if (step := digit * 10**power) >= most / 6)
    return list(range(0, int(most) + 1, step))


def _line(points: Sequence[tuple[float, float]], colour: str, width: int = 1, *, dashed: bool = False) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _svg(width: int, height: int, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'stroke="white" stroke-width="4" paint-order="stroke">{escape(text)}</text>'
    )
