"""The sockets of servers other than uWSGI: which are refused, and how the package leaves the others."""

from __future__ import annotations

import io
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from socketserver import ThreadingMixIn
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import gevent
import gevent.socket
import gevent.ssl
import pytest
from flask import Flask
from gevent import pywsgi
from websockets.sync.client import connect

from flask_uwsgi_websocket import WebSocket
from flask_uwsgi_websocket.servers import find, gunicorn, uwsgi
from flask_uwsgi_websocket.servers.base import SocketServer
from flask_uwsgi_websocket.servers.find import find_capacity, find_server
from flask_uwsgi_websocket.servers.gunicorn import GunicornPywsgiServer, GunicornServer
from flask_uwsgi_websocket.worker.admission import Capacity
from support.inprocess import DEADLINE, RawClient

#: gevent's server, alone and in a worker of gunicorn.
GEVENTS = {"gevent", "gunicorn's gevent"}


def environ_of(server: str, sock: Any, *, has_body_reader: bool = False) -> dict[str, Any]:
    """Return the environ of a request on *sock*, as a server creates it."""
    environ: dict[str, Any] = {"wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.input": io.BytesIO()}
    if server in GEVENTS:  # the type of the input depends on the headers of the client
        reader = sock.makefile("rb")
        environ["SERVER_SOFTWARE"] = "gevent/26.9 Python/3.13"
        if server != "gevent":
            environ["gunicorn.sock"] = sock
        environ["wsgi.input"] = pywsgi.Input(reader, None) if has_body_reader else reader
    else:
        environ[f"{server}.socket"] = sock
    return environ


@pytest.fixture(autouse=True)
def hub() -> Iterator[None]:
    """gevent's hub, which its sockets create in this thread."""
    yield
    gevent.get_hub().destroy(destroy_loop=True)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("server", ["werkzeug", "gunicorn", "gevent"])
@pytest.mark.parametrize("library", [ssl, gevent.ssl], ids=["ssl", "gevent.ssl"])
def test_a_socket_with_tls_is_refused_with_a_reason(pair: Any, server: str, library: Any) -> None:
    context = library.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrapped = context.wrap_socket(pair[0], server_side=True, do_handshake_on_connect=False)
    with closing(wrapped), pytest.raises(RuntimeError, match="a proxy such as nginx that terminates TLS"):
        find_server(environ_of(server, wrapped))


@pytest.mark.parametrize(
    ("server", "has_body_reader"),
    [("werkzeug", False), ("gunicorn", False), ("gevent", False), ("gevent", True), ("gunicorn's gevent", True)],
)
@pytest.mark.parametrize("default", [None, 5])
def test_the_servers_own_socket_is_unchanged_until_it_is_released(
    pair: Any, server: str, has_body_reader: bool, default: Any
) -> None:
    ours, theirs = pair
    if server in GEVENTS:
        ours = gevent.socket.socket(fileno=os.dup(ours.fileno()))
    with ours:
        environ = environ_of(server, ours, has_body_reader=has_body_reader)
        before = ours.gettimeout(), os.get_blocking(ours.fileno())
        lender = find_server(environ)
        socket.setdefaulttimeout(default)
        try:
            duplicate = lender.open()
        finally:
            socket.setdefaulttimeout(None)
        assert (ours.gettimeout(), os.get_blocking(ours.fileno())) == before
        duplicate.close()
        ours.sendall(b"refused")
        assert theirs.recv(100) == b"refused"
        lender.release()
        assert theirs.recv(100) == b""
        if server in GEVENTS:
            getattr(environ["wsgi.input"], "rfile", environ["wsgi.input"]).close()


class Quiet(WSGIRequestHandler):
    """A handler of the standard library's server that prints nothing."""

    def log_message(self, *args: Any) -> None: ...


