"""The loops wait correctly in cases that the public calls do not show."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from flask_uwsgi_websocket import AsyncioNotAvailable, AsyncioWebSocketClient, WebSocketClient
from flask_uwsgi_websocket.connection import aio
from flask_uwsgi_websocket.loops.current import wait_for
from flask_uwsgi_websocket.loops.greenlets import GeventLoop
from flask_uwsgi_websocket.loops.tasks import AsyncioLoop, current_asyncio_loop
from flask_uwsgi_websocket.loops.threads import ThreadLoop
from flask_uwsgi_websocket.loops.wakeup import Wakeup
from flask_uwsgi_websocket.worker.housekeeper import Housekeeper, housekeeper_of
from support.inprocess import DEADLINE, ROOM, Kept, Threads, call, run, wait_until


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def call_plain(worker: Threads, function: Callable[[], Any]) -> Any:
    """Run a function that is no coroutine, as a view would run, and return its result."""
    results: list[Any] = []
    done = threading.Event()

    def start() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)
        done.set()

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
    # A loop may end the wait at its timeout before it looks at the descriptor.
    assert answers[4] is True
    assert answers[6:] == [True, True]


def test_shutting_a_connection_down_wakes_the_task_that_waits_for_it(worker: Threads, pair: Any) -> None:
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


def test_a_wait_that_timed_out_leaves_nothing_behind(worker: Threads, pair: Any) -> None:
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
def test_an_exception_thrown_into_a_wait_does_not_count_as_its_timeout(worker: Threads, pair: Any) -> None:
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


def test_a_callback_is_called_until_it_returns_false(worker: Threads, pair: Any) -> None:
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

    connection: Any = Kept()

    async def start(loop: Any) -> None:
        # The thread that writes runs only while there are connections to look after.
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


def test_a_callback_for_a_descriptor_that_is_closed_meanwhile_does_no_harm(worker: Threads) -> None:
    async def start(loop: Any) -> None:
        one, other = socket.socketpair()
        fd = one.fileno()
        loop.call_when_writable(fd, lambda: False)
        loop.forget(fd)
        one.close()
        other.close()
        await loop.wait_readable(0, 0.01) if os.isatty(0) else await loop.sleep(0)

    call(worker, start)


def test_a_housekeeper_continues_when_a_connection_raises(worker: Threads, caplog: pytest.LogCaptureFixture) -> None:
    class Connection(Kept):
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


def test_a_housekeeper_that_has_ended_starts_again(worker: Threads) -> None:
    kept: list[Any] = []

    class Connection(Kept):
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


def test_a_loop_without_users_is_forgotten() -> None:
    async def get() -> Any:
        loop = current_asyncio_loop()
        assert loop is current_asyncio_loop()
        housekeeper_of(loop)
        return weakref.ref(loop)

    reference = asyncio.run(get())
    gc.collect()
    assert reference() is None


def test_descriptors_above_1023_work(pair: Any) -> None:
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
            select.select([high], [], [])  # the reason for poll()
    finally:
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("timeout", [1e9, float("inf")])
def test_a_timeout_may_have_any_length(worker: Threads, pair: Any, timeout: float) -> None:
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
def test_asyncio_clients_refuse_to_block_gevents_hub(worker: Threads) -> None:
    async def make(loop: Any) -> None:
        AsyncioWebSocketClient.make_loop()

    with pytest.raises(AsyncioNotAvailable, match="or a server with threads"):
        call(worker, make)


def test_asyncio_clients_refuse_to_block_an_event_loop() -> None:
    async def without_greenlet() -> None:
        AsyncioWebSocketClient.make_loop()

    with pytest.raises(AsyncioNotAvailable, match="start uwsgi with --asyncio"):
        asyncio.run(without_greenlet())


def test_outside_of_gevents_greenlets_a_blocking_client_blocks_its_thread() -> None:
    assert isinstance(WebSocketClient.make_loop(), ThreadLoop)


def test_under_gevents_monkey_patches_nothing_blocks_the_hub() -> None:
    # In another process, because patches cannot be undone.
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


def test_an_unpatched_process_gets_one_warning() -> None:
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


def test_a_thread_that_could_not_work_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no more descriptors")

    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr("flask_uwsgi_websocket.loops.threads.socket.socketpair", fail)
        with pytest.raises(OSError, match="no more descriptors"):  # so that the housekeeper tries again
            ThreadLoop().run_every(1, lambda: None)
    assert threading.active_count() == before


def test_a_housekeeper_that_cannot_start_leaves_no_connection_and_may_be_started_again() -> None:
    class Loop:
        full = True
        rounds: list[Any] = []  # noqa: RUF012

        def run_every(self, interval: float, tick: Any) -> None:
            if self.full:
                raise RuntimeError("can't start new thread: no more threads")
            self.rounds.append(tick)

    loop: Any = Loop()
    connection: Any = Kept()
    housekeeper = Housekeeper()
    with pytest.raises(RuntimeError, match="no more threads"):
        housekeeper.add(connection, loop)
    loop.full = False
    housekeeper.add(connection, loop)
    housekeeper.remove(connection)
    (rounds,) = loop.rounds
    assert rounds() is None


def test_a_coroutine_that_is_started_runs_without_the_context_of_its_caller(worker: Threads) -> None:
    variable = ContextVar("variable", default="none")
    seen: list[str] = []
    done = threading.Event()

    async def other(loop: Any) -> None:
        await loop.sleep(0.001)
        seen.extend((variable.get(), threading.current_thread().name))
        done.set()

    async def start(loop: Any) -> str:
        variable.set("the caller's")
        loop.start(other(loop), "its name")
        return threading.current_thread().name

    name = call(worker, start)
    assert done.wait(DEADLINE)
    assert seen == ["none", "its name" if worker.name == "threads" else name]


def test_a_coroutine_that_is_started_does_not_hold_up_its_caller(worker: Threads, pair: Any) -> None:
    one, other = pair
    done = threading.Event()

    async def wait(loop: Any) -> None:
        assert await loop.wait_readable(one.fileno(), DEADLINE)
        loop.forget(one.fileno())
        done.set()

    async def start(loop: Any) -> bool:
        loop.start(wait(loop), "waiting")
        await loop.sleep(0.001)
        return done.is_set()

    assert call(worker, start) is False
    other.send(b"x")
    assert done.wait(DEADLINE)


def test_a_call_that_blocks_lets_the_others_run_and_returns_or_raises(worker: Threads) -> None:
    async def block(loop: Any) -> bool:
        released = threading.Event()

        async def release() -> None:
            released.set()

        def wait() -> int:
            assert released.wait(DEADLINE)
            return threading.get_ident()

        def fail() -> None:
            raise KeyError("raised")

        join = worker.spawn(release)
        thread: int = await loop.call_blocking(wait)
        await join()
        with pytest.raises(KeyError, match="raised"):
            await loop.call_blocking(fail)
        return thread == threading.get_ident()

    assert call(worker, block) == (worker.name == "threads")


def test_a_task_that_is_cancelled_in_a_call_that_blocks_does_not_wait_for_it() -> None:
    released = threading.Event()
    threads: list[threading.Thread] = []

    def wait() -> None:
        threads.append(threading.current_thread())
        assert released.wait(DEADLINE)

    async def cancel() -> None:
        task = asyncio.ensure_future(current_asyncio_loop().call_blocking(wait))
        while not threads:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        released.set()
        while threads[0].is_alive():
            await asyncio.sleep(0.001)

    asyncio.run(cancel())


def test_under_gevents_monkey_patches_a_call_that_blocks_stays_in_its_greenlet() -> None:
    code = """
