"""What the calls of a coroutine handler return behaves as a coroutine, in every kind of task, and loses no message."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import socket
import struct
import sys
import types
import weakref
from _socket import socket as RawSocket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple
from unittest import mock

import pytest
import uvloop
from flask import Flask

from flask_uwsgi_websocket import AsyncioWebSocketClient, ConcurrencyError, ConnectionClosed, websocket_message
from flask_uwsgi_websocket.connection import aio_calls
from flask_uwsgi_websocket.connection.channel import RUN_LENGTH
from flask_uwsgi_websocket.connection.transport import Transport
from flask_uwsgi_websocket.loops.tasks import current_asyncio_loop
from flask_uwsgi_websocket.protocol.handshake import Handshake
from flask_uwsgi_websocket.protocol.speedups import COMPILED
from flask_uwsgi_websocket.settings import Settings
from flask_uwsgi_websocket.state import State
from support.inprocess import DEADLINE
from support.wire import CLOSE, CONTINUATION, KEY, PING, TEXT, close_body, frame

uvloop.new_event_loop().close()  # libuv opens a pipe for its first event loop and keeps it


class Peer(NamedTuple):
    """A client without a server, in the event loop that is running, and what its peer does."""

    ws: Any
    sock: socket.socket

    def send(self, *messages: str) -> None:
        self.sock.sendall(b"".join(frame(TEXT, message.encode(), key=KEY) for message in messages))

    def close(self) -> None:
        self.sock.sendall(frame(CLOSE, close_body(1000), key=KEY))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return socket.create_connection(listener.getsockname()), listener.accept()[0]


@contextmanager
def connected(
    client: type[AsyncioWebSocketClient] = AsyncioWebSocketClient, pair: Any = socket.socketpair, **settings: Any
) -> Iterator[Peer]:
    theirs, ours = pair()
    theirs.settimeout(DEADLINE)
    app = Flask(__name__)
    transport = Transport(
        RawSocket(fileno=os.dup(ours.fileno())), lambda: None, current_asyncio_loop(), Settings(**settings)
    )
    transport.start(b"")
    with theirs, ours, app.test_request_context():
        ws = client({}, app, State().route("endpoint", [], {}), transport, Handshake("", (), None, None))
        try:
            yield Peer(ws, theirs)
        finally:
            ws.detach()


def python_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
    return asyncio.tasks._PyTask(coroutine, loop=loop, **options)  # type: ignore[attr-defined]


#: The kinds of tasks that an event loop may make; None is asyncio's own.
FACTORIES: dict[str, Any] = {"tasks": None}
if sys.version_info < (3, 14):  # asyncio does not find them any more
    FACTORIES["tasks in Python"] = python_task
if sys.version_info >= (3, 12):
    FACTORIES["eager tasks"] = asyncio.eager_task_factory


@pytest.fixture(params=[*FACTORIES, "debug mode", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Run a coroutine in an event loop of each kind. Errors that only the event loop sees fail the test."""
    loop = uvloop.new_event_loop() if request.param == "uvloop" else asyncio.new_event_loop()
    loop.set_debug(request.param == "debug mode")
    loop.set_task_factory(FACTORIES.get(request.param))
    errors: list[Any] = []
    loop.set_exception_handler(lambda loop, context: errors.append(context))
    try:
        yield lambda main: loop.run_until_complete(asyncio.wait_for(main, DEADLINE))
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    assert not errors


async def rounds(count: int = 3) -> None:
    """Let the event loop run everything that is ready, with what that makes ready."""
    for _ in range(count):
        await asyncio.sleep(0)


async def waiting(call: Awaitable[Any]) -> asyncio.Task[Any]:
    """Return a task that waits for a call."""
    task = asyncio.ensure_future(call)
    await rounds()
    assert not task.done()
    return task


async def await_it(call: Awaitable[Any]) -> Any:
    return await call


# A coroutine, as far as asyncio and the standard library can see


def described(function: Any) -> tuple[Any, ...]:
    parameters = inspect.signature(function).parameters.values()
    return inspect.getdoc(function), [(each.name, each.kind, each.default) for each in parameters]


@pytest.mark.parametrize("name", ["receive", "send"])
def test_both_twins_have_the_same_calls_with_the_same_parameters_and_documentation(name: str) -> None:
    compiled = pytest.importorskip("flask_uwsgi_websocket.connection._aio_calls")
    assert described(getattr(compiled.AsyncioCalls, name)) == described(getattr(aio_calls.AsyncioCalls, name))


