"""What comes out of a run: the table, the targets, the plot, the page of the docs."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from .measures import FANOUT_RECEIVERS, SHAPES, Plan, Results
from .servers import REFERENCE, Server

BEGIN = "<!-- Written by `make bench`, from here to the end mark. -->\n"
END = "<!-- End of what `make bench` wrote. -->\n"

PAGE = f"""# Performance

`make bench` compares this package with its peers, each in one worker process on the same machine in the same run. The
ratios hold from run to run; the absolute figures depend on the machine and on what else it does.

{BEGIN}{END}"""

NOTES = f"""
- *32x1 64 B*: 32 connections with one text message of 64 bytes in flight on each, and so on. *CPU* is the time in
  microseconds that all processes of the server, in user space and in the kernel, take for one echoed message;
  in brackets its ratio to {REFERENCE}.
- Every figure is the median of the rounds; in a round, all servers have their turn. A ratio is the median of the
  ratios of each round, so it may differ from the quotient of two figures in the table.
- *Idle* is the growth of the server's memory (Pss, without the kernel's socket buffers) by one connection that has
  echoed one message.
- A *connection* is TCP's and WebSocket's handshakes and both closing handshakes, 32 at a time.
- *Fan-out* is the CPU time for one delivery of a message of 64 bytes to {FANOUT_RECEIVERS:,} connections.
- *Flood* is the 99th percentile of the latency of 31 connections with one message in flight, beside one more that
  writes and reads as fast as it can, divided by the same without it. Whoever gets no echo at all is counted
  with the time of the measurement.
"""


@dataclass(frozen=True)
class Target:
    """What is to be reached: ``metric`` of ``server`` at most ``limit``, or ``limit`` times that of ``other``."""

    name: str
    server: str
    other: str | None
    metric: str
    limit: float
    unit: str = ""

    def reached(self, results: Results) -> float | None:
        """Return what the run has reached, or None if it has not measured that."""
        if self.other is None:
            return results.value(self.server, self.metric)
        return results.ratio(self.server, self.other, self.metric)


_GEVENT = "this package, gevent"
_PURE = "this package, gevent, pure Python"
_WEBSOCKETS = "websockets (asyncio)"
_GUNICORN = "flask-sock on gunicorn, threads"

TARGETS = [
    Target("gevent, 32x1 64 B, CPU against uWSGI's C API", _GEVENT, REFERENCE, "32x1 64 B cpu", 0.85),
    Target("gevent, 32x1 64 B, CPU against picows", _GEVENT, "picows + uvloop", "32x1 64 B cpu", 1.10),
    Target("gevent, 8x8 64 B, CPU against picows", _GEVENT, "picows + uvloop", "8x8 64 B cpu", 0.45),
    Target("gevent, 8x1 16 KiB, CPU against picows", _GEVENT, "picows + uvloop", "8x1 16 KiB cpu", 1.05),
    Target("threads, 32x1 64 B, CPU against flask-sock", "this package, threads", _GUNICORN, "32x1 64 B cpu", 0.30),
    Target("asyncio, 32x1 64 B, CPU against websockets", "this package, asyncio", _WEBSOCKETS, "32x1 64 B cpu", 0.45),
    Target("gevent, fan-out, CPU against websockets", _GEVENT, _WEBSOCKETS, "fan-out cpu", 0.65),
    Target("gevent, idle connection", _GEVENT, None, "idle 2000", 25, " kB"),
    Target("gevent, p99 beside a flood against without it", _GEVENT, None, "flood ratio", 3),
    Target("pure Python, 32x1 64 B, CPU against Starlette", _PURE, "Starlette on uvicorn", "32x1 64 B cpu", 0.9),
]


def report(results: Results, servers: Sequence[Server], plan: Plan, command: str) -> str:
    """Return all that there is to say, in Markdown."""
    return "\n".join(
        [
            f"Measured {time.strftime('%Y-%m-%d')} with `{command}` on {_machine()}: {_plan(plan)}.\n",
            f"{_versions(servers)}.\n",
            _markdown_table(*_main_table(results, servers, plan)),
            _markdown_table(["target", "limit", "reached", "result"], _target_rows(results)),
            *(f"- {remark}\n" for remark in results.remarks),
        ]
    )


def write_page(directory: Path, text: str, results: Results, servers: Sequence[Server]) -> Path:
    """Write the plot and the page, or the measured part of a page that is there, and return where it is."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance.svg").write_text(plot(results, servers))
    path = directory / "performance.md"
    page = path.read_text() if path.exists() else PAGE
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has lost the marks between which the measured part belongs")
    plot_link = "![CPU time for each message](performance.svg)\n"
    path.write_text(f"{before}{begin}\n{text}\n{plot_link}{NOTES}\n{end}{after}")
    return path


