"""Signals report each event of a connection once, and receivers cannot harm the connection."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from blinker import NamedSignal
from flask import Blueprint, Flask, abort, g, redirect, request
from websockets.exceptions import ConnectionClosed as ClientSawClose

from flask_uwsgi_websocket import (
    ConnectionClosed,
    WebSocketBlueprint,
    websocket_closed,
    websocket_connected,
    websocket_error,
    websocket_message,
    websocket_pong,
    websocket_rejected,
    websocket_sent,
)
from support.inprocess import DEADLINE, MODES, ROOM, Clock, RawClient, Site, serving, wait_for_background, wait_until
from support.wire import BINARY, CLOSE, PING, TEXT, close_body

SIGNALS: dict[str, NamedSignal] = {
    signal.name.removeprefix("websocket-"): signal
    for signal in (
        websocket_connected,
        websocket_message,
        websocket_pong,
        websocket_sent,
        websocket_closed,
        websocket_rejected,
        websocket_error,
    )
}

Heard = list[tuple[str, dict[str, Any]]]


def receivers(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return a receiver for each signal, which calls *function* with the signal's name and its own arguments."""

    def receiver(name: str) -> Callable[..., Any]:
        return lambda app, **kwargs: function(name, app, **kwargs)

    return {name: receiver(name) for name in SIGNALS}


@pytest.fixture
def heard(site: Site) -> Iterator[Heard]:
    """The signals of the site's app, in the order in which they were sent."""
    told: Heard = []
    with ExitStack() as stack:
        for name, receiver in receivers(lambda name, app, **kwargs: told.append((name, kwargs))).items():
            stack.enter_context(SIGNALS[name].connected_to(receiver, site.app))
        yield told


@pytest.fixture
def cooperative() -> Iterator[Site]:
    """A site with asyncio."""
    yield from serving("asyncio")


def names(heard: Heard) -> list[str]:
    """Return the names of all signals, after all connections have ended."""
    wait_for_background()
    return [name for name, _ in heard]


def talk(site: Site, path: str = "/") -> None:
    """Send "x" to an echo."""
    with site.connect(path) as client:
        client.send("x")
        assert client.recv(DEADLINE) == "x"


# All signals


def test_each_signal_has_its_keywords_and_the_app_as_its_sender(site: Site, echo: Any) -> None:
    @site.route("/fails")
    async def fails(ws: Any) -> None:
        await ws.accept()
        raise KeyError("oops")

    @site.route("/pings")
    async def pings(ws: Any) -> None:
        await ws.ping()
        await ws.receive()

    told: list[Any] = []
    with ExitStack() as stack:
        for name, receiver in receivers(lambda name, app, **kwargs: told.append((name, app, kwargs))).items():
            stack.enter_context(SIGNALS[name].connected_to(receiver))
        talk(site)
        with site.connect("/pings"):
            wait_until(lambda: any(name == "pong" for name, _, _ in told))
        with pytest.raises(ClientSawClose, match="1011"):
            site.connect("/fails").recv(DEADLINE)
        assert site.refusal("/nowhere").status == 404
        wait_for_background()
    assert "oops" in str(site.logged().exc_info)

    assert all(app is site.app for _, app, _ in told)
    keywords = {name: kwargs for name, _, kwargs in told}
    closed = ["code", "reason", "initiator", "duration", "messages_received", "messages_sent"]
    assert {name: sorted(kwargs) for name, kwargs in keywords.items()} == {
        "connected": ["ws"],
        "message": ["message", "ws"],
        "pong": ["latency", "ws"],
        "sent": ["message", "ws"],
        "closed": sorted([*closed, "ws"]),
        "rejected": ["response", "ws"],
        "error": ["exception", "ws"],
    }
    assert keywords["message"]["message"] == keywords["sent"]["message"] == "x"
    assert repr(keywords["error"]["exception"]) == "KeyError('oops')"
    assert keywords["rejected"]["response"].status_code == 404


def test_the_signals_of_a_connection_come_in_their_order(site: Site, echo: Any, heard: Heard) -> None:
    with site.connect() as client:
        for message in ["é", b"\xff", "", b""]:
            client.send(message)
            assert client.recv(DEADLINE) == message
    assert names(heard) == ["connected", *["message", "sent"] * 4, "closed"]
    assert [each["message"] for _, each in heard[1:-1:2]] == ["é", b"\xff", "", b""]
    assert [each["message"] for _, each in heard[2:-1:2]] == ["é", b"\xff", "", b""]
    assert len({each["ws"].id for _, each in heard}) == 1


