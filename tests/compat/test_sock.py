"""The drop-in for flask-sock: what its views see of a connection, its settings, its errors."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
import simple_websocket
from flask import Blueprint, Flask, Response, abort, request

import flask_uwsgi_websocket
from flask_uwsgi_websocket import AsyncioWebSocket, ConcurrencyError, HandshakeRejected, WebSocket, WebSocketBlueprint
from flask_uwsgi_websocket.compat import ConnectionClosed, Server, SimpleWebsocketError, Sock
from flask_uwsgi_websocket.compat import ConnectionError as SimpleConnectionError
from support.inprocess import DEADLINE, Site, serving, wait_until
from support.wire import BINARY, CLOSE, PING, PONG, TEXT, close_body


@pytest.fixture(params=["threads", "gevent"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site in each mode of plain functions."""
    yield from serving(request.param)


@pytest.fixture
def sock(site: Site) -> Sock:
    """The drop-in on the site's app."""
    sock = Sock(site.app)
    assert "#from-flask-sock" in site.logged().getMessage()
    return sock


def pause(site: Site) -> None:
    """Let others run for a moment, in the way of the site's mode."""
    (gevent.sleep if site.mode.name == "gevent" else time.sleep)(0.01)


def end_of(call: Any, *args: Any, **kwargs: Any) -> tuple[int, str | None, str]:
    """Return what the ConnectionClosed of a call says."""
    with pytest.raises(ConnectionClosed) as raised:
        call(*args, **kwargs)
    return raised.value.reason, raised.value.message, str(raised.value)


# The connection


@pytest.mark.parametrize(
    ("body", "end"),
    [
        (close_body(1000), (1000, "", "Connection closed: 1000 ")),
        (close_body(4001, b"why"), (4001, "why", "Connection closed: 4001 why")),
        (b"", (1005, None, "Connection closed: 1005 ")),
        (None, (1005, None, "Connection closed: 1005 ")),
    ],
    ids=["code", "code-and-reason", "no-code", "vanished"],
)
def test_the_end_raises_the_code_as_reason_and_the_reason_as_message(
    site: Site, sock: Sock, body: bytes | None, end: tuple[int, str | None, str]
) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        ws.send("hello")
        site.note((ws.close_reason, ws.close_message))
        for call in (ws.receive, ws.receive, lambda: ws.send("late"), ws.close, lambda: ws.receive(timeout=0)):
            site.note(end_of(call))
        site.note((ws.connected, ws.close_reason, ws.close_message))

    client = site.upgrade()
    assert client.read_frame() == (TEXT, b"hello")
    if body is None:
        client.reset()
    else:
        client.frame(CLOSE, body)
    assert site.noted() == (1005, None)
    assert [site.noted() for _ in range(5)] == [end] * 5
    assert site.noted() == (False, *end[:2])


def test_messages_that_came_before_the_end_are_received_first(site: Site, sock: Sock) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        while ws.connected:
            pause(site)
        site.note([ws.receive(), ws.receive(timeout=0)])
        ws.receive()

    client = site.upgrade()
    client.frame(TEXT, b"one")
    client.frame(BINARY, b"two")
    client.frame(CLOSE, close_body(1000))
    assert site.noted() == ["one", b"two"]
    assert client.read_frame() == (CLOSE, close_body(1000))


@pytest.mark.parametrize("timeout", [0, 0.01, -1])
def test_receive_returns_none_after_its_timeout(site: Site, sock: Sock, timeout: float) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        site.note(ws.receive(timeout))
        ws.send("go")
        site.note(ws.receive())

    client = site.upgrade()
    assert site.noted() is None
    assert client.read_frame() == (TEXT, b"go")
    client.frame(TEXT)
    assert site.noted() == ""


