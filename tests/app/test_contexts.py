"""request, session, g, current_app and url_for belong to the connection, in every function that runs for it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from flask import abort, current_app, g, has_app_context, has_request_context, request, session, url_for
from websockets.exceptions import ConnectionClosed as ClientSawClose

from flask_uwsgi_websocket import (
    WebSocketBlueprint,
    websocket_closed,
    websocket_connected,
    websocket_error,
    websocket_message,
    websocket_rejected,
    websocket_sent,
)
from support.inprocess import DEADLINE, RawClient, Site, wait_for_background, wait_until
from support.wire import CLOSE, TEXT, close_body

SIGNALS = {
    "connected": websocket_connected,
    "message": websocket_message,
    "sent": websocket_sent,
    "closed": websocket_closed,
    "rejected": websocket_rejected,
    "error": websocket_error,
}


def serve_accounts(site: Site) -> None:
    """Add pages that log in and that show the current user."""

    def login(user: str) -> str:
        session["user"] = user
        return user

    site.app.add_url_rule("/login/<user>", "login", login)
    site.app.add_url_rule("/whoami", "whoami", lambda: repr(dict(session)))


def ask(site: Site, path: str, cookie: str | None = None) -> Any:
    """Request a page."""
    return site.refusal(path, upgrade=None, connection=None, cookie=cookie)


def login(site: Site, user: str) -> str:
    """Log in, and return the cookie."""
    return str(ask(site, f"/login/{user}")["Set-Cookie"].partition(";")[0])


def open_as(site: Site, user: str, path: str = "/") -> RawClient:
    """Log in, and send an upgrade request."""
    cookie = login(site, user)
    client = site.raw()
    client.request(path, cookie=cookie)
    return client


def listen(stack: ExitStack, site: Site, function: Callable[..., Any]) -> None:
    """Connect ``function(name, ws, **kwargs)`` to every signal of the site's app."""

    def receiver(name: str) -> Callable[..., Any]:
        return lambda app, ws, **kwargs: function(name, ws, **kwargs)

    for name, signal in SIGNALS.items():
        stack.enter_context(signal.connected_to(receiver(name), site.app))


# In every function


def test_all_contexts_are_there_in_the_handler_in_every_hook_and_in_every_receiver(site: Site) -> None:
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    expected = "/chat/a chat.talk site Ann Ann ws://localhost/chat/b"

    def see(where: str) -> None:
        seen = [request.path, request.endpoint, current_app.name, session["user"], g.user, url_for(".talk", room="b")]
        site.note((where, " ".join(map(str, seen))))

    chat.before_request(lambda: setattr(g, "user", session["user"]))
    chat.before_websocket(lambda: see("before"))
    chat.after_websocket(lambda response: see("after") or response)
    chat.teardown_websocket(lambda error: see("teardown"))
    chat.teardown_request(lambda error: see("teardown_request"))
    for kind in ("connect", "message", "error", "close"):
        getattr(chat, f"on_{kind}")(lambda app, kind=kind, **extra: see(f"on_{kind}"))

    @chat.websocket("/<room>")
    @site.mode.handler
    async def talk(ws: Any, room: str) -> None:
        see("handler")
        await ws.send(await ws.receive())
        see("handler")
        raise KeyError("oops")

    site.app.register_blueprint(chat)
    serve_accounts(site)
    cookie = login(site, "Ann")
    with ExitStack() as stack:
        listen(stack, site, lambda name, ws, **kwargs: see(name))
        client = site.upgrade("/chat/a", cookie=cookie)
        client.frame(TEXT, b"x")
        assert client.read_frame() == (TEXT, b"x")
        assert client.read_frame() == (CLOSE, close_body(1011, b"internal error"))
        client.close()
        told = [site.noted() for _ in range(15)]
    assert [where for where, _ in told] == [
        *["before", "handler", "after", "on_connect", "connected", "on_message", "message", "sent", "handler"],
        *["on_error", "error", "on_close", "closed", "teardown", "teardown_request"],
    ]
    assert {seen for _, seen in told} == {expected}
    assert site.logged()