def test_a_receiver_for_one_app_hears_of_no_other_app(site: Site, echo: Any) -> None:
    told: list[str] = []
    with ExitStack() as stack:
        for name, receiver in receivers(lambda name, app, **kwargs: told.append(name)).items():
            stack.enter_context(SIGNALS[name].connected_to(receiver, Flask("other")))
        talk(site)
        wait_for_background()
    assert not told


def test_the_signal_of_a_message_comes_before_the_handler_gets_the_message(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(f"{await ws.receive()} {g.told}")

    def receiver(app: Any, ws: Any, message: str, **extra: Any) -> None:
        g.told = message.upper()

    with websocket_message.connected_to(receiver, site.app), site.connect() as client:
        client.send("x")
        assert client.recv(DEADLINE) == "x X"


def test_recv_nb_sends_the_signal_of_a_message_too(site: Site, heard: Heard) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        while (message := ws.recv_nb()) is None:
            gate = site.mode.gate()
            gate.open()
            await gate.passed()
        await ws.send(message)

    talk(site)
    assert names(heard) == ["connected", "message", "sent", "closed"]
    assert heard[-1][1]["messages_received"] == 1


def test_the_signal_of_a_json_message_has_its_text(site: Site, heard: Heard) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send_json(await ws.receive_json())

    with site.connect() as client:
        client.send("[1]")
        assert client.recv(DEADLINE) == "[1]"
    assert names(heard) == ["connected", "message", "sent", "closed"]
    assert [each["message"] for _, each in heard[1:3]] == ["[1]", "[1]"]


def test_a_message_that_could_not_be_sent_has_no_signal(site: Site, heard: Heard) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(TypeError):
            await ws.send(1)
        await ws.close()
        with pytest.raises(ConnectionClosed):
            await ws.send("x")

    with site.connect() as client:
        assert list(client) == []
    assert names(heard) == ["connected", "closed"]
    assert heard[-1][1]["messages_sent"] == 0


def test_a_connection_is_connected_once_though_ten_tasks_send_at_the_same_time(site: Site, heard: Heard) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async def send() -> None:
            await ws.send("x")

        for join in [site.mode.spawn(send) for _ in range(10)]:
            await join()

    with site.connect() as client:
        assert list(client) == ["x"] * 10
    assert sorted(names(heard)) == ["closed", "connected", *["sent"] * 10]
    assert heard[-1][0] == "closed"
    assert heard[-1][1]["messages_sent"] == 10


# websocket_closed


async def serve_one(site: Site, ws: Any, ending: str) -> None:
    """Echo a message, then end the connection or wait for its end."""
    await ws.send(await ws.receive())
    if ending == "the handler raises":
        raise KeyError("oops")
    if ending == "the handler raises ConnectionClosed":
        raise ConnectionClosed
    if ending == "a timeout leaves the handler":
        await ws.receive(timeout=0.01)
    if ending == "the handler aborts":
        abort(404)
    if ending in {"the handler closes", "the handler closes and the client does not answer"}:
        await ws.close(4000, "bye")
    if ending == "the worker ends":
        ws.begin_shutdown(1001, "the server stops")
    if ending == "the client does not read":
        while True:
            await ws.send(b"x" * ROOM)
    if ending != "the handler returns":
        assert await ws.receive() is None
    if ending == "the handler raises after the client has closed":
        raise KeyError("oops")


OFFENCES = {
    "the client breaks the protocol": (3, b""),
    "the client sends invalid UTF-8": (TEXT, b"\xff"),
    "the client sends too much": (BINARY, b"x" * 1001),
}


def end(client: RawClient, ending: str, clock: Clock) -> None:
    """Do the client's part of an ending."""
    if ending in {"the client closes", "the handler raises after the client has closed"}:
        client.frame(CLOSE, close_body(4001, b"enough"))
    elif ending == "the client closes without a code":
        client.frame(CLOSE)
    elif ending == "the client resets":
        client.reset()
    elif ending == "the client's stream ends":
        client.sock.shutdown(socket.SHUT_WR)
    elif ending in OFFENCES:
        client.frame(*OFFENCES[ending])
        assert client.read_frame()
        client.close()
    elif ending == "the client is silent":
        clock.put_forward(30)
        answer = client.read_frame()
        assert answer is not None
        assert answer[0] == PING
        clock.put_forward(30)
    elif ending not in {
        "the client does not read",
        "the handler closes and the client does not answer",
    }:
        answer = client.read_frame()
        assert answer is not None
        client.frame(*answer)


#: How a connection may end: code, reason, initiator.
ENDINGS = {
    "the client closes": (4001, "enough", "client"),
    "the client closes without a code": (1005, "", "client"),
    "the client resets": (1006, "the connection was lost without a Close frame", "client"),
    "the client's stream ends": (1006, "the connection was lost without a Close frame", "client"),
    "the client breaks the protocol": (1002, ..., "error"),
    "the client sends invalid UTF-8": (1007, ..., "error"),
    "the client sends too much": (1009, ..., "error"),
    "the client is silent": (1006, "no answer to a ping for 20.0 s", "timeout"),
    "the client does not read": (1006, ..., "timeout"),
    "the handler returns": (1000, "", "server"),
    "the handler closes": (4000, "bye", "server"),
    "the handler closes and the client does not answer": (4000, "bye", "server"),
    "the handler aborts": (4404, "Not Found", "server"),
    "the handler raises": (1011, "internal error", "error"),
    "a timeout leaves the handler": (1011, "internal error", "error"),
    "the handler raises ConnectionClosed": (1000, "", "server"),
    "the handler raises after the client has closed": (4001, "enough", "client"),
    "the worker ends": (1001, "the server stops", "shutdown"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_connection_has_one_closed_signal_whatever_ends_it(
    site: Site, heard: Heard, clock: Clock, ending: str
) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 1000
    if ending == "the client does not read":
        site.app.config.update(WEBSOCKET_SEND_TIMEOUT=0.2, WEBSOCKET_SEND_BUFFER=1000)
    elif ending.endswith("does not answer"):
        site.app.config["WEBSOCKET_CLOSE_TIMEOUT"] = 0.1

    @site.route()
    async def handler(ws: Any) -> None:
        await serve_one(site, ws, ending)

    client = site.upgrade()
    client.frame(TEXT, b"x")
    assert client.read_frame() == (TEXT, b"x")
    end(client, ending, clock)
    wait_until(lambda: heard[-1][0] == "closed")
    told = names(heard)
    raises = ENDINGS[ending][0] == 1011 or "raises after" in ending
    if raises:
        assert site.logged().exc_info
    assert [told.count(name) for name in ("connected", "closed", "rejected")] == [1, 1, 0]
    assert (told[0], told[-1]) == ("connected", "closed")
    assert ("error" in told) is raises

    closed = heard[-1][1]
    code, reason, initiator = ENDINGS[ending]
    assert (closed["code"], closed["initiator"]) == (code, initiator)
    assert reason is ... or closed["reason"] == reason
    assert (closed["ws"].close_code, closed["ws"].close_reason) == (closed["code"], closed["reason"])
    assert not closed["ws"].connected
    assert 0 < closed["duration"] < DEADLINE
    assert closed["messages_received"] == 1
    assert closed["messages_sent"] == told.count("sent")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_its_process_also_closes_a_connection(blocking: Site) -> None:
    closed: list[Any] = []
    blocking.websocket.on_close(lambda app, code, initiator, **extra: closed.append((code, initiator)))

    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        raise KeyboardInterrupt

    with pytest.raises(ClientSawClose, match="1011"):
        blocking.connect().recv(DEADLINE)
    wait_for_background()
    assert closed == [(1011, "error")]


def test_closed_is_the_last_signal_and_comes_before_the_contexts_are_torn_down(site: Site, heard: Heard) -> None:
    site.app.teardown_request(lambda error: heard.append(("teardown_request", {})))
    site.app.teardown_appcontext(lambda error: heard.append(("teardown_appcontext", {})))
    site.websocket.teardown_websocket(lambda error: heard.append(("teardown_websocket", {})))

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send("x")
        raise KeyError("oops")

    with pytest.raises(ClientSawClose, match="1011"):
        list(site.connect())
    wait_until(lambda: heard[-1][0] == "teardown_appcontext")
    assert names(heard) == [
        *["connected", "sent", "error", "closed"],
        *["teardown_websocket", "teardown_request", "teardown_appcontext"],
    ]
    assert site.logged()


# websocket_rejected


REJECTIONS = {
    "/no/where": 404,
    "/aborts": 403,
    "/returns": 503,
    "/fails": 500,
    "/redirects": 302,
    "/slash": 308,
    "/?stop=1": 401,
    "/?hook=1": 429,
}


def refuse_everything(site: Site) -> None:
    """Declare handlers and hooks that refuse connections."""

    @site.route("/<how>")
    async def handler(ws: Any, how: str) -> Any:
        if how == "aborts":
            abort(403)
        if how == "fails":
            raise KeyError("oops")
        return redirect("/login") if how == "redirects" else ("full", 503)

    site.route("/slash/", endpoint="slash")(_never)
    site.route("/", endpoint="root")(_never)
    site.app.before_request(lambda: abort(401) if "stop" in request.args else None)
    site.websocket.before_websocket(lambda: ("too many", 429) if "hook" in request.args else None)


async def _never(ws: Any) -> None:
    raise AssertionError("it was called")


@pytest.mark.parametrize("path", REJECTIONS)
def test_a_refused_upgrade_has_one_rejected_signal_and_no_connected_or_closed_signal(
    site: Site, heard: Heard, path: str
) -> None:
    refuse_everything(site)
    assert site.refusal(path).status == REJECTIONS[path]
    assert names(heard) == ["rejected"]
    assert heard[0][1]["response"].status_code == REJECTIONS[path]
    if path == "/fails":
        assert site.logged()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"sec_websocket_key": "short"}, 400),
        ({"sec_websocket_version": "8"}, 426),
    ],
)
def test_a_refused_handshake_has_a_rejected_signal(
    site: Site, echo: Any, heard: Heard, headers: Any, status: int
) -> None:
    assert site.refusal(**headers).status == status
    assert names(heard) == ["rejected"]
    assert heard[0][1]["response"].status_code == status