from gevent import monkey; monkey.patch_all()
import gevent, time
from flask_uwsgi_websocket.loops.base import run
from flask_uwsgi_websocket.loops.current import current_blocking_loop

ticks = []
def tick():
    while True:
        ticks.append(1)
        time.sleep(0)
def block():
    while len(ticks) < 10:
        time.sleep(0.001)
    return gevent.getcurrent()
def call():
    return run(current_blocking_loop().call_blocking(block)) is gevent.getcurrent()

gevent.spawn(tick)
print(gevent.spawn(call).get())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr


def test_a_view_waits_in_its_own_way_and_gets_the_result_or_the_error(worker: Threads, pair: Any) -> None:
    one, other = pair
    sender = threading.Timer(0.01, other.send, (b"x",))

    async def wait(loop: Any) -> Any:
        try:
            return type(loop), await loop.wait_readable(one.fileno(), DEADLINE)
        finally:
            loop.forget(one.fileno())

    async def fail(loop: Any) -> None:
        await loop.sleep(0)
        raise KeyError("raised")

    sender.start()
    loops = {"threads": ThreadLoop, "gevent": GeventLoop, "asyncio": AsyncioLoop}
    assert call_plain(worker, lambda: wait_for(wait)) == (loops[worker.name], True)
    sender.join()
    with pytest.raises(KeyError, match="raised"):
        call_plain(worker, lambda: wait_for(fail))


def test_a_coroutine_that_would_block_its_event_loop_gets_an_error_with_a_remedy() -> None:
    async def sleep(loop: Any) -> None:
        await loop.sleep(0)

    async def block() -> None:
        wait_for(sleep)

    with pytest.raises(RuntimeError, match=r"use await asyncio\.to_thread"):
        asyncio.run(block())

    async def ask_a_thread() -> None:
        await asyncio.to_thread(wait_for, sleep)

    asyncio.run(ask_a_thread())


@pytest.mark.parametrize("mode", ["threads", "gevent"])  # a task of asyncio may wake up without a reason
def test_a_descriptor_serves_one_wait_after_the_other_whether_they_time_out_or_not(worker: Threads, pair: Any) -> None:
    one, other = pair

    async def wait(loop: Any) -> list[bool]:
        answers = []
        for _ in range(20):
            answers.append(await loop.wait_readable(one.fileno(), 0.0001))
            other.send(b"x")
            answers.append(await loop.wait_readable(one.fileno(), DEADLINE))
            one.recv(1)
        loop.forget(one.fileno())
        return answers

    assert call(worker, wait) == [False, True] * 20


