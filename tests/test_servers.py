"""What uWSGI is asked and told, with a stand-in for its module; the live tests ask uWSGI itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.exceptions import BadRequest

from flask_uwsgi_websocket import servers


class Uwsgi:
    """What the module ``uwsgi`` tells of one request, whose client is :attr:`client`."""

    def __init__(self) -> None:
        self.client, own = socket.socketpair()
        self.fd = own.detach()
        self.opt: dict[str, bytes] = {}
        self.early: bytes | OSError | None = None

    def connection_fd(self) -> int:
        return self.fd

    def chunked_read_nb(self) -> bytes | None:
        if isinstance(self.early, OSError):
            raise self.early
        return self.early


@pytest.fixture
def uwsgi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Uwsgi]:
    """A request of uWSGI's."""
    servers._null_device()  # which is kept for good
    uwsgi = Uwsgi()
    monkeypatch.setattr(servers, "uwsgi", uwsgi)
    yield uwsgi
    os.close(uwsgi.fd)
    uwsgi.client.close()


def test_the_duplicate_is_the_requests_connection_and_outlives_it(uwsgi: Uwsgi) -> None:
    server = servers.find_server({})
    sock = server.open()
    assert sock.fileno() != uwsgi.fd
    sock.send(b"to the client")
    assert uwsgi.client.recv(100) == b"to the client"
    sock.close()
    server.release()
    assert uwsgi.client.recv(100) == b""  # it has ended
    os.write(uwsgi.fd, b"HTTP/1.1 101 ...")  # and what uWSGI still writes goes nowhere
    assert os.fstat(uwsgi.fd).st_rdev == os.stat(os.devnull).st_rdev
    assert not os.get_inheritable(uwsgi.fd)


def test_the_duplicate_never_waits_whatever_the_default_timeout_is(
    uwsgi: Uwsgi, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    try:
        sock = servers.find_server({}).open()
    finally:
        socket.setdefaulttimeout(default)
    assert sock.gettimeout() == 0
    with pytest.raises(BlockingIOError):
        sock.recv(1, socket.MSG_DONTWAIT)
    sock.close()


@pytest.mark.parametrize("early", [b"", b"\x81\x85", OSError("unable to receive chunked part")], ids=repr)
def test_data_that_uwsgi_may_have_taken_with_the_request_is_refused(uwsgi: Uwsgi, early: Any) -> None:
    uwsgi.early = early
    with pytest.raises(BadRequest, match="A client must wait for the answer to its handshake"):
        servers.find_server({}).open()


@pytest.mark.parametrize(
    ("environ", "options", "remedy"),
    [
        ({"HTTPS": "on"}, {"https-socket": b":443"}, "use the --https router, or a proxy"),
        ({"UWSGI_ROUTER": "http"}, {"http": b":80"}, "add --http-websockets"),
        ({"UWSGI_ROUTER": "http", "HTTPS": "on"}, {"https": b":443"}, "add --http-websockets"),
    ],
)
def test_a_front_that_cannot_carry_websockets_is_told_so(
    uwsgi: Uwsgi, environ: dict[str, Any], options: dict[str, bytes], remedy: str
) -> None:
    uwsgi.opt = options
    with pytest.raises(RuntimeError, match=remedy):
        servers.find_server(environ)


@pytest.mark.parametrize(
    ("environ", "options"),
    [
        ({}, {"http-socket": b":80"}),
        ({}, {"https-socket": b":443", "http-socket": b":80"}),
        ({"HTTPS": "on"}, {"socket": b"/nginx.sock"}),
        ({"UWSGI_ROUTER": "http"}, {"http": b":80", "http-websockets": b""}),
        ({"UWSGI_ROUTER": "http"}, {"http": b":80", "http-raw-body": b""}),
        ({"UWSGI_ROUTER": "http"}, {"http-socket": b":80"}),  # the router is another process
        ({"werkzeug.socket": None}, {}),
    ],
)
def test_any_other_front_carries_them(uwsgi: Uwsgi, environ: dict[str, Any], options: dict[str, bytes]) -> None:
    uwsgi.opt = options
    assert isinstance(servers.find_server(environ), servers.UwsgiServer)
