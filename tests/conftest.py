"""Hooks and fixtures of all tests: markers of folders, a check for leaks, and in CI no skipped tests."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flask_uwsgi_websocket.connection import transport
from flask_uwsgi_websocket.loops.current import current_blocking_loop
from flask_uwsgi_websocket.loops.tasks import background_asyncio_loop
from flask_uwsgi_websocket.protocol import protocol
from flask_uwsgi_websocket.rooms import arrivals, feed, outbox, presence
from flask_uwsgi_websocket.worker import housekeeper
from support.inprocess import MODES, Clock, Site, serving, wait_for_background, wait_until
from support.ports import reserved_port
from support.projects import START

hypothesis.settings.register_profile("default", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("default")

# A background job of a shell script ignores SIGINT, and the servers that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_FDS = next(path for path in (Path("/proc/self/fd"), Path("/dev/fd")) if path.exists())


#: The markers of all tests in a folder. Single tests have more markers. pyproject.toml explains them.
MARKERS = {
    "compat/live": "live once",
    "connection": "compiled",
    "docs": "once",
    "live": "live",
    "live/every_server": "matrix",
    "protocol": "compiled",
    "rooms/brokers": "heavy covered",
}


def pytest_itemcollected(item: pytest.Item) -> None:
    folder = item.path.parent.relative_to(Path(__file__).parent)
    for each in (folder, *folder.parents):
        for marker in MARKERS.get(str(each), "").split():
            item.add_marker(marker)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    return _no_skips((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    return _no_skips((yield))


def _no_skips(report: Any) -> Any:
    """Turn a skipped test into a failed one in CI."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI must run every test: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves a descriptor, a thread or a connection behind."""
    if request.node.get_closest_marker("live") or request.node.get_closest_marker(
        "original"
    ):  # the servers of live tests stay up for the next test
        yield
        return
    # Shorter, because the test waits until these have ended.
    monkeypatch.setattr(housekeeper, "INTERVAL", 0.02)
    monkeypatch.setattr(arrivals, "LINGER", 0.02)
    monkeypatch.setattr(feed, "TICK_INTERVAL", 0.02)
    monkeypatch.setattr(outbox, "IDLE_TIME", 0.02)
    monkeypatch.setattr(presence, "LINGER", 0.1)
    monkeypatch.setattr(presence, "RENEW_INTERVAL", 0.02)
    # Started here, because they run to the end of the process.
    current_blocking_loop().lot(1)
    background = background_asyncio_loop()
    background.event_loop.call_soon_threadsafe(background.lot)
    wait_until(lambda: background._lot is not None)
    resource_tracker.ensure_running()  # started here, because Werkzeug's debugger may start this process, and it stays
    threads = _threads()
    descriptors = _descriptors()
    yield
    wait_for_background()
    wait_until(lambda: _threads() <= threads, "a thread is left over")
    wait_until(lambda: _descriptors() <= descriptors, lambda: f"left over: {_descriptors() - descriptors}")


def _threads() -> set[threading.Thread]:
    """Return all threads but those that run parked views, which stay for the next ones."""
    return {thread for thread in threading.enumerate() if thread.name != "flask-uwsgi-websocket-view"}


def _descriptors() -> set[tuple[str, str]]:
    descriptors = set()
    for path in _FDS.iterdir():
        try:
            descriptors.add((path.name, os.readlink(path)))
        except OSError:  # the descriptor of the directory itself
            continue
    # multiprocessing keeps its heap for later use, for example by Werkzeug's debugger.
    return {(number, target) for number, target in descriptors if "/pym-" not in target}


@pytest.fixture(scope="module", params=["frames", "_frames"], ids=["pure", "compiled"])
def functions(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run the protocol with the pure-Python functions and with the compiled ones.

    Tests without this fixture use the functions that the package chose at import.
    """
    twin = pytest.importorskip(f"flask_uwsgi_websocket.protocol.{request.param}")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("apply_mask", "frame", "take_messages"):
            patch.setattr(protocol, name, getattr(twin, name))
        yield


@pytest.fixture
def port() -> Iterator[int]:
    """A port for a server that the test starts."""
    with reserved_port() as port:
        yield port


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty directory for a project, whose scripts can import ``start``."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library/start.py").write_text(START)
    (tmp_path / "project").mkdir()
    return (tmp_path / "project").resolve()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """The name of each concurrency mode."""
    return str(request.param)


@pytest.fixture
def site(mode: str) -> Iterator[Site]:
    """A site in each concurrency mode."""
    yield from serving(mode)


@pytest.fixture
def echo(site: Site) -> Callable[..., Any]:
    """The site's handler at ``/`` that sends everything back."""

    @site.route("/")
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    return echo


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that connections use for pings and timeouts."""
    clock = Clock()
    monkeypatch.setattr(transport, "time", clock)
    return clock


@pytest.fixture
def blocking() -> Iterator[Site]:
    """A site with threads, for behaviour that does not depend on the mode."""
    yield from serving("threads")