def test_a_call_is_a_coroutine_and_no_future(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            for call in (peer.ws.receive(), peer.ws.recv(), peer.ws.send("x"), peer.ws.a_send("x")):
                assert inspect.isawaitable(call)
                assert asyncio.iscoroutine(call)
                assert not asyncio.isfuture(call)
                assert call.__qualname__.partition(".")[2].strip("_") in {"receive", "send"}
                call.close()
                with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                    await call

    run(main())


if sys.version_info >= (3, 12):  # which has inspect.markcoroutinefunction()

    def test_the_methods_look_like_coroutine_functions() -> None:
        double = mock.create_autospec(AsyncioWebSocketClient, instance=True)
        for name in ("receive", "send"):
            assert inspect.iscoroutinefunction(getattr(AsyncioWebSocketClient, name))
            assert inspect.iscoroutinefunction(getattr(double, name))


def test_wrong_arguments_are_errors_of_the_call_and_wrong_messages_errors_of_the_await(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            for arguments in ((), ("x", None, 1.0), ("x", None, None, None)):
                with pytest.raises(TypeError, match="argument"):
                    peer.ws.send(*arguments)
            with pytest.raises(TypeError, match="argument"):
                peer.ws.receive(1.0, 2.0)
            call = peer.ws.send(3)
            with pytest.raises(TypeError):
                await call
            with pytest.raises(UnicodeEncodeError):
                await peer.ws.send("\ud800")

    run(main())


def forget(call: Callable[[], Any]) -> None:
    call()
    gc.collect()


def test_a_call_that_is_never_awaited_does_nothing_and_warns(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            peer.send("kept")
            for call, name in ((peer.ws.receive, "receive"), (lambda: peer.ws.send("lost"), "send")):
                with pytest.warns(RuntimeWarning, match=f"coroutine '.*{name}' was never awaited"):
                    forget(call)
            assert await peer.ws.receive() == "kept"
            await peer.ws.send("sent")
            assert peer.sock.recv(100) == frame(TEXT, b"sent")

    run(main())


def test_a_message_is_sent_when_the_call_is_awaited(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            calls = [peer.ws.send(text) for text in "abc"]
            assert [await call for call in reversed(calls)] == [None] * 3
            assert peer.sock.recv(100) == b"".join(frame(TEXT, text) for text in (b"c", b"b", b"a"))

    run(main())


def test_a_call_is_awaited_once(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            call = peer.ws.receive()
            task = await waiting(await_it(call))
            with pytest.raises(RuntimeError, match="coroutine is being awaited already"):
                await call
            peer.send("one", "two")
            assert await task == "one"
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                await call
            assert await peer.ws.receive() == "two"
            call = peer.ws.send("x")
            await call
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                await call

    run(main())


async def wait_for(call: Any) -> Any:
    return await asyncio.wait_for(call, DEADLINE)


async def create_task(call: Any) -> Any:
    return await asyncio.create_task(call)


async def ensure_future(call: Any) -> Any:
    return await asyncio.ensure_future(call)


async def gather(call: Any) -> Any:
    result, other = await asyncio.gather(call, asyncio.sleep(0, "other"))
    assert other == "other"
    return result


async def shield(call: Any) -> Any:
    return await asyncio.shield(call)


async def wait(call: Any) -> Any:
    (task,), others = await asyncio.wait({asyncio.create_task(call)})
    assert not others
    return task.result()


async def from_thread(call: Any) -> Any:
    loop = asyncio.get_running_loop()
    return await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(call, loop).result(DEADLINE))


@types.coroutine
def yield_from(call: Any) -> Any:
    return (yield from call)


WAYS = [await_it, yield_from, wait_for, create_task, ensure_future, gather, shield, wait, from_thread]

if sys.version_info >= (3, 11):

    async def timeout(call: Any) -> Any:
        async with asyncio.timeout(DEADLINE):
            return await call

    async def task_group(call: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(call)
        return task.result()

    WAYS += [timeout, task_group]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_wait_for_a_coroutine_works(run: Any, way: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            peer.send("here")
            assert await way(peer.ws.receive()) == "here"
            asyncio.get_running_loop().call_later(0.01, peer.send, "later")
            assert await way(peer.ws.receive()) == "later"
            assert await way(peer.ws.send("sent")) is None
            assert peer.sock.recv(100) == frame(TEXT, b"sent")
            peer.close()
            assert await way(peer.ws.receive()) is None
            for call in (peer.ws.receive, lambda: peer.ws.send("x")):
                if way.__name__ != "task_group":  # which raises a group of errors
                    with pytest.raises(ConnectionClosed):
                        await way(call())

    run(main())


# Cancelling


def test_a_call_that_is_cancelled_before_it_begins_has_not_begun(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            peer.send("kept")
            for call in (peer.ws.receive(), peer.ws.send("x")):
                with pytest.raises(asyncio.CancelledError):
                    call.throw(asyncio.CancelledError)
            assert await peer.ws.receive() == "kept"

    run(main())


@pytest.mark.parametrize("arrives", ["before", "after", "never"])
def test_a_receive_that_is_cancelled_while_it_waits_leaves_the_message_to_the_next_one(run: Any, arrives: str) -> None:
    async def main() -> None:
        with connected() as peer:
            for number in range(3):
                task = await waiting(peer.ws.receive())
                if arrives == "before":
                    peer.send(str(number))
                task.cancel("why")
                if arrives == "after":
                    peer.send(str(number))
                with pytest.raises(asyncio.CancelledError):
                    await task
                if arrives == "never":
                    peer.send(str(number))
                assert await peer.ws.receive() == str(number)

    run(main())


def test_a_receive_that_is_cancelled_at_any_time_loses_no_message(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            received: list[Any] = []
            for number in range(300):
                task: asyncio.Task[Any] = asyncio.ensure_future(peer.ws.receive())
                for step in range(5):
                    if step == number % 5:
                        peer.send(str(number))
                    if step == number // 5 % 5:
                        task.cancel()
                    await asyncio.sleep(0)
                with suppress(asyncio.CancelledError):
                    received.append(await task)
            while len(received) < 300:
                received.append(await peer.ws.receive())
            assert received == [str(number) for number in range(300)]
            assert peer.ws.channel.messages_received == 300

    run(main())


def test_a_task_that_is_to_be_cancelled_gets_a_message_that_is_here_and_does_not_wait_for_one(run: Any) -> None:
    async def receive(ws: Any, received: list[Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        received.append(await ws.receive())
        received.append(await ws.receive())

    async def main() -> None:
        with connected() as peer:
            peer.send("here")
            received: list[Any] = []
            with pytest.raises(asyncio.CancelledError):
                await asyncio.ensure_future(receive(peer.ws, received))
            assert received == ["here"]
            peer.send("later")
            assert await peer.ws.receive() == "later"

    run(main())


def test_the_text_of_a_cancellation_reaches_the_task(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            texts: list[Any] = []

            async def receive() -> None:
                try:
                    await peer.ws.receive()
                except asyncio.CancelledError as error:
                    texts.append(error.args)
                    raise

            for arguments in ((), ("why",)):
                task = await waiting(receive())
                task.cancel(*arguments)
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert texts == [(), ("why",)]

    run(main())


def test_closing_a_coroutine_that_waits_ends_its_wait(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            for end in (lambda call: call.close(), lambda call: None):
                call = await_it(peer.ws.receive())
                future = call.send(None)
                assert asyncio.isfuture(future)
                with pytest.raises(ConcurrencyError):
                    await peer.ws.receive()
                end(call)
                del call
                gc.collect()
                peer.send("next")
                assert await peer.ws.receive() == "next"

    run(main())


def test_a_coroutine_that_was_begun_outside_of_a_task_may_be_ended_in_one(run: Any) -> None:
    class Rest:
        def __init__(self, coroutine: Any, awaited: Any) -> None:
            self.coroutine, self.awaited = coroutine, awaited

        def __await__(self) -> Iterator[Any]:
            while True:
                yield self.awaited
                try:
                    self.awaited = self.coroutine.send(None)
                except StopIteration as stop:
                    return stop.value

    async def main() -> None:
        with connected() as peer:
            for arrives_early in (False, True):
                call = await_it(peer.ws.receive())
                rest = Rest(call, call.send(None))
                if arrives_early:
                    peer.send("message")
                    await rounds()
                task = asyncio.ensure_future(await_it(rest))
                await rounds()
                if not arrives_early:
                    peer.send("message")
                assert await task == "message"

    run(main())


def test_what_a_task_waits_for_has_the_interface_of_a_future(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with connected() as peer:
            for end in ("message", "cancel", "detach"):
                call = await_it(peer.ws.receive())
                future = call.send(None)
                called: list[Any] = []
                assert (future.done(), future.cancelled(), future.get_loop()) == (False, False, loop)
                with pytest.raises(asyncio.InvalidStateError):
                    future.exception()
                future.add_done_callback(called.append)
                assert future.remove_done_callback(called.append) == 1
                assert future.remove_done_callback(called.append) == 0
                future.add_done_callback(called.append)
                if end == "message":
                    peer.send("message")
                elif end == "cancel":
                    assert future.cancel() is True
                else:
                    peer.ws.detach()
                while not called:
                    await asyncio.sleep(0)
                assert called == [future]
                assert (future.done(), future.cancelled(), future.cancel()) == (True, end == "cancel", False)
                if end == "cancel":
                    with pytest.raises(asyncio.CancelledError):
                        future.exception()
                else:
                    assert future.exception() is None
                call.close()
                if end == "message":
                    assert await peer.ws.receive() == "message"

    run(main())


# Waking


def test_a_task_that_is_woken_is_the_current_one_in_its_own_context(run: Any) -> None:
    variable = ContextVar("variable", default="none")

    async def receive(ws: Any, name: str) -> None:
        variable.set(name)
        task = asyncio.current_task()
        for _ in range(3):
            assert await ws.receive() == name
            assert (asyncio.current_task(), variable.get()) == (task, name)
            variable.set(name)

    async def main() -> None:
        with connected() as one, connected() as other:
            tasks = [await waiting(receive(one.ws, "one")), await waiting(receive(other.ws, "other"))]
            for _ in range(3):
                one.send("one")
                other.send("other")
                await rounds()
            await asyncio.gather(*tasks)
            assert variable.get() == "none"

    run(main())


def test_a_task_that_waits_when_its_connection_is_detached_gets_the_end(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            running = asyncio.current_task()

            async def receive() -> Any:
                message = await peer.ws.receive()
                assert asyncio.current_task() is not running
                return message

            task = await waiting(receive())
            peer.ws.detach()
            assert asyncio.current_task() is running
            assert not task.done()
            assert await task is None
            with pytest.raises(ConnectionClosed):
                await peer.ws.receive()

    run(main())


def test_a_task_may_be_cancelled_after_its_connection_was_detached(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            task = await waiting(peer.ws.receive())
            peer.ws.detach()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert peer.ws._transport.waiting == 0

    run(main())


def test_a_socket_is_closed_when_the_last_task_has_left(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            fd = peer.ws.fd
            task = await waiting(peer.ws.receive())
            peer.ws.detach()
            os.fstat(fd)
            await task
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    run(main())


def test_the_event_loop_watches_no_socket_that_nobody_receives_from(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with connected() as peer:
            for _ in range(2):
                task = await waiting(peer.ws.receive())
                peer.send("one", "two")
                assert await task == "one"
                peer.send("three")
                while peer.ws.fd in current_asyncio_loop()._readers:
                    await asyncio.sleep(0)
                assert not loop.remove_reader(peer.ws.fd)
                assert [await peer.ws.receive(), await peer.ws.receive()] == ["two", "three"]

    run(main())


def test_others_may_wait_for_the_socket_of_a_task_that_receives(run: Any) -> None:
    async def main() -> None:
        waits = current_asyncio_loop()
        with connected() as peer:
            for first in ("task", "other"):
                other = waits.wait_readable(peer.ws.fd, None) if first == "other" else None
                task = await waiting(peer.ws.receive())
                other = other or waits.wait_readable(peer.ws.fd, None)
                late = asyncio.ensure_future(waits.wait_readable(peer.ws.fd, 0.001))
                assert await late is False
                peer.send("message")
                assert await other is True
                assert await task == "message"
                other = asyncio.ensure_future(waits.wait_readable(peer.ws.fd, None))
                peer.send("next")
                assert await other is True
                assert await peer.ws.receive() == "next"

    run(main())


def test_a_task_goes_on_waiting_after_a_part_of_a_message_or_a_control_frame(run: Any) -> None:
    whole, ping = frame(TEXT, b"message", key=KEY), frame(PING, key=KEY)
    fragments = frame(TEXT, b"mess", key=KEY, fin=False), frame(CONTINUATION, b"age", key=KEY)

    async def main() -> None:
        with connected() as peer:
            for parts in ((whole[:3], whole[3:-1], whole[-1:]), (ping[:2], ping[2:], whole), fragments):
                task = await waiting(peer.ws.receive())
                for part in parts[:-1]:
                    peer.sock.sendall(part)
                    await rounds(5)
                    assert not task.done()
                peer.sock.sendall(parts[-1])
                assert await task == "message"

    run(main())


@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_a_reset_ends_the_wait_after_a_part_of_a_message_and_after_a_whole_one(run: Any, timeout: float | None) -> None:
    async def main() -> None:
        whole = frame(TEXT, b"message", key=KEY)
        for data in (b"", whole[:-1], whole):
            with connected(pair=tcp_pair) as peer:
                task = await waiting(peer.ws.receive(timeout))
                peer.sock.sendall(data)
                peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.sock.close()
                while await asyncio.wait_for(task, DEADLINE) is not None:
                    assert data == whole
                    task = asyncio.ensure_future(peer.ws.receive(timeout))
                assert peer.ws.close_code == 1006

    run(main())


if COMPILED:

    def test_a_reader_that_reads_again_without_need_does_so_once(run: Any) -> None:
        async def main() -> None:
            waits = current_asyncio_loop()
            with connected() as peer, mock.patch.object(waits, "read_with", wraps=waits.read_with) as read_with:
                call = await_it(peer.ws.receive())
                reader = call.send(None)
                for count in (2, 3):
                    reader.read_again()
                    await rounds(5)
                    assert read_with.call_count == count
                call.close()
                peer.ws.detach()
                reader.read_again()
                assert read_with.call_count == count

        run(main())

    def test_a_reader_whose_descriptor_cannot_be_watched_raises_in_the_task(run: Any) -> None:
        async def main() -> None:
            waits = current_asyncio_loop()
            with connected() as peer:
                call = await_it(peer.ws.receive())
                reader = call.send(None)
                with mock.patch.object(waits, "read_with", side_effect=OSError("no more memory")) as read_with:
                    with pytest.raises(OSError, match="no more memory"):
                        reader.read_again()
                    await rounds(5)
                    with pytest.raises(OSError, match="no more memory"):
                        call.send(None)
                    await rounds(5)
                    assert read_with.call_count == 2
                peer.send("message")
                assert await peer.ws.receive() == "message"

        run(main())


def test_an_exit_in_a_task_that_was_woken_ends_the_event_loop_as_usual() -> None:
    async def leave(ws: Any) -> None:
        await ws.receive()
        raise SystemExit(3)

    async def main() -> None:
        with connected() as peer:
            task = await waiting(leave(peer.ws))
            peer.send("go")
            await task

    loop = asyncio.new_event_loop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda loop, context: errors.append(context))
    main_task = loop.create_task(main())
    with pytest.raises(SystemExit) as exit:
        loop.run_until_complete(main_task)
    assert exit.value.code == 3
    with pytest.raises(SystemExit):
        loop.run_until_complete(main_task)
    loop.close()
    assert not errors


def leave_a_task_waiting() -> tuple[Any, Any]:
    """Close an event loop with a task in receive(). Return what its connection leaves behind."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)  # the task is destroyed while it is pending

    async def main() -> tuple[Any, Any]:
        with connected() as peer, mock.patch.object(peer.ws, "detach"):
            await waiting(peer.ws.receive())
            return peer.ws._transport._sock, weakref.ref(peer.ws)

    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_client_whose_event_loop_was_closed_while_a_task_waited_is_collected() -> None:
    sock, reference = leave_a_task_waiting()
    gc.collect()
    assert reference() is None
    sock.close()


def test_a_call_in_another_event_loop_is_an_error() -> None:
    async def receive(ws: Any) -> None:
        with pytest.raises(RuntimeError, match="attached to a different loop"):
            await ws.receive()

    async def main() -> None:
        with connected() as peer:
            await asyncio.to_thread(asyncio.run, receive(peer.ws))
            peer.send("x")
            assert await peer.ws.receive() == "x"

    asyncio.run(main())


# The common case and the others


def test_tasks_take_turns_although_messages_are_always_there(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            peer.send(*["x"] * 5 * RUN_LENGTH)
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            counting = asyncio.ensure_future(count())
            for _ in range(5 * RUN_LENGTH):
                await peer.ws.receive()
            assert turns >= 4
            turns = 0
            for _ in range(5 * RUN_LENGTH):
                await peer.ws.send("x")
            assert turns >= 4
            counting.cancel()
            await asyncio.wait({counting})

    run(main())


def test_listeners_may_come_and_go_between_two_messages(run: Any) -> None:
    async def main() -> None:
        heard: list[Any] = []

        async def listen(app: Any, ws: Any, message: Any) -> None:
            await asyncio.sleep(0)
            heard.append(message)

        with connected() as peer:
            for number in range(4):
                with websocket_message.connected_to(listen) if number % 2 else nullcontext():
                    task = await waiting(peer.ws.receive())
                    peer.send(str(number))
                    assert await task == str(number)
            assert heard == ["1", "3"]

    run(main())


def test_a_timeout_loses_no_message_and_may_come_between_calls_without_one(run: Any) -> None:
    async def main() -> None:
        with connected() as peer:
            for timeout in (None, 0.001, None, 0.001):
                if timeout is None:
                    peer.send("message")
                    assert await peer.ws.receive() == "message"
                else:
                    with pytest.raises(TimeoutError):
                        await peer.ws.receive(timeout)

    run(main())


def test_a_send_waits_for_a_peer_that_does_not_read_and_may_be_cancelled(run: Any) -> None:
    async def main() -> None:
        with connected(send_buffer=1000) as peer:
            text = "x" * 2**20
            await peer.ws.send(text)
            task = await waiting(peer.ws.send("lost"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            task = await waiting(peer.ws.send("last"))

            def read() -> bytes:
                data = b""
                while not data.endswith(frame(TEXT, b"last")):
                    data += peer.sock.recv(2**20)
                return data

            data = await asyncio.to_thread(read)
            await task
            assert data == frame(TEXT, text.encode()) + frame(TEXT, b"last")

    run(main())


# Iteration


async def some(iterator: AsyncIterator[Any], count: int) -> list[Any]:
    return [await anext(iterator) for _ in range(count)]


class Shouting(AsyncioWebSocketClient):
    """A client of an application."""

    async def receive(self, timeout: float | None = None) -> str | bytes | None:
        message = await super().receive(timeout)
        return message and message.upper()


def test_an_iteration_ends_with_the_connection(run: Any) -> None:
    async def main() -> None:
        for client, name in ((AsyncioWebSocketClient, "a"), (Shouting, "A")):
            with connected(client) as peer:
                messages = aiter(peer.ws)
                assert aiter(messages) is messages
                peer.send("a", "")
                assert await some(messages, 2) == [name, ""]
                task = await waiting(await_it(anext(messages)))
                peer.close()
                with pytest.raises(StopAsyncIteration):
                    await task
                assert [message async for message in messages] == []
                assert [message async for message in peer.ws] == []

    run(main())


def test_an_iteration_calls_the_receive_of_a_subclass_and_of_an_instance(run: Any) -> None:
    async def main() -> None:
        with connected(Shouting) as peer:
            peer.send("a", "b")
            assert await some(aiter(peer.ws), 2) == ["A", "B"]
            assert await some(aiter(peer.ws.messages()), 0) == []
            peer.ws.receive = mock.AsyncMock(side_effect=["one", "two", None])
            assert [message async for message in peer.ws] == ["one", "two"]

    run(main())


@pytest.mark.parametrize("has_listener", [False, True])
def test_listeners_and_errors_reach_an_iteration(run: Any, has_listener: bool) -> None:
    heard: list[Any] = []

    def listen(app: Any, ws: Any, message: Any) -> None:
        heard.append(message)

    async def main() -> None:
        with connected() as peer, websocket_message.connected_to(listen) if has_listener else nullcontext():
            messages = aiter(peer.ws)
            peer.send("a")
            assert await anext(messages) == "a"
            task = await waiting(await_it(anext(messages)))
            with pytest.raises(ConcurrencyError):
                await anext(messages)
            task.cancel()
            await asyncio.wait({task})
            peer.send("b")
            assert await anext(messages) == "b"
            peer.close()
            for _ in range(2):
                with pytest.raises(StopAsyncIteration):
                    await anext(messages)

    run(main())
    assert heard == (["a", "b"] if has_listener else [])


def test_a_client_that_was_not_initialised_raises_an_error() -> None:
    client = AsyncioWebSocketClient.__new__(AsyncioWebSocketClient)
    for call in (client.receive(), client.send("x")):
        with pytest.raises(AttributeError):
            call.send(None)