@pytest.mark.parametrize(
    ("data", "frame"),
    [
        ("text", (TEXT, b"text")),
        ("", (TEXT, b"")),
        (b"bytes", (BINARY, b"bytes")),
        (b"", (BINARY, b"")),
        (bytearray(b"array"), (TEXT, b"bytearray(b'array')")),
        (7, (TEXT, b"7")),
        (None, (TEXT, b"None")),
        ({"a": [1]}, (TEXT, b"{'a': [1]}")),
    ],
    ids=str,
)
def test_anything_but_bytes_is_sent_as_text(site: Site, sock: Sock, data: object, frame: tuple[int, bytes]) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        ws.send(data)

    client = site.upgrade()
    assert client.read_frame() == frame


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ((), close_body(1000)),
        ((4001,), close_body(4001)),
        ((4001, "why"), close_body(4001, b"why")),
        ((0, None), close_body(1000)),
        ((1005, "x"), close_body(1000, b"x")),
        ((1006, ""), close_body(1000)),
        ((4000, "ü" * 100), close_body(4000, "ü".encode() * 61)),
    ],
    ids=str,
)
def test_close_sends_the_code_and_as_much_of_the_reason_as_fits(
    site: Site, sock: Sock, arguments: tuple[Any, ...], body: bytes
) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        ws.close(*arguments)
        site.note(ws.connected)

    client = site.upgrade()
    assert client.read_frame() == (CLOSE, body)
    assert site.noted() is False


def test_after_its_own_close_a_view_sees_its_own_code(site: Site, sock: Sock) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        ws.close(4001, "mine")
        site.note(end_of(ws.receive)[:2])

    client = site.upgrade()
    assert client.read_frame() == (CLOSE, close_body(4001, b"mine"))
    assert site.noted() == (4001, "mine")


def test_a_close_code_that_is_not_allowed_is_a_value_error(site: Site, sock: Sock) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        with pytest.raises(ValueError, match="code"):
            ws.close(1016)

    assert site.upgrade().read_frame() == (CLOSE, close_body(1000))


def test_the_end_of_a_view_closes_the_connection_and_what_it_returns_is_ignored(site: Site, sock: Sock) -> None:
    @sock.route("/<int:number>")
    def view(ws: Server, number: int) -> Any:
        return "a response", 404

    assert site.upgrade("/1").read_frame() == (CLOSE, close_body(1000))


def test_the_handshake_comes_before_the_view(site: Site, sock: Sock) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        site.note((ws.connection.was_accepted, ws.environ["PATH_INFO"]))

    site.upgrade()
    assert site.noted() == (True, "/")


def test_a_view_reaches_the_interface_of_the_package(site: Site, sock: Sock) -> None:
    room = site.websocket.room("lobby")

    @sock.route("/")
    def view(ws: Server) -> None:
        room.join(ws.connection)
        room.publish("hello")
        ws.receive()

    assert site.upgrade().read_frame() == (TEXT, b"hello")


def test_one_at_a_time_receives(site: Site, sock: Sock) -> None:
    members: list[Server] = []

    @sock.route("/")
    def view(ws: Server) -> None:
        members.append(ws)
        site.note(ws.receive())

    client = site.upgrade()
    wait_until(lambda: members and members[0].connection._transport.is_receiving)
    with pytest.raises(ConcurrencyError):
        members[0].receive()
    client.frame(TEXT, b"hello")
    assert site.noted() == "hello"


@pytest.mark.parametrize("name", ["sock", "ws", "thread", "event", "input_buffer", "mode", "subprotocols"])
def test_the_inside_of_simple_websocket_is_not_there(site: Site, sock: Sock, name: str) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        site.note(hasattr(ws, name))

    site.upgrade()
    assert site.noted() is False


def test_functions_after_the_request_get_the_response_101(site: Site, sock: Sock) -> None:
    @site.app.after_request
    def note_status(response: Response) -> Response:
        site.note(response.status_code)
        return response

    sock.route("/")(lambda ws: None)
    client = site.upgrade()
    client.frame(CLOSE, close_body(1000))
    assert client.read_frame() == (CLOSE, close_body(1000))
    assert site.noted() == 101


# Exceptions


def test_the_end_of_another_connection_ends_a_view_quietly(site: Site, sock: Sock) -> None:
    others: list[Server] = []

    @sock.route("/other")
    def other(ws: Server) -> None:
        others.append(ws)

    @sock.route("/")
    def view(ws: Server) -> None:
        others[0].send("hello")

    assert site.upgrade("/other").read_frame() == (CLOSE, close_body(1000))
    assert site.upgrade().read_frame() == (CLOSE, close_body(1000))