def test_a_plain_request_has_no_rejected_signal(site: Site, echo: Any, heard: Heard) -> None:
    site.app.add_url_rule("/page", "page", lambda: "page")
    for path in ("/", "/page", "/nowhere"):
        assert site.refusal(path, upgrade=None, connection=None).status in {426, 200, 404}
    assert names(heard) == []


def test_a_failing_after_hook_causes_a_rejected_signal(site: Site, echo: Any, heard: Heard) -> None:
    site.websocket.after_websocket(lambda response: abort(418))
    assert site.refusal().status == 418
    assert names(heard) == ["rejected"]


def test_a_connection_has_no_rejected_signal_when_after_request_replaces_its_response(
    site: Site, echo: Any, heard: Heard
) -> None:
    site.app.after_request(lambda response: site.app.response_class("replaced", 200))
    talk(site)
    assert names(heard) == ["connected", "message", "sent", "closed"]
    assert site.websocket.stats()["rejected"] == 0


@pytest.mark.parametrize("order", ["before init_app", "after init_app"])
def test_a_rejected_signal_has_the_response_that_all_functions_after_the_request_have_made(
    mode: str, order: str
) -> None:
    app = Flask("app")
    if order == "after init_app":
        MODES[mode].extension(app)
    app.after_request(lambda response: app.response_class("replaced", 410))
    if order == "before init_app":
        MODES[mode].extension(app)
    told: list[Any] = []
    with websocket_rejected.connected_to(lambda app, response, **extra: told.append(response.status_code), app):
        upgrade = {"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade"}
        assert app.test_client().get("/nowhere", environ_overrides=upgrade).status_code == 410
    assert told == [410]


