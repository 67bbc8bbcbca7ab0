"""What ``WEBSOCKET_COMPATIBILITY = "0.6.1"`` turns on, in addition to what ``tests/live/test_legacy.py`` compares."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from flask import Flask

import flask_uwsgi_websocket
from flask_uwsgi_websocket import ConnectionClosed, GeventWebSocket, WebSocket, WebSocketClient, WebSocketView, legacy
from flask_uwsgi_websocket.settings import resolve
from support.inprocess import DEADLINE, ROOM, Clock, Site, hold, send_to, serving, tick, wait_at_gate, wait_until
from support.wire import BINARY, CLOSE, KEY, PING, PONG, TEXT, close_body, frame

SLOW = close_body(1013, b"messages were sent faster than they were read")


@pytest.fixture
def site(mode: str) -> Iterator[Site]:
    yield from serving(mode, compatibility="0.6.1")


@pytest.fixture
def in_gevent() -> Iterator[Site]:
    yield from serving("gevent", compatibility="0.6.1")


@pytest.fixture
def in_asyncio() -> Iterator[Site]:
    yield from serving("asyncio", compatibility="0.6.1")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of handlers that go on after the end."""
    clock = Clock()
    monkeypatch.setattr(legacy, "time", clock)
    return clock


def real(ws: Any) -> Any:
    """Return the client itself, not the one whose calls are coroutines in every mode."""
    return getattr(ws, "blocking", ws)


# Settings


def test_it_changes_defaults_which_the_application_may_set_again() -> None:
    settings = resolve({"WEBSOCKET_COMPATIBILITY": "0.6.1", "WEBSOCKET_ALLOWED_ORIGINS": ["https://example.com"]})
    assert settings.origins == ["https://example.com"]
    assert (settings.accept, settings.text_as_bytes, settings.ping_interval) == ("early", True, 5)
    assert settings.send_buffer == 8 * 2**20
    assert resolve({}, {"compatibility": "0.6.1", "ping_interval": 1}).ping_interval == 1


@pytest.mark.parametrize("value", ["0.6", "", 0.6, ["0.6.1"]])
def test_there_is_only_one_such_version(value: Any) -> None:
    with pytest.raises(ValueError, match=r'compatibility must be "0\.6\.1", not'):
        WebSocket(compatibility=value)


def test_it_is_set_before_init_app(blocking: Site) -> None:
    hold(blocking)
    blocking.app.config["WEBSOCKET_COMPATIBILITY"] = "0.6.1"
    assert blocking.refusal().status == 500
    assert "WEBSOCKET_COMPATIBILITY was changed after init_app()" in str(blocking.logged().exc_info)


def test_one_line_of_the_log_says_what_it_turns_on(caplog: pytest.LogCaptureFixture) -> None:
    GeventWebSocket(Flask("old"), compatibility="0.6.1")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("handshake", "origin", "bytes", "send()", "receive()", "docs/migrating.md"):
        assert part in record.getMessage()
    GeventWebSocket(Flask("new"))
    assert caplog.records == [record]


def test_it_has_the_attributes_of_the_extension() -> None:
    app = Flask(__name__)
    app.debug = True
    websocket: Any = WebSocket(timeout=7, compatibility="0.6.1")
    websocket.init_app(app)
    assert (websocket.app, websocket.url_map, websocket.blueprints) == (app, app.url_map, app.blueprints)
    assert (websocket.debug, websocket.timeout, websocket.routes) == (True, 7, {})


@pytest.mark.parametrize("name", ["WebSocket", "GeventWebSocket", "AsyncioWebSocket"])
def test_the_application_may_have_its_own_class_of_clients(name: str) -> None:
    extension: Any = getattr(flask_uwsgi_websocket, name)

    class Client(extension.middleware.client):  # type: ignore[misc]
        def shout(self) -> str:
            return "hello!"

    class Middleware(extension.middleware):  # type: ignore[misc]
        client = Client

    class Extension(extension):  # type: ignore[misc]
        middleware = Middleware

    app = Flask(__name__)
    Extension(app, compatibility="0.6.1")
    made: Any = app.wsgi_app
    assert issubclass(made.client, Client)
    assert issubclass(made.client, legacy._Client)
    assert Middleware.client is Client


