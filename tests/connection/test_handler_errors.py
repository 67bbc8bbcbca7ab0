"""Exceptions, responses and exits of a handler, and what the peer and the log get of them."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any

import gevent
import pytest
from flask import abort, current_app, got_request_exception, request
from websockets.exceptions import ConnectionClosed as ClientSawClose

from flask_uwsgi_websocket import ConnectionClosed
from flask_uwsgi_websocket.connection import base
from support.inprocess import DEADLINE, ROOM, Site, for_ever, send_to, wait_until
from support.wire import CLOSE, close_body


def test_an_http_exception_closes_with_4000_and_its_status(site: Site) -> None:
    @site.route("/<int:status>")
    async def handler(ws: Any, status: int) -> None:
        await ws.accept()
        abort(status)

    for status, name in [(404, "Not Found"), (401, "Unauthorized"), (503, "Service Unavailable")]:
        with site.connect(f"/{status}") as client, pytest.raises(ClientSawClose):
            client.recv(DEADLINE)
        assert (client.close_code, client.close_reason) == (4000 + status, name)


def test_abort_with_a_response_closes_with_4000_and_its_status(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        abort(current_app.make_response(("too late", 302)))

    with site.connect() as client, pytest.raises(ClientSawClose):
        client.recv(DEADLINE)
    assert (client.close_code, client.close_reason) == (4302, "")


def test_any_other_exception_is_reported_and_closes_with_1011(site: Site) -> None:
    def receiver(app: Any, exception: BaseException, **extra: Any) -> None:
        site.note((app, request.path, repr(exception)))

    @site.route("/<name>")
    async def handler(ws: Any, name: str) -> None:
        await ws.accept()
        raise KeyError(name)

    with got_request_exception.connected_to(receiver):
        with site.connect("/oops") as client, pytest.raises(ClientSawClose):
            client.recv(DEADLINE)
        assert site.noted() == (site.app, "/oops", "KeyError('oops')")
    assert (client.close_code, client.close_reason) == (1011, "internal error")
    record = site.logged()
    assert (record.name, record.levelname) == ("site", "ERROR")
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError
    assert record.exc_info[2] is not None


def test_connection_closed_may_leave_a_handler_without_a_traceback(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flask_uwsgi_websocket")

    @site.route()
    async def handler(ws: Any) -> None:
        while True:
            await ws.send(await ws.receive() or "no more")

    site.connect().close(4001, "enough")
    wait_until(lambda: "closed: 4001 'enough'" in caplog.text)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("when", ["after its handshake", "before its handshake"])
def test_the_end_of_another_connection_is_an_error_of_the_handler_that_raises_it(site: Site, when: str) -> None:
    listeners: list[Any] = []
    failures: list[Any] = []

    @site.route("/listens")
    async def listens(ws: Any) -> None:
        listeners.append(getattr(ws, "blocking", ws))
        await ws.send("ready")
        with suppress(ConnectionClosed):
            await ws.receive()

    @site.route("/speaks")
    async def speaks(ws: Any) -> None:
        if when == "after its handshake":
            await ws.accept()
        site.note(getattr(ws, "blocking", ws))
        await send_to(site, listeners[0], "hello")

    site.websocket.on_error(lambda app, ws, exception, **extra: failures.append(exception))
    site.websocket.teardown_websocket(lambda error: site.note(error) if request.path == "/speaks" else None)
    listener = site.connect("/listens")
    assert listener.recv(DEADLINE) == "ready"
    listener.close(4001, "enough")
    wait_until(lambda: not listeners[0].connected)
    if when == "after its handshake":
        with pytest.raises(ClientSawClose, match=r"1011.*internal error"):
            site.connect("/speaks").recv(DEADLINE)
    else:
        assert site.refusal("/speaks").status == 500
    speaker, error = site.noted(), site.noted()
    assert (error.code, error.reason, error.connection) == (4001, "enough", listeners[0])
    record = site.logged()
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    if when == "after its handshake":
        assert failures == [error]
        assert f"{speaker!r} does not handle the end of {listeners[0]!r}" in record.getMessage()


@pytest.mark.parametrize("case", ["another", "another, with a timeout", "its own"])
def test_a_handler_that_waits_long_for_the_client_of_another_connection_is_logged_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(base, "LONG_WAIT", 0)
    site.app.config.update(WEBSOCKET_SEND_BUFFER=1000)
    listeners: list[Any] = []

    @site.route("/listens")
    async def listens(ws: Any) -> None:
        listeners.append(ws)
        site.note("listens")
        await ws.accept()
        await ws.receive()

    @site.route("/speaks")
    async def speaks(ws: Any) -> None:
        await ws.accept()
        other = ws if case == "its own" else listeners.pop()
        options = {"timeout": 0.1} if "timeout" in case else {}
        site.note(other)
        with pytest.raises(ConnectionClosed):
            await for_ever(lambda: other.send(b"x" * ROOM, **options))
        site.note("spoken")

    for _ in range(2):
        listener, speaker = site.raw(), site.raw()
        listener.request("/listens")
        assert site.noted() == "listens"
        speaker.request("/speaks")
        other = site.noted()
        if "timeout" not in case:
            transport = getattr(other, "blocking", other)._transport
            wait_until(lambda transport=transport: transport.waiting == (1 if case == "its own" else 2))
            (speaker if case == "its own" else listener).reset()
        assert site.noted() == "spoken"
        listener.close()
        speaker.close()
    if case == "another":
        message = site.logged().getMessage()
        assert "/speaks> has waited " in message
        assert "/listens>, whose client does not read. To send to other connections, use broadcast()" in message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_the_process_closes_with_1011_and_is_not_stopped(blocking: Site) -> None:
    @blocking.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        raise KeyboardInterrupt

    client = blocking.upgrade()
    assert client.read_frame() == (CLOSE, close_body(1011, b"internal error"))


def test_a_handler_that_exits_ends_only_its_own_connection(site: Site) -> None:
    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        sys.exit("enough")

    with pytest.raises(ClientSawClose, match=r"1011.*internal error"):
        site.connect().recv(DEADLINE)
    wait_until(lambda: bool(site.log))
    (record,) = site.log
    site.log.clear()
    assert record.getMessage() == "Exception on '/' [WebSocket]"
    assert record.exc_info is not None
    assert record.exc_info[0] is SystemExit


@pytest.mark.parametrize("where", ["handler", "before_websocket", "after_websocket"])
def test_an_exit_before_the_handshake_is_an_error_like_any_other(site: Site, where: str) -> None:
    def leave(*args: Any) -> None:
        sys.exit("enough")

    @site.route()
    async def handler(ws: Any) -> None:
        if where == "handler":
            leave()
        await ws.accept()

    if where != "handler":
        getattr(site.websocket, where)(leave)
    assert site.refusal().status == 500
    assert "raised SystemExit('enough') before its handshake" in str(site.logged().exc_info)


@pytest.mark.parametrize("mode", ["gevent"])
def test_a_timeout_of_gevent_that_a_handler_raises_is_an_error_like_any_other(site: Site) -> None:
    @site.route("/<when>")
    async def handler(ws: Any, when: str) -> None:
        if when == "after":
            await ws.accept()
        with gevent.Timeout(0.01):
            gevent.sleep(DEADLINE)

    assert site.refusal("/before").status == 500
    assert "seconds=0.01> before its handshake" in str(site.logged().exc_info)
    with pytest.raises(ClientSawClose, match=r"1011.*internal error"):
        site.connect("/after").recv(DEADLINE)
    assert "Exception on '/after' [WebSocket]" in site.logged().getMessage()
