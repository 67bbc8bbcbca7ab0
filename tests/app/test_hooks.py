"""Hooks decide about a connection before its handshake, and run in it and at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from blinker import NamedSignal
from flask import Blueprint, abort, g, redirect, request, session
from websockets.exceptions import ConnectionClosed as ClientSawClose

from flask_uwsgi_websocket import ConnectionClosed, WebSocketBlueprint, signals
from flask_uwsgi_websocket.hooks import KINDS, AppRegistrar, Hooks, Kind
from support.inprocess import DEADLINE, Site, serving
from support.wire import TEXT


@pytest.fixture
def cooperative() -> Iterator[Site]:
    """A site with asyncio."""
    yield from serving("asyncio")


def nested(site: Site) -> dict[str, Any]:
    """Register three nested blueprints, with a handler at ``/`` in the innermost. The middle one is a plain one."""
    inner, plain, outer = (
        WebSocketBlueprint("inner", __name__),
        Blueprint("plain", __name__),
        WebSocketBlueprint("outer", __name__),
    )

    @inner.websocket("/")
    @site.mode.handler
    async def handler(ws: Any) -> None:
        site.note("handler")
        await ws.send("hello")

    plain.register_blueprint(inner)
    outer.register_blueprint(plain)
    return {"app": site.websocket, "outer": outer, "inner": inner}


def send_hello(site: Site, scaffold: Any) -> None:
    """Declare a handler at ``/`` that sends a greeting."""

    @(scaffold.websocket("/") if isinstance(scaffold, WebSocketBlueprint) else scaffold.route("/"))
    @site.mode.handler
    async def handler(ws: Any) -> None:
        await ws.send("hello")


def headers(site: Site, path: str = "/") -> list[tuple[str, str]]:
    """Return the headers of a 101 response."""
    client = site.raw()
    client.request(path)
    response = client.response()
    assert response.status == 101, response
    client.close()
    return response.headers


# Order


def test_hooks_run_from_the_app_inwards_and_back_through_nested_blueprints(site: Site) -> None:
    owners = nested(site)
    for name, owner in owners.items():
        for number in (1, 2):
            owner.before_websocket(lambda text=f"before {name} {number}": site.note(text))
            owner.after_websocket(lambda response, text=f"after {name} {number}": site.note(text) or response)
            owner.teardown_websocket(lambda error, text=f"teardown {name} {number}": site.note(text))
    site.app.register_blueprint(owners["outer"])

    assert headers(site)
    before = [f"before {name} {number}" for name in owners for number in (1, 2)]
    assert [site.noted() for _ in range(19)] == [
        *before,
        "handler",
        *(text.replace("before", "after") for text in reversed(before)),
        *(text.replace("before", "teardown") for text in reversed(before)),
    ]


def test_hooks_run_within_flasks_own_functions(site: Site) -> None:
    site.app.before_request(lambda: site.note("before_request"))
    site.app.after_request(lambda response: site.note(f"after_request {response.status_code}") or response)
    site.app.teardown_request(lambda error: site.note("teardown_request"))
    site.app.teardown_appcontext(lambda error: site.note("teardown_appcontext"))
    chat = WebSocketBlueprint("chat", __name__)
    chat.before_websocket(lambda: site.note("before_websocket"))
    chat.after_websocket(lambda response: site.note(f"after_websocket {response.status_code}") or response)
    chat.teardown_websocket(lambda error: site.note("teardown_websocket"))
    send_hello(site, chat)
    site.app.register_blueprint(chat)

    assert headers(site)
    assert [site.noted() for _ in range(7)] == [
        *["before_request", "before_websocket", "after_websocket 101", "teardown_websocket"],
        *["after_request 101", "teardown_request", "teardown_appcontext"],
    ]


def test_hooks_of_a_blueprint_are_for_its_own_connections_and_app_hooks_for_all(site: Site) -> None:
    chat, other = WebSocketBlueprint("chat", __name__), WebSocketBlueprint("other", __name__, url_prefix="/other")
    chat.before_websocket(lambda: site.note("before"))
    chat.after_websocket(lambda response: site.note("after") or response)
    chat.teardown_websocket(lambda error: site.note("teardown"))
    chat.before_app_websocket(lambda: site.note("before app"))
    chat.after_app_websocket(lambda response: site.note("after app") or response)
    chat.teardown_app_websocket(lambda error: site.note("teardown app"))
    for blueprint in (chat, other):
        send_hello(site, blueprint)
        site.app.register_blueprint(blueprint)

    assert headers(site)
    assert [site.noted() for _ in range(6)] == [
        "before app", "before", "after", "after app", "teardown", "teardown app",
    ]  # fmt: skip
    assert headers(site, "/other/")
    assert [site.noted() for _ in range(3)] == ["before app", "after app", "teardown app"]


def test_app_hooks_of_a_blueprint_that_is_registered_twice_run_once(blocking: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.after_app_websocket(lambda response: response.headers.add("X-Once", "1") or response)
    send_hello(blocking, chat)
    blocking.app.register_blueprint(chat)
    blocking.app.register_blueprint(chat, name="again", url_prefix="/again")
    assert headers(blocking, "/again/").count(("X-Once", "1")) == 1


def test_the_extensions_hooks_are_for_each_of_its_apps_before_and_after_init_app(site: Site) -> None:
    site.app = type(site.app)("site")
    websocket = site.mode.extension()
    websocket.before_websocket(lambda: site.note("before"))
    websocket.init_app(site.app)
    websocket.teardown_websocket(lambda error: site.note("teardown"))
    send_hello(site, websocket)
    assert headers(site)
    assert [site.noted(), site.noted()] == ["before", "teardown"]


def test_the_decorators_return_their_functions(blocking: Site) -> None:
    def hook(*args: Any) -> None:
        pass

    for owner in (blocking.websocket, WebSocketBlueprint("chat", __name__)):
        for name in ("before_websocket", "after_websocket", "teardown_websocket", "on_connect", "on_close"):
            assert getattr(owner, name)(hook) is hook
    for name in ("before_app_websocket", "after_app_websocket", "teardown_app_websocket"):
        assert getattr(owner, name)(hook) is hook


# The table of kinds


def test_every_kind_has_its_decorators_and_every_decorator_its_kind() -> None:
    class Recorder(AppRegistrar):
        def _add(self, kind: str, function: Any) -> Any:
            return kind, None

        def _add_for_app(self, kind: str, function: Any) -> Any:
            return kind, "app"

    expected = {}
    for name, kind in KINDS.items():
        if kind.signal is None:
            expected |= {f"{name}_websocket": (name, None), f"{name}_app_websocket": (name, "app")}
        elif name not in {"sent", "rejected"}:
            expected[f"on_{name}"] = (name, None)
    decorators = [name for name in dir(Recorder) if not name.startswith("_")]
    assert {name: getattr(Recorder(), name)(None) for name in decorators} == expected


def test_every_signal_belongs_to_one_kind() -> None:
    known = {value.name for value in vars(signals).values() if isinstance(value, NamedSignal)}
    of_rooms = {signals.websocket_gap.name, signals.websocket_joined.name, signals.websocket_left.name}
    known -= of_rooms  # which report on a room, not on a connection
    assert sorted(kind.signal.name for kind in KINDS.values() if kind.signal is not None) == sorted(known)


def test_a_new_kind_is_an_entry_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_uwsgi_websocket.hooks.KINDS", {**KINDS, "pong": Kind(), "dive": Kind(inside_out=True)})
    hooks = Hooks()
    for kind in ("pong", "dive"):
        for owner in ("outer.inner", None, "outer", "other"):
            hooks.add(kind, owner, str(owner).upper)
    functions = hooks.functions(["outer.inner", "outer"])
    assert [function() for function in functions["pong"]] == ["NONE", "OUTER", "OUTER.INNER"]
    assert [function() for function in functions["dive"]] == ["OUTER.INNER", "OUTER", "NONE"]
    assert functions["message"] == ()
    with pytest.raises(TypeError):
        functions["message"] = ()  # type: ignore[index]


def test_a_kind_that_is_not_in_the_table_raises() -> None:
    with pytest.raises(KeyError, match="unknown"):
        Hooks().add("unknown", None, print)


# Refusal


@pytest.mark.parametrize("by", ["app", "outer", "inner"])
@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (lambda: abort(403, "members only"), 403, b"members only"),
        (lambda: ("log in", 401), 401, b"log in"),
        (lambda: redirect("/login"), 302, b"/login"),
        (lambda: {"error": "full"}, 200, b"full"),
        (lambda: "", 200, b""),
    ],
    ids=["abort", "response", "redirect", "dict", "empty"],
)
def test_before_websocket_refuses_with_a_response_or_abort_before_the_handshake(
    site: Site, by: str, answer: Any, status: int, body: bytes
) -> None:
    owners = nested(site)
    owners[by].before_websocket(answer)
    owners["inner"].before_websocket(lambda: site.note("not reached"))
    for owner in owners.values():
        owner.after_websocket(lambda response: site.note("not reached"))
    site.app.register_blueprint(owners["outer"])
    response = site.refusal()
    assert response.status == status
    assert body in response.body
    assert by == "inner" or site.notes.empty()
    assert "handler" not in site.notes.queue


def test_an_exception_in_before_websocket_gets_500(site: Site) -> None:
    send_hello(site, site.websocket)
    site.websocket.before_websocket(lambda: {}["oops"])
    assert site.refusal().status == 500
    assert "oops" in str(site.logged().exc_info)


@pytest.mark.parametrize("where", ["the app", "the blueprint"])
def test_a_before_request_that_aborts_with_403_stops_every_websocket_before_the_handshake(
    site: Site, where: str
) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    inner = WebSocketBlueprint("inner", __name__, url_prefix="/inner")
    plain = Blueprint("plain", __name__, url_prefix="/plain")
    send_hello(site, inner)
    chat.register_blueprint(inner)
    plain.add_url_rule("/", "handler", site.mode.handler(_never))
    if where == "the app":
        site.app.before_request(lambda: abort(403))
        send_hello(site, site.websocket)
        site.websocket.register_blueprint(plain)
    else:
        chat.before_request(lambda: abort(403))
    site.app.register_blueprint(chat)
    paths = ["/", "/plain/", "/chat/inner/", "/nowhere"] if where == "the app" else ["/chat/inner/"]
    for path in paths:
        assert site.refusal(path).status == 403
        assert site.refusal(path, sec_websocket_key=None).status == 403  # also for an invalid handshake


async def _never(ws: Any) -> None:
    raise AssertionError("it was called")


# The 101 response


def test_after_websocket_adds_headers_to_the_101_and_may_return_another_response(site: Site) -> None:
    owners = nested(site)

    def add(response: Any) -> Any:
        assert response.status_code == 101
        response.set_cookie("seen", "yes")
        response.headers["X-Path"] = request.path
        response.headers.add("X-Name", "inner")
        return response

    def replace(response: Any) -> Any:
        another = site.app.response_class(status=101)
        another.headers = response.headers.__class__(response.headers)
        another.headers.add("X-Name", "outer")
        return another

    owners["inner"].after_websocket(add)
    owners["outer"].after_websocket(replace)
    site.app.register_blueprint(owners["outer"])
    received = headers(site)
    assert ("X-Path", "/") in received
    assert [value for name, value in received if name == "X-Name"] == ["inner", "outer"]
    assert ("Set-Cookie", "seen=yes; Path=/") in received
    assert {name for name, _ in received} >= {"Upgrade", "Connection", "Sec-WebSocket-Accept"}
    assert "Content-Type" not in dict(received)


def test_after_websocket_sees_the_headers_that_the_handler_passes_to_accept(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept(headers=[("X-Handler", "1")])

    @site.websocket.after_websocket
    def double(response: Any) -> Any:
        response.headers["X-Double"] = response.headers["X-Handler"] * 2
        return response

    assert ("X-Double", "11") in headers(site)


@pytest.mark.parametrize(
    ("hook", "status", "logged"),
    [
        (lambda response: {}["oops"], 500, "oops"),
        (lambda response: None, 500, "must return the response, not None"),
        (lambda response: response.headers.add("X", "a\u2028") or response, 500, "UnicodeEncodeError"),
        (lambda response: abort(403), 403, None),
    ],
    ids=["raises", "returns nothing", "wrong header", "aborts"],
)
def test_after_websocket_that_fails_refuses_the_connection(
    site: Site, hook: Any, status: int, logged: str | None
) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ConnectionClosed, match="the handshake was refused") as error:
            await ws.send("hello")
        site.note(error.value.code)
        assert not ws.connected
        raise error.value

    site.websocket.after_websocket(hook)
    assert site.refusal().status == status
    assert site.noted() == 1006
    if logged is not None:
        assert logged in str(site.logged().exc_info)


def test_after_websocket_that_fails_in_a_broadcast_refuses_its_own_connection_and_not_the_broadcaster(
    site: Site,
) -> None:
    waiting: list[Any] = []

    @site.route("/waits")
    async def waits(ws: Any) -> None:
        gate = site.mode.gate()
        waiting.append((ws, gate))
        site.note("waits")
        await gate.passed()

    @site.route("/broadcasts")
    async def broadcasts(ws: Any) -> None:
        await ws.accept()
        ((other, gate),) = waiting
        for _ in range(2):
            with pytest.raises(ConnectionClosed, match="the handshake was refused"):
                await other.send("to all")
        gate.open()
        await ws.send("done")

    @site.websocket.after_websocket
    def fail(response: Any) -> Any:
        return {"/broadcasts": response}[request.path]  # the request is that of the connection

    client = site.raw()
    client.request("/waits")
    assert site.noted() == "waits"
    assert list(site.connect("/broadcasts")) == ["done"]
    assert client.response().status == 500
    assert "KeyError('/waits')" in str(site.logged().exc_info)


def test_a_hook_that_sends_before_the_handshake_raises_an_error_that_says_so(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        g.ws = ws
        await ws.accept()

    site.websocket.after_websocket(site.mode.handler(_send) if site.mode.name == "asyncio" else _blocking_send)
    assert site.refusal().status == 500
    assert "an after_websocket hook runs before the handshake" in str(site.logged().exc_info)


async def _send(response: Any) -> Any:
    await g.ws.send("too early")
    return response


def _blocking_send(response: Any) -> Any:
    g.ws.blocking.send("too early")
    return response


# Teardown


@pytest.mark.parametrize("when", ["before the handshake", "after it"])
def test_teardown_websocket_gets_the_exception_or_none(site: Site, when: str) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    chat.teardown_websocket(lambda error: site.note(repr(error)))

    @chat.websocket("/<word>")
    @site.mode.handler
    async def handler(ws: Any, word: str) -> None:
        if when == "after it":
            await ws.accept()
        if word == "oops":
            raise KeyError(word)
        if word == "missing":
            abort(404)  # a response is no error

    site.app.register_blueprint(chat)
    site.connect("/fine").close()
    assert site.noted() == "None"
    if when == "after it":
        site.connect("/missing").close()
    else:
        assert site.refusal("/missing").status == 404
    assert site.noted() == "None"
    if when == "after it":
        with pytest.raises(ClientSawClose, match="1011"):
            site.connect("/oops").recv(DEADLINE)
    else:
        assert site.refusal("/oops").status == 500
    assert site.noted() == "KeyError('oops')"
    assert "oops" in str(site.logged().exc_info)


def test_teardown_websocket_also_runs_for_a_refused_connection(site: Site) -> None:
    send_hello(site, site.websocket)
    site.websocket.before_websocket(lambda: ("no", 403))
    site.websocket.teardown_websocket(lambda error: site.note((error, request.path)))
    assert site.refusal().status == 403
    assert site.noted() == (None, "/")


def test_teardown_websocket_gets_the_exception_of_a_hook(site: Site) -> None:
    send_hello(site, site.websocket)
    site.websocket.after_websocket(lambda response: {}["oops"])
    site.websocket.teardown_websocket(lambda error: site.note(repr(error)))
    assert site.refusal().status == 500
    assert site.noted() == "KeyError('oops')"
    assert site.logged()


@pytest.mark.parametrize("failure", [LookupError, SystemExit])
def test_a_teardown_websocket_that_fails_is_logged_and_harms_neither_the_others_nor_the_connection(
    site: Site, failure: type[BaseException]
) -> None:
    def fail(error: BaseException | None) -> None:
        raise failure("oops")

    send_hello(site, site.websocket)
    site.websocket.teardown_websocket(lambda error: site.note("the other"))
    site.websocket.teardown_websocket(fail)
    with site.connect() as client:
        assert list(client) == ["hello"]
    assert client.close_code == 1000
    assert site.noted() == "the other"
    record = site.logged()
    assert "teardown_websocket" in record.getMessage()
    assert "oops" in str(record.exc_info)


# Contexts, and coroutines


def test_hooks_see_the_contexts_of_the_connection(site: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__)

    @chat.before_websocket
    def before() -> None:
        g.user = session["user"] = request.args["user"]

    @chat.after_websocket
    def after(response: Any) -> Any:
        response.headers["X-User"] = f"{g.user} {session['user']} {request.blueprint}"
        return response

    @chat.teardown_websocket
    def teardown(error: BaseException | None) -> None:
        site.note(f"{g.user} {session['user']} {request.args['user']}")

    send_hello(site, chat)
    site.app.register_blueprint(chat)
    assert ("X-User", "Ann Ann chat") in headers(site, "/?user=Ann")
    assert site.noted() == "Ann Ann Ann"


def test_hooks_may_be_coroutine_functions_in_the_asyncio_mode(cooperative: Site) -> None:
    site = cooperative
    chat = WebSocketBlueprint("chat", __name__)

    @chat.before_websocket
    async def before() -> Any:
        await pause(site)
        g.user = request.args.get("user")
        return None if g.user else ("who?", 401)

    @chat.after_websocket
    async def after(response: Any) -> Any:
        await pause(site)
        response.headers["X-User"] = g.user
        return response

    @chat.teardown_websocket
    async def teardown(error: BaseException | None) -> None:
        await pause(site)
        site.note((g.user, error))

    send_hello(site, chat)
    site.app.register_blueprint(chat)
    assert site.refusal().status == 401
    assert site.noted() == (None, None)
    client = site.raw()
    client.request("/?user=Ann")
    assert client.response()["X-User"] == "Ann"
    assert client.read_frame() == (TEXT, b"hello")
    client.close()
    assert site.noted() == ("Ann", None)


async def pause(site: Site) -> None:
    """Let other tasks run."""
    gate = site.mode.gate()
    gate.open()
    await gate.passed()
