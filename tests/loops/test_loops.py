"""How a connection waits, for what its calls do not show."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from flask_uwsgi_websocket import AsyncioNotAvailable, AsyncioWebSocketClient, WebSocketClient
from flask_uwsgi_websocket.connection import aio
from flask_uwsgi_websocket.loops.current import current_blocking_loop
from flask_uwsgi_websocket.loops.greenlets import GeventLoop
from flask_uwsgi_websocket.loops.tasks import AsyncioLoop, current_asyncio_loop
from flask_uwsgi_websocket.loops.threads import ThreadLoop
from flask_uwsgi_websocket.worker.housekeeper import Housekeeper, housekeeper_of
from support.inprocess import DEADLINE, MODES, ROOM, Threads, run, wait_until


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def worker(mode: str) -> Iterator[Threads]:
    """What serves requests in each mode, without a server."""
    worker = MODES[mode]()
    worker.start()
    yield worker
    worker.stop()
    assert not worker.errors, worker.errors


def call(worker: Threads, function: Any) -> Any:
    """Run a coroutine function where a handler would run; it gets the loop. Return its result."""
    results: list[Any] = []
    done = threading.Event()

    async def record(loop: Any) -> None:
        try:
            results.append(await function(loop))
        except BaseException as error:
            results.append(error)
        done.set()

    def start() -> None:
        if worker.name == "asyncio":
            task = asyncio.get_running_loop().create_task(record(current_asyncio_loop()))
            results.append(task)
        else:
            run(record(current_blocking_loop()))

    worker.dispatch(start)
    assert done.wait(DEADLINE)
    if isinstance(results[-1], BaseException):
        raise results[-1]
    return results[-1]


def test_each_mode_has_its_loop(worker: Threads) -> None:
    async def get(loop: Any) -> Any:
        return type(loop)

    assert call(worker, get) == {"threads": ThreadLoop, "gevent": GeventLoop, "asyncio": AsyncioLoop}[worker.name]


def test_a_wait_ends_with_its_descriptor_or_its_timeout(worker: Threads, pair: Any) -> None:
    one, other = pair

    async def wait(loop: Any) -> Any:
        fd = one.fileno()
        answers = [
            await loop.wait_readable(fd, 0),
            await loop.wait_readable(fd, -1),
            await loop.wait_readable(fd, 0.01),
            await loop.wait_writable(fd, 0),
            await loop.wait_writable(fd, None),
        ]
        other.send(b"x")
        answers += [await loop.wait_readable(fd, 0), await loop.wait_readable(fd, None)]
        other.close()
        return [*answers, await loop.wait_readable(fd, None)]

    answers = call(worker, wait)
    assert answers[:3] == [False] * 3
    # A time that is up may be noticed before the descriptor is looked at.
    assert answers[4] is True
    assert answers[6:] == [True, True]


def test_shutting_a_connection_down_wakes_who_waits_for_it(worker: Threads, pair: Any) -> None:
    one, _ = pair

    async def wait(loop: Any) -> Any:
        fd = one.fileno()

        async def shut_down() -> None:
            one.shutdown(socket.SHUT_RDWR)

        join = worker.spawn(shut_down)
        answers = [await loop.wait_readable(fd, DEADLINE)]
        await join()
        return answers

    assert call(worker, wait) == [True]


def test_waits_that_timed_out_leave_nothing_behind(worker: Threads, pair: Any) -> None:
    one, _ = pair
    kept = []

    async def wait(loop: Any) -> None:
        kept.append(loop)
        for _ in range(10):
            assert not await loop.wait_readable(one.fileno(), 0.001)
        loop.forget(one.fileno())

    call(worker, wait)
    (loop,) = kept
    for name in ("_waiting", "_readers", "_writers", "_callbacks"):
        assert not any(getattr(loop, name, {}).values())


@pytest.mark.parametrize("mode", ["gevent"])
def test_an_exception_thrown_into_a_wait_is_not_mistaken_for_its_timeout(worker: Threads, pair: Any) -> None:
    one, _ = pair
    thrown = TimeoutError("another one")

    async def throw(loop: Any) -> Any:
        def wait() -> Any:
            try:
                return run(loop.wait_readable(one.fileno(), DEADLINE))
            except TimeoutError as error:
                return error

        waiting = gevent.spawn(wait)
        gevent.sleep(0)
        waiting.kill(thrown)
        return waiting.value is thrown

    assert call(worker, throw) is True


def test_a_callback_is_called_until_it_has_had_enough(worker: Threads, pair: Any) -> None:
    one, other = pair
    one.setblocking(False)
    data = bytearray(b"x" * ROOM)
    finished = threading.Event()
    keepalive: list[Any] = []

    def write() -> bool:
        try:
            while data:
                del data[: one.send(data[:65536])]
        except BlockingIOError:
            return True
        finished.set()
        return False

    class Connection:
        def tick(self, *, read_ahead: bool) -> None:
            pass

    connection: Any = Connection()

    async def start(loop: Any) -> None:
        # The thread that writes runs as long as there are connections to look after.
        keepalive.append(housekeeper_of(loop))
        keepalive[0].add(connection, loop)
        assert write()
        loop.call_when_writable(one.fileno(), write)

    call(worker, start)
    received = 0
    while received < ROOM:
        received += len(other.recv(2**20))
    assert finished.wait(DEADLINE)
    keepalive[0].remove(connection)


def test_a_callback_for_a_descriptor_that_was_closed_meanwhile_does_no_harm(worker: Threads) -> None:
    async def start(loop: Any) -> None:
        one, other = socket.socketpair()
        fd = one.fileno()
        loop.call_when_writable(fd, lambda: False)
        loop.forget(fd)
        one.close()
        other.close()
        await loop.wait_readable(0, 0.01) if os.isatty(0) else await loop.sleep(0)

    call(worker, start)


def test_a_housekeeper_goes_on_when_a_connection_troubles_it(worker: Threads, caplog: pytest.LogCaptureFixture) -> None:
    class Connection:
        id = "troublesome"
        ticks = 0
        twice = threading.Event()

        def tick(self, *, read_ahead: bool) -> None:
            assert read_ahead
            self.ticks += 1
            if self.ticks == 2:
                self.twice.set()
            raise KeyError("trouble")

    connection: Any = Connection()
    kept: list[Housekeeper] = []

    async def start(loop: Any) -> None:
        kept.append(housekeeper_of(loop))
        kept[0].add(connection, loop)

    call(worker, start)
    assert connection.twice.wait(DEADLINE)
    kept[0].remove(connection)
    kept[0].remove(connection)
    assert "looking after WebSocket troublesome failed" in caplog.text
    assert "trouble" in caplog.text


def test_a_housekeeper_that_has_gone_comes_back(worker: Threads) -> None:
    kept: list[Any] = []

    class Connection:
        def __init__(self) -> None:
            self.ticked = threading.Event()

        def tick(self, *, read_ahead: bool) -> None:
            self.ticked.set()

    for _ in range(3):
        connection: Any = Connection()

        async def start(loop: Any, connection: Any = connection) -> None:
            kept[:] = [loop, housekeeper_of(loop)]
            kept[1].add(connection, loop)

        call(worker, start)
        assert connection.ticked.wait(DEADLINE)
        kept[1].remove(connection)
        wait_until(lambda: not kept[1]._running)


def test_a_loop_that_nobody_uses_is_forgotten() -> None:
    async def get() -> Any:
        loop = current_asyncio_loop()
        assert loop is current_asyncio_loop()
        housekeeper_of(loop)
        return weakref.ref(loop)

    reference = asyncio.run(get())
    gc.collect()
    assert reference() is None


def test_descriptors_above_1023_can_be_waited_for(pair: Any) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2048:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    one, other = pair
    high = os.dup2(one.fileno(), 1500)
    try:
        other.send(b"x")
        loop = ThreadLoop()
        assert run(loop.wait_readable(high, None))
        with pytest.raises(ValueError, match="filedescriptor out of range"):
            select.select([high], [], [])  # which is why
    finally:
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("timeout", [1e9, float("inf")])
def test_a_timeout_may_be_as_long_as_one_likes(worker: Threads, pair: Any, timeout: float) -> None:
    one, other = pair

    async def wait(loop: Any) -> Any:
        async def send() -> None:
            other.send(b"x")

        join = worker.spawn(send)
        answer = await loop.wait_readable(one.fileno(), timeout)
        await join()
        return answer

    assert call(worker, wait) is True


def test_asyncio_clients_in_uwsgi_need_its_asyncio_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "uwsgi", SimpleNamespace())
    with pytest.raises(AsyncioNotAvailable, match="start uwsgi with --asyncio"):
        AsyncioWebSocketClient.make_loop()


@pytest.mark.parametrize("mode", ["gevent"])
def test_asyncio_clients_do_not_block_gevents_hub(worker: Threads) -> None:
    async def make(loop: Any) -> None:
        AsyncioWebSocketClient.make_loop()

    with pytest.raises(AsyncioNotAvailable, match="or a server with threads"):
        call(worker, make)


def test_asyncio_clients_do_not_block_an_event_loop() -> None:
    async def without_greenlet() -> None:
        AsyncioWebSocketClient.make_loop()

    with pytest.raises(AsyncioNotAvailable, match="start uwsgi with --asyncio"):
        asyncio.run(without_greenlet())


def test_outside_gevents_greenlets_a_blocking_client_waits_with_its_thread() -> None:
    assert isinstance(WebSocketClient.make_loop(), ThreadLoop)


def test_under_gevents_monkey_patches_nothing_blocks_the_hub() -> None:
    # In a process of its own: patches cannot be taken back.
    code = """
