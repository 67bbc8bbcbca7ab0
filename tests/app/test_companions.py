"""WebSockets work with Flask-Login, Flask-SQLAlchemy, Flask-Session and ProxyFix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cachelib import FileSystemCache
from flask import Flask, abort, request, session, url_for
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user, logout_user
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, select
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.pool import QueuePool
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_uwsgi_websocket import WebSocketBlueprint, WebSocketView
from support.inprocess import MODES, Background, RawClient, Site, serving, wait_for_background, wait_until
from support.views import in_mode
from support.wire import CLOSE, TEXT, close_body


def ask(site: Site, path: str, cookie: str | None = None) -> Any:
    """Request a page."""
    return site.refusal(path, upgrade=None, connection=None, cookie=cookie)


def sign_in(site: Site, user: str) -> str:
    """Request the login page, and return the cookie of the session."""
    return str(ask(site, f"/login/{user}").all("Set-Cookie")[-1].partition(";")[0])


def open_with(site: Site, cookie: str | None, path: str = "/", **headers: str) -> RawClient:
    """Connect, with a cookie."""
    return site.upgrade(path, cookie=cookie, **headers)


def hear(client: RawClient) -> str:
    """Return the next message."""
    answer = client.read_frame()
    assert answer is not None
    assert answer[0] == TEXT, answer
    return answer[1].decode()


def close(client: RawClient) -> None:
    """Make the closing handshake."""
    client.frame(CLOSE, close_body(1000))
    assert client.read_frame() == (CLOSE, close_body(1000))
    client.close()


# Flask-Login


class User(UserMixin):
    """A user."""

    def __init__(self, id: str) -> None:
        self.id = id


@pytest.fixture
def members(site: Site) -> Site:
    """A site with users."""
    return with_users(site)


@pytest.fixture(params=[*MODES, Background.name])
def parking(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site in each mode whose views are parked."""
    yield from serving(request.param, parks=True)


def with_users(site: Site) -> Site:
    """Give a site users, with pages to log in and out."""
    manager = LoginManager(site.app)
    manager.user_loader(lambda id: User(id) if id != "nobody" else None)
    site.app.add_url_rule("/login/<user>", "login", lambda user: str(login_user(User(user))))
    site.app.add_url_rule("/logout", "logout", lambda: str(logout_user()))
    return site


async def tell_user(ws: Any) -> None:
    """Send the id of the current user in answer to each message."""
    async for _ in ws.messages():
        await ws.send(current_user.id)


def in_the_decorator(site: Site, chat: WebSocketBlueprint) -> None:
    chat.websocket("/")(login_required(site.mode.handler(tell_user)))


def in_before_websocket(site: Site, chat: WebSocketBlueprint) -> None:
    chat.websocket("/")(site.mode.handler(tell_user))
    chat.before_websocket(login_required(lambda: None))


def in_before_request(site: Site, chat: WebSocketBlueprint) -> None:
    chat.websocket("/")(site.mode.handler(tell_user))
    chat.before_request(login_required(lambda: None))


def in_a_view(site: Site, chat: WebSocketBlueprint) -> None:
    class Member(WebSocketView):
        decorators = [login_required]  # noqa: RUF012

        async def on_message(self, ws: Any, message: str | bytes) -> None:
            await ws.send(current_user.id)

    chat.add_websocket_rule("/", handler=in_mode(site, Member).as_view("view"))


@pytest.mark.parametrize("required", [in_the_decorator, in_before_websocket, in_before_request, in_a_view])
def test_login_required_answers_401_before_the_handshake_and_handlers_know_the_current_user(
    members: Site, required: Callable[[Site, WebSocketBlueprint], None]
) -> None:
    check_members(members, required)


def check_members(members: Site, required: Callable[[Site, WebSocketBlueprint], None]) -> None:
    chat = WebSocketBlueprint("chat", __name__)
    required(members, chat)
    chat.on_close(lambda app, ws, **extra: members.note(f"{current_user.id} left"))
    members.app.register_blueprint(chat)

    assert members.refusal().status == 401
    assert members.refusal(cookie="session=forged").status == 401
    clients = {user: open_with(members, sign_in(members, user)) for user in ("Ann", "Ben")}
    for _ in range(2):
        for user, client in clients.items():
            client.frame(TEXT)
            assert hear(client) == user
    for user, client in clients.items():
        close(client)
        assert members.noted() == f"{user} left"


