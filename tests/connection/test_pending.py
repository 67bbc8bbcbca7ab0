"""Handshakes that are not sent yet: the client may leave meanwhile, and no client waits for ever."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import Any

import gevent
import pytest
from flask import abort, request

from flask_uwsgi_websocket import ConnectionClosed, websocket_rejected
from flask_uwsgi_websocket.connection import base
from flask_uwsgi_websocket.settings import Settings
from support.inprocess import Clock, RawClient, Site, run, wait_until
from support.wire import CLOSE, TEXT, close_body


@pytest.fixture
def clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock, which handshakes use too."""
    monkeypatch.setattr(base, "time", clock)
    return clock


def waiting_handler(site: Site, **options: Any) -> None:
    """Declare a handler that waits for the test before it sends."""

    @site.route(**options)
    async def handler(ws: Any) -> None:
        gate = site.mode.gate()
        site.note((ws, gate))
        await gate.passed()
        await ws.send("hello")


def open_pending(site: Site) -> tuple[RawClient, Any, Any]:
    """Connect to the waiting handler, and return the client, the connection and the gate."""
    client = site.raw()
    client.request()
    ws, gate = site.noted()
    return client, ws, gate


def wait_for_a_round(site: Site) -> None:
    """Wait until the housekeeper has checked all connections again: it detects the end of two others in turn."""
    for _ in range(2):
        client, ws, gate = open_pending(site)
        client.close()
        wait_until(lambda ws=ws: not ws.connected)
        gate.open()


async def pause(site: Site) -> None:
    """Let other tasks run."""
    if site.mode.name == "asyncio":
        await asyncio.sleep(0.005)
    else:
        {"threads": time, "gevent": gevent}[site.mode.name].sleep(0.005)


def half_close(client: RawClient) -> None:
    client.sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.reset, half_close], ids=["closes", "resets", "half"])
