"""Coroutine handlers on a server with threads are tasks of one event loop in the background."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import request, session

from flask_uwsgi_websocket import websocket_connected, websocket_rejected
from flask_uwsgi_websocket.loops.tasks import background_asyncio_loop
from support.inprocess import DEADLINE, Site, serving
from support.wire import CLOSE, PING, PONG, close_body


@pytest.fixture
def site() -> Iterator[Site]:
    yield from serving("background")


def test_all_handlers_run_in_one_thread_and_see_their_own_request(site: Site) -> None:
    @site.route("/<name>")
    async def handler(ws: Any, name: str) -> None:
        async for _ in ws.messages():
            await ws.send_json([name, request.path, threading.current_thread().name])

    clients = [site.connect(f"/{name}") for name in "abc"]
    for client, name in zip(clients * 2, "abc" * 2, strict=True):
        client.send("who?")
        assert client.recv(DEADLINE) == f'["{name}", "/{name}", "flask-uwsgi-websocket-asyncio"]'


def test_handlers_share_objects_that_belong_to_the_event_loop(site: Site) -> None:
    queue: asyncio.Queue[str] = asyncio.Queue()

    @site.route("/put")
    async def put(ws: Any) -> None:
        async for message in ws:
            await queue.put(message)

    @site.route("/get")
    async def get(ws: Any) -> None:
        await ws.accept()
        await ws.send(await queue.get())

    getter, putter = site.connect("/get"), site.connect("/put")
    putter.send("from the other")
    assert getter.recv(DEADLINE) == "from the other"


def test_the_thread_of_a_page_can_send_messages_also_before_the_handshake(site: Site) -> None:
    async def told(app: Any, ws: Any, **extra: Any) -> None:
        await asyncio.sleep(0)
        site.note(threading.current_thread().name)

    waiting: list[Any] = []
    arrived = threading.Event()

    @site.route("/")
    async def handler(ws: Any) -> None:
        waiting.append(ws)
        arrived.set()
        while not ws._transport.accepted:
            await asyncio.sleep(0.001)
        await ws.receive()

    @site.app.get("/page")
    def page() -> str:
        for _ in range(2):
            assert site.websocket.broadcast("news", waiting) == []
        return "sent"

    client = site.raw()
    with websocket_connected.connected_to(told, site.app):
        client.request("/")
        assert arrived.wait(DEADLINE)
        assert site.refusal("/page", upgrade=None).status == 200
        assert client.response().status == 101
        assert [client.read_frame(), client.read_frame()] == [(1, b"news"), (1, b"news")]
        assert site.noted() == "flask-uwsgi-websocket-asyncio"


def test_the_housekeeper_sends_pings_and_pongs_for_a_handler_that_does_not_receive(site: Site) -> None:
    site.app.config["WEBSOCKET_PING_INTERVAL"] = 0.05

    @site.route("/")
    async def handler(ws: Any) -> None:
        await ws.accept()
        while ws.connected:
            await asyncio.sleep(0.01)
        site.note("gone")

    client = site.upgrade()
    opcode, payload = client.read_frame() or (0, b"")
    assert opcode == PING
    client.frame(PONG, payload)
    client.frame(CLOSE)
    assert site.noted() == "gone"


def echo_at(site: Site) -> Any:
    """Connect to an echo, whose connection the test expects to stay open."""

    @site.route("/echo")
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    return site.connect("/echo")


def check_service(client: Any) -> None:
    client.send("still here?")
    assert client.recv(DEADLINE) == "still here?"


@pytest.mark.parametrize("when", ["before the handshake", "after it"])
def test_awaiting_a_cancelled_task_is_an_error_like_any_other(site: Site, when: str) -> None:
    # CancelledError is no Exception, and would end a worker of gunicorn.
    @site.route("/")
    async def handler(ws: Any) -> None:
        if when == "after it":
            await ws.accept()
        task = asyncio.ensure_future(asyncio.sleep(DEADLINE))
        task.cancel()
        await task

    other = echo_at(site)
    if when == "after it":
        assert site.upgrade().read_frame() == (CLOSE, close_body(1011, b"internal error"))
    else:
        assert site.refusal().status == 500
    assert "CancelledError" in repr(site.logged().exc_info)
    check_service(other)


@pytest.mark.parametrize("register", ["on_error", "on_close", "teardown_websocket"])
def test_awaiting_a_cancelled_task_at_the_end_is_an_error_like_any_other(site: Site, register: str) -> None:
    @site.route("/")
    async def handler(ws: Any) -> None:
        await ws.accept()
        raise KeyError("oops")

    async def wait_for_a_cancelled_task(*args: Any, **extra: Any) -> None:
        task = asyncio.ensure_future(asyncio.sleep(DEADLINE))
        task.cancel()
        await task

    getattr(site.websocket, register)(wait_for_a_cancelled_task)
    site.websocket.teardown_websocket(lambda error: site.note(repr(error)))
    assert site.upgrade().read_frame() == (CLOSE, close_body(1011, b"internal error"))
    assert site.noted() == "KeyError('oops')"
    assert "oops" in repr(site.logged().exc_info)
    assert "CancelledError" in repr(site.logged().exc_info)


def test_a_call_that_is_cancelled_while_a_listener_runs_ends(site: Site) -> None:
    listening = asyncio.Event()

    @site.websocket.on_message
    async def listener(app: Any, ws: Any, **extra: Any) -> None:
        listening.set()
        await asyncio.sleep(DEADLINE)

    @site.route("/")
    async def handler(ws: Any) -> None:
        receiving = asyncio.ensure_future(ws.receive())
        await asyncio.wait_for(listening.wait(), DEADLINE)
        receiving.cancel()
        await asyncio.wait([receiving])
        await ws.send(str(receiving.cancelled()))

    client = site.connect()
    client.send("hello")
    assert client.recv(DEADLINE) == "True"


@pytest.mark.parametrize("how", ["exit", "stop"])
def test_the_event_loop_continues_whatever_one_task_does(site: Site, how: str) -> None:
    async def exit() -> None:
        raise SystemExit

    @site.route("/")
    async def handler(ws: Any) -> None:
        await ws.accept()
        if how == "exit":
            task = asyncio.ensure_future(exit())
            await asyncio.wait([task])
            task.exception()  # without this, garbage collection would log the exception during another test
        else:
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0)
        await ws.send("so do I")

    other = echo_at(site)
    assert site.connect().recv(DEADLINE) == "so do I"
    check_service(other)
    if how == "exit":
        assert "would have ended the event loop" in site.logged().getMessage()


def test_an_interrupt_ends_one_request_but_not_the_event_loop(site: Site) -> None:
    site.app.config["PROPAGATE_EXCEPTIONS"] = False

    @site.route("/")
    async def handler(ws: Any) -> None:
        raise KeyboardInterrupt

    outcomes: list[Any] = []

    def catching(environ: Any, start_response: Any) -> Any:
        try:
            return wsgi_app(environ, start_response)
        except BaseException as raised:
            outcomes.append(type(raised))
            start_response("500 Internal Server Error", [])
            return [b""]

    wsgi_app, site.app.wsgi_app = site.app.wsgi_app, catching  # type: ignore[method-assign]
    other = echo_at(site)
    assert site.refusal().status == 500
    assert outcomes == [KeyboardInterrupt]
    check_service(other)


def test_the_session_is_saved_with_the_handshake(site: Site) -> None:
    @site.route("/")
    async def handler(ws: Any) -> None:
        session["seen"] = True
        await ws.accept()

    client = site.raw()
    client.request("/")
    assert any(name == "Set-Cookie" for name, _ in client.response().headers)


def test_coroutine_receivers_hear_of_a_rejection(site: Site) -> None:
    async def told(app: Any, ws: Any, response: Any, **extra: Any) -> None:
        await asyncio.sleep(0)
        site.note(response.status_code)

    with websocket_rejected.connected_to(told, site.app):
        assert site.refusal("/nowhere").status == 404
    assert site.noted() == 404


def test_the_background_loop_calls_the_receivers_for_a_refusal_within_another_event_loop(site: Site) -> None:
    async def upgrade() -> int:
        headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
        return site.app.test_client().get("/nowhere", headers=headers).status_code

    assert asyncio.run(upgrade()) == 404


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_its_own_event_loop() -> None:
    async def answer() -> int:
        return os.getpid()

    assert background_asyncio_loop().submit(answer()).result(DEADLINE) == os.getpid()
    pid = os.fork()
    if not pid:
        try:
            assert background_asyncio_loop().submit(answer()).result(DEADLINE) == os.getpid()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
