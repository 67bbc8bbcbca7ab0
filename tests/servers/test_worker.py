"""The end of a worker, without signals: it closes connections, waits for handlers, and gives up late ones."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flask_uwsgi_websocket.servers import uwsgi_worker as worker
from flask_uwsgi_websocket.worker import housekeeper, shutdown
from support.inprocess import Site, run
from support.wire import CLOSE, close_body


@pytest.fixture
def uwsgi(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The parts of uWSGI that the end of a worker needs. A test may change them."""
    state = {"delta_requests": 0, "last_spawn": time.time() - 1000, "rss": 0, "vsz": 0}
    uwsgi = SimpleNamespace(
        loop=None, opt={}, state=state, masterpid=lambda: 1, worker_id=lambda: 1, workers=lambda: (state, state, state)
    )
    monkeypatch.setattr(worker, "uwsgi", uwsgi)
    monkeypatch.setattr(shutdown, "INTERVAL", 0.01)
    monkeypatch.setattr(housekeeper, "_is_closed", False)
    return uwsgi


@pytest.mark.parametrize(
    ("signum", "masterpid", "code", "reason"),
    [
        (signal.SIGINT, 1, 1001, b"the server stops"),
        (signal.SIGHUP, 1, 1012, b"the server restarts"),
        (signal.SIGTERM, 1, 1012, b"the server restarts"),
        (signal.SIGHUP, 0, 1001, b"the server stops"),
        (signal.SIGTERM, 0, 1001, b"the server stops"),
    ],
)
def test_a_worker_that_ends_closes_its_connections_and_gives_up_endless_handlers(
    site: Site, uwsgi: SimpleNamespace, signum: int, masterpid: int, code: int, reason: bytes
) -> None:
    uwsgi.masterpid = lambda: masterpid

    @site.websocket.on_close
    def closed(app: Any, ws: Any, initiator: str, code: int, **extra: Any) -> None:
        site.note((ws.environ["PATH_INFO"], initiator, code))

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note("ready")
        async for _ in ws:
            pass

    @site.route("/ends-the-worker", shutdown_timeout=0.3)
    async def end(ws: Any) -> None:  # the worker waits for this handler, so its own connection is late
        client = getattr(ws, "blocking", ws)
        await ws.accept()
        site.note(await worker.make_shutdown(signum, client.loop).finish())

    client = site.upgrade()
    assert site.noted() == "ready"
    ending = site.upgrade("/ends-the-worker")
    assert client.read_frame() == (CLOSE, close_body(code, reason))
    client.frame(CLOSE, close_body(code, reason))
    assert ending.read_frame() == (CLOSE, close_body(code, reason))
    assert site.noted() == ("/", "shutdown", code)
    assert site.noted() == ("/ends-the-worker", "shutdown", code)  # no second note when its handler ends at last
    assert site.noted() is False
    ending.close()


def test_a_handler_whose_client_does_not_answer_sees_the_end_in_time_to_end_itself(
    site: Site, uwsgi: SimpleNamespace
) -> None:
    @site.route(shutdown_timeout=4, close_timeout=60)
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note("ready")
        site.note(await ws.receive())

    @site.route("/ends-the-worker", shutdown_timeout=0.1)
    async def end(ws: Any) -> None:
        client = getattr(ws, "blocking", ws)
        await ws.accept()
        await worker.make_shutdown(signal.SIGHUP, client.loop).finish()
        site.note("finished")

    silent = site.upgrade()
    assert site.noted() == "ready"
    site.upgrade("/ends-the-worker")
    assert silent.read_frame() == (CLOSE, close_body(1012, b"the server restarts"))
    assert site.noted() is None
    assert site.noted() == "finished"


def test_a_worker_that_stops_refuses_new_connections_and_one_that_reloads_accepts_them(
    site: Site, uwsgi: SimpleNamespace
) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    assert end(signal.SIGHUP, Clock())
    with site.connect() as client:  # uWSGI still accepts connections while the worker reloads, and so does the package
        client.send("hello")
        assert client.recv() == "hello"
    assert end(signal.SIGINT, Clock())
    response = site.refusal()
    assert response.status == 503
    assert response.all("Retry-After") == ["1"]


class Clock:
    """A loop that does not wait, and whose clock shows the time that it would have waited to."""

    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def end(signum: int, loop: Any) -> bool:
    in_time: bool = run(worker.make_shutdown(signum, loop).finish())
    return in_time


