"""The drop-in for Flask-Sockets: what its handlers see of a connection, its routes, its errors."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from typing import Any

import gevent
import geventwebsocket.exceptions
import geventwebsocket.websocket
import pytest
from flask import Blueprint, Flask, Response, request
from flask_sockets import Sockets as OriginalSockets
from geventwebsocket.handler import WebSocketHandler
from werkzeug.routing import BaseConverter

from flask_uwsgi_websocket import HandshakeRejected
from flask_uwsgi_websocket.compat import ProtocolError, Sockets, WebSocketError
from support.inprocess import ROOM, Clock, Site, serving, wait_until
from support.wire import BINARY, CLOSE, KEY, PING, TEXT, close_body, header


@pytest.fixture(params=["threads", "gevent"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site in each mode of plain functions."""
    yield from serving(request.param)


@pytest.fixture
def sockets(site: Site) -> Sockets:
    """The drop-in on the site's app."""
    sockets = Sockets(site.app)
    assert "#from-flask-sockets" in site.logged().getMessage()
    return sockets


def error_of(call: Any, *args: Any) -> str:
    """Return the text of the WebSocketError of a call."""
    with pytest.raises(WebSocketError) as raised:
        call(*args)
    return str(raised.value)


ALREADY_CLOSED, DEAD = "Connection is already closed", "Socket is dead"


# The connection


