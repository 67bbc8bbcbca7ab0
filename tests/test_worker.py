"""The end of a worker, as far as it needs no signal: connections are closed, handlers waited for, the late given up."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from inprocess import Site
from wire import CLOSE, close_body

from flask_uwsgi_websocket import worker


@pytest.mark.parametrize(
    ("signum", "code", "reason"),
    [(signal.SIGINT, 1001, b"the server stops"), (signal.SIGHUP, 1012, b"the server restarts")],
)
def test_a_worker_that_ends_closes_its_connections_and_gives_up_handlers_that_do_not_end(
    site: Site, monkeypatch: pytest.MonkeyPatch, signum: int, code: int, reason: bytes
) -> None:
    monkeypatch.setattr(worker, "INTERVAL", 0.01)

    @site.websocket.on_close
    def closed(app: Any, ws: Any, initiator: str, code: int, **extra: Any) -> None:
        site.note((ws.environ["PATH_INFO"], initiator, code))

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note("ready")
        async for _ in ws:
            pass

    @site.route("/ends-the-worker", shutdown_timeout=0.3)
    async def end(ws: Any) -> None:  # whose own connection is late, therefore
        client = getattr(ws, "blocking", ws)
        await ws.accept()
        site.note(await worker.Shutdown(signum, client._loop).finish())

    client = site.upgrade()
    assert site.noted() == "ready"
    ending = site.upgrade("/ends-the-worker")
    assert client.read_frame() == (CLOSE, close_body(code, reason))
    client.frame(CLOSE, close_body(code, reason))
    assert ending.read_frame() == (CLOSE, close_body(code, reason))
    assert site.noted() == ("/", "shutdown", code)
    assert site.noted() == ("/ends-the-worker", "shutdown", code)  # and not again when its handler ends at last
    assert site.noted() is False
    ending.close()