class Connection:
    """A connection that ends as soon as it gets a Close. ``open`` has all open connections."""

    shutdown_timeout = 5.0

    def __init__(self, clock: Clock, open: list[Connection]) -> None:
        self.clock = clock
        self.open = open
        open.append(self)
        self.came_at = clock.now
        self.told_at = float("nan")

    def begin_shutdown(self, code: int, reason: str) -> None:
        self.told_at = self.clock.now
        self.open.remove(self)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shutdown, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def open_connections(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    connections: list[Connection] = []
    monkeypatch.setattr(worker, "connections", connections.copy)
    return connections


def test_many_connections_are_closed_one_after_the_other_within_a_second(
    uwsgi: SimpleNamespace, clock: Clock, open_connections: list[Connection]
) -> None:
    connections = [Connection(clock, open_connections) for _ in range(1000)]
    assert end(signal.SIGHUP, clock)
    assert not open_connections
    tenths = Counter(
        int(connection.told_at * 10 - 0.11) for connection in connections
    )  # a connection may be closed up to 0.01 s late
    assert sorted(tenths) == list(range(10))
    assert max(tenths.values()) < 200


def test_connections_that_take_long_to_close_do_not_keep_the_others_waiting(
    uwsgi: SimpleNamespace, clock: Clock, open_connections: list[Connection]
) -> None:
    class Slow(Connection):
        def begin_shutdown(self, code: int, reason: str) -> None:
            super().begin_shutdown(code, reason)
            self.clock.now += 0.002  # such as a thread that waits for the interpreter

    for _ in range(1000):
        Slow(clock, open_connections)
    assert end(signal.SIGHUP, clock)
    assert clock.now < 4  # two seconds of work, and less than a second between two looks


def test_a_few_connections_are_closed_soon(
    uwsgi: SimpleNamespace, clock: Clock, open_connections: list[Connection]
) -> None:
    for _ in range(5):
        Connection(clock, open_connections)
    assert end(signal.SIGHUP, clock)
    assert clock.now < 0.1


def test_connections_that_come_during_the_end_are_closed_soon(
    uwsgi: SimpleNamespace, clock: Clock, open_connections: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Connection] = []
    for _ in range(1000):
        Connection(clock, open_connections)

    async def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now < 0.5:
            late.append(Connection(clock, open_connections))

    monkeypatch.setattr(clock, "sleep", sleep)
    assert end(signal.SIGHUP, clock)
    assert late
    assert all(each.told_at - each.came_at < 0.05 for each in late)


@pytest.mark.parametrize(("mercy", "seconds"), [(b"1", 0.5), (b"4", 2), (b"60", 5)])
def test_handlers_are_given_up_before_uwsgi_kills_the_worker(
    uwsgi: SimpleNamespace, clock: Clock, open_connections: list[Connection], mercy: bytes, seconds: float
) -> None:
    class Stubborn(Connection):
        def begin_shutdown(self, code: int, reason: str) -> None: ...

        def end_if_silent(self) -> None: ...

        async def abandon(self) -> None:
            self.told_at = clock.now

    uwsgi.opt["worker-reload-mercy"] = mercy
    connection = Stubborn(clock, open_connections)
    assert not end(signal.SIGHUP, clock)
    assert connection.told_at == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize(
    ("options", "state", "worn_out"),
    [
        ({}, {"delta_requests": 10**6, "rss": 2**40, "vsz": 2**40}, False),
        ({"max-requests": b"5"}, {"delta_requests": 4}, False),
        ({"max-requests": b"5"}, {"delta_requests": 5}, True),
        ({"max-requests": b" 5 a day"}, {"delta_requests": 5}, True),
        ({"max-requests": [b"9", b"5"]}, {"delta_requests": 5}, True),
        ({"max-requests": b"0"}, {"delta_requests": 5}, False),
        ({"max-requests": True}, {"delta_requests": 5}, False),
        ({"max-requests": b"5", "max-requests-delta": b"2"}, {"delta_requests": 8}, False),
        ({"max-requests": b"5", "max-requests-delta": b"2"}, {"delta_requests": 9}, True),
        ({"max-requests": b"5", "min-worker-lifetime": b"2000"}, {"delta_requests": 5}, False),
        ({"max-worker-lifetime": b"999"}, {}, True),
        ({"max-worker-lifetime": b"2000"}, {}, False),
        ({"max-worker-lifetime": b"500", "max-worker-lifetime-delta": b"400"}, {}, False),
        ({"reload-on-rss": b"3"}, {"rss": 3 * 2**20}, True),
        ({"reload-on-rss": b"3"}, {"rss": 3 * 2**20 - 1}, False),
        ({"reload-on-as": b"3"}, {"vsz": 3 * 2**20}, True),
        ({"reload-on-as": b"3"}, {"vsz": 3 * 2**20 - 1}, False),
    ],
)
def test_a_worker_knows_when_uwsgi_wants_it_to_end(
    uwsgi: SimpleNamespace, options: dict[str, Any], state: dict[str, int], worn_out: bool
) -> None:
    uwsgi.worker_id = lambda: 3 if any(name.endswith("-delta") for name in options) else 1
    uwsgi.opt.update(options)
    uwsgi.state.update(state)
    assert worker.is_worn_out() is worn_out


def test_functions_that_uwsgidecorators_replaces_stay_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "uwsgidecorators.py").write_text(
        "from flask_uwsgi_websocket.servers.uwsgi_worker import uwsgi\n"
        "uwsgi.spooler = None\n"
        "uwsgi.post_fork_hook = lambda: uwsgi.called.append('theirs')\n"
    )
    called: list[str] = []
    fake = SimpleNamespace(
        loop=b"uwsgi",
        has_threads=False,
        called=called,
        worker_id=lambda: 0,
        spooler="spooler",
        post_fork_hook=lambda: called.append("ours"),
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(worker, "uwsgi", fake)
    monkeypatch.setattr(worker, "_SIGNALS", ())
    worker.prepare_workers()
    fake.post_fork_hook()
    assert called == ["ours", "theirs"]
    assert fake.spooler == "spooler"
    monkeypatch.delitem(sys.modules, "uwsgidecorators")
