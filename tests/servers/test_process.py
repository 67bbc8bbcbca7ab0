"""The end of a process that is not uWSGI's, tested inside the process of the test where that is possible."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import click
import pytest
from flask import Flask
from flask.cli import run_command, shell_command

from flask_uwsgi_websocket import WebSocket
from flask_uwsgi_websocket.servers import ending, gunicorn
from flask_uwsgi_websocket.servers.werkzeug import WerkzeugServer
from flask_uwsgi_websocket.worker import housekeeper, shutdown
from support.inprocess import DEADLINE, RawClient, Site, serving
from support.wire import CLOSE, close_body

RESTARTS = close_body(1012, b"the server restarts")
STOPS = close_body(1001, b"the server stops")


@pytest.fixture(autouse=True)
def _reopened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test start with an open process, and do not take a busy machine for a blocked event loop."""
    monkeypatch.setattr(housekeeper, "_is_closed", False)
    monkeypatch.setattr(shutdown, "INTERVAL", 0.01)
    monkeypatch.setattr(ending, "BLOCKED_TIME", DEADLINE)


@pytest.fixture(params=["threads", "background"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site on a server with threads, whose handlers are functions or coroutines."""
    yield from serving(request.param)


@pytest.fixture
def sigterm() -> Iterator[None]:
    """The handler of SIGTERM, which a test may change."""
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def open_one(site: Site, **options: Any) -> RawClient:
    """Connect to a handler that notes its end."""

    @site.route("/", **options)
    async def handler(ws: Any) -> None:
        async for _ in ws:
            pass
        site.note("ended")

    return site.upgrade()


def expect_the_end(site: Site, client: RawClient, body: bytes) -> None:
    """Expect a Close frame and a handler that has ended, without an answer to the Close frame."""
    assert site.noted() == "ended"
    assert client.read_frame() == (CLOSE, body)
    assert site.refusal().status == 503


@pytest.mark.parametrize(("restarts", "body"), [(True, RESTARTS), (False, STOPS)])
def test_connections_are_closed_and_their_handlers_awaited(site: Site, restarts: bool, body: bytes) -> None:
    client = open_one(site, shutdown_timeout=0.2)
    ending.close_connections(restarts=restarts)
    expect_the_end(site, client, body)


@pytest.fixture
def other_site() -> Iterator[Site]:
    """A site with the other kind of handlers, in the same process."""
    yield from serving("background")


@pytest.mark.parametrize("site", ["threads"], indirect=True)
def test_connections_of_both_kinds_of_handlers_end_in_one_process(site: Site, other_site: Site) -> None:
    told: list[str] = []
    released = threading.Event()
    for each in (site, other_site):
        each.websocket.on_close(lambda app, ws, initiator, **extra: told.append(initiator))

    @site.route("/", shutdown_timeout=0.1)
    async def stubborn(ws: Any) -> None:
        await ws.accept()
        released.wait(DEADLINE)

    @other_site.route("/", shutdown_timeout=0.1)
    async def stubborn_too(ws: Any) -> None:
        await ws.accept()
        while not released.is_set():
            await asyncio.sleep(0.01)

    site.upgrade()
    other_site.upgrade()
    try:
        ending.close_connections(restarts=False)
        assert told == ["shutdown", "shutdown"]
    finally:
        released.set()


@pytest.mark.parametrize("site", ["background"], indirect=True)
def test_a_coroutine_that_blocks_the_event_loop_does_not_delay_the_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, finished = threading.Event(), threading.Event()
    monkeypatch.setattr(ending, "BLOCKED_TIME", 0.1)
    monkeypatch.setattr(ending, "LONGEST_SPREAD", 0)

    class Shutdown(shutdown.Shutdown):
        async def finish(self) -> bool:
            try:
                return await super().finish()
            finally:
                finished.set()

    monkeypatch.setattr(ending, "Shutdown", Shutdown)

    @site.route("/", shutdown_timeout=0.1)
    async def handler(ws: Any) -> None:
        await ws.accept()
        site.note("blocks")
        released.wait(DEADLINE)

    site.upgrade()
    assert site.noted() == "blocks"
    try:
        ending.close_connections(restarts=False)
        assert "a coroutine blocks the event loop" in site.logged().getMessage()
    finally:
        released.set()
    assert finished.wait(DEADLINE)  # otherwise it might close connections of the next test in this event loop


async def _receive_all(ws: Any) -> None:
    async for _ in ws:
        pass


def test_a_listener_that_hangs_delays_neither_the_end_nor_the_closed_signal(site: Site) -> None:
    released = threading.Event()

    def hang(app: Any, **extra: Any) -> None:
        assert released.wait(DEADLINE)

    async def hang_in_the_loop(app: Any, **extra: Any) -> None:
        while not released.is_set():
            await asyncio.sleep(0.01)

    site.websocket.on_connect(hang_in_the_loop if site.mode.name == "background" else hang)

    @site.websocket.on_close
    def note(app: Any, code: int, **extra: Any) -> None:
        site.note(code)

    site.route("/", shutdown_timeout=0.1)(_receive_all)
    site.upgrade()
    thread = threading.Thread(target=ending.close_connections, kwargs={"restarts": False})
    thread.start()
    try:
        assert site.noted() == 1001
        thread.join(DEADLINE)
        assert not thread.is_alive()
    finally:
        released.set()


@pytest.mark.parametrize(
    ("error", "body"), [(SystemExit(3), RESTARTS), (SystemExit(0), STOPS), (KeyboardInterrupt(), STOPS), (None, STOPS)]
)
def test_the_exit_code_of_flask_run_decides_the_close_code_of_its_connections(
    site: Site, sigterm: None, error: BaseException | None, body: bytes
) -> None:
    client = open_one(site, shutdown_timeout=0.2)
    with suppress(SystemExit, KeyboardInterrupt), click.Context(run_command):
        WerkzeugServer.prepare()
        if error is not None:
            raise error
    expect_the_end(site, client, body)


def test_flask_run_turns_sigterm_into_an_exit_and_other_commands_do_not(sigterm: None) -> None:
    with click.Context(shell_command):
        WerkzeugServer.prepare()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with click.Context(run_command):
        WerkzeugServer.prepare()
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)

        def own(signum: int, frame: object) -> None: ...

        signal.signal(signal.SIGTERM, own)
        WerkzeugServer.prepare()
        assert signal.getsignal(signal.SIGTERM) is own


class Worker:
    """The attributes of gunicorn's worker that the package reads."""

    def __init__(self) -> None:
        self.alive = True
        self.cfg = SimpleNamespace(graceful_timeout=30, threads=10)
        self.tpool = None

    def handle_exit(self, signum: int, frame: object) -> None:
        self.alive = False


def test_a_worker_of_gunicorn_that_is_about_to_end_closes_its_connections(
    site: Site, sigterm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    monkeypatch.setitem(sys.modules, "gunicorn.workers.base", SimpleNamespace(Worker=Worker))
    monkeypatch.setattr(gunicorn, "CHECK_INTERVAL", 0.02)
    monkeypatch.setattr(gunicorn, "ACCEPTING_TIME", 0.02)
    signal.signal(signal.SIGTERM, worker.handle_exit)
    wsgi_app = site.app.wsgi_app

    def with_socket_of_gunicorn(environ: Any, start_response: Any) -> Any:
        environ["gunicorn.socket"] = environ.pop("werkzeug.socket")
        return wsgi_app(environ, start_response)

    site.app.wsgi_app = with_socket_of_gunicorn  # type: ignore[method-assign]
    gunicorn.watch_worker.cache_clear()
    try:
        client = open_one(site, shutdown_timeout=0.2)
        others = [site.upgrade() for _ in range(8)]
        assert site.refusal().status == 503  # one of the worker's ten threads is reserved for HTTP
        signal.raise_signal(signal.SIGTERM)
        assert client.read_frame() == (CLOSE, RESTARTS)
        for _ in range(1 + len(others)):
            assert site.noted() == "ended"
    finally:
        gunicorn.watch_worker.cache_clear()


def test_init_app_prepares_the_process_of_an_app(sigterm: None) -> None:
    with click.Context(run_command):
        WebSocket(Flask("app"))
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
