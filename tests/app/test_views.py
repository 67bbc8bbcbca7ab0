"""WebSocketView is a handler as a class, with a method for each event.

All tests run in both forms of a view: parked, as on uWSGI, and inside its request, as elsewhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import abort, g, request
from websockets.exceptions import ConnectionClosed as ClientSawClose

from flask_uwsgi_websocket import AsyncioWebSocket, ConnectionClosed, WebSocket, WebSocketView
from support import views
from support.inprocess import DEADLINE, MODES, Background, Site, serving, wait_for_background
from support.wire import CLOSE, TEXT, close_body


@pytest.fixture(params=[False, True], ids=["in_request", "parked"])
def parks(request: pytest.FixtureRequest) -> bool:
    """Whether views are parked."""
    return bool(request.param)


@pytest.fixture(params=[*MODES, Background.name])
def site(request: pytest.FixtureRequest, parks: bool) -> Iterator[Site]:
    """A site in each concurrency mode."""
    yield from serving(request.param, parks=parks)


@pytest.fixture
def blocking(parks: bool) -> Iterator[Site]:
    """A site with threads, for behaviour that does not depend on the mode."""
    yield from serving("threads", parks=parks)


class Echo(WebSocketView):
    """A view that notes its events."""

    def __init__(self, site: Site, greeting: str = "hello") -> None:
        self.site = site
        self.greeting = greeting

    async def on_connect(self, ws: Any, room: str) -> Any:
        self.room = room
        if room == "closed":
            abort(403, "closed")
        if room == "full":
            return "full", 503
        if room == "broken":
            raise LookupError(room)
        return None

    async def on_message(self, ws: Any, message: str | bytes) -> None:
        if message == "abort":
            abort(404)
        if message == "fail":
            raise KeyError("oops")
        if message == "close":
            await ws.close(4001, "bye")
            await ws.send("too late")
        await ws.send(f"{self.greeting} {self.room} {message!r}")

    async def on_close(self, ws: Any, code: int, reason: str) -> None:
        self.site.note((self.room, code, reason, ws.connected, request.path))


def serve(site: Site, view: type[WebSocketView] = Echo, *args: Any, **kwargs: Any) -> None:
    """Serve a view at ``/<room>``."""
    views.serve(site, view, *args, **kwargs)


def test_each_connection_has_its_own_instance_whose_methods_are_called(site: Site) -> None:
    serve(site, Echo, "hi")
    clients = {room: site.connect(f"/{room}") for room in ("a", "b")}
    for room, client in clients.items():
        for message in ("x", b"y", "", b""):
            client.send(message)
            assert client.recv(DEADLINE) == f"hi {room} {message!r}"
    for number, (room, client) in enumerate(clients.items()):
        client.close(4000 + number, room)
        assert site.noted() == (room, 4000 + number, room, False, f"/{room}")


def test_the_view_names_the_endpoint_and_gets_the_arguments_of_as_view(blocking: Site) -> None:
    class Named(WebSocketView):
        """What it is for."""

        def __init__(self, one: int, two: int = 0) -> None:
            self.sum = one + two

        def on_message(self, ws: Any, message: Any) -> None:
            ws.send(f"{request.endpoint} {self.sum}")

    view = Named.as_view("talk", 1, two=2)
    assert (view.__name__, view.__doc__, view.__module__) == ("talk", "What it is for.", __name__)
    blocking.websocket.add_url_rule("/", view_func=view)
    with blocking.connect() as client:
        client.send("")
        assert client.recv(DEADLINE) == "talk 3"


def test_every_method_of_a_view_has_a_default(blocking: Site) -> None:
    blocking.websocket.add_url_rule("/<room>", view_func=WebSocketView.as_view("silent"))
    with blocking.connect("/a") as client:
        client.send("x")
    assert client.close_code == 1000


@pytest.mark.parametrize(("room", "status", "body"), [("closed", 403, b"closed"), ("full", 503, b"full")])
def test_on_connect_may_refuse_before_the_handshake_and_on_close_is_not_called(
    site: Site, room: str, status: int, body: bytes
) -> None:
    serve(site)
    response = site.refusal(f"/{room}")
    assert response.status == status
    assert body in response.body
    wait_for_background()
    assert site.notes.empty()


def test_an_exception_in_on_connect_gets_500_and_on_close_is_not_called(site: Site) -> None:
    serve(site)
    assert site.refusal("/broken").status == 500
    assert site.logged().exc_info
    wait_for_background()
    assert site.notes.empty()


def test_on_connect_may_send_before_the_first_message_is_received(site: Site) -> None:
    class Welcome(Echo):
        async def on_connect(self, ws: Any, room: str) -> None:
            self.room = room
            await ws.send("welcome")

    serve(site, Welcome)
    with site.connect("/a") as client:
        assert client.recv(DEADLINE) == "welcome"
        client.send("x")
        assert client.recv(DEADLINE) == "hello a 'x'"
    assert site.noted()


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [("abort", 4404, "Not Found"), ("fail", 1011, "internal error"), ("close", 4001, "bye")],
)
def test_on_close_is_also_called_once_after_a_method_has_raised_or_closed(
    site: Site, message: str, code: int, reason: str
) -> None:
    serve(site)
    with site.connect("/a") as client:
        client.send(message)
        with pytest.raises(ClientSawClose):
            client.recv(DEADLINE)
    assert (client.close_code, client.close_reason) == (code, reason)
    wait_for_background()
    assert site.noted()[:3] == ("a", code, reason)
    assert site.notes.empty()
    if message == "fail":
        assert "oops" in str(site.logged().exc_info)


@pytest.mark.parametrize("how", ["reset", "end of stream", "close without a code", "protocol error"])
def test_on_close_is_called_once_whatever_the_client_does(site: Site, how: str) -> None:
    serve(site)
    client = site.upgrade("/a")
    if how == "reset":
        client.reset()
    elif how == "close without a code":
        client.frame(CLOSE)
    elif how == "protocol error":
        client.frame(3)
    client.close()
    wait_for_background()
    assert site.noted()[:2] == ("a", {"close without a code": 1005, "protocol error": 1002}.get(how, 1006))
    assert site.notes.empty()


def test_an_exception_in_on_close_is_logged_and_harms_no_other_connection(site: Site) -> None:
    class Failing(Echo):
        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            raise LookupError("in on_close")

    serve(site, Failing)
    for _ in range(2):
        client = site.upgrade("/a")
        client.frame(TEXT, b"x")
        assert client.read_frame() == (TEXT, b"hello a 'x'")
        client.frame(CLOSE, close_body(1000))
        assert client.read_frame() == (CLOSE, close_body(1000))
        wait_for_background()
        assert "in on_close" in str(site.logged().exc_info)


def test_each_message_has_its_own_app_context(site: Site) -> None:
    site.app.teardown_appcontext(lambda error: site.note(f"teardown of {g.get('message')}"))

    class Contexts(Echo):
        async def on_connect(self, ws: Any, room: str) -> None:
            g.message = self.room = room

        async def on_message(self, ws: Any, message: str | bytes) -> None:
            assert "message" not in g
            g.message = message
            await ws.send(message)

        async def on_close(self, ws: Any, code: int, reason: str) -> None:
            site.note(f"close of {g.message}")

    serve(site, Contexts)
    with site.connect("/a") as client:
        if site.parks:  # the request ends after on_connect()
            assert site.noted() == "teardown of a"
        for message in ("x", "y"):
            client.send(message)
            assert client.recv(DEADLINE) == message
            assert site.noted() == f"teardown of {message}"
    assert [site.noted(), site.noted()] == ["close of a", "teardown of a"]


def test_decorators_are_applied_in_the_order_of_flasks_views(site: Site) -> None:
    def members_only(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def decorated(ws: Any, **kwargs: Any) -> Any:
            return view(ws, **kwargs) if "member" in request.args else ("members only", 403)

        return decorated

    def note(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def decorated(ws: Any, **kwargs: Any) -> Any:
            site.note("decorator")
            return view(ws, **kwargs)

        return decorated

    class Decorated(Echo):
        decorators = [note, members_only]  # noqa: RUF012

    serve(site, Decorated)
    assert site.refusal("/a").status == 403
    assert site.notes.empty()  # the last decorator is the outermost
    with site.connect("/a?member=1") as client:
        client.send("x")
        assert client.recv(DEADLINE) == "hello a 'x'"
    assert site.noted() == "decorator"
    assert site.noted()[1] == 1000


def test_connection_closed_raised_by_a_method_is_a_normal_end(site: Site) -> None:
    class Closing(Echo):
        async def on_message(self, ws: Any, message: str | bytes) -> None:
            raise ConnectionClosed

    serve(site, Closing)
    with site.connect("/a") as client:
        client.send("x")
        with pytest.raises(ClientSawClose):
            client.recv(DEADLINE)
    assert client.close_code == 1000
    assert site.noted()[1] == 1000


def test_connection_closed_of_another_connection_is_an_error(site: Site) -> None:
    joined: list[Any] = []

    class Relay(Echo):
        async def on_message(self, ws: Any, message: str | bytes) -> None:
            if message == "join":
                joined.append(ws)
                await ws.send("joined")
            else:
                await joined[0].send(message)

    serve(site, Relay)
    with site.connect("/a") as client:
        client.send("join")
        assert client.recv(DEADLINE) == "joined"
    assert site.noted()[1] == 1000
    with site.connect("/b") as client:
        client.send("x")
        with pytest.raises(ClientSawClose, match=r"1011.*internal error"):
            client.recv(DEADLINE)
    assert site.noted()[1:3] == (1011, "internal error")
    assert "does not handle the end of" in site.logged().getMessage()


def test_a_view_needs_the_extension_of_its_mode() -> None:
    class Plain(WebSocketView):
        def on_message(self, ws: Any, message: Any) -> None:
            pass

    class Coroutine(WebSocketView):
        async def on_message(self, ws: Any, message: Any) -> None:
            pass

    with pytest.raises(TypeError, match=r"x\(\) is a coroutine function: use AsyncioWebSocket"):
        WebSocket().add_url_rule("/", view_func=Coroutine.as_view("x"))
    with pytest.raises(TypeError, match=r"x\(\) is not a coroutine function: write async def"):
        AsyncioWebSocket().add_url_rule("/", view_func=Plain.as_view("x"))


def test_coroutine_and_plain_methods_may_be_mixed_in_the_asyncio_mode(site: Site) -> None:
    class Mixed(Echo):
        def on_connect(self, ws: Any, room: str) -> None:
            self.room = room

    serve(site, Mixed)
    with site.connect("/a") as client:
        client.send("x")
        assert client.recv(DEADLINE) == "hello a 'x'"
    assert site.noted()[1] == 1000