def test_other_apps_of_the_process_keep_their_clients() -> None:
    app, old = Flask("app"), Flask("old")
    websocket = WebSocket(app)
    old.config["WEBSOCKET_COMPATIBILITY"] = "0.6.1"
    websocket.init_app(old)
    clients: list[Any] = [app.wsgi_app, old.wsgi_app]
    assert [each.client for each in clients] == [WebSocketClient, legacy.LegacyClient]


def test_a_route_that_was_adapted_to_newer_versions_of_werkzeug_stays(blocking: Site) -> None:
    @blocking.websocket.route("/", websocket=True)
    def handler(ws: Any) -> None:
        ws.send("hello")

    with blocking.connect() as client:
        assert client.recv(DEADLINE) == "hello"


# Sending


def test_send_does_not_wait_for_another_client_and_closes_it_when_it_is_far_behind(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 100_000
    others = []

    @site.route("/slow")
    async def slow(ws: Any) -> None:
        others.append(real(ws))
        site.note("here")
        await wait_at_gate(site)

    @site.route("/fast")
    async def fast(ws: Any) -> None:
        count = 0
        while others[0].connected:
            await send_to(site, others[0], "x" * 50_000)
            count += 1
        await ws.send("not waited")
        site.note(count)

    client = site.upgrade("/slow")
    assert site.noted() == "here"
    gate = site.noted()
    with site.connect("/fast") as other:
        assert other.recv(DEADLINE) == "not waited"
    assert site.noted() * 50_000 < ROOM
    frames = [client.read_frame()]
    while frames[-1][0] == TEXT:
        frames.append(client.read_frame())
    assert frames[-1] == (CLOSE, SLOW)
    client.frame(CLOSE, SLOW)
    gate.open()


def test_a_handler_waits_for_its_own_client_so_that_much_arrives(site: Site) -> None:
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 1000

    @site.route()
    async def handler(ws: Any) -> None:
        for _ in range(40):
            await ws.send("x" * 300_000)

    client = site.upgrade()
    for _ in range(40):
        assert client.read_frame() == (TEXT, b"x" * 300_000)
    assert client.read_frame() == (CLOSE, close_body(1000))


def test_send_to_a_client_that_has_left_does_nothing(site: Site) -> None:
    others = []

    @site.route("/gone")
    async def gone(ws: Any) -> None:
        others.append(real(ws))
        await ws.close()
        site.note("gone")

    @site.route("/here")
    async def here(ws: Any) -> None:
        assert not others[0].connected
        await send_to(site, others[0], "late")
        await ws.send("here")

    with site.connect("/gone"):
        assert site.noted() == "gone"
        with site.connect("/here") as client:
            assert client.recv(DEADLINE) == "here"


def test_a_handler_may_send_to_its_own_client_for_some_seconds_after_the_end(site: Site, late: Clock) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        assert await ws.receive() is None
        if site.mode.name != "threads":  # where 0.6.1 raised, too
            await ws.send("late")
        late.put_forward(legacy.GRACE)
        with pytest.raises(OSError, match="closed: 1001") as error:
            await ws.send("too late")
        assert isinstance(error.value, ConnectionClosed)
        site.note(error.value.code)
        raise error.value

    with site.connect() as client:
        client.close(1001)
    assert site.noted() == 1001


def test_send_reaches_another_client_in_every_mode(site: Site) -> None:
    others = []

    @site.route("/reader")
    async def reader(ws: Any) -> None:
        others.append(real(ws))
        site.note("here")
        await ws.receive()

    @site.route("/writer")
    async def writer(ws: Any) -> None:
        await send_to(site, others[0], "to the reader")
        await ws.send("to the writer")

    with site.connect("/reader") as client:
        assert site.noted() == "here"
        with site.connect("/writer") as other:
            assert client.recv(DEADLINE) == "to the reader"
            assert other.recv(DEADLINE) == "to the writer"
        client.send("done")


def test_what_is_no_message_is_a_type_error(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        for value in (None, 5):
            with pytest.raises(TypeError):
                await ws.send(value)
        await ws.send("still here")

    with site.connect() as client:
        assert client.recv(DEADLINE) == "still here"


def test_bytes_that_are_no_text_are_sent_as_a_binary_message(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(b"\xff")
        await ws.send("é".encode())

    client = site.upgrade()
    assert [client.read_frame(), client.read_frame()] == [(BINARY, b"\xff"), (TEXT, "é".encode())]


# Receiving


def test_receive_returns_none_for_some_seconds_after_the_end_and_then_raises(site: Site, late: Clock) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        assert [await ws.receive() for _ in range(3)] == [None, None, None]
        late.put_forward(legacy.GRACE)
        with pytest.raises(OSError, match="closed: 1000"):
            await ws.receive()
        site.note("raised")

    with site.connect():
        pass
    assert site.noted() == "raised"


def test_receive_with_a_timeout_of_its_own_is_as_ever(in_gevent: Site) -> None:
    @in_gevent.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(TimeoutError):
            await ws.receive(timeout=0)
        in_gevent.note("nothing")
        in_gevent.note(await ws.receive(timeout=DEADLINE))
        in_gevent.note(await ws.receive(timeout=DEADLINE))

    with in_gevent.connect() as client:
        assert in_gevent.noted() == "nothing"
        client.send("one")
        assert in_gevent.noted() == b"one"
        client.send("two")
        assert in_gevent.noted() == b"two"


def test_messages_that_are_here_together_are_followed_by_one_empty_message(in_gevent: Site) -> None:
    @in_gevent.route()
    async def handler(ws: Any) -> None:
        await wait_at_gate(in_gevent)
        in_gevent.note([await ws.receive() for _ in range(4)])

    client = in_gevent.upgrade()
    gate = in_gevent.noted()
    client.send(b"".join(frame(TEXT, each, key=KEY) for each in (b"one", b"two", b"three")))
    gate.open()
    assert in_gevent.noted() == [b"one", b"two", b"three", b""]


def test_recv_nb_returns_an_empty_message_when_there_is_none(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        site.note(ws.recv_nb())
        while not (message := ws.recv_nb()):
            await tick(site)
        site.note(message)
        assert await ws.receive() in {None, b""}  # the empty message that follows in gevent mode
        while ws.connected:
            await tick(site)
        if site.mode.name == "asyncio":
            site.note(ws.recv_nb())
        else:
            with pytest.raises(OSError, match="closed: 1000"):
                ws.recv_nb()
            site.note(None)

    with site.connect() as client:
        assert site.noted() == ("" if site.mode.name == "asyncio" else b"")
        client.send("one")
        assert site.noted() == b"one"
    assert site.noted() is None


def test_the_subprotocol_that_the_client_offers_is_accepted(site: Site) -> None:
    hold(site)
    with site.connect(subprotocols=["first", "second"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "first"


def test_on_a_server_with_threads_a_handler_of_gevent_runs_in_the_thread_of_its_request() -> None:
    app = Flask(__name__)
    threads = []

    def handler(ws: Any) -> None:
        threads.append(threading.current_thread())
        ws.send(ws.receive())

    GeventWebSocket(app, compatibility="0.6.1").add_url_rule("/", view_func=handler)
    client: Any = app.test_client()
    with client.websocket("/") as ws:
        ws.send("one")
        assert ws.receive() == "one"
    assert threads != [threading.main_thread()]


def test_calls_that_0_6_1_did_not_have_get_no_empty_messages(in_gevent: Site) -> None:
    in_gevent.websocket.add_url_rule("/view", view_func=Noting.as_view("view", in_gevent.note))

    @in_gevent.route("/loop")
    async def loop(ws: Any) -> None:
        ws.blocking.timeout = 0.001
        async for message in ws:
            in_gevent.note(message)
            if message == b"two":
                break
        in_gevent.note(await ws.receive_json())
        async for _ in ws:
            pass
        async for _ in ws:  # after the end
            pass
        in_gevent.note("done")

    with in_gevent.connect("/loop") as client:
        for message in ("one", "two"):
            client.send(message)
            assert in_gevent.noted() == message.encode()
        client.send("3")
        assert in_gevent.noted() == 3
    assert in_gevent.noted() == "done"
    with in_gevent.connect("/view") as client:
        for message in ("one", "two"):
            client.send(message)
            assert in_gevent.noted() == message.encode()


class Noting(WebSocketView):
    def __init__(self, note: Callable[[Any], None]) -> None:
        self.note = note

    def on_message(self, ws: Any, message: str | bytes) -> None:
        self.note(message)


def test_the_test_client_connects(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        while (message := await ws.receive()) is not None:
            await ws.send(message)

    client: Any = site.app.test_client()
    with client.websocket("/") as ws:
        ws.send("one")
        assert ws.receive() == "one"


def test_text_may_be_text_before_the_setting_goes(site: Site) -> None:
    site.app.config["WEBSOCKET_TEXT_AS_BYTES"] = False

    @site.route()
    async def handler(ws: Any) -> None:
        site.note(await ws.receive())
        await ws.send("text")
        await ws.send(b"bytes")

    client = site.upgrade()
    client.frame(TEXT, b"one")
    assert site.noted() == "one"
    assert [client.read_frame(), client.read_frame()] == [(TEXT, b"text"), (BINARY, b"bytes")]


def test_no_empty_message_follows_a_pong(in_gevent: Site) -> None:
    @in_gevent.route()
    async def handler(ws: Any) -> None:
        in_gevent.note(await ws.receive())

    client = in_gevent.upgrade()
    client.frame(PONG)
    client.frame(PING)
    assert client.read_frame() == (PONG, b"")
    client.frame(TEXT, b"one")
    assert in_gevent.noted() == b"one"


def test_a_coroutine_receives_an_empty_message_that_the_client_has_sent(in_asyncio: Site) -> None:
    @in_asyncio.route()
    async def handler(ws: Any) -> None:
        in_asyncio.note([await ws.receive(), await ws.receive()])

    client = in_asyncio.upgrade()
    client.frame(TEXT)
    client.frame(TEXT, b"one")
    assert in_asyncio.noted() == [b"", b"one"]


# The end


def test_close_and_connected_begin_the_end_without_waiting_for_it(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        connection = real(ws)
        if await ws.receive() == b"close":
            connection.close()
        else:
            connection.connected = True  # changes nothing
            site.note(connection.connected)
            connection.connected = False
        site.note(connection.connected)
        await wait_at_gate(site)

    for message in ("close", "connected"):
        client = site.upgrade()
        client.frame(TEXT, message.encode())
        if message == "connected":
            assert site.noted() is True
        assert site.noted() is False
        gate = site.noted()
        assert client.read_frame() == (CLOSE, close_body(1000))
        client.frame(CLOSE, close_body(1000))
        gate.open()


def test_close_may_be_awaited(in_asyncio: Site) -> None:
    @in_asyncio.route()
    async def handler(ws: Any) -> None:
        await ws.close()
        in_asyncio.note(ws.connected)

    with in_asyncio.connect():
        assert in_asyncio.noted() is False


def test_send_nb_closes_a_client_that_is_far_behind(in_asyncio: Site) -> None:
    in_asyncio.app.config["WEBSOCKET_SEND_BUFFER"] = 1000

    @in_asyncio.route()
    async def handler(ws: Any) -> None:
        while ws.connected:
            ws.send_nb("x" * 100_000)
        with pytest.raises(ConnectionError):
            ws.send_nb("late")
        in_asyncio.note(ws.close_code)

    client = in_asyncio.upgrade()
    assert in_asyncio.noted() == 1013
    client.reset()


def test_a_greenlet_goes_on_after_its_request_and_the_log_says_so(
    in_gevent: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "GRACE", 0.01)
    in_gevent.app.config["WEBSOCKET_MAX_CONNECTIONS"] = 1

    @in_gevent.route()
    async def handler(ws: Any) -> None:
        await wait_at_gate(in_gevent)
        in_gevent.note((ws.connected, ws.fd))

    for attempt in range(2):  # the second one has the place of the first one
        with in_gevent.connect():
            gate = in_gevent.noted()
        wait_until(lambda: not in_gevent.websocket.stats()["open"])
        if attempt == 0:
            assert "goes on although its connection has ended" in in_gevent.logged().getMessage()
        gate.open()
        assert in_gevent.noted() == (False, -1)


def test_the_oldest_greenlet_that_goes_on_is_ended_when_there_are_too_many(
    in_gevent: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(legacy, "GRACE", 0)
    monkeypatch.setattr(legacy, "MOST_ORPHANS", 1)
    monkeypatch.setattr(legacy, "_orphans", deque())

    @in_gevent.route()
    async def handler(ws: Any) -> None:
        try:
            await wait_at_gate(in_gevent)
        except gevent.GreenletExit:
            in_gevent.note("ended")
            raise

    with in_gevent.connect():
        in_gevent.noted()
    assert "goes on although" in in_gevent.logged().getMessage()
    with in_gevent.connect():
        gate = in_gevent.noted()
    assert in_gevent.noted() == "ended"
    gate.open()


def test_the_failure_of_a_greenlet_is_logged_once_during_its_request_and_after_it(
    in_gevent: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_gevent.route()
    async def handler(ws: Any) -> None:
        if await ws.receive() is None:
            await wait_at_gate(in_gevent)
        raise KeyError("deliberate")

    client = in_gevent.upgrade()
    client.frame(TEXT, b"fail")
    assert client.read_frame() == (CLOSE, close_body(1011, b"internal error"))
    client.frame(CLOSE, close_body(1011))
    assert "Exception on '/'" in in_gevent.logged().getMessage()

    monkeypatch.setattr(legacy, "GRACE", 0)
    with in_gevent.connect():
        pass
    gate = in_gevent.noted()
    assert "goes on although" in in_gevent.logged().getMessage()
    wait_until(lambda: not in_gevent.websocket.stats()["open"])
    gate.open()
    assert "failed after its connection" in in_gevent.logged().getMessage()


def test_a_greenlet_may_exit(in_gevent: Site) -> None:
    @in_gevent.route()
    async def handler(ws: Any) -> None:
        raise gevent.GreenletExit

    client = in_gevent.upgrade()
    assert client.read_frame() == (CLOSE, close_body(1000))
    client.frame(CLOSE, close_body(1000))


# What belongs to both


def test_rooms_and_broadcasts_send_text(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        site.websocket.broadcast(b"to all", [real(ws)])
        await ws.receive()

    with site.connect() as client:
        assert client.recv(DEADLINE) == "to all"
        client.send("done")


def test_a_route_may_have_subprotocols(site: Site) -> None:
    hold(site, subprotocols=["chat"])
    with site.connect(subprotocols=["other", "chat"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "chat"


def test_the_attribute_timeout_is_the_time_until_an_empty_message(in_gevent: Site) -> None:
    @in_gevent.route()
    async def handler(ws: Any) -> None:
        in_gevent.note(ws.timeout)
        ws.blocking.timeout = 0.01
        in_gevent.note(await ws.receive())
        ws.blocking.timeout = None
        in_gevent.note(await ws.receive())

    with in_gevent.connect() as client:
        assert [in_gevent.noted(), in_gevent.noted()] == [5, b""]
        client.send("one")
        assert in_gevent.noted() == b"one"
