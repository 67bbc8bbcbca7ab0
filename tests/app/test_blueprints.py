"""WebSocketBlueprint does for WebSockets what a blueprint does for views."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from flask import Blueprint, Flask, abort, g, render_template, render_template_string, request, url_for
from flask.cli import routes_command
from websockets.exceptions import ConnectionClosed as ClientSawClose
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter

from flask_uwsgi_websocket import AsyncioWebSocket, GeventWebSocket, WebSocket, WebSocketBlueprint
from support.inprocess import DEADLINE, Site, serving
from support.wire import TEXT


def where(ws: Any, **values: Any) -> None:
    """Send the endpoint and the values of its URL."""
    ws.send(" ".join([str(request.endpoint), *(f"{name}={values[name]!r}" for name in sorted(values))]))


async def awaited_where(ws: Any, **values: Any) -> None:
    """Send the same in any mode: see ``Site.mode.handler``."""
    await ws.send(" ".join([str(request.endpoint), *map(repr, values.values())]))


def hear(site: Site, path: str = "/", **headers: str) -> str:
    """Connect, and return the only message."""
    client = site.upgrade(path, **headers)
    answer = client.read_frame()
    client.close()
    assert answer is not None
    assert answer[0] == TEXT, answer
    return answer[1].decode()


def page(site: Site, path: str = "/", **headers: str) -> str:
    """Return the page at a URL."""
    response = site.refusal(path, upgrade=None, connection=None, **headers)
    assert response.status == 200, response
    return response.body.decode()


def renew(site: Site, **options: Any) -> Flask:
    """Give a site a new app, to which no extension is attached."""
    site.app = Flask("site", **options)
    site.websocket = site.mode.extension()
    return site.app


@pytest.fixture
def bare(blocking: Site) -> Site:
    """A site with threads, to whose app no extension is attached."""
    renew(blocking)
    return blocking


@pytest.fixture
def cooperative() -> Iterator[Site]:
    """A site with asyncio."""
    yield from serving("asyncio")


# Registration


@pytest.mark.parametrize("registrar", ["the app", "the extension"])
@pytest.mark.parametrize("when", ["before init_app", "after init_app"])
def test_a_blueprint_is_registered_with_the_app_or_the_extension_before_or_after_init_app(
    site: Site, registrar: str, when: str
) -> None:
    app = renew(site)
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    chat.add_websocket_rule("/<int:room>", "talk", site.mode.handler(awaited_where))
    chat.add_url_rule("/<int:room>", "page", lambda room: f"page {room}")

    if when == "after init_app":
        site.websocket.init_app(app)
    (app if registrar == "the app" else site.websocket).register_blueprint(chat)
    if when == "before init_app":
        site.websocket.init_app(app)

    assert hear(site, "/chat/7") == "chat.talk 7"
    assert page(site, "/chat/7") == "page 7"


def test_the_decorator_returns_its_function_whose_name_is_the_endpoint(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    assert chat.websocket("/")(where) is where
    assert chat.websocket("/other", endpoint="other")(where) is where
    blocking.app.register_blueprint(chat)
    assert hear(blocking) == "chat.where"
    assert hear(blocking, "/other") == "chat.other"


def test_one_handler_may_have_two_urls(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.websocket("/<int:room>")(chat.websocket("/", defaults={"room": 0})(where))
    blocking.app.register_blueprint(chat)
    assert hear(blocking) == "chat.where room=0"
    assert hear(blocking, "/7") == "chat.where room=7"


@pytest.mark.parametrize(
    ("own", "at_registration", "path"),
    [
        (None, None, "/talk"),
        ("/own", None, "/own/talk"),
        (None, "/given", "/given/talk"),
        ("/own", "/given", "/given/talk"),
        ("/<int:room>", None, "/7/talk"),
    ],
)
def test_the_prefix_of_the_registration_replaces_the_blueprints_own(
    blocking: Site, own: str | None, at_registration: str | None, path: str
) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix=own)
    chat.add_websocket_rule("/talk", handler=where)
    blocking.app.register_blueprint(chat, **({"url_prefix": at_registration} if at_registration else {}))
    assert hear(blocking, path) == "chat.where" + (" room=7" if own == "/<int:room>" else "")


@pytest.mark.parametrize("registrar", ["the app", "the extension"])
def test_a_blueprint_may_be_registered_twice_under_two_names(blocking: Site, registrar: str) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/", handler=where)
    chat.before_websocket(lambda: g.setdefault("calls", []).append("before"))
    chat.after_websocket(lambda response: response.headers.add("X-Calls", ",".join(g.calls)) or response)
    target = blocking.app if registrar == "the app" else blocking.websocket
    target.register_blueprint(chat, url_prefix="/first")
    target.register_blueprint(chat, name="other", url_prefix="/second", url_defaults={"room": 2})

    assert hear(blocking, "/first/") == "chat.where"
    assert hear(blocking, "/second/") == "other.where room=2"
    client = blocking.raw()
    client.request("/second/")
    assert client.response()["X-Calls"] == "before"


def test_a_blueprint_serves_several_apps(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/", handler=where)
    connected: list[str] = []
    chat.on_connect(lambda app, ws, **extra: connected.append(f"{request.path} of {app.config['NAME']}"))
    apps = []
    for name, extension in {"first": WebSocket, "second": GeventWebSocket, "third": WebSocket}.items():
        app = Flask("site")
        app.config["NAME"] = name
        app.register_blueprint(chat, url_prefix=f"/{name}")
        extension(app)
        apps.append(app)

    # The server dispatches by the first part of the path.
    def dispatch(environ: Any, start_response: Any) -> Any:
        return next(app for app in apps if app.config["NAME"] in environ["PATH_INFO"])(environ, start_response)

    blocking.app = dispatch  # type: ignore[assignment]
    for name in ("first", "second", "third"):
        assert hear(blocking, f"/{name}/") == "chat.where"
    assert connected == ["/first/ of first", "/second/ of second", "/third/ of third"]


@pytest.mark.parametrize("registrar", ["the app", "the extension"])
@pytest.mark.parametrize("parents", ["WebSocketBlueprint", "Blueprint", "both"])
def test_blueprints_and_plain_blueprints_nest_to_any_depth(blocking: Site, registrar: str, parents: str) -> None:
    kinds = {"WebSocketBlueprint": [WebSocketBlueprint], "Blueprint": [Blueprint]}.get(
        parents, [Blueprint, WebSocketBlueprint]
    )
    leaf: Blueprint = WebSocketBlueprint("leaf", __name__, url_prefix="/leaf")
    leaf.add_websocket_rule("/<int:number>", "socket", where)  # type: ignore[attr-defined]
    leaf.add_url_rule("/page", "page", lambda **values: str(request.blueprint))
    for depth in range(5, 0, -1):
        parent = kinds[depth % len(kinds)](f"b{depth}", __name__, url_prefix=f"/<b{depth}>")
        parent.register_blueprint(leaf)
        leaf = parent
    (blocking.app if registrar == "the app" else blocking.websocket).register_blueprint(leaf, url_prefix="/x")

    assert hear(blocking, "/x/2/3/4/5/leaf/7") == "b1.b2.b3.b4.b5.leaf.socket b2='2' b3='3' b4='4' b5='5' number=7"
    # The page of a WebSocketBlueprint stays a page, also when the extension registers the blueprint.
    assert page(blocking, "/x/2/3/4/5/leaf/page") == "b1.b2.b3.b4.b5.leaf"


def test_a_child_may_be_nested_twice_under_two_names_and_prefixes(blocking: Site) -> None:
    child = WebSocketBlueprint("child", __name__)
    child.add_websocket_rule("/", handler=where)
    parent = WebSocketBlueprint("parent", __name__, url_prefix="/parent")
    parent.register_blueprint(child, url_prefix="/a")
    parent.register_blueprint(child, url_prefix="/b", name="again")
    blocking.app.register_blueprint(parent)
    assert hear(blocking, "/parent/a/") == "parent.child.where"
    assert hear(blocking, "/parent/b/") == "parent.again.where"


def test_the_request_knows_its_blueprints(site: Site) -> None:
    inner, outer = WebSocketBlueprint("inner", __name__), WebSocketBlueprint("outer", __name__)

    @inner.websocket("/")
    @site.mode.handler
    async def handler(ws: Any) -> None:
        await ws.send(f"{request.blueprint} {request.blueprints}")

    outer.register_blueprint(inner)
    site.app.register_blueprint(outer)
    assert hear(site) == "outer.inner ['outer.inner', 'outer']"


# URLs


def test_a_page_and_a_websocket_may_share_a_url(site: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    chat.websocket("/", endpoint="socket")(site.mode.handler(awaited_where))
    chat.add_url_rule("/", "page", lambda: str(request.endpoint), methods=["GET", "POST"])
    site.app.register_blueprint(chat)
    for _ in range(2):
        assert hear(site, "/chat/") == "chat.socket"
        assert page(site, "/chat/") == "chat.page"
        assert page(site, "/chat/", method="POST") == "chat.page"


def test_a_page_request_for_the_url_of_a_websocket_gets_426(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    chat.add_websocket_rule("/", handler=where)
    blocking.app.register_blueprint(chat)
    assert blocking.refusal("/chat/", upgrade=None, connection=None).status == 426
    assert blocking.refusal("/other/").status == 404


class Reversed(BaseConverter):
    """A converter of an application."""

    def to_python(self, value: str) -> str:
        return value[::-1]

    def to_url(self, value: str) -> str:
        return value[::-1]


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        ("/<value>", "/a", "'a'"),
        ("/<int:value>", "/7", "7"),
        ("/<float:value>", "/1.5", "1.5"),
        ("/<path:value>", "/a/b", "'a/b'"),
        ("/<any(one, two):value>", "/two", "'two'"),
        ("/<reversed:value>", "/abc", "'cba'"),
    ],
)
def test_converters_convert(blocking: Site, rule: str, path: str, value: str) -> None:
    blocking.app.url_map.converters["reversed"] = Reversed
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    chat.add_websocket_rule(rule, handler=where)
    blocking.app.register_blueprint(chat)
    assert hear(blocking, f"/chat{path}") == f"chat.where value={value}"


def test_strict_slashes_redirect_before_the_handshake(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/chat/", handler=where)
    blocking.app.register_blueprint(chat)
    response = blocking.refusal("/chat", host="example.com")
    assert (response.status, response["Location"]) == (308, "ws://example.com/chat/")


def test_url_defaults_and_url_value_preprocessors_of_the_blueprint_and_the_app_run(site: Site) -> None:
    inner, outer = WebSocketBlueprint("inner", __name__), WebSocketBlueprint("outer", __name__, url_prefix="/<lang>")

    @outer.url_value_preprocessor
    def pull_lang(endpoint: str | None, values: dict[str, Any] | None) -> None:
        assert values is not None
        g.lang = values.pop("lang")

    @outer.url_defaults
    def add_lang(endpoint: str, values: dict[str, Any]) -> None:
        values.setdefault("lang", g.lang)

    @outer.app_url_value_preprocessor
    def note_endpoint(endpoint: str | None, values: dict[str, Any] | None) -> None:
        g.endpoint = endpoint

    @inner.websocket("/<int:room>")
    @site.mode.handler
    async def handler(ws: Any, **values: Any) -> None:
        await ws.send(f"{g.lang} {values} {g.endpoint} {url_for('.handler', room=8)}")

    outer.register_blueprint(inner)
    site.app.register_blueprint(outer)
    assert hear(site, "/de/7", host="example.com") == "de {'room': 7} outer.inner.handler ws://example.com/de/8"


def test_url_defaults_may_be_given_at_registration(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_defaults={"color": "red", "size": 1})
    chat.add_websocket_rule("/", handler=where, defaults={"room": 7})
    blocking.app.register_blueprint(chat, url_defaults={"size": 2})
    assert hear(blocking) == "chat.where color='red' room=7 size=2"


@pytest.mark.parametrize("of", ["the blueprint", "the registration", "the rule", "a parent"])
def test_subdomains_are_matched(bare: Site, of: str) -> None:
    app = renew(bare, subdomain_matching=True)
    app.config["SERVER_NAME"] = "example.com"
    bare.websocket.init_app(app)
    chat: Blueprint = WebSocketBlueprint("chat", __name__, subdomain="<room>" if of == "the blueprint" else None)
    chat.add_websocket_rule(  # type: ignore[attr-defined]
        "/", handler=where, **({"subdomain": "<room>"} if of == "the rule" else {})
    )
    if of == "a parent":
        parent = Blueprint("parent", __name__)
        parent.register_blueprint(chat)
        chat = parent
    app.register_blueprint(chat, **({"subdomain": "<room>"} if of in {"the registration", "a parent"} else {}))
    app.add_url_rule("/", "page", lambda: url_for(f"{name}.where", room="b"))

    name = "parent.chat" if of == "a parent" else "chat"
    assert hear(bare, host="a.example.com") == f"{name}.where room='a'"
    assert bare.refusal(host="example.com").status == 400  # there is a page only
    assert page(bare, host="example.com") == "ws://b.example.com/"


def test_hosts_are_matched(bare: Site) -> None:
    app = renew(bare, host_matching=True, static_host="static.example")
    bare.websocket.init_app(app)
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/", "one", where, host="one.example")
    chat.add_websocket_rule("/", "any", where, host="<name>.two.example")
    app.register_blueprint(chat)
    assert hear(bare, host="one.example") == "chat.one"
    assert hear(bare, host="x.two.example") == "chat.any name='x'"
    assert bare.refusal(host="three.example").status == 404


@pytest.mark.parametrize(("scheme", "url"), [("http", "ws://example.com"), ("https", "wss://example.com")])
def test_url_for_builds_addresses_of_websockets_in_pages_and_in_handlers(site: Site, scheme: str, url: str) -> None:
    site.app.wsgi_app = ProxyFix(site.app.wsgi_app, x_proto=1, x_host=1)  # type: ignore[method-assign]
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")

    def addresses(**values: Any) -> str:
        return " ".join(
            [url_for(".talk", room="a b"), url_for("chat.talk", room="c", q="d", _external=True), url_for(".page")]
        )

    @chat.websocket("/<room>")
    @site.mode.handler
    async def talk(ws: Any, room: str) -> None:
        await ws.send(addresses() + " " + url_for(".page", _external=True))

    chat.add_url_rule("/", "page", addresses)
    site.app.register_blueprint(chat)
    headers = {"x_forwarded_proto": scheme, "x_forwarded_host": "example.com"}
    built = f"{url}/chat/a%20b {url}/chat/c?q=d /chat/"
    assert page(site, "/chat/", **headers) == built
    assert hear(site, "/chat/x", **headers) == f"{built} {scheme}://example.com/chat/"


def test_flask_routes_lists_the_rules(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    chat.add_websocket_rule("/<room>", handler=where)
    blocking.app.register_blueprint(chat)
    output = blocking.app.test_cli_runner().invoke(routes_command).output
    assert "chat.where" in output
    assert "/chat/<room>" in output


# Other features of blueprints


@pytest.mark.parametrize("handled_by", ["inner", "outer", "app"])
def test_error_handlers_of_blueprints_and_the_app_answer_before_the_handshake(site: Site, handled_by: str) -> None:
    inner, outer = WebSocketBlueprint("inner", __name__), WebSocketBlueprint("outer", __name__)
    outer.register_blueprint(inner)

    @inner.websocket("/<int:status>")
    @site.mode.handler
    async def handler(ws: Any, status: int) -> None:
        if status:
            abort(status)
        raise KeyError("not a status")

    owner: Any = {"inner": inner, "outer": outer, "app": site.app}[handled_by]
    owner.register_error_handler(403, lambda error: (f"{error.code} handled", 403))
    owner.register_error_handler(KeyError, lambda error: (f"{error} handled", 418))
    site.app.register_blueprint(outer)

    response = site.refusal("/403")
    assert (response.status, response.body) == (403, b"403 handled")
    response = site.refusal("/0")
    assert (response.status, response.body) == (418, b"'not a status' handled")
    assert b"handled" not in site.refusal("/404").body


def test_app_errorhandler_of_a_blueprint_answers_for_the_whole_app(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.app_errorhandler(404)(lambda error: ("nothing here", 404))
    blocking.app.register_blueprint(chat)
    assert blocking.refusal("/nowhere").body == b"nothing here"


def test_request_functions_of_blueprints_run_around_their_websockets(site: Site) -> None:
    inner, outer = WebSocketBlueprint("inner", __name__), WebSocketBlueprint("outer", __name__)
    for name, scaffold in {"inner": inner, "outer": outer, "app": site.app}.items():
        scaffold.before_request(functools.partial(site.note, f"before {name}"))
        scaffold.after_request(lambda response, name=name: site.note(f"after {name}") or response)
        scaffold.teardown_request(lambda error, name=name: site.note(f"teardown {name}"))
    inner.before_app_request(functools.partial(site.note, "before_app_request"))
    inner.after_app_request(lambda response: site.note("after_app_request") or response)
    inner.teardown_app_request(lambda error: site.note("teardown_app_request"))
    inner.websocket("/")(site.mode.handler(awaited_where))
    outer.register_blueprint(inner)
    site.app.register_blueprint(outer)

    hear(site)
    assert [site.noted() for _ in range(12)] == [
        *["before app", "before_app_request", "before outer", "before inner"],
        *["after inner", "after outer", "after_app_request", "after app"],
        *["teardown inner", "teardown outer", "teardown_app_request", "teardown app"],
    ]


def test_a_blueprint_has_static_files_and_templates_of_its_own(blocking: Site, tmp_path: Any) -> None:
    (tmp_path / "page.html").write_text("{{ user }} at {{ url_for('.static', filename='page.html') }}")
    chat = WebSocketBlueprint(
        "chat", __name__, url_prefix="/chat", static_folder=tmp_path, static_url_path="/files", template_folder=tmp_path
    )
    chat.context_processor(lambda: {"user": "Ann"})
    chat.app_template_filter("shout")(str.upper)

    @chat.websocket("/")
    def handler(ws: Any) -> None:
        ws.send(render_template("page.html") + render_template_string(" {{ user|shout }}"))

    blocking.app.register_blueprint(chat)
    assert hear(blocking, "/chat/") == "Ann at /chat/files/page.html ANN"
    assert "{{ user }}" in page(blocking, "/chat/files/page.html")


def test_methods_commands_and_resources_of_the_blueprint_work_beside_its_websockets(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat", cli_group="talk")
    chat.add_websocket_rule("/", handler=where)

    @chat.get("/")
    def first_line() -> str:
        with chat.open_resource("test_blueprints.py", "r") as file:
            return str(file.readline())

    chat.post("/", endpoint="post")(lambda: "posted")
    chat.add_url_rule("/late", "late")
    chat.endpoint("chat.late")(lambda: "by its endpoint")
    chat.cli.command("hello")(lambda: click.echo("hello"))
    blocking.app.register_blueprint(chat)
    assert hear(blocking, "/chat/") == "chat.where"
    assert "WebSocketBlueprint" in page(blocking, "/chat/")
    assert page(blocking, "/chat/", method="POST") == "posted"
    assert page(blocking, "/chat/late") == "by its endpoint"
    assert blocking.app.test_cli_runner().invoke(args=["talk", "hello"]).output == "hello\n"


def test_functions_that_a_blueprint_records_run_on_the_app() -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.record(lambda state: state.app.config.setdefault("NAMES", []).append(state.name))
    chat.record_once(lambda state: state.app.config.setdefault("ONCE", []).append(state.name))
    app = Flask("app")
    websocket = WebSocket(app)
    websocket.register_blueprint(chat)
    app.register_blueprint(chat, name="again")
    assert (app.config["NAMES"], app.config["ONCE"]) == (["chat", "again"], ["chat"])


# Settings of a route


def test_each_route_has_its_settings(site: Site) -> None:
    site.app.config["WEBSOCKET_SUBPROTOCOLS"] = ["of"]
    chat = WebSocketBlueprint("chat", __name__)

    @chat.websocket("/own", subprotocols=["chat"], origins=["https://a.example"], max_message_size=3, compression=True)
    @chat.websocket("/apps", endpoint="apps")
    @site.mode.handler
    async def handler(ws: Any) -> None:
        async for _ in ws:
            await ws.send(str(ws.subprotocol))

    site.app.register_blueprint(chat)
    for path, answer in {"/own": "chat", "/apps": "of"}.items():
        with site.connect(path, subprotocols=["of", "chat"], compression="deflate") as client:
            assert client.response is not None
            assert ("Sec-WebSocket-Extensions" in client.response.headers) is (path == "/own")
            client.send("x")
            assert client.recv(DEADLINE) == answer
            client.send("xxxx")
            if path == "/own":
                with pytest.raises(ClientSawClose, match="1009"):
                    client.recv(DEADLINE)
        origins = {"https://a.example": path == "/own", "http://localhost": path == "/apps", "http://b.example": False}
        for origin, allowed in origins.items():
            raw = site.raw()
            raw.request(path, origin=origin)
            assert raw.response().status == (101 if allowed else 403)
            raw.close()


# Mistakes, and their errors


def test_methods_raise_an_error_that_says_so() -> None:
    chat = WebSocketBlueprint("chat", __name__)
    with pytest.raises(TypeError, match="has no methods, its handshake is a GET: remove them from 'where'"):
        chat.websocket("/", methods=["POST"])(where)


def test_a_rule_needs_its_handler() -> None:
    with pytest.raises(TypeError, match="a WebSocket rule needs its handler: add_websocket_rule"):
        WebSocketBlueprint("chat", __name__).add_websocket_rule("/", "x")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_message_size": 0}, ValueError, "max_message_size must be a number above 0"),
        ({"subprotocols": "chat"}, TypeError, "subprotocols must be a list of names"),
        ({"origins": ["no origin"]}, ValueError, "is not an origin"),
    ],
)
def test_an_invalid_setting_raises_at_once(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        WebSocketBlueprint("chat", __name__).add_websocket_rule("/", "x", where, **options)


def test_an_unknown_option_raises_at_registration() -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/", "x", where, max_mesage_size=7)
    with pytest.raises(TypeError, match="max_mesage_size"):
        Flask("app").register_blueprint(chat)


@pytest.mark.parametrize("owner", ["the extension", "a blueprint", "a plain blueprint"])
def test_an_option_that_resembles_a_setting_raises_an_error_that_names_the_setting(owner: str) -> None:
    def register(option: str) -> None:
        websocket = WebSocket(app := Flask("app"))
        blueprint = WebSocketBlueprint("chat", __name__)
        options: dict[str, Any] = {option: 7}
        if owner == "the extension":
            websocket.add_url_rule("/", "x", where, **options)
        elif owner == "a blueprint":
            blueprint.add_websocket_rule("/", "x", where, **options)
            app.register_blueprint(blueprint)
        else:
            plain = Blueprint("plain", __name__)
            plain.add_url_rule("/", "x", where, **options)
            websocket.register_blueprint(plain)

    with pytest.raises(TypeError) as error:
        register("max_mesage_size")
    assert str(error.value) == "max_mesage_size is not an option of a WebSocket route: did you mean max_message_size?"
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        register("colour")


def test_an_unknown_option_of_a_view_raises_flasks_error() -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_url_rule("/", "x", lambda: "", max_queue=7)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_queue'"):
        Flask("app").register_blueprint(chat)


@pytest.mark.parametrize("kind", ["two handlers", "a handler and a view"])
def test_endpoints_that_clash_fail_with_flasks_message(kind: str) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/a", "x", where)
    if kind == "two handlers":
        chat.add_websocket_rule("/b", "x", functools.partial(where))
    else:
        chat.add_url_rule("/b", "x", lambda: "")
    with pytest.raises(AssertionError, match=r"overwriting an existing endpoint function: chat\.x"):
        Flask("app").register_blueprint(chat)


def test_an_endpoint_may_not_contain_a_dot_as_in_flask() -> None:
    with pytest.raises(ValueError, match=r"'endpoint' may not contain a dot"):
        WebSocketBlueprint("chat", __name__).add_websocket_rule("/", "a.b", where)


def test_names_that_clash_fail_with_flasks_message() -> None:
    websocket = WebSocket(app := Flask("app"))
    websocket.register_blueprint(WebSocketBlueprint("chat", __name__))
    with pytest.raises(ValueError, match="The name 'chat' is already registered"):
        app.register_blueprint(WebSocketBlueprint("chat", __name__))


@pytest.mark.parametrize(
    "late",
    [
        lambda chat: chat.add_websocket_rule("/late", "late", where),
        lambda chat: chat.before_websocket(lambda: None),
        lambda chat: chat.before_app_websocket(lambda: None),
        lambda chat: chat.on_close(lambda app, **extra: None),
    ],
    ids=["a rule", "a hook", "a hook of the app", "a listener"],
)
def test_calls_after_the_registration_fail_with_flasks_message(late: Callable[[Any], Any]) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    Flask("app").register_blueprint(chat)
    with pytest.raises(AssertionError, match="can no longer be called on the blueprint 'chat'"):
        late(chat)


def test_a_blueprint_registered_after_the_first_request_fails_with_flasks_message(blocking: Site) -> None:
    blocking.websocket.add_url_rule("/", "x", where)
    hear(blocking)
    for registrar in (blocking.app, blocking.websocket):
        with pytest.raises(AssertionError, match="can no longer be called"):
            registrar.register_blueprint(WebSocketBlueprint("chat", __name__))


def test_hooks_and_listeners_after_the_first_websocket_fail_with_flasks_kind_of_message(blocking: Site) -> None:
    blocking.websocket.add_url_rule("/", "x", where)
    hear(blocking)
    for register in (blocking.websocket.after_websocket, blocking.websocket.on_message):
        with pytest.raises(AssertionError, match="comes too late: the app has served WebSockets without it"):
            register(lambda: None)


UPGRADE = {"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade"}


def test_without_init_app_an_upgrade_is_answered_with_an_error_that_names_the_call(bare: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/", handler=where)
    bare.app.register_blueprint(chat)
    assert bare.refusal().status == 500
    assert "the app 'site' has no WebSocket extension: call init_app() of one" in str(bare.logged().exc_info)
    assert bare.refusal(upgrade=None, connection=None).status == 400
    bare.app.testing = True
    with pytest.raises(RuntimeError, match=r"the app 'site' has no WebSocket extension"):
        bare.app.test_client().get("/", environ_overrides=UPGRADE)


def wrapped_coroutine() -> Any:
    @functools.wraps(awaited_where)
    def decorated(ws: Any, **values: Any) -> Any:
        return awaited_where(ws, **values)

    return decorated


class Handler:
    """An object that is a coroutine handler."""

    async def __call__(self, ws: Any, **values: Any) -> None:
        await awaited_where(ws, **values)


@pytest.mark.parametrize("when", ["before init_app", "after init_app"])
@pytest.mark.parametrize("extension", [WebSocket, GeventWebSocket])
@pytest.mark.parametrize(
    "handler",
    [awaited_where, wrapped_coroutine(), functools.partial(awaited_where), Handler()],
    ids=["function", "decorated", "partial", "object"],
)
def test_a_blocking_extension_refuses_a_coroutine_handler(extension: Any, handler: Any, when: str) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/", "x", handler)
    app, websocket = Flask("app"), extension()
    steps = [lambda: app.register_blueprint(chat), lambda: websocket.init_app(app)]
    first, second = steps if when == "before init_app" else steps[::-1]
    first()
    with pytest.raises(TypeError, match="is a coroutine function: use AsyncioWebSocket, or a plain function"):
        second()


@pytest.mark.parametrize("when", ["before init_app", "after init_app"])
@pytest.mark.parametrize("handler", [where, functools.partial(where)], ids=["function", "partial"])
def test_the_asyncio_extension_refuses_a_plain_handler(handler: Any, when: str) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/", "x", handler)
    app, websocket = Flask("app"), AsyncioWebSocket()
    steps = [lambda: app.register_blueprint(chat), lambda: websocket.init_app(app)]
    first, second = steps if when == "before init_app" else steps[::-1]
    first()
    with pytest.raises(TypeError, match="is not a coroutine function: write async def, or use WebSocket"):
        second()


@pytest.mark.parametrize(
    "handler",
    [wrapped_coroutine(), functools.partial(awaited_where), Handler()],
    ids=["decorated", "partial", "object"],
)
def test_a_coroutine_handler_may_be_a_decorated_function_a_partial_or_an_object(
    cooperative: Site, handler: Any
) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/<int:number>", "x", handler)
    cooperative.app.register_blueprint(chat)
    assert hear(cooperative, "/7") == "chat.x 7"