def _main_table(results: Results, servers: Sequence[Server], plan: Plan) -> tuple[list[str], list[list[str]]]:
    columns: list[tuple[str, Callable[[str], str]]] = [("server", str)]

    def add(title: str, metric: str, show: Callable[[float], str]) -> None:
        columns.append((title, lambda server: _show(results.value(server, metric), show)))

    def add_cpu(title: str, metric: str) -> None:
        columns.append((title, lambda server: _cpu(results, server, metric)))

    if "echo" in plan.measures:
        for shape in SHAPES:
            add_cpu(f"{shape.name} CPU µs", f"{shape.name} cpu")
            add("1/s", f"{shape.name} rate", "{:,.0f}".format)
            add("p50 µs", f"{shape.name} p50", "{:,.0f}".format)
            add("p99", f"{shape.name} p99", "{:,.0f}".format)
    if "connect" in plan.measures:
        add("connects/s", "connect rate", "{:,.0f}".format)
    if "fanout" in plan.measures:
        add("fan-out µs", "fan-out cpu", "{:.2f}".format)
    if "flood" in plan.measures:
        add("flood", "flood ratio", "x {:,.1f}".format)
    if "idle" in plan.measures:
        for connections in plan.idle:
            add(f"{connections:,} idle kB", f"idle {connections}", "{:.1f}".format)
    return [title for title, _ in columns], [[cell(server.name) for _, cell in columns] for server in servers]


def _show(value: float | None, show: Callable[[float], str]) -> str:
    return "-" if value is None else show(value)


def _cpu(results: Results, server: str, metric: str) -> str:
    value, ratio = results.value(server, metric), results.ratio(server, REFERENCE, metric)
    if value is None:
        return "-"
    return f"{value:,.1f}" if ratio is None else f"{value:,.1f} ({ratio:,.2f})"


def _target_rows(results: Results) -> Iterable[list[str]]:
    for target in TARGETS:
        reached = target.reached(results)
        if reached is not None:
            verdict = "met" if reached <= target.limit else "missed"
            yield [target.name, f"{target.limit:g}{target.unit}", f"{reached:.2f}{target.unit}", verdict]


def _markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    table = [list(titles), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    # Names to the left, figures to the right.
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


def _plan(plan: Plan) -> str:
    rounds = "1 round" if plan.repeats == 1 else f"{plan.repeats} rounds"
    return f"{rounds}, {plan.seconds:g} s for each measurement after {plan.warm_up:g} s of warm-up"


def _versions(servers: Sequence[Server]) -> str:
    packages = dict.fromkeys(package for server in servers for package in server.packages)
    versions = [f"{package} {version(package)}" for package in packages]
    engine = "compiled" if find_spec("flask_uwsgi_websocket._speedups") else "pure Python"
    return f"CPython {platform.python_version()}, {', '.join(versions)}; the engine of this package: {engine}"


# The plot: a panel for each shape, a bar for each server.

_ROW, _LABELS, _PANEL, _BAR = 22, 235, 210, 130

#: A bar that is longer than so many times the shortest is cut, so that the others can be told apart.
_LONGEST = 12


def plot(results: Results, servers: Sequence[Server]) -> str:
    """Return an SVG of the CPU time for each message."""
    height = _ROW * (len(servers) + 2)
    parts = [_text(_LABELS - 8, _ROW * (row + 2), server.name, "end") for row, server in enumerate(servers)]
    for index, shape in enumerate(SHAPES):
        left = _LABELS + index * _PANEL
        values = [results.value(server.name, f"{shape.name} cpu") for server in servers]
        measured = [value for value in values if value is not None]
        longest = min(max(measured, default=1), _LONGEST * min(measured, default=1))
        parts.append(_text(left, _ROW, f"{shape.name}: CPU µs per message", weight="bold"))
        for row, (server, value) in enumerate(zip(servers, values, strict=True)):
            if value is not None:
                width = _BAR * min(value, longest) / longest
                colour = "#c2410c" if server.name.startswith("this package") else "#94a3b8"
                top = _ROW * (row + 2) - 11
                parts.append(f'<rect x="{left}" y="{top}" width="{width:.1f}" height="14" fill="{colour}"/>')
                cut = " (cut)" if value > longest else ""
                parts.append(_text(left + width + 5, _ROW * (row + 2), f"{value:,.1f}{cut}"))
    body = "\n".join(parts)
    width = _LABELS + len(SHAPES) * _PANEL
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
