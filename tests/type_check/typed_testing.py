"""Tests of an application with the test client."""

from __future__ import annotations

from flask import Flask

from flask_uwsgi_websocket import HandshakeRejected, WebSocketTestClient


def check(app: Flask) -> int | None:
    client = app.test_client()
    client.websocket("/")  # type: ignore[attr-defined]
    assert isinstance(client, WebSocketTestClient)
    with client.websocket(
        "/chat/lobby", origin="https://example.com", subprotocols=["v1"], query_string={"x": 1}
    ) as ws:
        ws.send("text")
        ws.send(b"binary")
        ws.send_json({"text": ws.receive_json()["text"]})
        message = ws.receive(timeout=1)
        message.upper()  # type: ignore[union-attr]
        for message in ws:
            ws.send(message)
        ws.send(3)  # type: ignore[arg-type]
        ws.close(1000, "bye")
    client.websocket(7)  # type: ignore[arg-type]
    return ws.close_code


def refused(app: Flask) -> int:
    try:
        WebSocketTestClient(app).websocket("/")
    except HandshakeRejected as rejected:
        return rejected.response.status_code
    return 101