def test_two_may_wait_for_one_descriptor_with_timeouts_of_their_own(worker: Threads, pair: Any) -> None:
    one, other = pair

    async def wait(loop: Any) -> Any:
        fd = one.fileno()
        waiting = [worker.spawn(loop.wait_readable, fd, seconds) for seconds in (DEADLINE, 0.001, DEADLINE, 0.001)]
        answers = [await waiting[1](), await waiting[3]()]
        other.send(b"x")
        answers += [await waiting[0](), await waiting[2]()]
        loop.forget(fd)
        return answers

    assert call(worker, wait) == [False, False, True, True]


@pytest.mark.parametrize("mode", ["gevent"])
@pytest.mark.parametrize("end", ["readable", "timeout", "killed"])
def test_a_greenlet_that_waits_while_its_descriptor_is_forgotten_ends_its_wait_as_usual(
    worker: Threads, pair: Any, end: str
) -> None:
    one, other = pair
    fd = one.fileno()

    async def forget(loop: Any) -> Any:
        waiting = gevent.spawn(run, loop.wait_readable(fd, 0.05 if end == "timeout" else DEADLINE))
        gevent.sleep(0)
        loop.forget(fd)
        another = gevent.spawn(run, loop.wait_readable(fd, DEADLINE))  # with a watcher of its own
        gevent.sleep(0)
        if end == "killed":
            waiting.kill()
        if end == "timeout":
            waiting.join()
        other.send(b"x")
        answers = [waiting.get(), another.get()]
        loop.forget(fd)
        answers.append(fd in loop._readers)
        return answers

    first = {"readable": True, "timeout": False, "killed": gevent.GreenletExit}[end]
    answers = call(worker, forget)
    assert answers[0] is first or isinstance(answers[0], gevent.GreenletExit)
    assert answers[1:] == [True, False]


@pytest.mark.parametrize("mode", ["gevent"])
def test_a_native_thread_may_wait_with_the_loop_of_a_hub_in_another_thread(worker: Threads, pair: Any) -> None:
    one, other = pair

    async def get(loop: Any) -> Any:
        return loop

    loop = call(worker, get)
    answers: list[bool] = []

    def wait() -> None:
        answers.append(run(loop.wait_readable(one.fileno(), 0.001)))
        other.send(b"x")
        answers.append(run(loop.wait_readable(one.fileno(), DEADLINE)))
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(DEADLINE)
    assert answers == [False, True]


@pytest.mark.parametrize("mode", ["gevent"])
def test_input_that_nobody_waits_for_does_not_keep_the_hub_busy(worker: Threads, pair: Any) -> None:
    one, other = pair

    async def look(loop: Any) -> Any:
        reader = loop.reader(one.fileno())
        other.send(b"x")
        reader.wait()
        begin = gevent.get_hub().loop.iteration
        gevent.sleep(0.05)
        rounds = gevent.get_hub().loop.iteration - begin
        reader.wait()  # still there
        one.recv(1)
        gevent.spawn_later(0.001, other.send, b"y")
        reader.wait()
        answer = one.recv(1)
        loop.forget(one.fileno())
        return rounds, answer

    rounds, answer = call(worker, look)
    assert rounds < 50
    assert answer == b"y"


def test_a_signal_handler_that_raises_interrupts_a_thread_that_waits(pair: Any) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    one, _ = pair
    main = threading.get_ident()

    def wait() -> None:
        threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGUSR1)).start()
        ThreadLoop().reader(one.fileno()).wait()

    previous = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(Interrupt):
            wait()
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_a_flag_that_is_set_wakes_the_one_that_waits_however_often_it_was_set(worker: Threads) -> None:
    with closing(Wakeup()) as wakeup:

        async def wait(loop: Any) -> list[bool]:
            fd = wakeup.fileno()
            answers = [await loop.wait_readable(fd, 0.001)]
            for _ in range(100_000):  # more than a pipe can hold
                wakeup.set()
            answers += [await loop.wait_readable(fd, DEADLINE), await loop.wait_readable(fd, DEADLINE)]
            loop.forget(fd)
            return answers

        for _ in range(2):
            assert call(worker, wait) == [False, True, True]
            wakeup.clear()
            wakeup.clear()


def test_no_wakeup_of_several_threads_is_lost(worker: Threads) -> None:
    count, work = 2000, list[int]()
    with closing(Wakeup()) as wakeup:

        def produce() -> None:
            for number in range(count):
                work.append(number)
                wakeup.set()

        async def consume(loop: Any) -> bool:
            is_awake = True
            while is_awake and len(work) < 3 * count:
                is_awake = await loop.wait_readable(wakeup.fileno(), DEADLINE)
                wakeup.clear()
            loop.forget(wakeup.fileno())
            return is_awake

        threads = [threading.Thread(target=produce) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert call(worker, consume)
        for thread in threads:
            thread.join()


def test_a_flag_may_be_set_after_it_was_closed() -> None:
    wakeup = Wakeup()
    wakeup.close()
    wakeup.set()
    assert wakeup.fileno() == -1
