"""The sockets of servers other than uWSGI: what is refused, and that they stay as the server has them."""

from __future__ import annotations

import io
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import gevent
import gevent.socket
import gevent.ssl
import pytest
from flask import Flask
from gevent import pywsgi

from flask_uwsgi_websocket import WebSocket
from flask_uwsgi_websocket.servers.find import find_server
from support.inprocess import RawClient


def environ_of(server: str, sock: Any, *, has_body_reader: bool = False) -> dict[str, Any]:
    """Return what a server puts into the environ of a request on *sock*."""
    environ: dict[str, Any] = {"wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.input": io.BytesIO()}
    if server == "gevent":  # whose input depends on how the client has written its headers
        reader = sock.makefile("rb")
        environ["SERVER_SOFTWARE"] = "gevent/26.9 Python/3.13"
        environ["wsgi.input"] = pywsgi.Input(reader, None) if has_body_reader else reader
    else:
        environ[f"{server}.socket"] = sock
    return environ


@pytest.fixture(autouse=True)
def hub() -> Iterator[None]:
    """gevent's hub, which its sockets make in this thread."""
    yield
    gevent.get_hub().destroy(destroy_loop=True)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("server", ["werkzeug", "gunicorn", "gevent"])
@pytest.mark.parametrize("library", [ssl, gevent.ssl], ids=["ssl", "gevent.ssl"])
def test_a_socket_that_carries_tls_is_refused_in_words(pair: Any, server: str, library: Any) -> None:
    context = library.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrapped = context.wrap_socket(pair[0], server_side=True, do_handshake_on_connect=False)
    with closing(wrapped), pytest.raises(RuntimeError, match="a proxy such as nginx that ends TLS"):
        find_server(environ_of(server, wrapped))


@pytest.mark.parametrize(
    ("server", "has_body_reader"), [("werkzeug", False), ("gunicorn", False), ("gevent", False), ("gevent", True)]
)
@pytest.mark.parametrize("default", [None, 5])
def test_the_servers_own_socket_stays_as_it_is_until_it_is_released(
    pair: Any, server: str, has_body_reader: bool, default: Any
) -> None:
    ours, theirs = pair
    if server == "gevent":
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
        if server == "gevent":
            getattr(environ["wsgi.input"], "rfile", environ["wsgi.input"]).close()


def test_a_server_that_is_not_known_is_told_which_are() -> None:
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

    class Quiet(WSGIRequestHandler):
        def log_message(self, *args: Any) -> None: ...

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
