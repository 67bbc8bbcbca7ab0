"""Routes are Flask's rules, the state belongs to the app, and mistakes raise at the call that makes them."""

from __future__ import annotations

import functools
import signal
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, abort, g, redirect, request, url_for
from websockets.exceptions import ConnectionClosed as ClientSawClose
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import EnvironBuilder

import flask_uwsgi_websocket
from flask_uwsgi_websocket import (
    AsyncioWebSocket,
    AsyncioWebSocketClient,
    AsyncioWebSocketMiddleware,
    GeventWebSocket,
    GeventWebSocketClient,
    GeventWebSocketMiddleware,
    WebSocket,
    WebSocketClient,
    WebSocketMiddleware,
)
from flask_uwsgi_websocket.state import Warned
from support.inprocess import DEADLINE, MODES, Site, serving
from support.wire import TEXT


def say(text: str) -> Any:
    """Make a handler that sends one message."""

    def handler(ws: Any, **kwargs: Any) -> None:
        ws.send(" ".join([text, *map(str, kwargs.values())]))

    return handler


def hear(site: Site, path: str, **headers: str) -> str:
    """Connect, and return the only message."""
    (message,) = site.connect(path, additional_headers=headers)
    return str(message)


def serve(site: Site, app: Flask) -> Site:
    """Let a site serve another app."""
    site.app = app
    return site


# init_app


def test_routes_may_be_declared_before_and_after_init_app(blocking: Site) -> None:
    app = Flask("app")
    websocket = WebSocket()
    websocket.route("/before", endpoint="before")(say("before"))
    websocket.init_app(app)
    websocket.route("/after", endpoint="after")(say("after"))

    serve(blocking, app)
    assert hear(blocking, "/before") == "before"
    assert hear(blocking, "/after") == "after"


def test_one_extension_serves_several_apps(blocking: Site) -> None:
    websocket = WebSocket()
    apps = [Flask(name) for name in ("one", "two", "three")]
    blueprint = Blueprint("plain", "plain", url_prefix="/plain")

    @websocket.route("/")
    def name(ws: Any) -> None:
        from flask import current_app

        ws.send(f"{current_app.name} {ws.timeout}")

    blueprint.add_url_rule("/", "name", name)
    websocket.init_app(apps[0])
    websocket.register_blueprint(blueprint)
    websocket.init_app(apps[1])
    websocket.init_app(apps[2])
    for number, app in enumerate(apps):
        app.config["WEBSOCKET_PING_INTERVAL"] = number + 1
    for number, app in enumerate(apps):
        headers = {f"HTTP_{key}": value for key, value in {"UPGRADE": "websocket", "CONNECTION": "Upgrade"}.items()}
        # The test client lends no socket, so the request gets only as far as the check of the key, which is missing.
        assert app.test_client().get("/", environ_overrides=headers).status_code == 426
        assert app.test_client().get("/plain/", environ_overrides=headers).status_code == 426
        state = app.extensions["uwsgi_websocket"]
        assert state.route("name", [], app.config).settings.ping_interval == number + 1


def test_several_extensions_may_serve_several_apps(blocking: Site) -> None:
    first, second = Flask("first"), Flask("second")
    WebSocket(first).route("/", endpoint="x")(say("first"))
    WebSocket(second).route("/", endpoint="x")(say("second"))

    assert hear(serve(blocking, second), "/") == "second"


@pytest.mark.parametrize("extension", [WebSocket, GeventWebSocket, AsyncioWebSocket])
def test_an_app_is_initialised_once(extension: Any) -> None:
    app = Flask("app")
    websocket = WebSocket(app)
    wsgi_app = app.wsgi_app
    for again in (websocket, extension()):
        with pytest.raises(RuntimeError, match="'app' has a WebSocket extension already: call init_app"):
            again.init_app(app)
    assert app.wsgi_app is wsgi_app