def test_parked_views_know_the_current_user(parking: Site) -> None:
    check_members(with_users(parking), in_a_view)


def test_login_required_redirects_to_the_login_view_before_the_handshake(members: Site) -> None:
    members.app.login_manager.login_view = "login"  # type: ignore[attr-defined]
    members.websocket.route("/")(login_required(members.mode.handler(tell_user)))
    members.app.view_functions["login"] = lambda user="": user
    members.app.add_url_rule("/login", "login")
    response = members.refusal()
    assert response.status == 302
    assert "/login?next=" in response["Location"]


def test_after_a_logout_new_sockets_are_refused_and_open_ones_go_on(members: Site) -> None:
    members.websocket.route("/")(login_required(members.mode.handler(tell_user)))
    cookie = sign_in(members, "Ann")
    client = open_with(members, cookie)
    logged_out = ask(members, "/logout", cookie).all("Set-Cookie")[-1].partition(";")[0]
    assert members.refusal(cookie=logged_out).status == 401
    client.frame(TEXT)
    assert hear(client) == "Ann"
    close(client)


def test_a_user_who_no_longer_exists_gets_401(members: Site) -> None:
    members.websocket.route("/")(login_required(members.mode.handler(tell_user)))
    assert members.refusal(cookie=sign_in(members, "nobody")).status == 401


@pytest.mark.filterwarnings("ignore:.*utcnow:DeprecationWarning")
def test_the_remember_cookie_may_be_refreshed_with_each_request(members: Site) -> None:
    members.app.config["REMEMBER_COOKIE_REFRESH_EACH_REQUEST"] = True
    members.websocket.route("/")(login_required(members.mode.handler(tell_user)))
    client = open_with(members, sign_in(members, "Ann"))
    client.frame(TEXT)
    assert hear(client) == "Ann"
    close(client)
    wait_for_background()  # no warning was logged


# Flask-SQLAlchemy


class Database:
    """A database with one table, and a pool of one connection."""

    def __init__(self, app: Flask, path: Path) -> None:
        app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{path}"
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
            "poolclass": QueuePool,
            "pool_size": 1,
            "max_overflow": 0,
            "pool_timeout": 5,
            "connect_args": {"check_same_thread": False},
        }
        self.db = db = SQLAlchemy(app)

        class Person(db.Model):  # type: ignore[name-defined, misc]
            name: Mapped[str] = mapped_column(String, primary_key=True)

        self.Person = Person
        with app.app_context():
            db.create_all()
            db.session.add(Person(name="Ann"))
            db.session.commit()
            self.engine = db.engine

    def count(self) -> int:
        """Return the number of people."""
        return len(self.db.session.scalars(select(self.Person)).all())

    @property
    def in_use(self) -> int:
        """The number of connections that are taken from the pool."""
        return int(self.engine.pool.checkedout())  # type: ignore[attr-defined]


@pytest.fixture
def database(site: Site, tmp_path: Path) -> Iterator[Database]:
    """A database of the site's app."""
    database = Database(site.app, tmp_path / "database")
    yield database
    wait_for_background()
    database.engine.dispose()


def test_a_pool_of_one_connection_serves_twenty_idle_sockets_because_each_message_returns_it(
    site: Site, database: Database
) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async for message in ws.messages():
            database.db.session.add(database.Person(name=message))
            database.db.session.commit()
            await ws.send(str(database.count()))

    clients = [site.upgrade() for _ in range(20)]
    for turn in range(2):
        for number, client in enumerate(clients):
            client.frame(TEXT, f"{turn} {number}".encode())
            assert hear(client) == str(20 * turn + number + 2)
        wait_until(lambda: database.in_use == 0)
    for client in clients:
        close(client)


