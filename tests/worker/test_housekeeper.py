"""The housekeeper looks after each connection, and lets handlers run meanwhile."""

from __future__ import annotations

import select
import sys
import threading
from operator import gt
from types import SimpleNamespace
from typing import Any

import pytest

from flask_uwsgi_websocket.connection.channel import find_due
from flask_uwsgi_websocket.worker import housekeeper
from flask_uwsgi_websocket.worker.housekeeper import INTERVAL, PAUSE, SLICE, Housekeeper
from support.inprocess import ROOM, Clock, Kept, RawClient, Site, wait_at_gate, wait_until
from support.wire import BINARY, CLOSE, TEXT, close_body


def kept_client(site: Site) -> Any:
    """Return the client that a handler has noted, without the wrapper that makes its calls awaitable."""
    ws = site.noted()
    return getattr(ws, "blocking", ws)


def test_pings_of_connections_that_start_at_the_same_time_are_spread(blocking: Site, clock: Clock) -> None:
    blocking.app.config.update(WEBSOCKET_PING_INTERVAL=20, WEBSOCKET_PING_TIMEOUT=None)

    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        blocking.note(ws)
        await ws.receive()

    def pinged() -> int:
        return len(select.select([client.sock for client in clients], [], [], 0)[0])

    clients = [blocking.upgrade() for _ in range(30)]
    connections = [kept_client(blocking) for _ in clients]
    clock.put_forward(15)
    for ws in connections:
        ws.tick()
    assert 0 < pinged() < 30  # all or none, once in 500 million runs
    clock.put_forward(5.1)
    for ws in connections:
        ws.tick()
    assert pinged() == 30
    for client in clients:
        client.close()


