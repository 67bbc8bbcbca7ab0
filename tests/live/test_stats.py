"""Operators of a live uWSGI get metrics, and a warning at its start about options that break WebSockets."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask

from flask_uwsgi_websocket import WebSocket
from flask_uwsgi_websocket.worker.stats import NAMES
from support.live import MODES, serving, wait_until

pytestmark = pytest.mark.covered


@pytest.mark.parametrize("mode", ["threads", "gevent-2-processes", "asyncio"])
def test_the_counters_of_all_workers_are_metrics_of_uwsgi(tmp_path: Path, port: int, mode: str) -> None:
    address = f"127.0.0.1:{port}"
    options = ["--stats", address]
    for name in NAMES:
        options += ["--metric", f"name=websocket.{name},type={'gauge' if name == 'open' else 'counter'}"]
    app = Flask(__name__)
    WebSocket(app)

    def counters() -> dict[str, str]:
        result = app.test_cli_runner().invoke(args=["websocket", "stats", address])
        return dict(line.split() for line in result.output.splitlines())

    with serving(tmp_path, MODES[mode], "http-socket", options=options) as server, ExitStack() as stack:
        assert server.handshake("/nowhere").status == 404
        wait_until(lambda: counters()["websocket.rejected"] == "1", lambda: str(counters()))
        clients = [stack.enter_context(server.connect("/echo")) for _ in range(10)]
        for number, client in enumerate(clients):
            for _ in range(number):
                client.send("hello")
                client.recv()
        wait_until(lambda: counters()["websocket.messages_sent"] == "45", lambda: str(counters()))
        assert {name: counters()[f"websocket.{name}"] for name in ("open", "total", "messages_received")} == {
            "open": "10",
            "total": "10",
            "messages_received": "45",
        }
        for client in clients:
            client.close()
        wait_until(lambda: counters()["websocket.open"] == "0", lambda: str(counters()))
        assert counters()["websocket.total"] == "10"


@pytest.mark.parametrize("is_lazy", [False, True], ids=["", "lazy-apps"])
def test_harmful_options_are_logged_once_when_the_server_starts(tmp_path: Path, is_lazy: bool) -> None:
    options = ["--harakiri", "600", *(["--lazy-apps"] if is_lazy else [])]
    with serving(tmp_path, MODES["gevent-2-processes"], "http-socket", options=options) as server:
        served: set[str] = set()
        while len(served) < 2:  # both workers have started
            with server.connect("/room/everybody") as client:
                served.add(str(client.recv()))
        assert server.log.count("harakiri = 600 kills a worker with all its connections") == 1
        assert server.log.count("uWSGI's options:") == 1
