"""Programs for the drop-ins. mypy checks these files, and a missing error is an error, too."""

from __future__ import annotations

from flask import Blueprint, Flask

from flask_uwsgi_websocket.compat import ConnectionClosed, Server, Sock, Sockets, WebSocketError

app = Flask(__name__)
sock = Sock(app)
sockets = Sockets(app)


@sock.route("/echo/<name>", bp=Blueprint("chat", __name__))
def echo(ws: Server, name: str) -> None:
    try:
        ws.send({"name": name})
        ws.receive(timeout=5)
    except ConnectionClosed as end:
        code: int = end.reason
        ws.close(code, end.message)


@sockets.route("/echo")
def echo_socket(ws, name="x"):  # type: ignore[no-untyped-def]
    while not ws.closed:
        ws.send(ws.receive())


def check(ws: Server) -> None:
    echo(ws, "x")
    echo(ws)  # type: ignore[call-arg]
    ws.receive().encode()  # type: ignore[union-attr]


assert issubclass(WebSocketError, OSError)
