"""A call that is cancelled while an on_message listener waits loses no message."""

from __future__ import annotations

import asyncio
from typing import Any

import gevent
import pytest

from support.inprocess import DEADLINE, Site, run
from support.wire import TEXT


async def receive(ws: Any) -> Any:
    return await ws.receive()


async def receive_with_timeout(ws: Any) -> Any:
    return await ws.receive(timeout=DEADLINE)


async def receive_json(ws: Any) -> Any:
    return str(await ws.receive_json())


async def iterate(ws: Any) -> Any:
    async for message in ws:
        return message
    raise AssertionError


async def iterate_with_contexts(ws: Any) -> Any:
    async for message in ws.messages():
        return message
    raise AssertionError


async def recv_nb(ws: Any) -> Any:
    while (message := ws.recv_nb()) is None:
        gevent.sleep(0.001)
    return message


CALLS = [receive, receive_with_timeout, receive_json, iterate, iterate_with_contexts]
CASES = [*(("gevent", call) for call in [*CALLS, recv_nb]), *(("asyncio", call) for call in CALLS)]


async def cancel_soon(mode: str, call: Any, ws: Any) -> None:
    """Make a call that is cancelled soon."""
    if mode == "gevent":
        with gevent.Timeout(0.02, False):
            await call(ws)
            raise AssertionError("it was not cancelled")
    else:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(call(ws), 0.02)


@pytest.mark.parametrize("mode", ["asyncio"])
def test_a_listener_that_is_cancelled_before_it_begins_hears_the_message_from_the_next_call(site: Site) -> None:
    heard: list[Any] = []

    @site.websocket.on_message
    def cancel(app: Any, ws: Any, message: Any, **extra: Any) -> None:
        heard.append("canceller")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    @site.websocket.on_message
    async def listen(app: Any, ws: Any, message: Any, **extra: Any) -> None:
        heard.append("listener")

    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(asyncio.CancelledError):
            await ws.receive()
        site.note(await ws.receive())

    site.upgrade().frame(TEXT, b"1")
    assert site.noted() == "1"
    assert heard == ["canceller", "listener"]


@pytest.mark.parametrize(("mode", "call"), CASES)
def test_the_next_call_delivers_the_message_of_a_cancelled_call_and_listeners_hear_it_once(
    site: Site, mode: str, call: Any
) -> None:
    heard: list[Any] = []

    def listener(name: str) -> Any:
        async def listen(app: Any, ws: Any, message: Any, **extra: Any) -> None:
            heard.append((name, message))
            if name == "slow" and message == "1":
                await site.mode.gate().passed()  # nothing opens this gate

        return listen if mode == "asyncio" else lambda app, **kwargs: run(listen(app, **kwargs))

    names = ["first", "slow", "last"]
    for name in names:
        site.websocket.on_message(listener(name))

    @site.route()
    async def handler(ws: Any) -> None:
        while ("slow", "1") not in heard:
            await cancel_soon(mode, call, ws)
        site.note([await call(ws), await call(ws), await call(ws), ws.channel.messages_received])

    client = site.upgrade()
    for message in (b"1", b"2", b"3"):
        client.frame(TEXT, message)
    assert site.noted() == ["1", "2", "3", 3]
    assert heard == [(name, message) for message in "123" for name in names]
