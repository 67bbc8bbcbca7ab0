"""Clients that keep their connections lose no request, however uWSGI is started and in every mode."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from support.live import DEADLINE, request_in_a_row
from support.projects import serving, write

APP = """
import os
from flask import Flask
from flask_uwsgi_websocket import AsyncioWebSocket, GeventWebSocket, WebSocket

app = Flask(__name__)
websocket = {extension}(app)
app.add_url_rule("/", "index", lambda: "hello")
app.add_url_rule("/stream", "stream", lambda: iter(["hel", "lo"]))

@websocket.route("/echo")
{function} echo(ws):
    pass

if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]), **{options})
"""

MODES = {"threads": "WebSocket", "gevent": "GeventWebSocket", "asyncio": "AsyncioWebSocket"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("front", ["http", "http-socket", "flask uwsgi run"])
def test_clients_that_keep_their_connections_lose_no_request(mode: str, front: str, project: Path, port: int) -> None:
    options = {"http_socket": f"127.0.0.1:{port}", "add_header": "X-Own: 1"} if front == "http-socket" else {}
    function = "async def" if mode == "asyncio" else "def"
    write(project, {"app.py": APP.format(extension=MODES[mode], function=function, options=options)})
    command = ["-m", *front.split(), "--port", str(port)] if front == "flask uwsgi run" else ["app.py"]
    with serving(project, port, *command) as server:
        assert server.get() == "hello"

        def connect() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), DEADLINE)

        answers = {"/": 200, "/nowhere": 404, "/echo": 426, "/stream": 200}
        assert request_in_a_row(connect, *list(answers) * 5) == list(answers.values()) * 5