def test_the_exceptions_are_those_of_simple_websocket_too(site: Site, sock: Sock) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        ws.close()
        try:
            ws.receive()
        except simple_websocket.ConnectionClosed as error:
            site.note((isinstance(error, ConnectionClosed), isinstance(error, RuntimeError), error.reason))

    @sock.route("/upstream")
    def upstream(ws: Server) -> None:
        raise simple_websocket.ConnectionClosed(1001)  # of a simple_websocket.Client

    assert site.upgrade().read_frame() == (CLOSE, close_body(1000))
    assert site.noted() == (True, True, 1000)
    assert site.upgrade("/upstream").read_frame() == (CLOSE, close_body(1000))
    assert issubclass(SimpleConnectionError, SimpleWebsocketError)


def test_simple_websocket_need_not_be_installed() -> None:
    code = """
import sys
sys.modules.update(simple_websocket=None, flask_sock=None, flask_sockets=None, geventwebsocket=None)
from flask import Flask
from flask_uwsgi_websocket.compat import ConnectionClosed, Sock
app = Flask("x")
@Sock(app).route("/")
def view(ws):
    try:
        ws.receive()
    except ConnectionClosed as error:
        print(type(error) is ConnectionClosed, error.reason)
with app.test_client().websocket("/") as ws:
    ws.close(4000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout == "True 4000\n", done.stderr


class Denied(Exception):
    """An exception for which the app has an error handler."""


def test_an_exception_of_a_view_reaches_its_error_handler(site: Site, sock: Sock) -> None:
    @site.app.errorhandler(Denied)
    def on_denied(error: Denied) -> tuple[str, int]:
        site.note(f"{request.path}: {error}")
        return "denied", 403

    @sock.route("/denied")
    def denied(ws: Server) -> None:
        raise Denied("you")

    @sock.route("/abort")
    def aborts(ws: Server) -> None:
        abort(404)

    assert site.upgrade("/denied").read_frame() == (CLOSE, close_body(1011, b"internal error"))
    assert site.noted() == "/denied: you"
    assert site.upgrade("/abort").read_frame() == (CLOSE, close_body(4404, b"Not Found"))


def test_an_exception_without_an_error_handler_is_logged_and_closes_with_1011(site: Site, sock: Sock) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        raise Denied

    assert site.upgrade().read_frame() == (CLOSE, close_body(1011, b"internal error"))
    assert site.logged().exc_info[0] is Denied  # type: ignore[index]


def test_the_end_that_the_package_reports_ends_a_view_quietly(site: Site, sock: Sock) -> None:
    @site.app.errorhandler(Exception)
    def on_error(error: Exception) -> None:
        site.note(error)

    @sock.route("/")
    def view(ws: Server) -> None:
        ws.connection.close(4000)
        ws.connection.send("late")

    client = site.upgrade()
    assert client.read_frame() == (CLOSE, close_body(4000))
    client.frame(CLOSE, close_body(4000))
    assert client.read_frame() is None
    assert site.notes.empty()


# Settings


def test_pages_of_any_origin_connect_unless_the_app_says_which(site: Site, sock: Sock) -> None:
    @sock.route("/")
    def view(ws: Server) -> None:
        ws.send("hello")

    site.upgrade(origin="https://www.example.com").close()


def test_the_app_says_which_origins_connect() -> None:
    app = Flask(__name__)
    sock = Sock(app)
    app.config["WEBSOCKET_ALLOWED_ORIGINS"] = "same-origin"
    sock.route("/")(lambda ws: None)
    with pytest.raises(HandshakeRejected):
        app.test_client().websocket("/", origin="https://www.example.com")


def test_a_setting_of_the_extension_wins_over_the_defaults_of_the_drop_in() -> None:
    app = Flask(__name__)
    WebSocket(app, origins=["https://www.example.org"])
    Sock(app).route("/")(lambda ws: None)
    with app.test_client().websocket("/", origin="https://www.example.org") as ws:
        assert (ws.receive(), ws.close_code) == (None, 1000)
    with pytest.raises(HandshakeRejected):
        app.test_client().websocket("/", origin="https://www.example.com")


@pytest.mark.parametrize(
    ("allowed", "offered", "chosen"),
    [
        (["v1", "v2"], ["v3", "v2", "v1"], "v2"),
        ("v1", ["v2", "v1"], "v1"),
        (("v1",), [], None),
        (["v1"], ["v2"], None),
        (None, ["v1"], None),
    ],
)
def test_the_subprotocol_is_the_first_of_the_client_that_the_options_have(
    allowed: Any, offered: list[str], chosen: str | None
) -> None:
    app = Flask(__name__)
    sock = Sock(app)
    seen = []
    sock.route("/")(lambda ws: seen.append(ws.subprotocol))
    app.config["SOCK_SERVER_OPTIONS"] = {"subprotocols": allowed}  # after Sock(app), as in flask-sock's documentation
    with app.test_client().websocket("/", subprotocols=offered) as ws:
        assert ws.receive() is None
    assert seen == [chosen]


def test_max_message_size_is_64_mib_unless_the_options_say_another_one() -> None:
    app = Flask(__name__)
    sock = Sock(app)
    sizes = []

    @sock.route("/<name>")
    def view(ws: Server, name: str) -> None:
        while True:
            data = ws.receive()
            assert data is not None
            sizes.append(len(data))

    with app.test_client().websocket("/x") as ws:
        ws.send(bytes(2**21))
        ws.close()
    assert sizes == [2**21]
    app = Flask(__name__)
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": 10}
    Sock(app).route("/")(lambda ws: ws.receive())
    with app.test_client().websocket("/") as ws:
        ws.send(bytes(11))
        assert (ws.receive(), ws.close_code) == (None, 1009)


@pytest.mark.parametrize(("options", "is_dropped"), [({}, False), ({"ping_interval": 10}, True)])
def test_a_client_that_answers_no_ping_is_dropped_only_with_ping_interval(
    site: Site, sock: Sock, clock: Any, options: dict[str, Any], is_dropped: bool
) -> None:
    site.app.config["SOCK_SERVER_OPTIONS"] = options

    @sock.route("/")
    def view(ws: Server) -> None:
        ws.send("hello")
        site.note(end_of(ws.receive)[0])

    client = site.upgrade()
    assert client.read_frame() == (TEXT, b"hello")
    pings = []
    for _ in range(3):
        clock.put_forward(26)
        frame = client.read_frame()
        if frame is None:
            break
        pings.append(frame[0])
    assert (len(pings) < 3) == is_dropped
    assert set(pings) == {PING}
    if not is_dropped:
        client.frame(PONG)
        client.frame(CLOSE, close_body(1000))
    assert site.noted() == (1005 if is_dropped else 1000)


def test_the_options_are_read_at_the_first_connection_of_a_route() -> None:
    app = Flask(__name__)
    sock = Sock(app)
    sock.route("/")(lambda ws: ws.send(ws.subprotocol))
    for name in ("v1", "v2"):
        app.config["SOCK_SERVER_OPTIONS"] = {"subprotocols": name}
        with app.test_client().websocket("/", subprotocols=["v2", "v1"]) as ws:
            assert ws.receive() == "v1"


@pytest.mark.parametrize("is_on", [False, True])
def test_messages_are_compressed_only_if_the_app_says_so(is_on: bool) -> None:
    app = Flask(__name__)
    if is_on:
        app.config["WEBSOCKET_COMPRESSION"] = True
    Sock(app).route("/")(lambda ws: None)
    with app.test_client().websocket("/", headers={"Sec-WebSocket-Extensions": "permessage-deflate"}) as ws:
        assert ("Sec-WebSocket-Extensions" in ws.response.headers) == is_on


def test_options_without_effect_are_accepted_and_unknown_ones_are_errors() -> None:
    app = Flask(__name__)
    app.config.update(PROPAGATE_EXCEPTIONS=False)
    app.config["SOCK_SERVER_OPTIONS"] = dict.fromkeys(
        ["receive_bytes", "thread_class", "event_class", "selector_class"]
    )
    sock = Sock(app)
    sock.route("/")(lambda ws: ws.send("hello"))
    sock.route("/other", endpoint="other")(lambda ws: None)
    with app.test_client().websocket("/") as ws:
        assert ws.receive() == "hello"
    app.config["SOCK_SERVER_OPTIONS"]["ping_intervall"] = 1
    with pytest.raises(HandshakeRejected) as rejected:
        app.test_client().websocket("/other")
    assert rejected.value.response.status_code == 500


# The application


def test_the_documentation_is_logged_once_for_each_app(caplog: pytest.LogCaptureFixture) -> None:
    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]

    app = Flask(__name__)
    sock = Sock(app)
    Sock(app).route("/", bp=Blueprint("x", __name__))
    sock.init_app(app)
    assert len(lines()) == 1
    assert "docs/migrating.md#from-flask-sock" in lines()[0]
    Sock(Flask("other"))
    assert len(lines()) == 2


def test_a_blueprint_is_enough_without_init_app() -> None:
    sock = Sock()
    bp = Blueprint("bp", __name__)

    @sock.route("/<name>", bp=bp)
    def view(ws: Server, name: str) -> None:
        ws.send(name)

    for prefix in ("/a", "/b"):
        app = Flask(__name__)
        app.register_blueprint(bp, url_prefix=prefix)
        with app.test_client().websocket(f"{prefix}/Ann") as ws:
            assert ws.receive() == "Ann"


def test_several_socks_serve_one_app_beside_the_routes_of_the_package() -> None:
    app = Flask(__name__)
    websocket = WebSocket(app)
    blueprint = WebSocketBlueprint("new", __name__)

    @Sock(app).route("/one", methods=["GET", "POST"], defaults={"name": "Ann"})
    def one(ws: Server, name: str) -> None:
        ws.send(f"{type(ws).__name__} {name}")

    @Sock(app).route("/two", bp=blueprint)
    def two(ws: Server) -> None:
        ws.send(type(ws).__name__)

    @websocket.route("/three")
    @blueprint.websocket("/four", endpoint="four")
    def three(ws: Any) -> None:
        ws.send(type(ws).__name__)

    app.register_blueprint(blueprint)
    client = app.test_client()
    for path, name in {"/one": "Server Ann", "/two": "Server", "/three": "WebSocketClient"}.items():
        with client.websocket(path) as ws:
            assert ws.receive() == name
    with pytest.raises(HandshakeRejected):  # the origins of other routes are as strict as always
        client.websocket("/four", origin="https://www.example.com")


def test_an_extension_after_the_drop_in_is_an_error_that_says_so() -> None:
    app = Flask(__name__)
    Sock(app)
    with pytest.raises(RuntimeError, match="has a WebSocket extension already"):
        WebSocket(app)


def test_an_app_is_for_one_interface() -> None:
    app = Flask(__name__)
    app.config["WEBSOCKET_COMPATIBILITY"] = "0.6.1"
    with pytest.raises(TypeError, match="has WEBSOCKET_COMPATIBILITY, but handlers of flask-sock need other"):
        Sock(app)


def test_the_drop_in_needs_plain_functions() -> None:
    app = Flask(__name__)
    AsyncioWebSocket(app)
    with pytest.raises(TypeError, match="handlers of flask-sock are plain functions"):
        Sock(app)


def test_app_run_stays_that_of_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(Flask, "run", lambda app, *args, **kwargs: calls.append((app, args, kwargs)))
    app = Flask(__name__)
    Sock(app)
    app.run(debug=True, use_reloader=False)
    assert calls == [(app, (), {"debug": True, "use_reloader": False})]
    WebSocket(other := Flask("other"))
    run = other.run
    Sock(other)
    assert other.run is run


def test_importing_the_package_does_not_import_the_drop_ins() -> None:
    code = "import sys, flask_uwsgi_websocket; print('flask_uwsgi_websocket.compat' in sys.modules)"
    path = str(flask_uwsgi_websocket.__path__[0]).rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout == "False\n", done.stderr


def test_a_client_that_stops_reading_is_dropped(site: Site, sock: Sock) -> None:
    site.app.config["WEBSOCKET_SEND_TIMEOUT"] = 2
    members: list[Server] = []

    @sock.route("/")
    def chat(ws: Server) -> None:
        members.append(ws)
        while True:
            data = ws.receive()
            for member in list(members):
                try:
                    member.send(data)
                except ConnectionClosed:
                    members.remove(member)

    stuck = site.upgrade()
    wait_until(lambda: len(members) == 1)
    with site.connect() as client:
        for _ in range(16):
            client.send(bytes(2**20))
            assert len(client.recv(DEADLINE)) == 2**20
        wait_until(lambda: len(members) == 1)
    assert "has waited" in site.logged().getMessage()
    stuck.close()