@pytest.fixture
def round_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the housekeeper."""
    clock = Clock()
    clock.monotonic = lambda: clock._ahead  # type: ignore[method-assign]
    monkeypatch.setattr(housekeeper, "time", clock)
    return clock


def test_a_round_of_many_connections_lets_handlers_run_every_few_milliseconds(round_clock: Clock) -> None:
    looked_after: list[Any] = []

    class Connection(Kept):
        def tick(self, *, read_ahead: bool) -> None:
            round_clock.put_forward(0.6 * SLICE)
            looked_after.append((self, read_ahead))

    class Loop:
        def run_every(self, interval: float, tick: Any) -> None:
            self.tick = tick

    loop: Any = Loop()
    keeper = Housekeeper()
    for _ in range(200):
        connection: Any = Connection()
        keeper.add(connection, loop)
    delays = []
    for slices in range(1, 101):
        delays.append(loop.tick())
        assert len(looked_after) == 2 * slices
    assert delays == [PAUSE] * 99 + [housekeeper.INTERVAL]
    assert len({connection for connection, _ in looked_after}) == 200
    # A round has no time to read for so many connections.
    reads = [read_ahead for _, read_ahead in looked_after]
    assert reads == [True] * 100 + [False] * 100


def test_a_round_does_not_touch_all_connections_at_once() -> None:
    # Objects that were idle for a second are in no cache: to copy a set of 9,500 connections took 30 ms.
    class Connection(Kept):
        def tick(self, *, read_ahead: bool) -> None:
            touched.append(sum(map(gt, references(), untouched)))

    def references() -> list[int]:
        return [sys.getrefcount(each) for each in connections]

    connections: list[Any] = [Connection() for _ in range(1000)]
    touched: list[int] = []
    loop: Any = SimpleNamespace(run_every=lambda interval, tick: setattr(loop, "tick", tick))
    keeper = Housekeeper()
    for connection in connections:
        keeper.add(connection, loop)
    del connection
    untouched = references()
    while loop.tick() != housekeeper.INTERVAL:
        pass
    assert len(touched) == 1000
    assert max(touched) < 100


def test_the_housekeeper_runs_once_a_second() -> None:
    assert INTERVAL == 1.0
    assert SLICE <= 0.005


def test_a_connection_with_nothing_due_is_not_touched(blocking: Site) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        blocking.note(ws)
        await ws.receive()

    client = blocking.upgrade()
    ws = kept_client(blocking)
    wait_until(lambda: ws._transport.is_receiving)
    with ws._transport.read_lock, ws._transport.write_lock:  # tick() would fail to get these locks
        ws.tick()
    client.close()


def test_a_connection_is_ticked_before_its_handshake_while_its_handler_is_busy_and_when_it_is_over(
    blocking: Site,
) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        blocking.note(ws)
        await wait_at_gate(blocking)
        await ws.accept()
        await wait_at_gate(blocking)
        await ws.receive()

    def is_due() -> bool:
        return ws.channel.find_due({ws.channel: ws}) == [ws]

    client = blocking.raw()
    client.request()
    ws = kept_client(blocking)
    gate = blocking.noted()
    assert is_due()
    gate.open()
    gate = blocking.noted()
    assert is_due()  # the handler does something else
    gate.open()
    wait_until(lambda: not is_due())
    ws.begin_close(1000, "")
    assert is_due()
    client.close()


def test_a_connection_whose_output_waits_is_ticked(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note(ws)
        assert await ws.receive() == "go"
        ws.channel.put("x" * ROOM)
        await ws.receive()

    client = site.upgrade()
    ws = kept_client(site)
    wait_until(lambda: ws.channel.find_due({ws.channel: ws}) == [])
    client.frame(TEXT, b"go")
    wait_until(lambda: ws.channel.is_receiving and ws.channel.outbox)
    assert ws.channel.find_due({ws.channel: ws}) == [ws]
    client.close()


def test_connections_come_and_go_in_another_thread_during_a_round() -> None:
    class Connection(Kept):
        accepted = False

        @staticmethod
        def find_due(connections: dict[Any, Any]) -> list[Any]:
            return find_due(connections, 0.0)

        def tick(self, *, read_ahead: bool) -> None:
            self.was_ticked = True

    def come_and_go() -> None:
        while not is_over.is_set():
            for connection in passing:
                keeper.add(connection, loop)
            for connection in passing:
                keeper.remove(connection)

    passing: list[Any] = [Connection() for _ in range(1000)]
    staying: list[Any] = [Connection() for _ in range(100)]
    loop: Any = SimpleNamespace(run_every=lambda interval, tick: setattr(loop, "tick", tick))
    keeper = Housekeeper()
    for connection in staying:
        keeper.add(connection, loop)
    is_over = threading.Event()
    thread = threading.Thread(target=come_and_go)
    switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        for _ in range(300):
            for connection in staying:
                connection.was_ticked = False
            while loop.tick() != housekeeper.INTERVAL:
                pass
            assert all(connection.was_ticked for connection in staying)
    finally:
        sys.setswitchinterval(switch_interval)
        is_over.set()
        thread.join()
    assert set(keeper.connections()) == set(staying)


def test_a_connection_without_messages_is_closed_after_the_idle_timeout(site: Site, clock: Clock) -> None:
    site.app.config.update(WEBSOCKET_IDLE_TIMEOUT=100, WEBSOCKET_PING_INTERVAL=None)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note(ws)
        async for message in ws:
            await ws.send(message)
        site.note((ws.close_code, ws.close_reason))

    @site.websocket.on_close
    def on_close(app: Any, ws: Any, initiator: str, **extra: Any) -> None:
        site.note(initiator)

    client = site.upgrade()
    ws = kept_client(site)
    for _ in range(3):
        since = ws._transport._lifespan._idle_since
        clock.put_forward(80)
        client.frame(TEXT, b"still here")
        assert client.read_frame() == (TEXT, b"still here")
        clock.put_forward(11)  # the housekeeper checks every ten seconds
        wait_until(lambda since=since: ws._transport._lifespan._idle_since > since, "the messages were not noticed")
    clock.put_forward(101)
    assert client.read_frame() == (CLOSE, close_body(1001, b"no message for 100 s"))
    client.frame(CLOSE, close_body(1001))
    assert {site.noted(), site.noted()} == {(1001, "no message for 100 s"), "timeout"}


def test_a_connection_without_messages_is_also_closed_while_its_handler_is_busy(blocking: Site, clock: Clock) -> None:
    blocking.app.config.update(WEBSOCKET_IDLE_TIMEOUT=100, WEBSOCKET_PING_INTERVAL=None)
    gate = blocking.mode.gate()

    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        blocking.note(ws)
        await gate.passed()

    client = blocking.upgrade()
    ws = kept_client(blocking)
    for _ in range(12):  # more often than a check is due
        clock.put_forward(9)
        ws.tick()
    assert client.read_frame() == (CLOSE, close_body(1001, b"no message for 100 s"))
    client.frame(CLOSE, close_body(1001))
    gate.open()


def test_a_connection_whose_messages_wait_for_a_busy_handler_is_not_idle(blocking: Site, clock: Clock) -> None:
    blocking.app.config.update(WEBSOCKET_IDLE_TIMEOUT=100, WEBSOCKET_PING_INTERVAL=None)
    gate = blocking.mode.gate()

    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        blocking.note(ws)
        await gate.passed()
        blocking.note([await ws.receive() for _ in range(3)])

    client = blocking.upgrade()
    ws = kept_client(blocking)
    for count in (1, 2, 3):
        clock.put_forward(80)
        client.frame(TEXT, b"still here")
        wait_until(lambda count=count: len(ws._transport.inbox) == count, "it is not read")
        clock.put_forward(11)
        ws.tick()
    gate.open()
    assert blocking.noted() == ["still here"] * 3


def test_pongs_do_not_count_as_messages(site: Site, clock: Clock) -> None:
    site.app.config.update(WEBSOCKET_IDLE_TIMEOUT=100, WEBSOCKET_PING_INTERVAL=60)

    @site.route()
    async def handler(ws: Any) -> None:
        assert await ws.receive() is None

    with site.connect() as client:  # the client answers pings
        clock.put_forward(60)
        clock.put_forward(51)
        wait_until(lambda: client.protocol.close_rcvd, "it is not closed")
        assert client.protocol.close_rcvd is not None
        assert client.protocol.close_rcvd.code == 1001


def test_a_connection_is_closed_at_the_end_of_its_lifetime(site: Site, clock: Clock) -> None:
    site.app.config.update(WEBSOCKET_MAX_LIFETIME=1000, WEBSOCKET_PING_INTERVAL=None)

    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)
        site.note(ws.close_code)

    client = site.upgrade()
    clock.put_forward(890)
    client.frame(TEXT, b"still here")
    assert client.read_frame() == (TEXT, b"still here")
    clock.put_forward(110)
    assert client.read_frame() == (CLOSE, close_body(1012, b"the connection has lasted long enough: connect again"))
    client.frame(CLOSE, close_body(1012))
    assert site.noted() == 1012


def slow_reader(site: Site, min_read_rate: int) -> tuple[RawClient, Any]:
    """Connect a client to a handler that sends ROOM bytes, and return client and connection when the send waits.

    The handler then notes what it receives, and how the connection ended.
    """
    site.app.config.update(
        WEBSOCKET_MIN_READ_RATE=min_read_rate, WEBSOCKET_SEND_TIMEOUT=30, WEBSOCKET_PING_INTERVAL=None
    )

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note(ws)
        await ws.send(b"x" * ROOM)
        site.note(await ws.receive())
        site.note((ws.close_code, ws.close_reason, ws.channel.was_slow))

    client = site.upgrade()
    ws = kept_client(site)
    wait_until(lambda: ws._transport.outbox)
    return client, ws


def test_a_peer_that_reads_less_than_the_minimum_is_dropped(site: Site, clock: Clock) -> None:
    client, ws = slow_reader(site, 10**6)
    clock.put_forward(16)
    before = ws._transport.bytes_sent
    client.read(ROOM // 8)
    wait_until(lambda: ws._transport.bytes_sent > before, "the rest is not sent")  # so the peer has read something
    clock.put_forward(15)
    assert site.noted() is None
    assert site.noted() == (1006, "the peer has read less than 1000000 bytes/s for 30 s", True)


def test_a_peer_that_reads_fast_enough_stays_however_long_it_takes(site: Site, clock: Clock) -> None:
    client, ws = slow_reader(site, 1000)
    header = 10
    for _ in range(8):
        before = ws._transport.bytes_sent
        client.read(ROOM // 8)
        wait_until(
            lambda before=before: ws._transport.bytes_sent > before or not ws._transport.outbox, "the rest is not sent"
        )
        clock.put_forward(16)
    client.read(header)
    client.frame(TEXT, b"all is here")
    assert site.noted() == "all is here"


def test_no_more_messages_wait_for_the_handler_than_the_queue_holds(site: Site) -> None:
    site.app.config["WEBSOCKET_MAX_QUEUE"] = 100

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        await wait_at_gate(site)
        site.note(len(ws._transport.inbox))
        for number in range(5000):
            assert await ws.receive() == b"%d" % number
        site.note("all in order")

    client = site.upgrade()
    gate = site.noted()
    for number in range(5000):
        client.frame(BINARY, b"%d" % number)
    gate.open()
    assert site.noted() < 200
    assert site.noted() == "all in order"
