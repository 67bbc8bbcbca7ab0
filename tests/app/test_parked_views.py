"""Parked views: what differs from a view inside its request, and what must not."""

from __future__ import annotations

import functools
import json
import resource
import select
import socket
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from flask import abort, current_app, g, has_app_context, request, session, url_for

from flask_uwsgi_websocket import (
    ConnectionClosed,
    RateLimit,
    WebSocketBlueprint,
    WebSocketView,
    websocket_closed,
    websocket_connected,
    websocket_error,
    websocket_message,
    websocket_pong,
    websocket_sent,
)
from flask_uwsgi_websocket.connection import base
from flask_uwsgi_websocket.loops.ready import IS_LATE, WAITS
from flask_uwsgi_websocket.worker.admission import admissions
from support.inprocess import (
    MODES,
    Background,
    Clock,
    Core,
    Flood,
    RawClient,
    Site,
    join,
    serving,
    wait_at_gate,
    wait_for_background,
    wait_until,
)
from support.views import in_mode, serve
from support.wire import CLOSE, KEY, PING, PONG, TEXT, close_body, frame


@pytest.fixture(params=[*MODES, Background.name, Core.name])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site in each concurrency mode, whose views are parked."""
    yield from serving(request.param, parks=True)


class Talk(WebSocketView):
    """A view that answers, and notes its end."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def on_message(self, ws: Any, message: Any) -> None:
        await ws.send(message)

    async def on_close(self, ws: Any, code: int, reason: str) -> None:
        self.site.note((code, reason))


class Waiting(Talk):
    """A view that waits in a method when it is told to."""

    async def on_message(self, ws: Any, message: Any) -> None:
        if message == "wait":
            await wait_at_gate(self.site)
        await ws.send(message)


def hear(client: RawClient) -> str:
    """Return the next message."""
    answer = client.read_frame()
    assert answer is not None
    assert answer[0] == TEXT, answer
    return answer[1].decode()


def say(client: RawClient, message: str) -> str:
    """Send a message, and return the answer."""
    client.frame(TEXT, message.encode())
    return hear(client)


def close(client: RawClient, code: int = 1000) -> None:
    """Make the closing handshake."""
    client.frame(CLOSE, close_body(code))
    assert client.read_frame() == (CLOSE, close_body(code))
    assert client.read_frame() is None


# Contexts