def test_a_receiver_of_a_rejection_sees_the_contexts_of_its_request(site: Site) -> None:
    serve_accounts(site)
    site.app.before_request(lambda: setattr(g, "told", "told"))
    cookie = login(site, "Ann")

    def receiver(app: Any, ws: Any, response: Any, **extra: Any) -> None:
        response.headers["X-Seen"] = f"{request.path} {session['user']} {g.told} {url_for('whoami')}"

    with websocket_rejected.connected_to(receiver, site.app):
        assert site.refusal("/nowhere", cookie=cookie)["X-Seen"] == "/nowhere Ann told /whoami"


def test_receivers_that_a_broadcast_of_another_connection_triggers_see_the_contexts_of_their_own(site: Site) -> None:
    room: list[Any] = []

    @site.app.before_request
    def before() -> None:
        g.name = session["name"] = request.path

    @site.route("/waits")
    async def waits(ws: Any) -> None:
        gate = site.mode.gate()
        room.append(ws)
        site.note(gate)
        await gate.passed()

    @site.route("/broadcasts")
    async def broadcasts(ws: Any) -> None:
        await ws.accept()
        for other in room:  # connections that have not sent their handshake yet
            await other.send("to all")
        assert (request.path, g.name, session["name"]) == ("/broadcasts",) * 3
        await ws.send("done")

    told: list[Any] = []

    def receiver(name: str, ws: Any, **kwargs: Any) -> None:
        told.append((name, ws.environ["PATH_INFO"], request.path, g.name, session["name"]))

    with ExitStack() as stack:
        listen(stack, site, receiver)
        waiting = site.raw()
        waiting.request("/waits")
        gate = site.noted()
        assert list(site.connect("/broadcasts")) == ["done"]
        assert waiting.response().status == 101
        assert waiting.read_frame() == (TEXT, b"to all")
        gate.open()
        assert waiting.read_frame() == (CLOSE, close_body(1000))
        waiting.close()
        wait_for_background()
    assert [(name, path) for name, path, *_ in told[:4]] == [
        ("connected", "/broadcasts"),
        ("connected", "/waits"),
        ("sent", "/waits"),
        ("sent", "/broadcasts"),
    ]
    assert sorted((name, path) for name, path, *_ in told[4:]) == [("closed", "/broadcasts"), ("closed", "/waits")]
    assert all(set(names) == {path} for _, path, *names in told)


def test_a_connection_that_another_one_accepts_keeps_its_own_session(site: Site) -> None:
    waiting: list[Any] = []

    @site.route("/<name>")
    async def handler(ws: Any, name: str) -> None:
        session["name"] = name
        if name == "waits":
            gate = site.mode.gate()
            waiting.append((ws, gate))
            site.note("waits")
            await gate.passed()
        else:
            ((other, gate),) = waiting
            await other.accept()
            gate.open()

    serve_accounts(site)
    clients = {name: site.raw() for name in ("waits", "accepts")}
    for name, client in clients.items():
        client.request(f"/{name}")
        if name == "waits":
            assert site.noted() == "waits"
    for name, client in clients.items():
        cookie = client.response()["Set-Cookie"].partition(";")[0]
        assert ask(site, "/whoami", cookie).body.decode() == repr({"name": name})
        client.close()


COUNT = 200