def test_init_app_can_be_repeated_after_a_failure(blocking: Site) -> None:
    app = Flask("app")
    websocket = WebSocket()
    websocket.add_url_rule("/", "x", say("x"), unknown_option=True)
    with pytest.raises(TypeError, match="unknown_option"):
        websocket.init_app(app)
    assert app.extensions["uwsgi_websocket"].coroutines is None
    websocket = WebSocket()
    websocket.add_url_rule("/", "x", say("x"))
    websocket.init_app(app)

    assert hear(serve(blocking, app), "/") == "x"


def test_init_app_patches_nothing_but_the_app() -> None:
    import socket
    import threading

    before = (socket.socket, threading.Thread, threading.Lock)
    for extension in (WebSocket, GeventWebSocket, AsyncioWebSocket):
        extension(Flask("app"))
    assert (socket.socket, threading.Thread, threading.Lock) == before


@pytest.mark.parametrize(
    ("extension", "middleware", "client"),
    [
        (WebSocket, WebSocketMiddleware, WebSocketClient),
        (GeventWebSocket, GeventWebSocketMiddleware, GeventWebSocketClient),
        (AsyncioWebSocket, AsyncioWebSocketMiddleware, AsyncioWebSocketClient),
    ],
)
def test_each_extension_has_its_middleware_and_client(extension: Any, middleware: Any, client: Any) -> None:
    app = Flask("app")
    websocket = extension(app)
    assert extension.middleware is middleware
    assert middleware.client is client
    assert isinstance(app.wsgi_app, middleware)
    assert app.wsgi_app.websocket is websocket
    assert callable(app.wsgi_app.wsgi_app)


def test_a_subclass_may_bring_its_own_client(blocking: Site) -> None:
    class Client(WebSocketClient):
        def shout(self, text: str) -> None:
            self.send(text.upper())

    class Middleware(WebSocketMiddleware):
        client = Client

    class Extension(WebSocket):
        middleware = Middleware

    app = Flask("app")

    @Extension(app).route("/")
    def handler(ws: Any) -> None:
        ws.shout("hello")

    assert hear(serve(blocking, app), "/") == "HELLO"


def test_an_error_while_a_client_is_created_gets_500_and_leaves_no_socket_open(
    blocking: Site, caplog: pytest.LogCaptureFixture
) -> None:
    class Client(WebSocketClient):
        def __init__(self, *args: Any) -> None:
            if args[3].fd >= 0:  # the transport has a socket, unlike the one of the refused request
                raise LookupError("no client")
            super().__init__(*args)

    class Middleware(WebSocketMiddleware):
        client = Client

    class Extension(WebSocket):
        middleware = Middleware

    app = Flask("app")
    Extension(app).route("/")(say("hello"))
    assert serve(blocking, app).refusal("/").status == 500
    assert "no client" in caplog.text


# Routes