def test_a_connection_keeps_its_own_request_while_the_server_serves_others(site: Site) -> None:
    def know(place: str) -> list[Any]:
        known = [place, request.path, request.args.get("name"), request.cookies.get("name"), session.get("name")]
        return [*known, request.view_args, current_app.name, url_for(".talk", room="x")]

    class Identity(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            g.name = session["name"] = request.args["name"]

        async def on_message(self, ws: Any, message: Any) -> None:
            assert "name" not in g  # it is new for each message
            g.name = "lost"
            await ws.send(json.dumps(know("on_message")))

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            site.note([*know("on_close"), g.name])

    @site.websocket.on_close
    def closed(app: Any, ws: Any, **extra: Any) -> None:
        site.note([*know("listener"), g.name])

    @site.websocket.teardown_websocket
    def torn_down(error: BaseException | None) -> None:
        site.note([*know("hook"), g.name])

    site.app.add_url_rule("/page", view_func=lambda: str(g.get("name")), endpoint="page")
    serve(site, Identity)
    clients = [site.upgrade(f"/{n}?name=n{n}", cookie=f"name=c{n}") for n in range(8)]
    names = [[f"/{n}", f"n{n}", f"c{n}", f"n{n}", {"room": f"{n}"}, "site", "ws://localhost/x"] for n in range(8)]
    for _ in range(2):
        for client, known in zip(clients, names, strict=True):
            assert site.refusal("/page?name=page", upgrade=None, connection=None, cookie="name=page").body == b"None"
            assert json.loads(say(client, "who")) == ["on_message", *known]
    for number, (client, known) in enumerate(zip(clients, names, strict=True)):
        close(client)
        assert [site.noted() for _ in range(3)] == [
            [place, *known, f"n{number}"] for place in ("on_close", "listener", "hook")
        ]


def test_context_variables_of_on_connect_are_those_of_the_other_methods(site: Site) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    class Contexts(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            variable.set(room)

        async def on_message(self, ws: Any, message: Any) -> None:
            await ws.send(variable.get())

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            site.note(variable.get())

    site.websocket.on_close(lambda app, ws, **extra: site.note(variable.get()))
    site.app.add_url_rule("/page", view_func=lambda: variable.get(), endpoint="page")
    serve(site, Contexts)
    clients = {room: site.upgrade(f"/{room}") for room in "abc"}
    for _ in range(2):
        for room, client in clients.items():
            assert say(client, "which") == room
    for room, client in clients.items():
        close(client)
        assert [site.noted(), site.noted()] == [room, room]


def test_each_call_after_the_request_has_an_app_context_that_is_torn_down(site: Site) -> None:
    site.app.teardown_appcontext(lambda error: site.note(("torn down", g.get("name"))))

    class Contexts(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            g.name = room

        async def on_message(self, ws: Any, message: Any) -> None:
            g.name = message
            await ws.send(message)

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            site.note(("on_close", g.name))

    for listen in (site.websocket.on_connect, site.websocket.on_message, site.websocket.on_close):
        listen(lambda app, ws, _name=listen.__name__, **extra: site.note((f"listener {_name}", g.name)))
    site.websocket.teardown_websocket(lambda error: site.note(("hook", g.name)))
    serve(site, Contexts)
    client = site.upgrade("/a")
    # The listener runs inside the request, and then the request ends.
    assert [site.noted() for _ in range(2)] == [("listener on_connect", "a"), ("torn down", "a")]
    assert say(client, "x") == "x"
    assert [site.noted() for _ in range(3)] == [("listener on_message", "a"), ("torn down", "a"), ("torn down", "x")]
    close(client)
    assert [site.noted() for _ in range(6)] == [
        ("on_close", "a"),
        ("torn down", "a"),
        ("listener on_close", "a"),
        ("torn down", "a"),
        ("hook", "a"),
        ("torn down", "a"),
    ]
    wait_for_background()
    assert site.notes.empty()


# Hooks and signals


def test_hooks_methods_and_signals_come_once_and_in_their_order(site: Site) -> None:
    site.websocket.before_websocket(lambda: site.note("before_websocket"))
    site.websocket.after_websocket(lambda response: site.note("after_websocket") or response)
    site.websocket.teardown_websocket(lambda error: site.note(f"teardown_websocket {error}"))
    receivers = []
    for signal, name in {
        websocket_connected: "connected",
        websocket_message: "message",
        websocket_sent: "sent",
        websocket_pong: "pong",
        websocket_closed: "closed",
        websocket_error: "error",
    }.items():

        def receive(app: Any, ws: Any, name: str = name, **extra: Any) -> None:
            assert has_app_context()
            assert request.path == "/a"
            site.note(f"signal {name}")

        receivers.append(receive)
        signal.connect(receive, site.app)
    for listen in ("on_connect", "on_message", "on_pong", "on_close", "on_error"):
        getattr(site.websocket, listen)(lambda app, ws, _name=listen, **extra: site.note(f"listener {_name}"))

    class Noting(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            site.note("on_connect")

        async def on_message(self, ws: Any, message: Any) -> None:
            site.note("on_message")
            if message == "ping":
                await ws.ping()
            elif message == "fail":
                raise KeyError("oops")
            else:
                await ws.send(message)

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            site.note("on_close")

    def noted(*expected: str) -> None:
        assert [site.noted() for _ in expected] == list(expected)

    serve(site, Noting)
    client = site.upgrade("/a")
    noted("before_websocket", "on_connect", "after_websocket", "listener on_connect", "signal connected")
    for _ in range(2):
        assert say(client, "x") == "x"
        noted("listener on_message", "signal message", "on_message", "signal sent")
    client.frame(TEXT, b"ping")
    opcode, payload = client.read_frame() or (0, b"")
    assert opcode == PING
    noted("listener on_message", "signal message", "on_message")
    client.frame(PONG, payload)
    noted("listener on_pong", "signal pong")
    client.frame(TEXT, b"fail")
    assert client.read_frame() == (CLOSE, close_body(1011, b"internal error"))
    client.frame(CLOSE, close_body(1011))
    noted("listener on_message", "signal message", "on_message", "on_close", "listener on_error", "signal error")
    noted("listener on_close", "signal closed", "teardown_websocket 'oops'")
    wait_for_background()
    assert site.notes.empty()
    assert "oops" in str(site.logged().exc_info)


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (KeyError("in the decorator"), 1011, "internal error"),
        (abort, 4404, "Not Found"),
        (ConnectionClosed(), 1000, ""),
    ],
)
def test_a_decorator_that_raises_after_the_view_has_returned_ends_the_connection(
    site: Site, error: Any, code: int, reason: str
) -> None:
    def fail() -> None:
        if error is abort:
            abort(404)
        raise error

    def failing(view: Callable[..., Any]) -> Callable[..., Any]:
        if site.mode.name in {"asyncio", "background"}:

            @functools.wraps(view)
            async def decorated(ws: Any, **kwargs: Any) -> None:
                await view(ws, **kwargs)
                fail()

            return decorated

        @functools.wraps(view)
        def plain(ws: Any, **kwargs: Any) -> None:
            view(ws, **kwargs)
            fail()

        return plain

    class Decorated(Talk):
        decorators = [failing]  # noqa: RUF012

    site.websocket.teardown_websocket(lambda error: site.note("torn down"))
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/", "talk", in_mode(site, Decorated).as_view("talk", site))
    site.app.register_blueprint(chat)
    client = site.upgrade()
    assert client.read_frame() == (CLOSE, close_body(code, reason.encode()))
    client.frame(CLOSE, close_body(code))
    assert client.read_frame() is None
    assert [site.noted(), site.noted()] == [(code, reason), "torn down"]
    wait_for_background()
    assert site.notes.empty()
    if code == 1011:
        assert "in the decorator" in str(site.logged().exc_info)


# Messages


def test_on_connect_may_receive_messages_and_the_others_come_to_on_message(site: Site) -> None:
    class Dialog(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            await ws.send(f"hello {await ws.receive()}")

    serve(site, Dialog)
    for texts in (["Ann"], ["Ann", "x", "y"]):
        client = site.upgrade("/a")
        client.send(b"".join(frame(TEXT, text.encode(), key=KEY) for text in texts))
        assert hear(client) == "hello Ann"
        for text in texts[1:]:
            assert hear(client) == text
        assert say(client, "z") == "z"
        close(client)
        assert site.noted() == (1000, "")


def test_on_message_may_receive_messages_itself(site: Site) -> None:
    class Dialog(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            await ws.send(f"{message} {await ws.receive()}")

    serve(site, Dialog)
    client = site.upgrade("/a")
    for _ in range(2):
        client.frame(TEXT, b"a")
        assert say(client, "b") == "a b"
    client.frame(TEXT, b"a")
    close(client)
    assert site.noted() == (1000, "")


def test_on_message_may_wait_for_a_message_that_does_not_come(site: Site) -> None:
    class Dialog(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            try:
                await ws.receive(timeout=0.01)
            except TimeoutError:
                await ws.send("timeout")

    serve(site, Dialog)
    client = site.upgrade("/a")
    assert say(client, "a") == "timeout"
    assert say(client, "a") == "timeout"
    close(client)
    assert site.noted() == (1000, "")


@pytest.mark.parametrize("wait", [True, False])
def test_on_message_may_close(site: Site, wait: bool) -> None:
    class Closing(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            await ws.close(4001, "bye", wait=wait)
            assert not ws.connected

    serve(site, Closing)
    client = site.upgrade("/a")
    client.frame(TEXT)
    assert client.read_frame() == (CLOSE, close_body(4001, b"bye"))
    client.frame(TEXT, b"too late")
    client.frame(CLOSE, close_body(4001))
    assert client.read_frame() is None
    assert site.noted() == (4001, "bye")
    wait_for_background()
    assert site.notes.empty()


def test_a_page_may_send_to_a_parked_connection_and_close_it(site: Site) -> None:
    parked: dict[str, Any] = {}

    class Kept(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            parked[room] = getattr(ws, "blocking", ws)

    serve(site, Kept)

    def close_all() -> str:
        for ws in parked.values():
            site.websocket.broadcast("bye", [ws])
            ws.begin_close(4000, "closed by a page")
        return "closed"

    site.app.add_url_rule("/page", view_func=close_all, endpoint="page")
    clients = [site.upgrade(f"/{room}") for room in "ab"]
    assert site.refusal("/page", upgrade=None, connection=None).body == b"closed"
    for client in clients:
        assert hear(client) == "bye"
        assert client.read_frame() == (CLOSE, close_body(4000, b"closed by a page"))
        client.frame(CLOSE, close_body(4000))
        assert client.read_frame() is None
        assert site.noted() == (4000, "closed by a page")


def test_many_messages_keep_their_order(site: Site) -> None:
    serve(site, Talk)
    client = site.upgrade("/a")
    texts = [str(number).encode() for number in range(1000)]
    client.send(b"".join(frame(TEXT, text, key=KEY) for text in texts))
    for text in texts:
        assert hear(client) == text.decode()
    close(client)


def test_a_message_in_pieces_arrives_whole(site: Site) -> None:
    serve(site, Talk)
    client = site.upgrade("/a")
    client.frame(TEXT, b"to", fin=False)
    assert client.sock  # a part of the next frame in each packet
    data = frame(0, b"gether" * 3000, key=KEY)
    for start in range(0, len(data), 4000):
        client.send(data[start : start + 4000])
    assert hear(client) == "to" + "gether" * 3000
    close(client)


@pytest.mark.parametrize("end", ["close", "end of stream", "both"])
def test_messages_that_come_together_with_the_end_are_handled(site: Site, end: str) -> None:
    class Noting(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            site.note(message)

    serve(site, Noting)
    client = site.upgrade("/a")
    data = b"".join(frame(TEXT, text, key=KEY) for text in (b"a", b"b"))
    client.send(data + (b"" if end == "end of stream" else frame(CLOSE, close_body(4000), key=KEY)))
    if end != "close":
        client.sock.shutdown(socket.SHUT_WR)
    assert [site.noted(), site.noted()] == ["a", "b"]
    assert site.noted()[0] == (1006 if end == "end of stream" else 4000)
    if end != "end of stream":
        assert client.read_frame() == (CLOSE, close_body(4000))
    assert client.read_frame() is None
    wait_for_background()
    assert site.notes.empty()


def test_the_end_of_a_client_that_leaves_while_a_method_runs_comes_after_it(site: Site) -> None:
    class Waiting(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            await wait_at_gate(site)
            site.note("on_message has ended")
            await ws.send("too late")

    serve(site, Waiting)
    client = site.upgrade("/a")
    client.frame(TEXT)
    gate = site.noted()
    client.reset()
    gate.open()
    assert site.noted() == "on_message has ended"
    assert site.noted()[0] == 1006
    wait_for_background()
    assert site.notes.empty()


def test_a_ping_is_answered_while_a_method_waits_and_others_are_served(site: Site) -> None:
    serve(site, Waiting)
    client, other = site.upgrade("/a"), site.upgrade("/b")
    client.frame(TEXT, b"wait")
    gate = site.noted()
    client.frame(PING, b"?")
    assert client.read_frame() == (PONG, b"?")
    client.frame(TEXT, b"later")
    assert say(other, "x") == "x"
    gate.open()
    assert [hear(client), hear(client)] == ["wait", "later"]
    for each in (client, other):
        close(each)


def test_a_flood_on_one_connection_does_not_hold_up_another(site: Site) -> None:
    serve(site, Talk)
    flooding, client = site.upgrade("/a"), site.upgrade("/b")
    with Flood(flooding):
        for number in range(20):
            assert say(client, str(number)) == str(number)
    close(client)


def test_an_exit_in_a_method_ends_its_own_connection_only(site: Site) -> None:
    class Exiting(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            if message == "exit":
                raise SystemExit
            await ws.send(message)

    serve(site, Exiting)
    client, other = site.upgrade("/a"), site.upgrade("/b")
    client.frame(TEXT, b"exit")
    assert client.read_frame() == (CLOSE, close_body(1011, b"internal error"))
    client.frame(CLOSE, close_body(1011))
    assert client.read_frame() is None
    assert site.noted() == (1011, "internal error")
    assert site.logged().exc_info
    assert say(other, "x") == "x"
    close(other)


@pytest.mark.parametrize("site", ["gevent", "asyncio"], indirect=True)
def test_a_connection_that_cannot_be_parked_is_closed_with_1011(site: Site) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    parked: list[Any] = []

    class Starving(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            parked.append(self)

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            site.note((code, reason))

    @site.app.teardown_request
    def starve(error: BaseException | None) -> None:
        if len(parked) == 1:  # the first one needs a descriptor of epoll(7)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))

    site.app.config["WEBSOCKET_MAX_CONNECTIONS"] = 1
    serve(site, Starving)
    client = site.upgrade("/a")
    assert client.read_frame() == (CLOSE, close_body(1011, b"internal error"))
    client.frame(CLOSE, close_body(1011))
    assert client.read_frame() is None
    assert site.noted() == (1011, "internal error")
    assert "Too many open files" in str(site.logged().exc_info)
    wait_until(lambda: not admissions._total, "the place of the connection was not freed")
    client = site.upgrade("/b")
    assert say(client, "x") == "x"
    close(client)
    assert site.noted() == (1000, "")


# The form inside the request


@pytest.mark.parametrize("site", [*MODES, Background.name], indirect=True)
def test_a_view_that_is_not_parked_stays_inside_its_request(site: Site) -> None:
    class Staying(Talk):
        parked = False

    site.app.teardown_request(lambda error: site.note("the request has ended"))
    serve(site, Staying)
    client = site.upgrade("/a")
    assert say(client, "x") == "x"
    assert site.notes.empty()
    close(client)
    assert [site.noted(), site.noted()] == [(1000, ""), "the request has ended"]


# Limits


def test_a_client_that_answers_no_ping_is_dropped(site: Site, clock: Clock) -> None:
    serve(site, Talk, route={"ping_interval": 20, "ping_timeout": 10})
    client = site.upgrade("/a")
    for _ in range(2):
        assert say(client, "x") == "x"
        clock.put_forward(21)
        client.frame(PONG, client.read_ping())
    assert say(client, "x") == "x"
    clock.put_forward(21)
    client.read_ping()
    clock.put_forward(11)
    assert client.read_frame() is None
    assert site.noted()[0] == 1006


@pytest.mark.parametrize(
    ("option", "end"),
    [
        ("idle_timeout", (1001, "no message for 100 s")),
        ("max_lifetime", (1012, "the connection has lasted long enough: connect again")),
    ],
)
def test_a_connection_that_idles_or_lasts_for_too_long_is_closed(
    site: Site, clock: Clock, option: str, end: tuple[int, str]
) -> None:
    serve(site, Talk, route={option: 100, "ping_interval": None})
    client = site.upgrade("/a")
    client.frame(PING)
    assert client.read_frame() == (PONG, b"")  # which is no message
    clock.put_forward(101)
    assert client.read_frame() == (CLOSE, close_body(end[0], end[1].encode()))
    client.frame(CLOSE, close_body(end[0]))
    assert client.read_frame() is None
    assert site.noted() == end


def test_a_client_that_does_not_answer_the_close_frame_is_dropped(site: Site, clock: Clock) -> None:
    class Closing(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            await ws.close(4000, wait=False)

    site.websocket.teardown_websocket(lambda error: site.note("torn down"))
    serve(site, Closing, route={"close_timeout": 5})
    client = site.upgrade("/a")
    client.frame(TEXT)
    assert client.read_frame() == (CLOSE, close_body(4000))
    assert site.noted() == (4000, "")
    clock.put_forward(6)
    assert client.read_frame() is None
    assert site.noted() == "torn down"


def make_late(site: Site) -> tuple[RawClient, Any, Callable[[], None]]:
    """Return a client that is late, as if all threads were busy, its channel, and what ends that."""
    lots: list[Any] = []

    class Noting(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            lots.append((ws.loop.lot(), ws.fd, ws.channel))

    serve(site, Noting)
    client = site.upgrade("/a")
    assert say(client, "x") == "x"
    lot, fd, channel = lots[0]
    parked = lot.parked[fd]
    wait_until(lambda: parked.state == WAITS)
    parked.state = IS_LATE
    parked.leave_to_housekeeper()

    def run() -> None:
        with lot.lock:
            lot.ready.append(parked)
        lot._wake()

    return client, channel, run


@pytest.mark.parametrize("site", ["threads"], indirect=True)  # in the other modes, nothing is late
def test_what_comes_after_the_housekeeper_has_read_for_a_late_connection_is_read(site: Site) -> None:
    client, channel, run = make_late(site)
    client.frame(TEXT, b"y")
    wait_until(lambda: channel.pump(ahead=True) or channel.inbox)
    client.frame(TEXT, b"z")
    wait_until(lambda: len(channel.inbox) > 1 or select.select([channel.fd], [], [], 0)[0])
    run()
    assert [hear(client), hear(client)] == ["y", "z"]
    close(client)
    assert site.noted() == (1000, "")


def test_each_message_has_a_g_of_its_own_without_a_teardown_function(site: Site) -> None:
    class Noting(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            g.name = room

        async def on_message(self, ws: Any, message: Any) -> None:
            found = g.get("name")
            g.name = message
            await ws.send(f"{found} {g.name}")

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            site.note(g.name)

    serve(site, Noting)
    assert not site.app.teardown_appcontext_funcs
    client = site.upgrade("/a")
    client.send(b"".join(frame(TEXT, text, key=KEY) for text in (b"x", b"y")))
    assert [hear(client), hear(client), say(client, "z")] == ["None x", "None y", "None z"]
    client.frame(CLOSE, close_body(1000))
    assert site.noted() == "a"


def test_what_runs_beside_the_methods_keeps_their_g(site: Site) -> None:
    """A task runs in a copy of the context of the method that starts it."""

    class Copying(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            g.name = room
            self.contexts = [copy_context()]

        async def on_message(self, ws: Any, message: Any) -> None:
            g.name = message
            self.contexts.append(copy_context())
            await ws.send(" ".join(context.run(lambda: str(g.get("name"))) for context in self.contexts))

    serve(site, Copying)
    client = site.upgrade("/x")
    assert [say(client, "a"), say(client, "b")] == ["x a", "x a b"]
    close(client)
    assert site.noted() == (1000, "")


def test_a_client_that_reads_nothing_is_dropped_and_holds_nobody_up(site: Site) -> None:
    class Pushing(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            while message == "push":
                await ws.send(bytes(2**16))
            await ws.send(message)

    serve(site, Pushing, route={"send_timeout": 0.3, "send_buffer": 100_000})
    client, other = site.upgrade("/a"), site.upgrade("/b")
    client.frame(TEXT, b"push")
    while site.notes.empty():
        assert say(other, "x") == "x"
    assert site.noted() == (1006, "the peer has read nothing for 0.3 s")
    close(other)
    assert site.noted() == (1000, "")


def test_a_client_that_sends_more_than_allowed_is_closed(site: Site) -> None:
    serve(site, Talk, route={"rate_limit": RateLimit(messages=1, burst=10)})
    client = site.upgrade("/a")
    client.send(frame(TEXT, b"x", key=KEY) * 100)
    answers = []
    while (answer := client.read_frame()) == (TEXT, b"x"):
        answers.append(answer)
    assert answer == (CLOSE, close_body(1008, b"more was sent than the rate limit allows"))
    assert len(answers) < 100
    client.close()
    assert site.noted() == (1008, "more was sent than the rate limit allows")


def test_a_connection_joins_a_room_and_leaves_it_at_its_end(site: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    rooms = chat.rooms()

    class Member(Talk):
        async def on_connect(self, ws: Any, room: str) -> None:
            self.room = rooms[room]
            await join(self.room, ws)

        async def on_message(self, ws: Any, message: Any) -> None:
            self.room.publish(message)

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            site.note((code, len(ws.memberships), len(self.room.local_members)))

    site.websocket.on_close(lambda app, ws, **extra: site.note((len(ws.memberships), len(rooms["a"].local_members))))
    chat.add_websocket_rule("/<room>", "talk", in_mode(site, Member).as_view("talk", site))
    site.app.register_blueprint(chat)
    clients = [site.upgrade("/a") for _ in range(3)]
    clients[0].frame(TEXT, b"hello")
    assert [hear(client) for client in clients] == ["hello"] * 3
    close(clients[0])
    assert site.noted() == (1000, 1, 3)
    assert site.noted() == (0, 2)
    with site.app.app_context():
        rooms["a"].publish("from a page")
    assert [hear(client) for client in clients[1:]] == ["from a page"] * 2
    with site.app.app_context():
        rooms["a"].close(4000, "over")
    for client in clients[1:]:
        assert client.read_frame() == (CLOSE, close_body(4000, b"over"))
        client.frame(CLOSE, close_body(4000))
        assert client.read_frame() is None
    wait_until(lambda: not rooms["a"].local_members)
    wait_for_background()


def test_the_log_reports_once_that_a_method_runs_for_long(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LONG_RUN", 0.05)

    serve(site, Waiting)
    client = site.upgrade("/a")
    assert say(client, "x") == "x"
    for _ in range(2):
        client.frame(TEXT, b"wait")
        gate = site.noted()
        said = site.logged().getMessage()
        assert "has been in a method of its view for 0 s, and handles no other message meanwhile" in said
        assert said.endswith("threads are busy (WEBSOCKET_THREADS)") == (site.mode.name in {"threads", "core"})
        for _ in range(2):  # the housekeeper has looked at the connection again, to read what has arrived
            client.frame(PING)
            assert client.read_frame() == (PONG, b"")
        gate.open()
        assert hear(client) == "wait"
    close(client)


@pytest.mark.parametrize("site", ["threads"], indirect=True)
def test_the_log_does_not_report_a_method_that_waits_for_a_thread(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LONG_RUN", 0)
    client, _, run = make_late(site)
    for _ in range(3):  # the housekeeper has looked at the connection again
        client.frame(PING)
        assert client.read_frame() == (PONG, b"")
    run()
    close(client)
    assert site.noted() == (1000, "")


def test_on_close_is_looked_after_as_on_message_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LONG_RUN", 0.05)

    class Ending(Talk):
        async def on_message(self, ws: Any, message: Any) -> None:
            abort(404)

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            await wait_at_gate(self.site)
            await super().on_close(ws, code, reason)

    serve(site, Ending)
    client = site.upgrade("/a")
    client.frame(TEXT, b"x")
    gate = site.noted()
    client.frame(PING)
    assert client.read_frame() == (PONG, b"")
    assert "has been in a method of its view" in site.logged().getMessage()
    gate.open()
    assert client.read_frame() == (CLOSE, close_body(4404, b"Not Found"))
    client.frame(CLOSE, close_body(4404))
    assert site.noted() == (4404, "Not Found")


def test_receive_in_on_close_reports_the_end(site: Site) -> None:
    class Receiving(Talk):
        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            try:
                await ws.receive()
            except ConnectionClosed as error:
                self.site.note(error.code)

    serve(site, Receiving)
    close(site.upgrade("/a"))
    assert site.noted() == 1000