def test_the_end_is_none_and_then_an_error(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        site.note(ws.closed)
        site.note((ws.receive(), ws.closed))
        site.note([error_of(ws.receive), error_of(ws.send, "late"), error_of(ws.send, None)])
        site.note([error_of(ws.send_frame, b"", ws.OPCODE_PING), error_of(ws.send_frame, "x", ws.OPCODE_TEXT)])
        ws.close()

    client = site.upgrade()
    assert site.noted() is False
    client.frame(CLOSE, close_body(1000))
    assert site.noted() == (None, True)
    assert site.noted() == [ALREADY_CLOSED, DEAD, DEAD]
    assert site.noted() == [DEAD, DEAD]


def test_the_loop_of_the_readme_ends_quietly(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def echo_socket(ws: Any) -> None:
        while not ws.closed:
            message = ws.receive()
            ws.send(message)

    client = site.upgrade()
    for opcode, payload in ((TEXT, b"text"), (TEXT, b""), (BINARY, b"bytes")):
        client.frame(opcode, payload)
        assert client.read_frame() == (opcode, payload)
    client.frame(CLOSE, close_body(4000))
    assert client.read_frame() == (CLOSE, close_body(4000))


def test_closed_is_true_only_after_the_last_message(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        while ws.connection.connected:
            (gevent.sleep if site.mode.name == "gevent" else time.sleep)(0.01)
        messages = []
        while not ws.closed and not ws.closed:
            messages.append(ws.receive())
        site.note([*messages, ws.closed, ws.receive(), ws.closed])

    client = site.upgrade()
    client.frame(TEXT, b"one")
    client.frame(BINARY, b"two")
    client.frame(CLOSE, close_body(1000))
    assert site.noted() == ["one", b"two", True, None, True]


def test_closed_is_not_true_while_somebody_receives(site: Site, sockets: Sockets) -> None:
    members: list[Any] = []

    @sockets.route("/")
    def handler(ws: Any) -> None:
        members.append(ws)
        site.note((ws.receive(), ws.closed))

    client = site.upgrade()
    wait_until(lambda: members and members[0].connection._transport.is_receiving)
    members[0].connection.close(4000, wait=False)
    assert not members[0].connection.connected
    assert members[0].closed is False
    client.frame(CLOSE, close_body(4000))
    assert site.noted() == (None, True)


def test_the_end_may_be_received_by_the_interface_of_the_package(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        site.note((ws.connection.receive(), error_of(ws.receive)))

    client = site.upgrade()
    client.frame(CLOSE, close_body(1000))
    assert site.noted() == (None, ALREADY_CLOSED)


def test_binary_messages_are_bytearrays_as_in_gevent_websocket(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        site.note([type(ws.receive()), type(ws.receive())])

    client = site.upgrade()
    client.frame(BINARY, b"x")
    client.frame(TEXT, b"x")
    assert site.noted() == [bytearray, str]


@pytest.mark.parametrize(
    ("arguments", "frame"),
    [
        (("text",), (TEXT, b"text")),
        ((b"bytes",), (BINARY, b"bytes")),
        ((bytearray(b"array"),), (BINARY, b"array")),
        (("text", False), (TEXT, b"text")),
        ((12, False), (TEXT, b"12")),
        ((None, False), (TEXT, b"")),
        ((b"bytes", True), (BINARY, b"bytes")),
        (("text", True), (BINARY, b"text")),
    ],
    ids=str,
)
def test_send_sends_what_gevent_websocket_sends(
    site: Site, sockets: Sockets, arguments: tuple[Any, ...], frame: tuple[int, bytes]
) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        ws.send(*arguments)

    assert site.upgrade().read_frame() == frame


def test_send_frame_sends_messages_and_pings(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        ws.send_frame("text", ws.OPCODE_TEXT)
        ws.send_frame(b"bytes", ws.OPCODE_BINARY)
        ws.send_frame(b"", ws.OPCODE_PING)
        with pytest.raises(ValueError, match="not the opcode 8"):
            ws.send_frame(b"", 0x8)

    client = site.upgrade()
    assert [client.read_frame(), client.read_frame()] == [(TEXT, b"text"), (BINARY, b"bytes")]
    client.read_ping()
    assert client.read_frame() == (CLOSE, close_body(1000))
    theirs = geventwebsocket.websocket.WebSocket
    assert (theirs.OPCODE_TEXT, theirs.OPCODE_BINARY, theirs.OPCODE_PING) == (TEXT, BINARY, PING)


@pytest.mark.parametrize("message", ["bye", b"bye"])
def test_close_sends_its_code_and_ends_receive(site: Site, sockets: Sockets, message: Any) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        ws.close(4000, message)
        site.note([ws.closed, error_of(ws.receive), error_of(ws.send, "late")])
        ws.close()

    client = site.upgrade()
    client.frame(TEXT, b"not received any more")
    assert client.read_frame() == (CLOSE, close_body(4000, b"bye"))
    assert site.noted() == [True, ALREADY_CLOSED, DEAD]


def test_a_connection_knows_its_request(site: Site, sockets: Sockets) -> None:
    @sockets.route("/<name>")
    def handler(ws: Any, name: str) -> None:
        site.note([ws.path, ws.origin, ws.protocol, ws.environ["QUERY_STRING"], name, request.path])

    site.upgrade("/Ann?x=1", origin="https://www.example.com", sec_websocket_protocol="v1")
    assert site.noted() == ["/Ann", "https://www.example.com", "v1", "x=1", "Ann", "/Ann"]


def test_a_handler_sends_to_all_clients_of_its_server(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        ws.send("welcome")
        while (message := ws.receive()) is not None:
            for client in ws.handler.server.clients.values():
                client.ws.send(message)
        site.note(len(ws.handler.server.clients))

    one, other = site.upgrade(), site.upgrade()
    assert one.read_frame() == other.read_frame() == (TEXT, b"welcome")
    one.frame(TEXT, b"hello")
    assert one.read_frame() == other.read_frame() == (TEXT, b"hello")
    one.frame(CLOSE, close_body(1000))
    assert one.read_frame() == (CLOSE, close_body(1000))
    assert site.noted() == 2  # a connection is listed until its handler ends
    wait_until(lambda: not one.read_frame())
    other.frame(CLOSE, close_body(1000))
    assert site.noted() == 1


def test_the_handler_of_a_connection_knows_its_client(site: Site, sockets: Sockets) -> None:
    site.environ["REMOTE_PORT"] = "1234"

    @sockets.route("/")
    def handler(ws: Any) -> None:
        assert ws.handler.websocket is ws.handler.active_client.ws is ws
        assert ws.handler.server.clients[ws.handler.client_address] is ws.handler.active_client
        site.note((ws.handler.client_address, ws.handler.active_client.address))

    site.upgrade()
    assert site.noted() == (("127.0.0.1", 1234), ("127.0.0.1", 1234))


def test_the_handshake_comes_before_the_handler_and_a_page_of_any_origin_may_connect(
    site: Site, sockets: Sockets
) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> Any:
        site.note(ws.connection.was_accepted)
        return "a response", 404

    assert site.upgrade(origin="https://www.example.com").read_frame() == (CLOSE, close_body(1000))
    assert site.noted() is True


def test_the_environ_after_the_end_does_not_keep_the_connection(site: Site, sockets: Sockets) -> None:
    """uWSGI uses the dictionary of the request again, for another request."""

    environs: list[Any] = []
    wsgi_app = site.app.wsgi_app

    def outer(environ: Any, start_response: Any) -> Any:
        environs.append(environ)
        return wsgi_app(environ, start_response)

    site.app.wsgi_app = outer  # type: ignore[method-assign]

    @sockets.route("/")
    def handler(ws: Any) -> None:
        site.note(ws)

    @site.app.after_request
    def after(response: Response) -> Response:
        response.call_on_close(lambda: site.note("over"))
        return response

    client = site.upgrade()
    client.frame(CLOSE, close_body(1000))
    ws = site.noted()
    assert site.noted() == "over"
    environs[0].clear()
    assert ws.environ["PATH_INFO"] == "/"
    assert ws.connection not in ws.environ.values()


def test_the_environ_stays_after_the_end_and_the_inside_of_gevent_websocket_is_not_there(
    site: Site, sockets: Sockets
) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        ws.close()
        site.note(ws.environ["PATH_INFO"])
        site.note([name for name in ("stream", "raw_read", "raw_write", "current_app", "version") if hasattr(ws, name)])
        site.note("wsgi.websocket" in ws.environ)

    site.upgrade()
    assert [site.noted() for _ in range(3)] == ["/", [], False]


def test_closed_notices_that_the_client_leaves_though_nothing_is_received(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        site.note("connected")
        while not ws.closed:
            (gevent.sleep if site.mode.name == "gevent" else time.sleep)(0.01)
        site.note("closed")

    client = site.upgrade()
    assert site.noted() == "connected"
    client.reset()
    assert site.noted() == "closed"


def test_a_close_code_that_is_not_allowed_is_a_value_error(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        with pytest.raises(ValueError, match="code"):
            ws.close(1005)

    assert site.upgrade().read_frame() == (CLOSE, close_body(1000))


def test_functions_before_the_request_run_and_may_refuse_it(site: Site, sockets: Sockets) -> None:
    sockets.route("/")(lambda ws: None)
    site.app.before_request(lambda: ("no", 403))
    assert site.refusal().status == 403


def test_no_message_is_larger_than_64_mib(site: Site, sockets: Sockets) -> None:
    sockets.route("/")(lambda ws: ws.receive())
    client = site.upgrade()
    client.send(header(BINARY, 64 * 2**20 + 1, key=KEY))
    opcode, payload = client.read_frame() or (None, b"")
    assert (opcode, payload[:2]) == (CLOSE, close_body(1009))


def test_a_client_of_flask_sockets_that_stops_reading_is_dropped(site: Site, sockets: Sockets) -> None:
    site.app.config["WEBSOCKET_SEND_TIMEOUT"] = 0.2

    @sockets.route("/")
    def handler(ws: Any) -> None:
        try:
            for _ in range(ROOM // 2**20):
                ws.send(bytes(2**20))
        except WebSocketError:
            site.note("dropped")

    site.upgrade()
    assert site.noted() == "dropped"


def test_a_client_is_pinged_and_not_dropped(site: Site, sockets: Sockets, clock: Clock) -> None:
    sockets.route("/")(lambda ws: ws.send("hello") or site.note(ws.receive()))
    client = site.upgrade()
    assert client.read_frame() == (TEXT, b"hello")
    for _ in range(3):
        clock.put_forward(26)
        client.read_ping()
    client.frame(TEXT, b"still here")
    assert site.noted() == "still here"


# Exceptions


def test_the_exceptions_are_those_of_gevent_websocket_too(site: Site, sockets: Sockets) -> None:
    @sockets.route("/")
    def handler(ws: Any) -> None:
        ws.close()
        try:
            ws.receive()
        except geventwebsocket.exceptions.WebSocketError as error:
            site.note([isinstance(error, WebSocketError), isinstance(error, OSError), type(error).__name__])

    site.upgrade()
    assert site.noted() == [True, True, "WebSocketError"]
    for ours in (WebSocketError, ProtocolError):
        theirs = getattr(geventwebsocket.exceptions, ours.__name__)
        assert [base.__name__ for base in ours.__mro__] == [base.__name__ for base in theirs.__mro__]


def test_the_end_of_another_connection_is_an_error(site: Site, sockets: Sockets) -> None:
    others: list[Any] = []

    @sockets.route("/other")
    def other(ws: Any) -> None:
        others.append(ws)

    @sockets.route("/")
    def handler(ws: Any) -> None:
        others[0].send("hello")

    assert site.upgrade("/other").read_frame() == (CLOSE, close_body(1000))
    assert site.upgrade().read_frame() == (CLOSE, close_body(1011, b"internal error"))
    assert site.logged().exc_info is not None


def test_a_key_error_of_a_handler_is_an_error_and_not_another_page(site: Site, sockets: Sockets) -> None:
    site.app.route("/<path:rest>")(lambda rest: "a page")

    @sockets.route("/")
    def handler(ws: Any) -> None:
        raise KeyError("x")

    assert site.upgrade().read_frame() == (CLOSE, close_body(1011, b"internal error"))
    assert site.logged().exc_info[0] is KeyError  # type: ignore[index]


# Routes


def test_a_page_and_a_socket_may_have_the_same_url_and_the_same_name() -> None:
    app = Flask(__name__)
    sockets = Sockets(app)

    @app.route("/echo")
    def echo() -> str:
        return "a page"

    def handler(ws: Any) -> None:
        ws.send("a socket")

    handler.__name__ = "echo"
    sockets.route("/echo", methods=["GET"], endpoint="echo")(handler)
    sockets.add_url_rule("/other", None, handler)
    client = app.test_client()
    assert client.get("/echo").text == "a page"
    for path in ("/echo", "/other"):
        with client.websocket(path) as ws:
            assert ws.receive() == "a socket"


def test_a_blueprint_has_sockets_and_several_rules_for_one_function() -> None:
    app = Flask(__name__)
    sockets = Sockets()
    blueprint = Blueprint("ws", __name__)

    @blueprint.route("/echo")
    @blueprint.route("/echo/<name>")
    def echo(ws: Any, name: str = "nobody") -> None:
        ws.send(f"{name} {type(ws).__name__}")

    sockets.register_blueprint(blueprint, url_prefix="/")
    sockets.init_app(app)
    assert sockets.blueprints == {"ws": blueprint}
    client = app.test_client()
    for path, text in {"/echo": "nobody Connection", "/echo/Ann": "Ann Connection"}.items():
        with client.websocket(path) as ws:
            assert ws.receive() == text


def test_a_blueprint_of_sockets_and_one_of_pages_need_different_names() -> None:
    app = Flask(__name__)
    Sockets(app).register_blueprint(Blueprint("chat", __name__))
    with pytest.raises(ValueError, match="already registered"):
        app.register_blueprint(Blueprint("chat", __name__))


@pytest.mark.parametrize("is_early", [True, False])
def test_converters_of_the_map_convert(is_early: bool) -> None:
    class Reversed(BaseConverter):
        def to_python(self, value: str) -> str:
            return value[::-1]

    app = Flask(__name__)
    app.url_map.converters["string"] = app.url_map.converters["default"]
    sockets = Sockets(app if is_early else None)
    sockets.url_map.converters["reversed"] = Reversed
    sockets.route("/<reversed:name>")(lambda ws, name: ws.send(name))
    if not is_early:
        sockets.init_app(app)
    with app.test_client().websocket("/Ann") as ws:
        assert ws.receive() == "nnA"


def test_a_server_with_the_handler_of_gevent_websocket_gets_an_explanation() -> None:
    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    Sockets(app).route("/")(lambda ws: None)
    with pytest.raises(RuntimeError, match="leave out handler_class=WebSocketHandler"):
        app.test_client().websocket("/", environ_overrides={"wsgi.websocket": object()})
    assert WebSocketHandler.__name__ == "WebSocketHandler"


def test_a_site_without_such_a_socket_is_a_404() -> None:
    app = Flask(__name__)
    Sockets(app).route("/")(lambda ws: None)
    with pytest.raises(HandshakeRejected) as rejected:
        app.test_client().websocket("/other")
    assert rejected.value.response.status_code == 404


def test_the_calls_of_flask_sockets_have_the_same_parameters() -> None:
    for name in ("__init__", "init_app", "route", "add_url_rule", "register_blueprint"):
        theirs = inspect.signature(getattr(OriginalSockets, name)).parameters
        assert [*inspect.signature(getattr(Sockets, name)).parameters] == [*theirs]


def test_flask_sockets_itself_cannot_register_blueprints_with_the_flask_of_today() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        OriginalSockets(Flask(__name__)).register_blueprint(Blueprint("ws", __name__))
