"""The test client opens WebSockets of an app without a server."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from flask import Flask, Response, abort, g, redirect, request, session, url_for
from flask_login import FlaskLoginClient, LoginManager, UserMixin, current_user, login_required
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_uwsgi_websocket import (
    ConnectionClosed,
    HandshakeRejected,
    WebSocket,
    WebSocketBlueprint,
    WebSocketTestClient,
    testing,
    websocket_closed,
)
from support.inprocess import DEADLINE, Background, Gevent, Threads, wait_until

#: The error that handlers raise on purpose. No other code raises it.
Deliberate = type("Deliberate", (Exception,), {})


@pytest.fixture
def app() -> Flask:
    app = Flask("tested")
    app.config.update(SECRET_KEY="secret", TESTING=True)
    return app


@pytest.fixture
def websocket(app: Flask) -> WebSocket:
    """The extension of blocking handlers, with an echo."""
    websocket = WebSocket(app)

    @websocket.route("/echo")
    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    return websocket


@pytest.fixture(params=[Threads, Gevent, Background], ids=lambda mode: mode.extension.__name__)
def mode(request: pytest.FixtureRequest) -> Threads:
    """Each kind of extension."""
    mode: Threads = request.param()
    return mode


def send_for_ever(ws: Any) -> NoReturn:
    """Send until a send raises."""
    while True:
        ws.send("x" * 100_000)


# With each kind of handlers


def test_messages_go_both_ways(app: Flask, mode: Threads) -> None:
    @mode.extension(app).route("/<name>")
    @mode.handler
    async def handler(ws: Any, name: str) -> None:
        await ws.send_json([name, request.args["x"], request.remote_addr])
        async for message in ws:
            await ws.send(message)

    with app.test_client().websocket("/lobby?x=1") as ws:
        assert ws.receive_json() == ["lobby", "1", "127.0.0.1"]
        for message in ("text", b"binary", "", b"", "ü" * 200_000):
            ws.send(message)
            assert ws.receive(timeout=DEADLINE) == message
        ws.send_json({"a": None})
        assert ws.receive_json() == {"a": None}
        ws.send(bytearray(b"\0"))
        assert ws.receive() == b"\0"
        assert ws.close_code is ws.close_reason is None
    assert (ws.close_code, ws.close_reason) == (1000, "")


def test_with_accept_early_the_handshake_comes_before_the_handler(app: Flask, mode: Threads) -> None:
    received: list[Any] = []

    @mode.extension(app, accept="early").route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        received.append(ws.recv_nb())
        received.append(await ws.receive())

    with app.test_client().websocket() as ws:  # websocket() returns after the handshake
        wait_until(lambda: received)
        ws.send("x")
        assert ws.receive() is None
    assert received == [None, "x"]


def test_query_strings_headers_and_subprotocols_are_sent(app: Flask, mode: Threads) -> None:
    @mode.extension(app, subprotocols=["v1", "v2"]).route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        await ws.send_json([request.args["x"], request.headers["X-Mine"], ws.subprotocol])

    client = app.test_client()
    with client.websocket("/", query_string={"x": 1}, headers={"X-Mine": "me"}, subprotocols=["v3", "v2"]) as ws:
        assert ws.receive_json() == ["1", "me", "v2"]
        assert ws.subprotocol == "v2"
        assert ws.response.headers["Sec-WebSocket-Protocol"] == "v2"
    with client.websocket("/", query_string={"x": 1}, headers=[("X-Mine", "me")]) as ws:
        assert ws.receive_json() == ["1", "me", None]
        assert ws.subprotocol is None


def test_receive_returns_none_once_at_the_end_and_then_raises(app: Flask, mode: Threads) -> None:
    @mode.extension(app).route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        await ws.send("one")
        await ws.send("two")
        await ws.close(4001, "enough")

    with app.test_client().websocket("/") as ws:
        assert ws.receive() == "one"
        assert list(ws) == ["two"]
        assert list(ws) == []
        with pytest.raises(ConnectionClosed, match="4001"):
            ws.receive()
        with pytest.raises(ConnectionClosed) as caught:
            ws.send("late")
    assert (caught.value.code, caught.value.reason) == (ws.close_code, ws.close_reason) == (4001, "enough")
    with pytest.raises(ConnectionClosed):
        ws.receive_json()


def test_a_close_by_the_test_reaches_the_handler(app: Flask, mode: Threads) -> None:
    ends = []

    @mode.extension(app).route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        assert await ws.receive() is None
        ends.append((ws.close_code, ws.close_reason))

    with app.test_client().websocket("/") as ws:
        with pytest.raises(ValueError, match="1005 is not a close code"):
            ws.close(1005)
        with pytest.raises(TypeError, match="a message is str"):
            ws.send({"a": 1})  # type: ignore[arg-type]
        ws.close(4000, "bye")
        ws.close()
        assert ws.receive() is None
    assert ends == [(4000, "bye")]


def test_at_the_end_of_the_block_the_handler_and_all_listeners_have_ended(app: Flask, mode: Threads) -> None:
    done = []
    websocket = mode.extension(app)

    @websocket.on_close
    def left(app: Flask, ws: Any, code: int, **extra: Any) -> None:
        time.sleep(0.05)
        done.append(f"left with {code}")

    @websocket.route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        await ws.receive()
        done.append("handler")

    app.teardown_appcontext(lambda error: done.append("teardown"))
    with app.test_client().websocket("/"):
        pass
    assert done == ["handler", "left with 1000", "teardown"]


def test_an_exception_of_the_handler_is_raised_in_the_test(app: Flask, mode: Threads) -> None:
    websocket = mode.extension(app)

    @websocket.route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        await ws.send("first")
        if await ws.receive() == "fail":
            raise Deliberate

    with app.test_client().websocket("/") as ws:
        ws.send("fail")
        assert ws.receive() == "first"
        with pytest.raises(Deliberate):
            ws.receive()
    assert ws.close_code == 1011
    ws = app.test_client().websocket("/")
    assert ws.receive() == "first"  # received before the block, because its end stops the sending
    with pytest.raises(Deliberate), ws:
        ws.send("fail")
    with app.test_client().websocket("/") as ws:
        ws.send("fail")
        with pytest.raises(Deliberate):
            send_for_ever(ws)
    with app.test_client().websocket("/") as ws:  # a new client is not affected
        ws.send("go well")
        assert list(ws) == ["first"]


def test_an_exception_before_the_handshake_is_raised_in_the_test(app: Flask, mode: Threads) -> None:
    @mode.extension(app).route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        raise Deliberate

    with pytest.raises(Deliberate):
        app.test_client().websocket("/")
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with pytest.raises(HandshakeRejected, match="the handshake of / was answered with 500 INTERNAL SERVER ERROR"):
        app.test_client().websocket("/")


def test_without_testing_only_the_close_code_reports_an_exception(app: Flask, mode: Threads) -> None:
    app.testing = False

    @mode.extension(app).route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        await ws.accept()
        raise Deliberate

    with app.test_client().websocket("/") as ws:
        assert ws.receive() is None
    assert (ws.close_code, ws.close_reason) == (1011, "internal error")


def test_a_failed_check_in_a_handler_fails_the_test(app: Flask, mode: Threads) -> None:
    @mode.extension(app).route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        pytest.fail("not an Exception") if await ws.receive() == "BaseException" else None
        raise AssertionError("one")

    with app.test_client().websocket("/") as ws:
        ws.send("x")
        with pytest.raises(AssertionError, match="one"):
            ws.receive()
    with pytest.raises(pytest.fail.Exception, match="not an Exception"), app.test_client().websocket("/") as ws:
        ws.send("BaseException")


def test_the_error_for_a_hanging_handler_names_the_handler(app: Flask, mode: Threads) -> None:
    released = threading.Event()

    @mode.extension(app).route("/<where>")
    @mode.handler
    async def hang(ws: Any, where: str) -> None:
        if where == "meanwhile":
            await ws.accept()
        while not released.is_set():
            await asyncio.sleep(0.01) if isinstance(mode, Background) else time.sleep(0.01)

    client = app.test_client()
    name = rf"the handler {__name__}.hang\(\) of /<where> has"
    try:
        with pytest.raises(TimeoutError, match=f"{name} neither sent nor received anything for 0.05 s"):
            client.websocket("/at first", timeout=0.05)
        ws = client.websocket("/meanwhile", timeout=DEADLINE)
        with pytest.raises(TimeoutError, match=f"{name} sent nothing for 0.05 s"):
            ws.receive(timeout=0.05)
    finally:
        released.set()
    ws.close()


def test_the_error_also_names_a_handler_that_hangs_at_the_end_or_before_it_receives(
    app: Flask, websocket: WebSocket
) -> None:
    released = threading.Event()

    @websocket.route("/hang")
    def hang(ws: Any) -> None:
        ws.accept()
        released.wait(DEADLINE)

    client = app.test_client()
    name = rf"the handler {__name__}.hang\(\) of /hang has"
    try:
        ws = client.websocket("/hang", timeout=2)
        with pytest.raises(TimeoutError, match=f"{name} received nothing for 2 s"):
            send_for_ever(ws)
        ws = client.websocket("/hang", timeout=2)
        with pytest.raises(TimeoutError, match=f"{name} not ended within 2 s of the close"):
            ws.close()
    finally:
        released.set()


def test_the_client_waits_for_a_late_reader(app: Flask, websocket: WebSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def poll() -> Any:
        time.sleep(0.2)  # longer than the client would take to close the socket
        return select.poll()

    @websocket.route("/hang")
    def hang(ws: Any) -> None:
        released.wait(DEADLINE)

    constants = {"POLLIN": select.POLLIN, "POLLOUT": select.POLLOUT}
    monkeypatch.setattr(testing, "select", SimpleNamespace(poll=poll, **constants))
    try:
        with pytest.raises(TimeoutError, match="neither sent nor received"):
            app.test_client().websocket("/hang", timeout=0.05)
    finally:
        released.set()


def test_a_timeout_loses_no_message(app: Flask, mode: Threads) -> None:
    released = threading.Event()

    @mode.extension(app).route("/")
    @mode.handler
    async def handler(ws: Any) -> None:
        await ws.accept()
        while not released.is_set():
            await asyncio.sleep(0.01) if isinstance(mode, Background) else time.sleep(0.01)
        await ws.send("here")

    with app.test_client().websocket("/") as ws:
        with pytest.raises(TimeoutError):
            ws.receive(timeout=0.01)
        released.set()
        assert ws.receive() == "here"


# Flask's client


def test_a_refusal_raises_an_error_with_the_response(app: Flask, websocket: WebSocket) -> None:
    @websocket.route("/<how>")
    def refuse(ws: Any, how: str) -> Any:
        if how == "abort":
            abort(403, "go away")
        if how == "redirect":
            return redirect("/login")
        return {"error": "full"}, 503

    client = app.test_client()
    answers = {}
    for path in ("/abort", "/redirect", "/json", "/unknown/page"):
        with pytest.raises(HandshakeRejected, match=f"the handshake of {path} was answered with") as caught:
            client.websocket(path)
        answers[path] = caught.value.response
    assert answers["/abort"].status_code == 403
    assert "go away" in answers["/abort"].text
    assert (answers["/redirect"].status_code, answers["/redirect"].location) == (302, "/login")
    assert (answers["/json"].status_code, answers["/json"].json) == (503, {"error": "full"})
    assert answers["/unknown/page"].status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"), [({"Sec-WebSocket-Version": "8"}, 426), ({"Sec-WebSocket-Key": "short"}, 400)]
)
def test_headers_of_the_test_replace_those_of_the_handshake(
    app: Flask, websocket: WebSocket, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(HandshakeRejected) as caught:
        app.test_client().websocket("/echo", headers=headers)
    assert caught.value.response.status_code == status


def test_the_origin_is_checked(app: Flask, websocket: WebSocket) -> None:
    client = app.test_client()
    with client.websocket("/echo", origin="http://localhost"):
        pass
    with pytest.raises(HandshakeRejected) as caught:
        client.websocket("/echo", origin="https://evil.example")
    assert caught.value.response.status_code == 403


def test_pages_and_websockets_share_cookies_and_the_session(app: Flask, websocket: WebSocket) -> None:
    @app.get("/login")
    def log_in() -> str:
        session["user"] = "Ada"
        return "welcome"

    @websocket.route("/who")
    def who(ws: Any) -> None:
        user = session["user"]
        session["visited"] = True
        ws.send(user)

    client = app.test_client()
    client.get("/login")
    with client.websocket("/who") as ws:
        assert ws.receive() == "Ada"
        with client.session_transaction() as changed:
            assert changed["visited"]
            changed["user"] = "Grace"
    with client.websocket("/who") as ws:
        assert ws.receive() == "Grace"
    with pytest.raises(KeyError), app.test_client().websocket("/who"):
        pass


def test_an_app_may_have_its_own_class_of_test_clients(app: Flask, websocket: WebSocket) -> None:
    class User(UserMixin):
        id = "7"

    LoginManager(app).user_loader(lambda id: User() if id == User.id else None)

    class Client(WebSocketTestClient, FlaskLoginClient):
        pass

    @websocket.route("/secret")
    @login_required
    def secret(ws: Any) -> None:
        ws.send(current_user.id)

    app.test_client_class = Client
    with app.test_client(user=User()).websocket("/secret") as ws:
        assert ws.receive() == "7"
    with pytest.raises(HandshakeRejected) as caught:
        app.test_client().websocket("/secret")
    assert caught.value.response.status_code == 401


def test_the_extension_keeps_a_client_class_that_was_set_before(app: Flask) -> None:
    app.test_client_class = FlaskLoginClient
    WebSocket(app)
    assert app.test_client_class is FlaskLoginClient


def test_the_client_accepts_addresses_of_url_for(app: Flask, websocket: WebSocket) -> None:
    @websocket.route("/address")
    def address(ws: Any) -> None:
        ws.send(request.url)

    client = app.test_client()
    with app.test_request_context(base_url="https://example.org"):
        there = url_for("address")
    assert there == "wss://example.org/address"
    with client.websocket(there) as ws:
        assert ws.receive() == "https://example.org/address"
    with client.websocket("/address", base_url="http://example.net:81") as ws:
        assert ws.receive() == "http://example.net:81/address"


def test_middleware_around_the_app_sees_the_request(app: Flask, websocket: WebSocket) -> None:
    @websocket.route("/peer")
    def peer(ws: Any) -> None:
        ws.send(str(request.remote_addr))

    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    with app.test_client().websocket("/peer", headers={"X-Forwarded-For": "192.0.2.7"}) as ws:
        assert ws.receive() == "192.0.2.7"


def test_a_connection_has_contexts_of_its_own(app: Flask, websocket: WebSocket) -> None:
    @websocket.route("/")
    def handler(ws: Any) -> None:
        g.mine = "the handler's"
        ws.send("set")
        ws.receive()

    with app.app_context():
        g.mine = "the test's"
        with app.test_client() as client, client.websocket("/") as ws:  # the client preserves the contexts of pages
            assert ws.receive() == "set"
            assert g.mine == "the test's"


# While a connection is open


def test_many_clients_talk_to_each_other(app: Flask, websocket: WebSocket) -> None:
    members: set[Any] = set()

    @websocket.route("/chat")
    def chat(ws: Any) -> None:
        ws.accept()
        members.add(ws)
        for message in ws:
            websocket.broadcast(message, members)
        members.discard(ws)

    client = app.test_client()
    with client.websocket("/chat") as one, client.websocket("/chat") as two:
        wait_until(lambda: len(members) == 2)
        one.send("hello")
        assert (one.receive(), two.receive()) == ("hello", "hello")
    assert not members


def test_a_page_that_closes_connections_does_not_wait_for_the_test(app: Flask, websocket: WebSocket) -> None:
    app.config["WEBSOCKET_CLOSE_TIMEOUT"] = 10 * DEADLINE  # longer than a test may take
    connections: list[Any] = []
    websocket.on_connect(lambda app, ws, **extra: connections.append(ws))

    @app.post("/logout")
    def log_out() -> str:
        for ws in connections:
            ws.close(4401, "logged out")  # waits for the client's answer
        return "bye"

    client = app.test_client()
    with client.websocket("/echo", timeout=DEADLINE) as ws:
        ws.send("x")
        assert ws.receive() == "x"
        client.post("/logout")
        assert ws.receive() is None
    assert (ws.close_code, ws.close_reason) == (4401, "logged out")


def test_pings_are_answered_while_the_test_does_other_work(app: Flask, websocket: WebSocket) -> None:
    @websocket.route("/ping")
    def ping(ws: Any) -> None:
        ws.ping()
        wait_until(lambda: ws.recv_nb() is None and ws.latency is not None)
        ws.send("answered")

    with app.test_client().websocket("/ping") as ws:
        assert ws.receive() == "answered"


def test_the_test_may_send_much_before_it_receives(app: Flask, websocket: WebSocket) -> None:
    messages = [f"{number} {'x' * 100_000}" for number in range(100)]
    with app.test_client().websocket("/echo", timeout=DEADLINE) as ws:
        for message in messages:
            ws.send(message)
        assert [ws.receive() for _ in messages] == messages


def test_threads_may_share_a_client(app: Flask, websocket: WebSocket) -> None:
    client = app.test_client()
    heard = []

    def talk(number: int) -> None:
        with client.websocket("/echo", timeout=DEADLINE) as ws:
            ws.send(str(number))
            heard.append(ws.receive())

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(heard) == [str(number) for number in range(8)]


def test_redirects_are_not_followed(app: Flask, websocket: WebSocket) -> None:
    with pytest.raises(TypeError, match="follows no redirects"):
        app.test_client().websocket("/echo", follow_redirects=True)


def test_compression_may_be_offered(app: Flask, websocket: WebSocket) -> None:
    app.config["WEBSOCKET_COMPRESSION"] = True
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits=12"}
    with app.test_client().websocket("/echo", headers=offer) as ws:
        assert "client_max_window_bits=12" in ws.response.headers["Sec-WebSocket-Extensions"]
        for message in ("x" * 100_000, "short", b"y" * 5000):
            ws.send(message)
            assert ws.receive() == message


def test_a_handler_that_sends_without_end_waits_for_the_test(app: Flask, websocket: WebSocket) -> None:
    sent = []

    @websocket.route("/flood")
    def flood(ws: Any) -> None:
        while True:
            ws.send("x" * 100)
            sent.append(None)

    with app.test_client().websocket("/flood") as ws:
        wait_until(lambda: len(sent) > 10_000)
        before = 0
        while before != len(sent):  # until the handler waits
            before = len(sent)
            time.sleep(0.1)
        assert len(sent) < 100_000
        assert [ws.receive() for _ in range(20_000)] == ["x" * 100] * 20_000


def test_a_message_that_is_too_big_ends_the_connection_at_once(app: Flask, websocket: WebSocket) -> None:
    app.config.update(WEBSOCKET_MAX_MESSAGE_SIZE=10, WEBSOCKET_CLOSE_TIMEOUT=10 * DEADLINE)
    for size in (11, 2**22):  # the server refuses the larger one while the test still sends it
        with app.test_client().websocket("/echo", timeout=DEADLINE) as ws:
            ws.send(bytes(size))
            assert ws.receive() is None
        assert ws.close_code == 1009


def test_signals_are_sent(app: Flask, websocket: WebSocket) -> None:
    told = []

    def receiver(app: Flask, **kwargs: Any) -> None:
        told.append((kwargs["code"], kwargs["initiator"], kwargs["messages_received"]))

    with websocket_closed.connected_to(receiver, app), app.test_client().websocket("/echo") as ws:
        ws.send("x")
        ws.receive()
    assert told == [(1000, "client", 1)]


def test_hooks_run(app: Flask, websocket: WebSocket) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")

    @chat.after_websocket
    def add_header(response: Response) -> Response:
        response.headers["X-Mine"] = "yes"
        return response

    @chat.websocket("/")
    def talk(ws: Any) -> None:
        ws.accept()

    app.register_blueprint(chat)
    with app.test_client().websocket("/chat/") as ws:
        assert ws.response.headers["X-Mine"] == "yes"
        assert ws.receive() is None


def test_the_end_of_the_block_does_not_hide_the_error_of_a_failed_test(app: Flask, websocket: WebSocket) -> None:
    @websocket.route("/fail")
    def fail(ws: Any) -> None:
        ws.receive()
        raise Deliberate

    with pytest.raises(AssertionError, match="the test's"), app.test_client().websocket("/fail"):
        raise AssertionError("the test's")