def test_parked_views_return_the_connection_with_each_call(parking: Site, tmp_path: Path) -> None:
    database = Database(parking.app, tmp_path / "database")

    class Counting(WebSocketView):
        async def on_connect(self, ws: Any) -> None:
            database.count()

        async def on_message(self, ws: Any, message: str | bytes) -> None:
            database.db.session.add(database.Person(name=message))
            database.db.session.commit()
            await ws.send(str(database.count()))

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            parking.note(database.count())

    parking.websocket.on_close(lambda app, ws, **extra: database.count())
    parking.websocket.teardown_websocket(lambda error: database.count())
    parking.websocket.add_url_rule("/", view_func=in_mode(parking, Counting).as_view("view"))
    clients = [parking.upgrade() for _ in range(20)]
    for turn in range(2):
        for number, client in enumerate(clients):
            client.frame(TEXT, f"{turn} {number}".encode())
            assert hear(client) == str(20 * turn + number + 2)
    for client in clients:
        close(client)
        assert parking.noted() == 41
    wait_for_background()
    assert database.in_use == 0
    database.engine.dispose()


def test_receivers_return_the_connection_with_a_message_context(site: Site, database: Database) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.send("hello")
        async for _ in ws:
            pass

    @site.websocket.on_connect
    def connect(app: Any, ws: Any, **extra: Any) -> None:
        with ws.message_context():
            site.note(database.count())

    clients = [site.upgrade() for _ in range(20)]
    for client in clients:
        assert hear(client) == "hello"
        assert site.noted() == 1
    assert database.in_use == 0
    for client in clients:
        close(client)


def test_a_query_before_the_handshake_holds_the_connection_until_the_session_is_removed(
    site: Site, database: Database
) -> None:
    class Member(UserMixin):
        def __init__(self, id: str) -> None:
            self.id = id

    LoginManager(site.app).user_loader(lambda id: Member(id) if database.db.session.get(database.Person, id) else None)
    site.app.add_url_rule("/login/<user>", "login", lambda user: str(login_user(Member(user))))

    @login_required
    @site.mode.handler
    async def handler(ws: Any) -> None:
        assert database.in_use == 1
        database.db.session.remove()
        assert database.in_use == 0
        async for _ in ws.messages():
            await ws.send(f"{current_user.id} of {database.count()}")

    site.websocket.route("/")(handler)
    cookie = sign_in(site, "Ann")
    assert site.refusal(cookie=sign_in(site, "Ben")).status == 401
    clients = [open_with(site, cookie) for _ in range(20)]
    for client in clients:
        client.frame(TEXT)
        assert hear(client) == "Ann of 1"
    for client in clients:
        close(client)


# Flask-Session


@pytest.fixture
def stored(site: Site, tmp_path: Path) -> Site:
    """A site that stores its sessions in files."""
    site.app.config["SESSION_TYPE"] = "cachelib"
    site.app.config["SESSION_CACHELIB"] = FileSystemCache(str(tmp_path / "sessions"))
    Session(site.app)

    def login(user: str) -> str:
        session["user"] = user
        return user

    site.app.add_url_rule("/login/<user>", "login", login)
    site.app.add_url_rule("/logout", "logout", lambda: str(session.clear()))
    site.app.add_url_rule("/whoami", "whoami", lambda: str(session.get("user")))
    site.app.teardown_request(lambda error: site.note("the socket has ended") if request.path == "/" else None)
    return site


@pytest.mark.parametrize("change", ["nothing", "the session"])
@pytest.mark.parametrize(("page", "afterwards"), [("/login/Ben", "Ben"), ("/logout", "None")])
def test_the_end_of_a_socket_does_not_overwrite_a_session_that_a_page_has_changed_or_ended(
    stored: Site, page: str, afterwards: str, change: str
) -> None:
    @stored.route()
    async def handler(ws: Any) -> None:
        async for _ in ws:
            await ws.send(session["user"])
            if change == "the session":
                session["user"] = "overwritten"

    cookie = sign_in(stored, "Ann")
    client = open_with(stored, cookie)
    client.frame(TEXT)
    assert hear(client) == "Ann"
    assert ask(stored, page, cookie).status == 200
    assert ask(stored, "/whoami", cookie).body.decode() == afterwards
    close(client)
    assert stored.noted() == "the socket has ended"
    assert ask(stored, "/whoami", cookie).body.decode() == afterwards
    if change == "the session":
        assert "after the handshake, and is not saved" in stored.logged().getMessage()