def test_a_function_after_the_request_that_raises_causes_a_rejected_signal_for_its_500(site: Site) -> None:
    failures = [KeyError("oops")]

    @site.app.after_request
    def fail_once(response: Any) -> Any:
        if failures:
            raise failures.pop()
        return response

    told: list[int] = []
    with websocket_rejected.connected_to(lambda app, response, **extra: told.append(response.status_code), site.app):
        assert site.refusal("/nowhere").status == 500
    assert told == [500]
    assert site.logged()


def test_a_rejection_has_a_signal_outside_of_uwsgi_too(mode: str) -> None:
    MODES[mode].extension(app := Flask("app"))
    told: list[int] = []
    with websocket_rejected.connected_to(lambda app, response, **extra: told.append(response.status_code), app):
        upgrade = {"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade"}
        assert app.test_client().get("/nowhere", environ_overrides=upgrade).status_code == 404
    assert told == [404]


# Receivers


@pytest.mark.parametrize("failure", [LookupError, SystemExit])
def test_a_failing_receiver_is_logged_and_harms_neither_the_others_nor_the_connection(
    site: Site, heard: Heard, failure: type[BaseException]
) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.ping()
        await ws.send(await ws.receive())
        raise KeyError("oops")

    def fail(name: str, app: Any, **kwargs: Any) -> None:
        raise failure(name)

    with ExitStack() as stack:
        for name, receiver in receivers(fail).items():
            stack.enter_context(SIGNALS[name].connected_to(receiver, site.app))
        with site.connect() as client:
            wait_until(lambda: "pong" in [name for name, _ in heard])
            client.send("x")
            assert client.recv(DEADLINE) == "x"
            with pytest.raises(ClientSawClose, match="1011"):
                client.recv(DEADLINE)
        assert site.refusal("/nowhere").status == 404
        told = names(heard)
    assert sorted(told) == sorted(SIGNALS)
    failures = [
        str(record.exc_info[1]) for record in site.log if record.exc_info and "failed on the signal" in record.msg
    ]
    assert sorted(failures) == sorted(SIGNALS)
    assert len(site.log) == len(SIGNALS) + 1  # and the handler's
    site.log.clear()


