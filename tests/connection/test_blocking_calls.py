"""The calls of blocking handlers, which are compiled: callers see the same as of the pure-Python twin."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import gevent
import pytest

from flask_uwsgi_websocket import ConcurrencyError, WebSocketClient, websocket_message, websocket_sent
from flask_uwsgi_websocket.connection.blocking_calls import BlockingCalls
from support.inprocess import Site
from support.wire import CLOSE, TEXT, close_body


@pytest.fixture(params=["threads", "gevent"])
def mode(request: pytest.FixtureRequest) -> Any:
    """A mode with blocking handlers."""
    return request.param


def test_help_and_signatures_are_those_of_the_pure_twin() -> None:
    for name in ("receive", "recv", "send", "__iter__"):
        ours, twin = getattr(WebSocketClient, name), getattr(BlockingCalls, name.replace("recv", "receive"))
        assert ours.__doc__ == twin.__doc__
        if name != "__iter__":
            assert inspect.signature(ours) == inspect.signature(twin)


def test_a_client_without_a_transport_raises_and_does_not_crash() -> None:
    client = WebSocketClient.__new__(WebSocketClient)
    for call in (client.receive, lambda: client.send("x"), lambda: next(iter(client))):
        with pytest.raises(AttributeError):
            call()


def test_iteration_calls_the_receive_of_a_subclass(site: Site) -> None:
    class Shouting(WebSocketClient):
        def receive(self, timeout: float | None = None) -> str | bytes | None:
            message = super().receive(timeout)
            return message.upper() if isinstance(message, str) else message

    site.app.wsgi_app.client = Shouting  # type: ignore[attr-defined]

    @site.websocket.route("/")
    def handler(ws: Any) -> None:
        for message in ws:
            ws.send(message)
        site.note("ended")

    with site.connect() as client:
        client.send("loud")
        assert client.recv() == "LOUD"
    assert site.noted() == "ended"


def test_an_iterator_that_has_ended_stays_at_its_end(site: Site) -> None:
    @site.websocket.route("/")
    def handler(ws: Any) -> None:
        messages = iter(ws)
        assert iter(messages) is messages
        site.note([list(messages), list(messages), next(messages, "none"), next(iter(ws), "none")])

    client = site.upgrade()
    client.frame(TEXT, b"one")
    client.frame(CLOSE, close_body(1000))
    assert site.noted() == [["one"], [], "none", "none"]


def test_a_new_iterator_goes_on_where_the_last_one_was_left(site: Site) -> None:
    @site.websocket.route("/")
    def handler(ws: Any) -> None:
        for message in ws:
            site.note(message)
            break
        for message in ws:
            site.note(message)

    client = site.upgrade()
    client.frame(TEXT, b"one")
    client.frame(TEXT, b"two")
    assert [site.noted(), site.noted()] == ["one", "two"]


def test_only_one_may_iterate_at_a_time(site: Site) -> None:
    @site.websocket.route("/")
    def handler(ws: Any) -> None:
        def iterate() -> None:
            try:
                next(iter(ws), None)
            except ConcurrencyError:
                site.note("refused")

        ws.accept()
        if site.mode.name == "gevent":
            gevent.spawn(iterate)
        else:
            threading.Thread(target=iterate).start()
        iterate()

    client = site.upgrade()
    assert site.noted() == "refused"
    client.frame(CLOSE, close_body(1000))


def test_listeners_that_come_and_go_get_the_messages_from_then_on(site: Site) -> None:
    heard: list[Any] = []

    def receiver(app: Any, ws: Any, message: Any, **extra: Any) -> None:
        heard.append(message)

    @site.websocket.route("/")
    def handler(ws: Any) -> None:
        for number, message in enumerate(ws):
            if number == 1:
                websocket_message.connect(receiver)
                websocket_sent.connect(receiver)
            if number == 3:
                websocket_message.disconnect(receiver)
                websocket_sent.disconnect(receiver)
            ws.send(message + "!")

    with site.connect() as client:
        for text in "abcdef":
            client.send(text)
            assert client.recv() == text + "!"
    assert heard == ["b!", "c", "c!", "d"]


@pytest.mark.parametrize("begins", ["receive", "iterate", "send"])
def test_the_first_call_sends_the_handshake(site: Site, begins: str) -> None:
    @site.websocket.route("/")
    def handler(ws: Any) -> None:
        assert not ws.was_accepted
        if begins == "send":
            ws.send("first")
        message = next(iter(ws)) if begins == "iterate" else ws.receive()
        ws.send(message)

    with site.connect() as client:
        if begins == "send":
            assert client.recv() == "first"
        client.send("hello")
        assert client.recv() == "hello"


@pytest.mark.parametrize("mode", ["gevent"])
def test_a_timeout_of_gevent_interrupts_a_call_and_loses_nothing(site: Site) -> None:
    @site.websocket.route("/")
    def handler(ws: Any) -> None:
        for _ in range(20):
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
                ws.receive()
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
                next(iter(ws))
        ws.send("now")
        site.note([ws.receive(), next(iter(ws))])

    with site.connect() as client:
        assert client.recv() == "now"
        client.send("one")
        client.send("two")
        assert site.noted() == ["one", "two"]