def test_two_hundred_connections_at_once_see_nothing_of_each_other(site: Site) -> None:
    seen: list[str] = []
    wrong: list[Any] = []
    members: dict[str, Any] = {}

    def check(where: str, ws: Any = None) -> None:
        path = request.path if ws is None else ws.environ["PATH_INFO"]
        shelf, user = path.strip("/").split("/")
        names = (
            request.path,
            request.blueprint,
            request.args["q"],
            session["user"],
            g.user,
            url_for(".talk", user=user),
        )
        right = (path, shelf, user, user, user, f"ws://localhost{path}")
        if names != right:
            wrong.append((where, names, right))
        seen.append(where)

    @site.app.before_request
    def before_request() -> None:
        g.user = session.get("user")

    async def talk(ws: Any, user: str) -> None:
        check("handler")
        members[user] = ws
        async for message in ws.messages():
            assert "user" not in g
            g.user = session["user"]
            neighbour = f"u{(int(user[1:]) + 1) % COUNT}"
            await members[neighbour].send(f"{user} to {neighbour}: {message}")
            check("message")

    for number in range(4):
        shelf = WebSocketBlueprint(f"shelf{number}", __name__, url_prefix=f"/shelf{number}")
        shelf.websocket("/<user>")(site.mode.handler(talk))
        shelf.before_websocket(lambda: check("before"))
        shelf.after_websocket(lambda response: check("after") or response)
        shelf.teardown_websocket(lambda error: check("teardown"))
        site.app.register_blueprint(shelf)
    site.app.add_url_rule("/rest", "rest", lambda: f"{dict(session)} {g.user}")
    serve_accounts(site)

    with ExitStack() as stack:
        listen(stack, site, lambda name, ws, **kwargs: check(name, ws))
        clients = []
        for number in range(COUNT):
            clients.append(open_as(site, f"u{number}", f"/shelf{number % 4}/u{number}?q=u{number}"))
        wait_until(lambda: len(members) == COUNT)
        for client in clients:
            client.frame(TEXT, b"hello")
        for number, client in enumerate(clients):
            assert client.response().status == 101
            sender = (number - 1) % COUNT
            assert client.read_frame() == (TEXT, f"u{sender} to u{number}: hello".encode())
        for number, client in enumerate(clients):
            client.frame(CLOSE, close_body(1000)) if number % 2 else client.close()
        wait_for_background()
        wait_until(lambda: seen.count("teardown") == COUNT)
    assert not wrong
    assert {where: seen.count(where) for where in set(seen)} == dict.fromkeys(
        ["before", "handler", "after", "connected", "message", "sent", "closed", "teardown"], COUNT
    ) | {"message": 2 * COUNT}
    assert ask(site, "/rest").body == b"{} None"


# The session