def test_a_muted_signal_is_not_heard(site: Site, echo: Any, heard: Heard) -> None:
    with websocket_message.muted(), websocket_connected.muted():
        talk(site)
        assert names(heard) == ["sent", "closed"]


def test_a_receiver_is_held_weakly_and_a_listener_strongly(site: Site, echo: Any) -> None:
    def connect_receivers() -> None:
        def receiver(app: Any, ws: Any, **extra: Any) -> None:
            site.note("receiver")

        def listener(app: Any, ws: Any, **extra: Any) -> None:
            site.note("listener")

        websocket_connected.connect(receiver)
        site.websocket.on_connect(listener)

    connect_receivers()
    gc.collect()
    talk(site)
    wait_for_background()
    assert list(site.notes.queue) == ["listener"]


def test_a_receiver_may_disconnect_itself(site: Site, echo: Any) -> None:
    def once(app: Any, ws: Any, **extra: Any) -> None:
        websocket_message.disconnect(once)
        site.note("once")

    websocket_message.connect(once)
    talk(site)
    talk(site)
    assert list(site.notes.queue) == ["once"]


def test_a_receiver_may_use_the_connection(blocking: Site) -> None:
    @blocking.websocket.route("/")
    def handler(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    @blocking.websocket.on_connect
    def welcome(app: Any, ws: Any, **extra: Any) -> None:
        ws.send("welcome")

    @blocking.websocket.on_message
    def close(app: Any, ws: Any, message: str, **extra: Any) -> None:
        if message == "close":
            ws.close(4000)

    with blocking.connect() as client:
        client.send("x")
        assert [client.recv(DEADLINE), client.recv(DEADLINE)] == ["welcome", "x"]
        client.send("close")
        with pytest.raises(ClientSawClose, match="4000"):
            client.recv(DEADLINE)


# Listeners, such as on_connect


def test_listeners_hear_of_their_blueprint_and_nested_ones_from_the_app_inwards_and_before_receivers(
    site: Site,
) -> None:
    inner, plain, outer, other = (
        WebSocketBlueprint("inner", __name__, url_prefix="/inner"),
        Blueprint("plain", __name__),
        WebSocketBlueprint("outer", __name__, url_prefix="/outer"),
        WebSocketBlueprint("other", __name__, url_prefix="/other"),
    )
    told: list[str] = []
    kinds = ("connect", "message", "close", "error")

    def listener(kind: str, name: str) -> Callable[..., Any]:
        keywords = {"connect": {"ws"}, "message": {"ws", "message"}, "error": {"ws", "exception"}}

        def listen(app: Any, **kwargs: Any) -> None:
            assert app is site.app
            assert keywords.get(kind, {"ws", "code", "reason", "initiator"}) <= set(kwargs)
            told.append(f"{kind} {name}")

        return listen

    for name, owner in {"app": site.websocket, "outer": outer, "inner": inner, "other": other}.items():
        for kind in kinds:
            getattr(owner, f"on_{kind}")(listener(kind, name))

    @site.mode.handler
    async def handler(ws: Any) -> None:
        await ws.send(await ws.receive())
        raise KeyError("oops")

    for blueprint in (inner, outer, other):
        blueprint.add_websocket_rule("/", "x", handler)
    plain.register_blueprint(inner)
    outer.register_blueprint(plain)
    site.app.register_blueprint(outer)
    site.app.register_blueprint(other)

    paths = {"/outer/inner/": ["outer", "inner"], "/outer/": ["outer"], "/other/": ["other"]}
    for path, owners in paths.items():
        told.clear()
        with websocket_connected.connected_to(lambda app, **extra: told.append("receiver"), site.app):
            talk(site, path)
            wait_for_background()
        assert site.logged()
        expected = {kind: [f"{kind} {name}" for name in ("app", *owners)] for kind in kinds}
        assert told == [
            *expected["connect"], "receiver", *expected["message"], *expected["error"], *expected["close"],
        ]  # fmt: skip


def test_listeners_of_one_owner_are_called_in_the_order_of_their_registration(site: Site, echo: Any) -> None:
    for number in range(5):
        site.websocket.on_connect(lambda app, number=number, **extra: site.note(number))
    talk(site)
    assert list(site.notes.queue) == [0, 1, 2, 3, 4]


def test_a_failing_listener_is_logged_and_harms_neither_the_others_nor_the_connection(site: Site, echo: Any) -> None:
    for kind in ("connect", "message", "close"):
        register = getattr(site.websocket, f"on_{kind}")
        register(lambda app, **extra: {}["oops"])
        register(lambda app, kind=kind, **extra: site.note(kind))
    talk(site)
    assert [site.noted() for _ in range(3)] == ["connect", "message", "close"]
    wait_for_background()
    assert ["oops" in str(record.exc_info) for record in site.log] == [True] * 3
    site.log.clear()


def test_listeners_of_a_blueprint_with_two_names_hear_of_both(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.on_connect(lambda app, ws, **extra: blocking.note(request.blueprint))
    chat.add_websocket_rule("/", "x", lambda ws: ws.send(ws.receive()))
    blocking.app.register_blueprint(chat, url_prefix="/a")
    blocking.app.register_blueprint(chat, url_prefix="/b", name="again")
    talk(blocking, "/b/")
    talk(blocking, "/a/")
    assert [blocking.noted(), blocking.noted()] == ["again", "chat"]


# Coroutines


def test_coroutine_receivers_are_awaited_in_the_asyncio_mode(cooperative: Site) -> None:
    site = cooperative

    async def slowly(name: str, app: Any, **kwargs: Any) -> None:
        gate = site.mode.gate()
        gate.open()
        await gate.passed()
        site.note(name)

    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws:
            site.note("handler")
            await ws.send(message)
            site.note("handler sent")
            raise KeyError("oops")

    site.websocket.on_message(receivers(slowly)["message"])
    with ExitStack() as stack:
        for name in SIGNALS:
            # Not made by receivers(): the signal recognizes only a coroutine function itself as a coroutine receiver.
            async def receiver(app: Any, name: str = name, **kwargs: Any) -> None:
                await slowly(name, app, **kwargs)

            stack.enter_context(SIGNALS[name].connected_to(receiver, site.app))
            stack.callback(lambda receiver=receiver: None)  # holds the receiver until the end of the block
        talk(site)
        wait_for_background()
        assert site.refusal("/nowhere").status == 404
    assert site.logged()
    assert list(site.notes.queue) == [
        *["connected", "message", "message", "handler", "sent", "handler sent", "error", "closed", "rejected"]
    ]


@pytest.mark.parametrize("failure", [LookupError, SystemExit])
def test_a_coroutine_receiver_that_fails_is_logged(cooperative: Site, failure: type[BaseException]) -> None:
    @cooperative.route()
    async def handler(ws: Any) -> None:
        await ws.send(await ws.receive())

    @cooperative.websocket.on_connect
    async def fail(app: Any, **extra: Any) -> None:
        raise failure("oops")

    talk(cooperative)
    assert "oops" in str(cooperative.logged().exc_info)


def test_coroutine_receivers_of_recv_nb_run_a_little_later(cooperative: Site) -> None:
    @cooperative.route()
    async def handler(ws: Any) -> None:
        with suppress(ConnectionClosed):
            while True:
                if (message := ws.recv_nb()) is not None:
                    await ws.send(message)
                gate = cooperative.mode.gate()
                gate.open()
                await gate.passed()

    @cooperative.websocket.on_message
    async def receiver(app: Any, message: str, **extra: Any) -> None:
        cooperative.note(message)

    talk(cooperative)
    assert cooperative.noted() == "x"


def test_a_receiver_may_read_every_attribute_of_a_rejected_client(site: Site) -> None:
    def rejected(app: Any, ws: Any, response: Any, **extra: Any) -> None:
        site.note((response.status_code, ws.timeout, ws.shutdown_timeout, ws.connected, ws.close_code, ws.fd))

    with websocket_rejected.connected_to(rejected):
        assert site.refusal("/nowhere").status == 404
        assert site.noted() == (404, 25.0, 5.0, False, None, -1)