def test_a_client_that_leaves_before_the_handshake_is_detected(
    site: Site, leave: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flask_uwsgi_websocket")
    answers = []
    receiver = websocket_rejected.connect(lambda app, ws, response, **extra: answers.append((ws, response.status)))
    assert receiver is not None

    @site.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        site.note(f"teardown: {error}")

    @site.route()
    async def handler(ws: Any) -> None:
        gate = site.mode.gate()
        site.note((ws, gate))
        await gate.passed()
        for call in (lambda: ws.send("x"), ws.receive, ws.ping, ws.accept):
            with pytest.raises(ConnectionClosed, match=r"1006.*the client has left before the handshake was sent"):
                await call()
        with pytest.raises(ConnectionClosed):
            ws.recv_nb()
        await ws.close()
        site.note(site.websocket.broadcast("x", [getattr(ws, "blocking", ws)]))
        await ws.send("x")

    client, ws, gate = open_pending(site)
    assert ws.connected
    leave(client)
    wait_until(lambda: not ws.connected)
    wait_until(lambda: "the client has left before the handshake was sent, / from 127.0.0.1" in caplog.text)
    gate.open()
    assert site.noted() == []
    assert site.noted() == "teardown: None"  # no error was logged, because a client may leave
    wait_until(lambda: answers)
    assert answers == [(getattr(ws, "blocking", ws), "499 Client Closed Request")]
    assert (ws.connected, ws.fd, site.websocket.stats()["rejected"]) == (False, -1, 1)


@pytest.mark.parametrize("value", [None, "a page"])
def test_a_handler_that_checks_connected_frees_its_place_when_the_client_has_left(
    site: Site, value: str | None
) -> None:
    site.app.config["WEBSOCKET_MAX_CONNECTIONS"] = 1

    @site.app.teardown_request
    def teardown(error: BaseException | None) -> None:
        site.note(error)

    @site.route()
    async def handler(ws: Any) -> Any:
        site.note("waits")
        while ws.connected:
            await pause(site)
        return value

    for _ in range(3):
        client = site.raw()
        client.request()
        assert site.noted() == "waits"
        assert site.refusal().status == 503
        client.close()
        assert [site.noted(), site.noted()] == [None, None]  # for the 503, and for the client that left


def test_a_client_that_leaves_while_a_hook_prepares_the_handshake_is_detected(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        with pytest.raises(ConnectionClosed, match="has left"):
            await ws.accept()
        site.note(None)

    gates = []

    async def slow(response: Any) -> Any:
        gates.append(site.mode.gate())
        site.note("prepares")
        await gates[0].passed()
        return response

    @site.websocket.before_websocket
    def before() -> None:
        site.note(request.environ["flask_uwsgi_websocket.client"])

    site.websocket.after_websocket(slow if site.mode.name == "asyncio" else lambda response: run(slow(response)))
    client = site.raw()
    client.request()
    ws = site.noted()
    assert site.noted() == "prepares"
    client.close()
    wait_until(lambda: not ws.connected)
    gates[0].open()
    assert site.noted() is None


def test_early_data_is_not_the_end_of_the_input(site: Site) -> None:
    waiting_handler(site)
    client, ws, gate = open_pending(site)
    client.frame(TEXT, b"too early")
    wait_for_a_round(site)
    assert ws.connected
    gate.open()
    assert client.response().status == 101
    assert client.read_frame() == (TEXT, b"hello")


def test_a_handshake_that_is_not_sent_in_time_is_answered_with_503(site: Site, clock: Clock) -> None:
    told: list[str] = []

    @site.route()
    async def handler(ws: Any) -> None:
        gate = site.mode.gate()
        site.note((ws, gate))
        await gate.passed()
        try:
            await ws.send("hello")
        except ConnectionClosed as error:
            told.append(str(error))

    answers = []
    receiver = websocket_rejected.connect(lambda app, ws, response, **extra: answers.append(response.status_code))
    assert receiver is not None
    client, ws, gate = open_pending(site)
    clock.put_forward(59)
    wait_for_a_round(site)
    assert ws.connected
    clock.put_forward(2)
    response = client.response()  # the handler still waits
    assert (response.status, response.body) == (503, b"")
    assert not ws.connected
    gate.open()
    wait_until(lambda: sorted(answers) == [499, 499, 503])  # the handlers end in any order
    assert any("the handshake was not sent within 60 s" in each for each in told)
    assert "the handler of / has not sent the handshake within 60 s" in site.logged().getMessage()


@pytest.mark.parametrize("settings", [{"handshake_timeout": None}, {"handshake_timeout": 7200}])
def test_a_setting_limits_the_time_until_the_handshake(site: Site, clock: Clock, settings: dict[str, Any]) -> None:
    waiting_handler(site, **settings)
    client, _, gate = open_pending(site)
    clock.put_forward(3600)
    wait_for_a_round(site)
    gate.open()
    assert client.response().status == 101
    assert client.read_frame() == (TEXT, b"hello")


def test_other_exceptions_of_a_handler_whose_client_has_left_are_errors(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        gate = site.mode.gate()
        site.note((ws, gate))
        await gate.passed()
        raise KeyError("oops")

    client, ws, gate = open_pending(site)
    client.close()
    wait_until(lambda: not ws.connected)
    gate.open()
    assert "KeyError('oops')" in str(site.logged().exc_info)


# The handshake comes before the handler


def test_with_accept_early_the_handshake_is_sent_before_the_handler_starts(site: Site) -> None:
    site.app.config["WEBSOCKET_ACCEPT"] = "early"
    site.websocket.before_websocket(lambda: site.note("before"))
    site.websocket.after_websocket(lambda response: site.note("after") or response)
    waiting_handler(site)
    client = site.upgrade()
    assert [site.noted(), site.noted()] == ["before", "after"]
    _, gate = site.noted()
    gate.open()
    assert client.read_frame() == (TEXT, b"hello")
    assert client.read_frame() == (CLOSE, close_body(1000))
    client.close()


def test_with_accept_early_only_hooks_can_refuse(site: Site) -> None:
    @site.route(accept="early")
    async def handler(ws: Any) -> Any:
        return "a page" if "page" in request.args else abort(403)

    @site.websocket.before_websocket
    def before() -> Any:
        return ("no", 401) if "refused" in request.args else None

    @site.websocket.after_websocket
    def after(response: Any) -> Any:
        return abort(404) if "late" in request.args else response

    assert site.refusal("/?refused").status == 401
    assert site.refusal("/?late").status == 404
    for path, code in {"/": 4403, "/?page": 1000}.items():
        client = site.upgrade(path)
        opcode, payload = client.read_frame()
        assert (opcode, payload[:2]) == (CLOSE, close_body(code))
        client.close()


@pytest.mark.parametrize("value", ["late", None, True, ["early"]])
def test_accept_is_early_or_lazy(value: Any) -> None:
    with pytest.raises(ValueError, match='accept must be "lazy" or "early", not'):
        Settings(accept=value)