def test_an_unknown_server_gets_an_error_that_lists_the_known_ones() -> None:
    app = Flask(__name__)
    app.testing = True
    websocket = WebSocket(app)
    websocket.route("/")(lambda ws: ws.accept())
    told: list[str] = []

    def catching(environ: Any, start_response: Any) -> Any:
        try:
            return app(environ, start_response)
        except RuntimeError as error:
            told.append(str(error))
            start_response("500 Internal Server Error", [])
            return []

    with make_server("127.0.0.1", 0, catching, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        client = RawClient(server.server_port)
        client.request()
        assert client.response().status == 500
        client.close()
        thread.join()
    (sentence,) = told
    assert "(WSGIServer" in sentence
    for known in ("uWSGI", "flask run", "gunicorn", "gevent's WSGIServer"):
        assert known in sentence


# Capacity


class Worker:
    """The attributes of gunicorn's worker that the package reads."""

    cfg = SimpleNamespace(threads=10, worker_connections=20)

    def handle_exit(self, signum: int, frame: object) -> None: ...


class ThreadWorker(Worker):
    tpool = None


@pytest.mark.parametrize(
    ("server", "worker", "capacity"),
    [
        ("gunicorn", ThreadWorker, Capacity(10)),
        ("gunicorn", Worker, Capacity(20)),
        ("gunicorn's gevent", Worker, Capacity(20)),
        ("gunicorn", None, Capacity()),
        ("gevent", None, Capacity()),
        ("werkzeug", None, Capacity()),
        ("unknown", None, Capacity()),
    ],
)
def test_each_server_knows_the_number_of_requests_that_it_serves_at_a_time(
    pair: Any, monkeypatch: pytest.MonkeyPatch, server: str, worker: Any, capacity: Capacity
) -> None:
    environ = environ_of(server, pair[0])
    before = signal.getsignal(signal.SIGTERM)
    if worker is not None:
        monkeypatch.setitem(sys.modules, "gunicorn.workers.base", SimpleNamespace(Worker=Worker))
        signal.signal(signal.SIGTERM, worker().handle_exit)
    try:
        assert find_capacity(environ) == capacity
    finally:
        signal.signal(signal.SIGTERM, before)
        environ["wsgi.input"].close()


@pytest.mark.parametrize(("loop", "descriptors"), [(None, 16), (b"uwsgi", 16), (b"gevent", 0), (b"asyncio", 0)])
def test_a_thread_of_uwsgi_keeps_a_descriptor_and_a_greenlet_or_task_does_not(
    monkeypatch: pytest.MonkeyPatch, loop: bytes | None, descriptors: int
) -> None:
    monkeypatch.setattr(uwsgi, "uwsgi", SimpleNamespace(cores=16, loop=loop, has_threads=True, opt={}))
    capacity = find_capacity({})
    assert capacity.cores == 16
    assert capacity.own_descriptors == descriptors


@pytest.mark.parametrize(
    ("server", "kind"), [("gunicorn", GunicornServer), ("gunicorn's gevent", GunicornPywsgiServer)]
)
def test_every_kind_of_gunicorns_workers_is_watched(
    pair: Any, monkeypatch: pytest.MonkeyPatch, server: str, kind: type[SocketServer]
) -> None:
    watched: list[bool] = []
    monkeypatch.setattr(gunicorn, "watch_worker", lambda: watched.append(True))
    environ = environ_of(server, pair[0])
    found = find_server(environ)
    assert type(found) is kind
    found.watch()
    assert watched == [True]
    environ["wsgi.input"].close()


# Another server


def test_a_new_server_is_one_class_in_the_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class WsgirefServer(SocketServer):
        """The server of the standard library, with two threads."""

        @classmethod
        def serves(cls, environ: Any) -> bool:
            return "wsgiref.socket" in environ

        @classmethod
        def capacity(cls) -> Capacity:
            return Capacity(cores=2)

        @classmethod
        def prepare(cls) -> None:
            calls.append("prepare")

        def __init__(self, environ: Any) -> None:
            super().__init__(environ["wsgiref.socket"])
            self._reader = environ["wsgi.input"]

        def watch(self) -> None:
            calls.append("watch")

        def release(self) -> None:
            super().release()
            calls.append("release")

        def _has_early_data(self) -> bool:
            return self._has_read(self._reader)

    class Handler(Quiet):
        def get_environ(self) -> Any:
            return {**super().get_environ(), "wsgiref.socket": self.connection}

    class ThreadingServer(ThreadingMixIn, WSGIServer):
        daemon_threads = False  # otherwise the server would not wait for their ends

    monkeypatch.setattr(find, "SERVERS", (*find.SERVERS, WsgirefServer))
    app = Flask(__name__)

    def echo(ws: Any) -> None:
        for message in ws:
            ws.send(message)

    WebSocket(app).add_url_rule("/", "echo", echo)
    assert calls == ["prepare"]
    with make_server("127.0.0.1", 0, app, server_class=ThreadingServer, handler_class=Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with connect(f"ws://127.0.0.1:{server.server_port}/") as client:
                client.send("hello")
                assert client.recv(DEADLINE) == "hello"
                other = RawClient(server.server_port)
                other.request()
                assert other.response().status == 503  # one of the two threads is reserved for HTTP
                other.close()
        finally:
            server.shutdown()
            thread.join()
    assert calls == ["prepare", "watch", "release"]