def test_the_first_request_of_any_app_logs_routes_that_have_no_app(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask(__name__)
    given, forgotten = WebSocket(), WebSocket()
    for websocket in (given, forgotten):
        websocket.add_url_rule("/echo", "echo", lambda ws: None)
    given.init_app(app)
    for _ in range(2):
        assert app.test_client().get("/forgotten").status_code == 404
    (record,) = caplog.records
    said = "A WebSocket with the handlers ['echo'] has no app, so their URLs are unknown: call its init_app()."
    assert record.getMessage() == said
    forgotten.init_app(Flask(__name__))


def test_a_rule_needs_its_handler() -> None:
    with pytest.raises(TypeError, match="a WebSocket rule needs its handler"):
        WebSocket().add_url_rule("/")


@pytest.mark.parametrize("extension", [WebSocket, GeventWebSocket])
def test_a_blocking_extension_refuses_a_coroutine_function(extension: Any) -> None:
    async def handler(ws: Any) -> None:
        pass

    @functools.wraps(handler)
    def decorated(ws: Any) -> Any:
        return handler(ws)

    for function in (handler, decorated):
        with pytest.raises(TypeError, match=r"handler\(\) is a coroutine function: use AsyncioWebSocket"):
            extension().route("/")(function)


def test_the_asyncio_extension_refuses_a_plain_function() -> None:
    with pytest.raises(TypeError, match=r"handler\(\) is not a coroutine function: write async def, or use WebSocket"):
        AsyncioWebSocket().add_url_rule("/", None, say("x"))


def test_a_coroutine_handler_may_be_written_with_yield_from() -> None:
    @types.coroutine
    def handler(ws: Any) -> Any:
        yield from ws.send("x")

    with contextmanager(serving)("asyncio") as site:
        site.websocket.add_url_rule("/", None, handler)
        assert hear(site, "/") == "x"


def test_a_handler_may_be_a_method_a_partial_or_an_object(blocking: Site) -> None:
    class Handlers:
        def method(self, ws: Any) -> None:
            ws.send("method")

        def __call__(self, ws: Any) -> None:
            ws.send("object")

    def two(word: str, ws: Any) -> None:
        ws.send(word)

    blocking.websocket.add_url_rule("/method", view_func=Handlers().method)
    blocking.websocket.add_url_rule("/partial", "partial", functools.partial(two, "partial"))
    blocking.websocket.add_url_rule("/object", "object", Handlers())
    for name in ("method", "partial", "object"):
        assert hear(blocking, f"/{name}") == name


def test_the_decorator_returns_its_function() -> None:
    def handler(ws: Any) -> None:
        pass

    assert WebSocket().route("/")(handler) is handler


def test_view_functions_maps_endpoints_to_handlers() -> None:
    websocket = WebSocket()

    @websocket.route("/a")
    def first(ws: Any) -> None:
        pass

    @websocket.route("/b", endpoint="other")
    def second(ws: Any) -> None:
        pass

    blueprint = Blueprint("bp", "bp")
    blueprint.add_url_rule("/c", "third", first)
    websocket.init_app(Flask("app"))
    websocket.register_blueprint(blueprint)
    assert websocket.view_functions == {"first": first, "other": second, "bp.third": first}


def test_one_handler_may_have_two_urls(blocking: Site) -> None:
    @blocking.websocket.route("/a/<int:number>")
    @blocking.websocket.route("/b", defaults={"number": 0})
    def handler(ws: Any, number: int) -> None:
        ws.send(f"{request.endpoint} {number}")

    assert hear(blocking, "/a/7") == "handler 7"
    assert hear(blocking, "/b") == "handler 0"


def test_two_handlers_may_not_have_the_same_endpoint() -> None:
    app = Flask("app")  # a name for the app, because the extension holds no reference to it
    websocket = WebSocket(app)
    websocket.add_url_rule("/a", "x", say("a"))
    with pytest.raises(AssertionError, match="overwriting an existing endpoint function: x"):
        websocket.add_url_rule("/b", "x", say("b"))


def test_a_page_and_a_websocket_may_share_a_url(blocking: Site) -> None:
    blocking.websocket.add_url_rule("/", "socket", say("a message"))
    blocking.app.add_url_rule("/", "page", lambda: "a page")

    assert hear(blocking, "/") == "a message"
    response = blocking.refusal(upgrade=None, connection=None)
    assert (response.status, response.body) == (200, b"a page")


def test_url_for_builds_urls_of_websockets() -> None:
    app = Flask("app")
    websocket = WebSocket(app)
    blueprint = Blueprint("chat", "chat", url_prefix="/chat")
    blueprint.add_url_rule("/<room>", "talk", say("x"))
    websocket.register_blueprint(blueprint)
    for base, scheme in (("http://example.com", "ws"), ("https://example.com", "wss")):
        with app.test_request_context(base_url=base):
            assert url_for("chat.talk", room="a b", _external=True) == f"{scheme}://example.com/chat/a%20b"


def test_rules_do_not_answer_options_requests(blocking: Site) -> None:
    blocking.websocket.add_url_rule("/", "socket", say("x"))
    assert blocking.refusal(method="OPTIONS", upgrade=None, connection=None).status in {405, 426}


# Blueprints


@pytest.mark.parametrize("before", [True, False], ids=["before init_app", "after init_app"])
def test_the_views_of_a_plain_blueprint_become_handlers_under_its_prefix(blocking: Site, before: bool) -> None:
    app = Flask("app")
    websocket = WebSocket()
    outer, inner = Blueprint("outer", "x", url_prefix="/outer"), Blueprint("inner", "x", url_prefix="/inner")

    @outer.before_request
    def before_request() -> None:
        g.said = f"{request.blueprints} {request.endpoint}"

    @outer.route("/<int:number>")
    @inner.route("/<int:number>")
    def handler(ws: Any, number: int) -> None:
        ws.send(f"{number} {g.said}")

    outer.register_blueprint(inner)
    if before:
        websocket.register_blueprint(outer, url_prefix="/renamed")
        websocket.init_app(app)
    else:
        websocket.init_app(app)
        websocket.register_blueprint(outer, url_prefix="/renamed")

    serve(blocking, app)
    assert hear(blocking, "/renamed/1") == "1 ['outer'] outer.handler"
    assert hear(blocking, "/renamed/inner/2") == "2 ['outer.inner', 'outer'] outer.inner.handler"
    assert blocking.refusal("/renamed/1", upgrade=None, connection=None).status == 426
    assert blocking.refusal("/outer/1").status == 404


def test_a_blueprint_may_be_registered_twice_under_two_names(blocking: Site) -> None:
    blueprint = Blueprint("bp", "x")
    blueprint.add_url_rule("/", "handler", lambda ws: ws.send(request.endpoint))
    for name in ("a", "b"):
        blocking.websocket.register_blueprint(blueprint, name=name, url_prefix=f"/{name}")

    assert hear(blocking, "/a/") == "a.handler"
    assert hear(blocking, "/b/") == "b.handler"


def test_a_blueprint_may_not_be_registered_twice_under_the_same_name() -> None:
    app = Flask("app")  # a name for the app, because the extension holds no reference to it
    websocket = WebSocket(app)
    blueprint = Blueprint("bp", "x")
    websocket.register_blueprint(blueprint)
    with pytest.raises(ValueError, match="already registered"):
        websocket.register_blueprint(blueprint)


def test_a_route_of_a_blueprint_may_have_settings(blocking: Site) -> None:
    blueprint = Blueprint("bp", "x")

    @blueprint.route("/", subprotocols=["chat"], ping_interval=7)
    def handler(ws: Any) -> None:
        ws.send(f"{ws.subprotocol} {ws.timeout}")

    blocking.websocket.register_blueprint(blueprint)
    client = blocking.connect(subprotocols=["chat"])
    assert client.recv(DEADLINE) == "chat 7"


def test_static_files_of_a_blueprint_are_served_as_files(blocking: Site, tmp_path: Any) -> None:
    (tmp_path / "style.css").write_text("a style")
    blueprint = Blueprint("bp", "x", url_prefix="/bp", static_folder=str(tmp_path), static_url_path="/static")
    blueprint.add_url_rule("/", "handler", say("hello"))
    blocking.websocket.register_blueprint(blueprint)

    assert hear(blocking, "/bp/") == "hello"
    response = blocking.refusal("/bp/static/style.css", upgrade=None, connection=None)
    assert (response.status, response.body) == (200, b"a style")


def test_functions_that_a_blueprint_records_run_on_the_app() -> None:
    app = Flask("app")
    blueprint = Blueprint("bp", "x")
    blueprint.record(lambda state: setattr(state.app, "marked", state.app.name))
    WebSocket(app).register_blueprint(blueprint)
    assert app.marked == "app"  # type: ignore[attr-defined]


def test_a_rule_of_a_blueprint_without_a_view_only_builds_urls() -> None:
    app = Flask("app")
    blueprint = Blueprint("bp", "x", url_prefix="/bp")
    blueprint.add_url_rule("/elsewhere", "elsewhere", build_only=True)
    WebSocket(app).register_blueprint(blueprint)
    with app.test_request_context():
        assert url_for("bp.elsewhere") == "/bp/elsewhere"


def test_a_blueprint_of_coroutines_needs_the_asyncio_extension() -> None:
    blueprint = Blueprint("bp", "x")

    @blueprint.route("/")
    async def handler(ws: Any) -> None:
        pass

    app, other = Flask("app"), Flask("app")
    AsyncioWebSocket(app).register_blueprint(blueprint)
    with pytest.raises(TypeError, match="is a coroutine function"):
        WebSocket(other).register_blueprint(blueprint)


# Settings


def test_settings_of_a_route_override_those_of_the_extension_and_these_override_those_of_the_app(
    blocking: Site,
) -> None:
    app = Flask("app")
    app.config.update(WEBSOCKET_PING_INTERVAL=1, WEBSOCKET_SUBPROTOCOLS=["app"])
    websocket = WebSocket(ping_interval=2)
    for name, options in {"plain": {}, "own": {"ping_interval": 3}, "none": {"ping_interval": None}}.items():
        websocket.add_url_rule(f"/{name}", name, lambda ws: ws.send(f"{ws.timeout} {ws.subprotocol}"), **options)
    websocket.init_app(app)

    serve(blocking, app)
    for name, timeout in {"plain": 2, "own": 3, "none": None}.items():
        client = blocking.connect(f"/{name}", subprotocols=["app"])
        assert client.recv(DEADLINE) == f"{timeout} app"


def test_timeout_means_the_ping_interval_as_in_0_6_1() -> None:
    app = Flask("app")
    WebSocket(app, 30)
    assert app.extensions["uwsgi_websocket"].route("x", [], {}).settings.ping_interval == 30
    app = Flask("app")
    WebSocket(app, timeout=30, ping_interval=5)
    assert app.extensions["uwsgi_websocket"].route("x", [], {}).settings.ping_interval == 5


@pytest.mark.parametrize("mode", MODES.values())
def test_an_invalid_setting_of_the_extension_raises_at_once(mode: Any) -> None:
    with pytest.raises(ValueError, match="ping_interval must be a number above 0"):
        mode.extension(ping_interval=-1)
    with pytest.raises(TypeError, match="ping_intervall"):
        mode.extension(ping_intervall=1)


def test_an_invalid_setting_of_a_route_raises_at_once() -> None:
    with pytest.raises(ValueError, match="max_message_size must be a number above 0"):
        WebSocket().add_url_rule("/", "x", say("x"), max_message_size=0)


def test_an_invalid_setting_of_the_app_raises_in_init_app() -> None:
    app = Flask("app")
    app.config["WEBSOCKET_SEND_BUFFER"] = 0
    with pytest.raises(ValueError, match="send_buffer must be a number above 0"):
        WebSocket(app)
    assert app.extensions["uwsgi_websocket"].coroutines is None


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("WEBSOCKET_ALLOWED_ORIGIN", "WEBSOCKET_ALLOWED_ORIGINS"),
        ("WEBSOCKET_ORIGINS", "WEBSOCKET_ALLOWED_ORIGINS"),
        ("WEBSOCKET_MAX_MESAGE_SIZE", "WEBSOCKET_MAX_MESSAGE_SIZE"),
        ("WEBSOCKET_MAX_SIZE", "WEBSOCKET_MAX_MESSAGE_SIZE"),
        ("WEBSOCKETS_PING_INTERVAL", "WEBSOCKET_PING_INTERVAL"),
    ],
)
def test_init_app_warns_of_a_key_that_is_almost_the_key_of_a_setting(
    key: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("app")
    app.config[key] = 1
    WebSocket(app)
    assert [record.getMessage() for record in caplog.records] == [
        f"app.config[{key!r}] is not a setting: did you mean {meant}?"
    ]


def test_init_app_ignores_the_applications_own_keys(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask("app")
    app.config.update(
        WEBSOCKET_URL="wss://example.com", WEBSOCKET_PORT=1, WEBSOCKET_REDIS="", WEBSOCKET_PING_INTERVAL=9
    )
    WebSocket(app)
    assert not caplog.records


def test_an_invalid_setting_that_the_app_gets_later_is_logged_as_an_error(blocking: Site) -> None:
    blocking.websocket.add_url_rule("/", "x", say("x"))
    blocking.app.config["WEBSOCKET_SEND_BUFFER"] = 0
    assert blocking.refusal().status == 500
    assert "send_buffer must be a number above 0" in str(blocking.logged().exc_info)


# Warnings


def test_a_warning_is_logged_once_for_each_subject_up_to_a_number_of_subjects() -> None:
    warned = Warned()
    assert [warned.is_first_time("session") for _ in range(2)] == [True, False]
    assert [warned.is_first_time("page", rule) for rule in ("/a", "/b", "/a")] == [True, True, False]
    assert [warned.is_first_time("origin", name, 2) for name in ("a", "a", "b", "c", "b")] == [
        *(True, False, True, False, False)
    ]


# Flask around the handler


def test_a_page_runs_only_three_short_functions_of_the_extension() -> None:
    app = Flask("app")
    WebSocket(app).add_url_rule("/", "handler", say("x"))
    app.add_url_rule("/page", "page", lambda: "page")
    package = str(Path(flask_uwsgi_websocket.__file__).parent)
    ran: list[str] = []

    def note(frame: types.FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            ran.append(frame.f_code.co_name)

    environ = EnvironBuilder("/page").get_environ()
    sys.setprofile(note)
    try:
        body = list(app(environ, lambda status, headers: lambda data: None))
    finally:
        sys.setprofile(None)
    assert body == [b"page"]
    assert ran == ["__call__", "preprocess_request", "process_response"]
    assert not app.before_request_funcs
    assert not app.after_request_funcs


def test_methods_that_a_subclass_of_flask_overrides_are_called_once_for_each_request(blocking: Site) -> None:
    class App(Flask):
        def preprocess_request(self, *args: Any) -> Any:
            blocking.note("preprocess")
            return super().preprocess_request(*args)

        def process_response(self, *args: Any) -> Any:
            blocking.note("process")
            return super().process_response(*args)

    app = serve(blocking, App("app")).app
    WebSocket(app).add_url_rule("/", "handler", say("x"))
    app.add_url_rule("/page", "page", lambda: "page")
    called = ["preprocess", "process"]
    assert hear(blocking, "/") == "x"
    assert [blocking.noted(), blocking.noted()] == called  # its request may end after the next one has begun
    assert blocking.refusal("/page", upgrade=None, connection=None).status == 200
    assert blocking.refusal("/nowhere").status == 404
    assert [blocking.noted() for _ in range(4)] == called * 2


def test_functions_before_and_after_a_request_can_be_called_without_a_request() -> None:
    app = Flask("app")
    WebSocket(app)
    app.before_request(lambda: "answer")
    app.after_request(lambda response: app.response_class("replaced"))
    with app.test_request_context("/"):
        assert app.preprocess_request() == "answer"
        assert app.process_response(app.response_class()).data == b"replaced"


@pytest.mark.parametrize("order", ["before init_app", "after init_app"])
def test_a_page_request_for_a_websocket_gets_426_from_the_error_handler_of_the_app(order: str) -> None:
    app = Flask("app")
    websocket = WebSocket()
    websocket.add_url_rule("/", "handler", say("x"))

    def register() -> None:
        app.register_error_handler(HTTPException, lambda error: (f"our page: {error.name}", error.code))
        app.before_request(lambda: "never called")

    if order == "before init_app":
        register()
    websocket.init_app(app)
    if order == "after init_app":
        register()
    response = app.test_client().get("/")
    assert (response.status_code, response.text) == (426, "our page: Upgrade Required")
    assert app.test_client().get("/nowhere").text == "never called"


@pytest.mark.parametrize("answer", ["abort", "response", "redirect"])
def test_before_request_may_answer_instead_of_the_handshake(site: Site, answer: str) -> None:
    @site.app.before_request
    def login_required() -> Any:
        if "token" in request.args:
            return None
        if answer == "abort":
            abort(401)
        return ("log in", 401) if answer == "response" else redirect("/login", 302)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send("welcome")

    response = site.refusal()
    assert response.status == (302 if answer == "redirect" else 401)
    assert list(site.connect("/?token=1")) == ["welcome"]


def test_error_handlers_answer_when_a_handler_aborts_before_the_handshake(site: Site) -> None:
    @site.app.errorhandler(403)
    def forbidden(error: Exception) -> Any:
        return {"error": "members only"}, 403

    @site.route()
    async def handler(ws: Any) -> None:
        abort(403)

    response = site.refusal()
    assert (response.status, response.body.strip()) == (403, b'{"error":"members only"}')


def test_functions_of_the_app_run_around_the_handler_in_their_order(site: Site) -> None:
    @site.app.before_request
    def before() -> None:
        site.note("before")

    @site.app.after_request
    def after(response: Any) -> Any:
        site.note(f"after {response.status_code}")
        return response

    @site.app.teardown_request
    def teardown(error: Any) -> None:
        site.note(f"teardown {error}")

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.receive()
        site.note("handler")

    site.connect().close()
    assert [site.noted() for _ in range(4)] == ["before", "handler", "after 101", "teardown None"]


@pytest.mark.parametrize("before", [True, False], ids=["before init_app", "after init_app"])
def test_proxy_fix_may_be_installed_before_and_after_init_app(blocking: Site, before: bool) -> None:
    app = Flask("app")
    websocket = WebSocket()
    websocket.add_url_rule("/", "x", lambda ws: ws.send(f"{request.remote_addr} {request.script_root} {request.host}"))
    steps = [
        lambda: setattr(app, "wsgi_app", ProxyFix(app.wsgi_app, x_for=1, x_host=1, x_prefix=1)),
        lambda: websocket.init_app(app),
    ]
    for step in steps if before else reversed(steps):
        step()

    headers = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "public.example", "X-Forwarded-Prefix": "/app"}
    assert hear(serve(blocking, app), "/", **headers) == "192.0.2.1 /app public.example"


def test_middleware_may_answer_instead_of_the_app(blocking: Site) -> None:
    blocking.websocket.add_url_rule("/", "x", say("x"))
    inner = blocking.app.wsgi_app

    def closed(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/closed":
            start_response("503 Service Unavailable", [])
            return [b"closed"]
        return inner(environ, start_response)

    blocking.app.wsgi_app = closed  # type: ignore[method-assign]
    assert blocking.refusal("/closed").status == 503
    assert hear(blocking, "/") == "x"


def test_the_debugger_can_be_enabled(blocking: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_UWSGI_DEBUG", "1")
    app = Flask("app")
    websocket = WebSocket(app)
    websocket.add_url_rule("/", "x", say("x"))

    @websocket.route("/error")
    def error(ws: Any) -> None:
        raise KeyError("before the handshake")

    @websocket.route("/late")
    def late(ws: Any) -> None:
        ws.accept()
        raise KeyError("after the handshake")

    assert app.debug
    serve(blocking, app)
    assert hear(blocking, "/") == "x"
    response = blocking.refusal("/error")
    assert response.status == 500
    assert b"__debugger__" in response.body
    with pytest.raises(ClientSawClose, match="1011"):
        blocking.connect("/late").recv(DEADLINE)


def test_the_handler_gives_its_name_to_the_view(blocking: Site) -> None:
    def handler(ws: Any) -> None:
        """What it is for."""

    app = Flask("app")
    WebSocket(app).add_url_rule("/", None, handler)
    view = app.view_functions["handler"]
    assert (view.__name__, view.__doc__, view.__module__) == ("handler", "What it is for.", __name__)


def test_the_app_lists_the_rule() -> None:
    app = Flask("app")
    WebSocket(app).add_url_rule("/socket", "x", say("x"))
    (rule,) = (rule for rule in app.url_map.iter_rules() if rule.endpoint == "x")
    assert rule.websocket
    assert rule.methods is not None
    assert "GET" in rule.methods


# Running


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of run_uwsgi(). Its own tests are in ``cli``."""
    calls: list[Any] = []

    def record(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))

    monkeypatch.setattr("flask_uwsgi_websocket.extension.run_uwsgi", record)
    return calls


@pytest.mark.parametrize(
    ("extension", "options"),
    [
        (WebSocket, {"threads": 16}),
        (GeventWebSocket, {"gevent": 100, "gevent-early-monkey-patch": True}),
        (AsyncioWebSocket, {"asyncio": 100, "greenlet": True}),
    ],
)
def test_app_run_runs_the_app_in_uwsgi_in_its_mode(extension: Any, options: Any, ran: list[Any]) -> None:
    app = Flask("app")
    extension(app)
    app.run()
    app.run("0.0.0.0", 8000, True, processes=2)
    assert ran[0] == ((app, False, "localhost", 5000, None), options)
    assert ran[1] == ((app, True, "0.0.0.0", 8000, None), {**options, "processes": 2})


def test_the_extension_runs_the_app_that_it_was_initialised_with(ran: list[Any]) -> None:
    websocket = WebSocket()
    with pytest.raises(RuntimeError, match="cannot choose an app: "):
        websocket.run()
    app, other = Flask("app"), Flask("other")
    app.debug = True
    websocket.init_app(app)
    websocket.run(port=1)
    websocket.run("module:variable", uwsgi_binary="/uwsgi")
    websocket.init_app(other)
    with pytest.raises(RuntimeError, match="cannot choose an app: "):
        websocket.run()
    websocket.run(other)
    assert [args for args, _ in ran] == [
        (app, True, "localhost", 1, None),
        ("module:variable", False, "localhost", 5000, "/uwsgi"),
        (other, False, "localhost", 5000, None),
    ]


def test_each_worker_of_the_asyncio_engine_gets_an_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    class Uwsgi:
        loop = b"asyncio"
        forked: list[str] = []  # noqa: RUF012
        worker = 0

        def post_fork_hook(self) -> None:
            self.forked.append("theirs")

        def worker_id(self) -> int:
            return self.worker

    uwsgi = Uwsgi()
    monkeypatch.setattr("flask_uwsgi_websocket.servers.uwsgi_worker.uwsgi", uwsgi)
    loops: list[Any] = []
    monkeypatch.setattr(asyncio, "set_event_loop", loops.append)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        for name in ("one", "two"):
            AsyncioWebSocket(Flask(name))
        uwsgi.post_fork_hook()  # in a mule
        assert not loops
        uwsgi.worker = 1
        uwsgi.post_fork_hook()
        assert len(loops) == 1
        assert uwsgi.forked == ["theirs", "theirs"]
        # With --lazy-apps
        del uwsgi.post_fork_hook
        AsyncioWebSocket(Flask("three"))
        assert len(loops) == 2
        uwsgi.loop = b"gevent"
        AsyncioWebSocket(Flask("four"))
        assert len(loops) == 2
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        for loop in loops:
            loop.close()


def test_a_plain_handler_gets_text(blocking: Site) -> None:
    blocking.websocket.add_url_rule("/", "x", say("x"))
    client = blocking.upgrade()
    assert client.read_frame() == (TEXT, b"x")
