"""Werkzeug's unchanged development server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from flask import Flask
from websockets.sync.client import connect
from werkzeug.serving import make_server

from flask_uwsgi_websocket import WebSocket
from support.inprocess import DEADLINE, REQUEST, RawClient
from support.wire import CLOSE, KEY, PING, PONG, TEXT, close_body, frame


@pytest.fixture
def werkzeug() -> Iterator[int]:
    """The port of Werkzeug's development server."""
    app = Flask("werkzeug")
    websocket = WebSocket(app)

    @websocket.route("/")
    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.port
    server.shutdown()
    thread.join(DEADLINE)
    server.server_close()


def test_werkzeugs_server_serves_websockets(werkzeug: int, capfd: pytest.CaptureFixture[str]) -> None:
    with connect(f"ws://127.0.0.1:{werkzeug}/", proxy=None) as client:
        for message in ["é", b"\xff", "", "x" * 100_000]:
            client.send(message)
            assert client.recv(DEADLINE) == message
    assert client.close_code == 1000
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def werkzeug_client(werkzeug: int) -> Iterator[RawClient]:
    """A raw client of Werkzeug's development server."""
    with closing(RawClient(werkzeug)) as client:
        yield client


def test_data_after_the_handshake_that_werkzeugs_server_has_read_is_not_lost_silently(
    werkzeug_client: RawClient,
) -> None:
    client = werkzeug_client
    lines = ["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in REQUEST.items()), "", ""]
    client.send("\r\n".join(lines).encode() + frame(TEXT, b"early", key=KEY) + frame(PING, key=KEY))
    response = client.response()
    if response.status == 101:
        assert client.read_frame() == (TEXT, b"early")
        assert client.read_frame() == (PONG, b"")
        client.frame(CLOSE, close_body(1000))
        assert client.read_frame() == (CLOSE, close_body(1000))
    else:
        assert response.status == 400
        assert b"must wait" in response.body