@pytest.mark.parametrize("outcome", ["accepts", "aborts", "has changed the session, and the client has left"])
def test_a_session_that_a_page_ends_before_a_late_handshake_stays_ended(stored: Site, outcome: str) -> None:
    stored.app.before_request(lambda: setattr(session, "permanent", True))

    @stored.route()
    async def handler(ws: Any) -> None:
        if outcome not in {"accepts", "aborts"}:
            session["visits"] = 1
        gate = stored.mode.gate()
        stored.note((ws, gate))
        await gate.passed()
        if outcome == "aborts":
            abort(403)
        await ws.send(session["user"])

    cookie = sign_in(stored, "Ann")
    client = stored.raw()
    client.request(cookie=cookie)
    ws, gate = stored.noted()
    assert ask(stored, "/logout", cookie).status == 200
    if outcome in {"accepts", "aborts"}:
        gate.open()
        assert client.response().all("Set-Cookie") == []
    else:
        client.close()
        wait_until(lambda: not ws.connected)
        gate.open()
    if outcome == "accepts":
        assert hear(client) == "Ann"
        close(client)
    assert stored.noted() == "the socket has ended"
    assert ask(stored, "/whoami", cookie).body == b"None"


@pytest.mark.parametrize("known", [True, False], ids=["known", "new"])
def test_changes_of_the_session_before_the_handshake_are_stored(stored: Site, known: bool) -> None:
    @stored.route()
    async def handler(ws: Any) -> None:
        session["user"] = "Cat"
        await ws.send("hello")
        async for _ in ws:
            pass

    cookie = sign_in(stored, "Ann") if known else None
    client = stored.raw()
    client.request(cookie=cookie)
    received = client.response()["Set-Cookie"].partition(";")[0]
    assert hear(client) == "hello"
    assert received == cookie or not known
    assert ask(stored, "/whoami", received).body == b"Cat"  # stored with the handshake, and not only at the end
    close(client)
    assert stored.noted()


# ProxyFix


@pytest.mark.parametrize("when", ["before init_app", "after init_app"])
def test_proxy_fix_may_be_installed_before_and_after_init_app(site: Site, when: str) -> None:
    app = site.app = Flask("site")
    websocket = site.mode.extension()
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")

    @chat.websocket("/")
    @site.mode.handler
    async def handler(ws: Any) -> None:
        await ws.send(f"{request.remote_addr} {request.is_secure} {url_for('.handler')}")

    app.register_blueprint(chat)
    steps: list[Callable[[], Any]] = [
        lambda: setattr(app, "wsgi_app", ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)),
        lambda: websocket.init_app(app),
    ]
    for step in steps if when == "before init_app" else steps[::-1]:
        step()

    forwarded = {
        "x_forwarded_for": "192.0.2.1",
        "x_forwarded_proto": "https",
        "x_forwarded_host": "public.example",
        "x_forwarded_prefix": "/app",
    }
    client = open_with(site, None, "/chat/", origin="https://public.example", **forwarded)
    assert hear(client) == "192.0.2.1 True wss://public.example/app/chat/"
    client.close()
    for origin in ("http://public.example", "https://localhost", "https://public.example:444"):
        assert site.refusal("/chat/", origin=origin, **forwarded).status == 403


def test_all_companions_work_together(members: Site, tmp_path: Path) -> None:
    database = Database(members.app, tmp_path / "database")
    members.app.config["SESSION_TYPE"] = "cachelib"
    members.app.config["SESSION_CACHELIB"] = FileSystemCache(str(tmp_path / "sessions"))
    Session(members.app)
    members.app.wsgi_app = ProxyFix(members.app.wsgi_app)  # type: ignore[method-assign]

    @login_required
    @members.mode.handler
    async def handler(ws: Any) -> None:
        async for _ in ws.messages():
            await ws.send(f"{current_user.id} {request.remote_addr} {database.count()}")

    members.websocket.route("/")(handler)
    assert members.refusal().status == 401
    clients = {user: open_with(members, sign_in(members, user), x_forwarded_for=f"192.0.2.{user}") for user in "1234"}
    for user, client in clients.items():
        client.frame(TEXT)
        assert hear(client) == f"{user} 192.0.2.{user} 1"
    for client in clients.values():
        close(client)
    wait_until(lambda: database.in_use == 0)
    database.engine.dispose()
