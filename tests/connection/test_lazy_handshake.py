"""The first call makes the handshake. Before it, a handler may answer with a response."""

from __future__ import annotations

import json
from functools import wraps
from typing import Any

import pytest
from flask import abort, request
from websockets.exceptions import InvalidStatus

from flask_uwsgi_websocket import ConnectionClosed
from support.inprocess import Site
from support.wire import CLOSE, TEXT, close_body


def test_a_handler_may_abort_before_the_handshake(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        abort(403, "not you")

    response = site.refusal()
    assert response.status == 403
    assert b"not you" in response.body


def test_a_handler_may_return_a_response_instead_of_the_handshake(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> Any:
        return {"error": "full"}, 503, {"Retry-After": "1"}

    response = site.refusal()
    assert (response.status, json.loads(response.body), response["Retry-After"]) == (503, {"error": "full"}, "1")


def test_a_decorator_that_is_no_coroutine_function_may_return_a_response(site: Site) -> None:
    async def handler(ws: Any) -> None:
        await ws.send("hello")

    handler = site.mode.handler(handler)

    @site.websocket.route("/")
    @wraps(handler)
    def login_required(ws: Any) -> Any:
        return handler(ws) if "user" in request.args else ("log in first", 401)

    assert site.refusal().status == 401
    with site.connect("/?user=1") as client:
        assert list(client) == ["hello"]


def test_an_exception_before_the_handshake_gets_500(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        raise KeyError("oops")

    assert site.refusal().status == 500
    assert "oops" in str(site.logged().exc_info)


def test_a_handler_that_does_nothing_accepts_and_closes(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        assert ws.connected

    with site.connect() as client:
        assert list(client) == []
    assert client.close_code == 1000


def test_the_return_value_of_a_handler_after_the_handshake_is_not_sent(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> str:
        await ws.send("x")
        return "nobody can read this"

    with site.connect() as client:
        assert list(client) == ["x"]
    assert client.close_code == 1000


def test_another_task_may_send_first(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async def broadcast() -> None:
            await ws.send("from elsewhere")
            site.note("sent")

        gate = site.mode.gate()
        site.note(gate)
        join = site.mode.spawn(broadcast)
        await gate.passed()
        await join()
        await ws.send("from the handler")

    client = site.upgrade()
    gate = site.noted()
    assert site.noted() == "sent"
    assert client.read_frame() == (TEXT, b"from elsewhere")
    gate.open()
    assert client.read_frame() == (TEXT, b"from the handler")
    assert client.read_frame() == (CLOSE, close_body(1000))


def test_many_first_sends_make_one_handshake(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        async def send() -> None:
            await ws.send("x")

        for join in [site.mode.spawn(send) for _ in range(8)]:
            await join()

    with site.connect() as client:
        assert list(client) == ["x"] * 8


def test_after_a_refusal_nothing_can_be_sent_or_received(site: Site) -> None:
    kept = []

    @site.route()
    async def handler(ws: Any) -> None:
        kept.append(ws)
        abort(401)

    @site.route("/later")
    async def later(ws: Any) -> None:
        (refused,) = kept
        for call in (lambda: refused.send("x"), refused.receive, refused.ping, refused.accept):
            with pytest.raises(ConnectionClosed, match="refused"):
                await call()
        await refused.close()
        refused.tick()
        site.note((refused.connected, refused.fd))

    assert site.refusal().status == 401
    site.connect("/later").close()
    assert site.noted() == (False, -1)


def test_a_refused_connection_of_the_library_raises_an_invalid_status(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        abort(403)

    with pytest.raises(InvalidStatus, match="403"):
        site.connect()