from gevent import monkey; monkey.patch_all()
import gevent, socket, threading
from flask import Flask
from flask_uwsgi_websocket import GeventWebSocket
from flask_uwsgi_websocket.loops.base import allocate_lock
from flask_uwsgi_websocket.loops.greenlets import GeventLoop
from werkzeug.serving import make_server
import _thread

assert type(allocate_lock()) is monkey.get_original("_thread", "LockType")
app = Flask("patched")
websocket = GeventWebSocket(app)

@websocket.route("/")
def echo(ws):
    assert isinstance(ws.loop, GeventLoop)
    for message in ws:
        ws.send(message)

server = make_server("127.0.0.1", 0, app, threaded=True)
serving = gevent.spawn(server.serve_forever)
from websockets.sync.client import connect
def client(number):
    with connect(f"ws://127.0.0.1:{server.port}/", proxy=None) as ws:
        for round in range(3):
            ws.send(f"{number} {round}")
            assert ws.recv(20) == f"{number} {round}"
clients = [gevent.spawn(client, number) for number in range(10)]
for each in clients:
    each.get(timeout=20)
server.shutdown()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stderr


def test_a_process_that_is_not_patched_is_told_so_once() -> None:
    code = """
import gevent, sys
from gevent.monkey import patch_all
if "patched" in sys.argv:
    patch_all()
from flask_uwsgi_websocket.loops.current import current_blocking_loop
current_blocking_loop()
for _ in range(2):
    gevent.spawn(current_blocking_loop).get()
"""
    for arguments, count in ([], 1), (["patched"], 0):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("the standard library is not patched") == count


def test_a_thread_that_could_not_do_its_work_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no more descriptors")

    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr("flask_uwsgi_websocket.loops.threads.socket.socketpair", fail)
        with pytest.raises(OSError, match="no more descriptors"):  # so the housekeeper tries again
            ThreadLoop().run_every(1, lambda: None)
    assert threading.active_count() == before


def test_a_housekeeper_that_cannot_be_started_leaves_no_connection_and_may_be_tried_again() -> None:
    class Loop:
        full = True
        rounds: list[Any] = []  # noqa: RUF012

        def run_every(self, interval: float, tick: Any) -> None:
            if self.full:
                raise RuntimeError("can't start new thread: no more threads")
            self.rounds.append(tick)

    loop: Any = Loop()
    connection: Any = object()
    housekeeper = Housekeeper()
    with pytest.raises(RuntimeError, match="no more threads"):
        housekeeper.add(connection, loop)
    loop.full = False
    housekeeper.add(connection, loop)
    housekeeper.remove(connection)
    (rounds,) = loop.rounds
    assert rounds() is None