@pytest.mark.parametrize("where", ["before_request", "before_websocket", "handler", "after_websocket"])
def test_a_change_of_the_session_before_the_handshake_sets_a_cookie_on_the_101(site: Site, where: str) -> None:
    def change(now: str) -> None:
        if now == where and request.path == "/":
            session["changed"] = where

    site.app.before_request(lambda: change("before_request"))
    site.websocket.before_websocket(lambda: change("before_websocket"))
    site.websocket.after_websocket(lambda response: change("after_websocket") or response)

    @site.route()
    async def handler(ws: Any) -> None:
        change("handler")
        await ws.accept()
        await ws.send(session["changed"])

    serve_accounts(site)
    client = open_as(site, "Ann")
    cookie = client.response()["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert client.read_frame() == (TEXT, where.encode())
    client.close()
    assert ask(site, "/whoami", cookie.partition(";")[0]).body.decode() == repr({"changed": where, "user": "Ann"})


def test_the_101_ends_a_session_that_was_cleared_before_the_handshake(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        session.clear()

    serve_accounts(site)
    client = open_as(site, "Ann")
    assert client.response()["Set-Cookie"].startswith("session=; Expires=Thu, 01 Jan 1970")
    client.close()


def mark_permanent() -> None:
    session.permanent = True


@pytest.mark.parametrize("status", [101, 403])
@pytest.mark.parametrize("where", ["login", "before_request", "before_websocket", "handler"])
def test_a_late_handshake_does_not_refresh_the_cookie_of_a_permanent_session(
    site: Site, where: str, status: int
) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        if where == "handler":
            mark_permanent()
        gate = site.mode.gate()
        site.note(gate)
        await gate.passed()
        if status != 101:
            abort(status)
        await ws.send(session["user"])

    serve_accounts(site)
    site.app.add_url_rule("/stay", "stay", lambda: str(mark_permanent()))
    if where == "before_request":
        site.app.before_request(mark_permanent)
    if where == "before_websocket":
        site.websocket.before_websocket(mark_permanent)
    cookie = ask(site, "/stay", login(site, "Ann"))["Set-Cookie"].partition(";")[0]
    client = site.raw()
    client.request(cookie=cookie)
    gate = site.noted()
    assert ask(site, "/whoami", cookie).all("Set-Cookie")  # a page refreshes it
    gate.open()  # the user of the browser may have logged out meanwhile
    response = client.response()
    assert (response.status, response.all("Set-Cookie")) == (status, [])
    assert status != 101 or client.read_frame() == (TEXT, b"Ann")
    client.close()


def test_a_change_within_a_value_of_the_session_is_saved(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        session["cart"].append("apple")
        session.modified = True
        await ws.accept()

    def fill() -> str:
        session["cart"] = []
        return ""

    serve_accounts(site)
    site.app.add_url_rule("/fill", "fill", fill)
    cookie = ask(site, "/fill")["Set-Cookie"].partition(";")[0]
    client = site.raw()
    client.request(cookie=cookie)
    cookie = client.response()["Set-Cookie"].partition(";")[0]
    assert ask(site, "/whoami", cookie).body.decode() == repr({"cart": ["apple"]})
    client.close()


@pytest.mark.parametrize("who", ["a logout", "its own handler"])
def test_a_close_before_the_handshake_sends_the_changed_session_only_if_the_handler_itself_closes(
    site: Site, who: str
) -> None:
    serve_accounts(site)

    @site.route()
    async def handler(ws: Any) -> None:
        session["visits"] = 1
        gate = site.mode.gate()
        site.note((ws, gate))
        await gate.passed()
        await ws.close(4401, "logged out")

    @site.route("/logout")
    async def log_out(ws: Any) -> None:
        await other.close(4401, "logged out", wait=False)

    client = open_as(site, "Ann")
    other, gate = site.noted()
    if who == "a logout":
        site.upgrade("/logout").close()
    else:
        gate.open()
    assert len(client.response().all("Set-Cookie")) == (who == "its own handler")
    assert client.read_frame() == (CLOSE, close_body(4401, b"logged out"))
    gate.open()
    client.close()


def test_a_session_that_is_only_read_sets_no_cookie(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send(session["user"])

    serve_accounts(site)
    client = open_as(site, "Ann")
    response = client.response()
    assert response.all("Set-Cookie") == []
    client.close()


def test_an_app_without_a_session_serves_websockets_too(site: Site, echo: Any) -> None:
    site.app.secret_key = None
    with site.connect() as client:
        client.send("x")
        assert client.recv(DEADLINE) == "x"


def test_changes_of_the_session_after_the_handshake_are_lost_and_logged_once(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        session["early"] = 1
        await ws.accept()
        session["late"] = 2
        await ws.send(str(sorted(session)))

    serve_accounts(site)
    for _ in range(3):
        client = open_as(site, "Ann")
        cookie = client.response()["Set-Cookie"].partition(";")[0]
        assert client.read_frame() == (TEXT, b"['early', 'late', 'user']")
        client.close()
        assert ask(site, "/whoami", cookie).body.decode() == repr({"early": 1, "user": "Ann"})
        wait_for_background()
    record = site.logged()
    assert (record.name, record.levelno) == ("site", logging.WARNING)
    assert "The session was changed in '/' after the handshake, and is not saved" in record.getMessage()
    assert not site.log


def test_at_the_end_flasks_own_functions_may_read_and_change_the_session_but_changes_are_not_saved(site: Site) -> None:
    @site.app.after_request
    def after(response: Any) -> Any:
        if response.status_code == 101:
            site.note(f"after {session['user']}")
            session["seen"] = session.pop("user")  # Flask-Login changes it so, to refresh its cookie
        return response

    @site.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        if request.path == "/":
            site.note(f"teardown {session['seen']}")

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()

    serve_accounts(site)
    cookie = login(site, "Ann")
    site.upgrade(cookie=cookie).close()
    assert [site.noted(), site.noted()] == ["after Ann", "teardown Ann"]


# Messages


def test_message_context_pushes_an_app_context_of_its_own_within_the_request(site: Site) -> None:
    @site.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        site.note((g.get("name"), error))

    def enter(ws: Any, name: str) -> None:
        with ws.message_context():
            assert "name" not in g
            g.name = name
            assert (request.path, current_app.name, session["user"]) == ("/", "site", "Ann")
            assert url_for("whoami", _external=True) == "http://localhost/whoami"

    @site.websocket.on_message
    def receiver(app: Any, ws: Any, **extra: Any) -> None:
        enter(ws, "receiver")
        assert g.name == "request"

    @site.route()
    async def handler(ws: Any) -> None:
        g.name = "request"
        await ws.receive()
        with suppress(KeyError), ws.message_context():
            g.name = "failing"
            raise KeyError("handled")
        enter(ws, "handler")
        assert g.name == "request"
        await ws.send("done")

    serve_accounts(site)
    cookie = login(site, "Ann")
    assert site.noted() == (None, None)
    client = site.upgrade(cookie=cookie)
    client.frame(TEXT, b"x")
    assert client.read_frame() == (TEXT, b"done")
    client.close()
    told = [site.noted() for _ in range(4)]
    assert [name for name, _ in told] == ["receiver", "failing", "handler", "request"]
    assert [repr(error) for _, error in told] == ["None", "KeyError('handled')", "None", "None"]


def test_messages_of_many_connections_each_have_their_own_app_context(site: Site) -> None:
    torn_down: list[Any] = []
    site.app.teardown_appcontext(lambda error: torn_down.append(g.get("message")))

    @site.route("/<name>")
    async def handler(ws: Any, name: str) -> None:
        g.message = f"request {name}"
        async for message in ws.messages():
            assert "message" not in g
            g.message = message
            gate = site.mode.gate()
            gate.open()
            await gate.passed()
            assert (g.message, request.path) == (message, f"/{name}")
            await ws.send(g.message)

    clients = [site.upgrade(f"/{number}") for number in range(20)]
    for turn in range(3):
        for number, client in enumerate(clients):
            client.frame(TEXT, b"%d %d" % (number, turn))
        for number, client in enumerate(clients):
            assert client.read_frame() == (TEXT, b"%d %d" % (number, turn))
    wait_until(lambda: len(torn_down) == 60)
    assert sorted(torn_down) == sorted(f"{number} {turn}" for number in range(20) for turn in range(3))
    for client in clients:
        client.close()


def test_a_worker_keeps_nothing_of_a_connection_that_has_ended(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        g.name = "left"
        async for _ in ws.messages():
            raise KeyError("oops")

    inner = site.app.wsgi_app

    def look(environ: Any, start_response: Any) -> Any:
        site.note((has_app_context(), has_request_context()))
        try:
            return inner(environ, start_response)
        finally:
            site.note((has_app_context(), has_request_context()))

    site.app.wsgi_app = look  # type: ignore[method-assign]
    with site.connect() as client:
        client.send("x")
        with pytest.raises(ClientSawClose, match="1011"):
            client.recv(DEADLINE)
    assert [site.noted(), site.noted()] == [(False, False)] * 2
    assert site.logged()


def test_each_of_many_connections_has_its_own_contexts(site: Site) -> None:
    torn_down = []
    site.app.config["WEBSOCKET_SEND_BUFFER"] = 2**16

    @site.app.route("/login/<user>")
    def login(user: str) -> str:
        session["user"] = user
        return ""

    @site.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        if error is None and "user" in g:
            torn_down.append(g.user)

    @site.route("/<int:number>/<path:rest>")
    async def handler(ws: Any, number: int, rest: str) -> None:
        g.user = session["user"]
        async for message in ws:
            assert request.view_args == {"number": number, "rest": rest}
            assert current_app._get_current_object() is site.app  # type: ignore[attr-defined]
            await ws.send(f"{message} {number} {rest} {request.args['q']} {session['user']} {g.user}")

    clients = []
    for number in range(50):
        raw = site.raw()
        raw.request(f"/login/u{number}", upgrade=None, connection=None)
        cookie = raw.response()["Set-Cookie"].partition(";")[0]
        clients.append(site.connect(f"/{number}/a/b?q=q{number}", additional_headers={"Cookie": cookie}))
    for turn in range(3):
        for client in clients:
            client.send(str(turn))
        for number, client in enumerate(clients):
            assert client.recv(DEADLINE) == f"{turn} {number} a/b q{number} u{number} u{number}"
    for client in clients:
        client.close()
    wait_until(lambda: len(torn_down) == 50)
    assert sorted(torn_down) == sorted(f"u{number}" for number in range(50))


def test_a_client_knows_its_connection(site: Site) -> None:
    @site.route("/<room>", subprotocols=["chat"])
    async def handler(ws: Any, room: str) -> None:
        site.note((ws.id, ws.environ is request.environ, ws.fd, ws.connected, ws.timeout, ws.subprotocol, str(ws)))
        await ws.send(socket.socket(fileno=ws.fd).detach().__class__.__name__)

    ids = set()
    for _ in range(2):
        with site.connect("/a?b=c", subprotocols=["chat"]) as client:
            assert list(client) == ["int"]
        id, same, fd, connected, timeout, subprotocol, text = site.noted()
        assert (same, connected, timeout, subprotocol) == (True, True, 25.0, "chat")
        assert fd > 2
        assert id in text
        assert "/<room>" in text
        assert "WebSocketClient" in text
        ids.add(id)
    assert len(ids) == 2
