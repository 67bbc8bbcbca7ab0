"""Where each WSGI server keeps the socket of a request, and how it is told that the socket is gone.

The frames of a WebSocket go over a duplicate of the request's own socket, past the server. When they are done,
the server still wants to write a response: for its access log that is right, for the client it must not happen.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from _socket import socket as RawSocket  # gevent replaces socket.socket by one whose recv() waits
from _socket import socketpair
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from io import BufferedReader
from typing import TYPE_CHECKING, Any, Protocol

from werkzeug.exceptions import BadRequest

from .loops import allocate_lock

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: uWSGI's own module, or None outside uWSGI. It is there before any application is loaded; to import it could find
#: a project's own ``uwsgi.py`` elsewhere.
uwsgi: Any = sys.modules.get("uwsgi")
if not hasattr(uwsgi, "connection_fd"):
    uwsgi = None


def option_values(options: Mapping[str, Any], name: str) -> list[Any]:
    """Return all values of one of uWSGI's options, in their order."""
    value = options.get(name, [])
    return [
        each.decode() if isinstance(each, bytes) else each for each in (value if isinstance(value, list) else [value])
    ]


def option(options: Mapping[str, Any], name: str) -> Any:
    """Return the value of one of uWSGI's options, the last one if it was given several times; None if it was not."""
    return next(reversed(option_values(options, name)), None)


def number_option(options: Mapping[str, Any], name: str, default: int) -> int:
    """Return the number to which one of uWSGI's options is set, read as C's ``atoi()`` does."""
    match = re.match(r"\s*(\d+)", str(option(options, name)))
    return int(match[1]) if match else default


_EARLY_DATA = "A client must wait for the answer to its handshake (RFC 6455 section 4.1)."


class Server(Protocol):
    """How a server lends the socket of one request."""

    def open(self) -> RawSocket:
        """Return a duplicate of the request's socket, to be closed by the caller.

        It may be blocking or not: use ``MSG_DONTWAIT``.

        :raises BadRequest: when the client has sent data that the duplicate would not give.
        :raises OSError: when this process may open no more files.
        """

    def release(self) -> None:
        """Keep the response that is still to come from the client; the duplicate is closed already."""


class UwsgiServer:
    """uWSGI: https://uwsgi-docs.readthedocs.io/en/latest/PythonModule.html

    To be used from the thread or greenlet that serves the request: uWSGI finds the request by it.
    """

    def __init__(self, environ: WSGIEnvironment) -> None:
        options = uwsgi.opt
        if environ.get("UWSGI_ROUTER") == "http":
            if options.keys() & {"http", "https"} and not options.keys() & {"http-websockets", "http-raw-body"}:
                raise RuntimeError("uWSGI's HTTP router drops what a WebSocket sends: add --http-websockets")
        elif "HTTPS" in environ and "https-socket" in options:
            raise RuntimeError(
                "uWSGI keeps the TLS of --https-socket to itself, so a WebSocket cannot use its connections: "
                "use the --https router, or a proxy such as nginx that ends TLS before uWSGI"
            )
        self._fd: int = uwsgi.connection_fd()

    def open(self) -> RawSocket:
        """Duplicate ``uwsgi.connection_fd()``."""
        _null_device()
        _silent_socket()
        sock = RawSocket(fileno=os.dup(self._fd))
        sock.settimeout(0)  # whatever socket.setdefaulttimeout() says
        if _has_data(sock) or self._has_read_data(sock):
            sock.close()
            raise BadRequest(_EARLY_DATA)
        return sock

    def _has_read_data(self, sock: RawSocket) -> bool:
        """Tell whether uWSGI has read more than the request into its own buffer, which it does not give back.

        ``chunked_read_nb()`` looks there, and then at the socket, whose place is taken by one that is silent: what
        happens to the client's meanwhile is for the duplicate to find. It returns None when it then finds EAGAIN in
        errno, which may be a stale one, so another error is put there first. What could be the beginning of a chunk's
        length is not told from nothing; of frames, only a lone first byte of a compressed fragment is.
        """
        os.dup2(_silent_socket().fileno(), self._fd, inheritable=False)
        with suppress(OSError):
            os.lseek(-1, 0, os.SEEK_CUR)
        try:
            return uwsgi.chunked_read_nb() is not None
        except OSError:
            return True
        finally:
            os.dup2(sock.fileno(), self._fd, inheritable=False)

    def release(self) -> None:
        """Let uWSGI write its response to the null device, which gives its access log the right status.

        Its own copy of the descriptor is the last one: replacing it closes the connection.
        """
        os.dup2(_null_device(), self._fd, inheritable=False)


def _has_data(sock: RawSocket) -> bool:
    """Tell whether there is something to be read from *sock*, which does not block."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:  # nothing yet; or a reset, which whoever reads will find
        return False


def _silent_socket() -> RawSocket:
    """Return a socket to whose peer nobody ever writes, so that reading fails with EAGAIN."""
    with _opening:
        return _open_silent_sockets()[0]


@cache
def _open_silent_sockets() -> tuple[RawSocket, RawSocket]:
    pair = socketpair()
    pair[0].setblocking(False)
    return pair


def _null_device() -> int:
    """Return a descriptor of the null device, opened before one is needed in a hurry."""
    with _opening:
        return _open_null_device()


@cache
def _open_null_device() -> int:
    return os.open(os.devnull, os.O_RDWR)


_opening = allocate_lock()  # of two threads that are the first, each would open its own


class SocketServer:
    """What the servers that are written in Python have in common: the socket itself, with its buffers.

    :param sock: the socket of the request.
    :raises RuntimeError: when it carries TLS.
    """

    def __init__(self, sock: socket.socket) -> None:
        if hasattr(sock, "getpeercert"):  # the standard library's or gevent's
            raise RuntimeError(
                "this server ends TLS itself, so a WebSocket cannot use its connections: start it without a "
                "certificate, behind a proxy such as nginx that ends TLS"
            )
        self._socket = sock

    def open(self) -> RawSocket:
        """Duplicate the server's socket."""
        if self._has_early_data():
            raise BadRequest(_EARLY_DATA)
        fd = os.dup(self._socket.fileno())
        is_blocking = os.get_blocking(fd)  # for the server's socket, too
        sock = RawSocket(fileno=fd)
        sock.setblocking(is_blocking)  # whatever socket.setdefaulttimeout() says
        return sock

    def _has_early_data(self) -> bool:
        """Tell whether the server has read more than the request into its buffer."""
        raise NotImplementedError

    def _has_read(self, reader: BufferedReader) -> bool:
        """Tell whether there is something in the buffer of *reader*, or in the socket that it reads."""
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0)  # an empty buffer would be filled
        try:
            return bool(reader.peek())
        except OSError:  # a reset, which whoever reads will find
            return False
        finally:
            self._socket.settimeout(timeout)

    def release(self) -> None:
        """Shut the connection down: the server takes its response for a client that has left."""
        with suppress(OSError):  # the client may have been faster
            self._socket.shutdown(socket.SHUT_RDWR)


class WerkzeugServer(SocketServer):
    """Werkzeug's development server (``flask run``), and whatever else puts a ``werkzeug.socket`` into the environ."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        if not environ["wsgi.multithread"] and not environ["wsgi.multiprocess"]:
            raise RuntimeError(
                "this server serves one request at a time, so that a WebSocket would hold up all others: start it "
                "with threads, flask run without --without-threads"
            )
        super().__init__(environ["werkzeug.socket"])
        self._input: Any = environ["wsgi.input"]

    def _has_early_data(self) -> bool:
        return isinstance(self._input, BufferedReader) and self._has_read(self._input)


class GunicornServer(SocketServer):
    """gunicorn, with threads (``gthread``) or gevent: https://docs.gunicorn.org/en/stable/design.html"""

    def __init__(self, environ: WSGIEnvironment) -> None:
        if not environ["wsgi.multithread"]:
            raise RuntimeError(
                "a sync worker of gunicorn serves one request at a time, and is killed when that takes longer than "
                "its --timeout: start gunicorn with --threads 100, or with --worker-class gevent"
            )
        super().__init__(environ["gunicorn.socket"])
        self._body: Any = environ["wsgi.input"]

    def _has_early_data(self) -> bool:
        """Look into the buffer from which the body would be read, if there were one."""
        unreader = getattr(getattr(self._body, "reader", None), "unreader", None)
        return unreader is not None and bool(unreader.buf.getvalue())


class GeventServer(SocketServer):
    """gevent's ``pywsgi.WSGIServer``, whose environ has the socket behind its input only."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        reader: Any = environ["wsgi.input"]  # buffered, or a reader of bodies around such a one
        self._reader = getattr(reader, "rfile", reader)
        super().__init__(self._reader.raw._sock)

    def _has_early_data(self) -> bool:
        return self._has_read(self._reader)


def find_server(environ: WSGIEnvironment) -> Server:
    """Return the server that serves the request of *environ*.

    :raises RuntimeError: when it is none that is known, or cannot serve a WebSocket as it was started.
    """
    if uwsgi is not None:
        return UwsgiServer(environ)
    if "werkzeug.socket" in environ:
        return WerkzeugServer(environ)
    if "gunicorn.socket" in environ:
        return GunicornServer(environ)
    software = environ.get("SERVER_SOFTWARE", "it has no name")
    if software.startswith("gevent/"):
        return GeventServer(environ)
    raise RuntimeError(
        f"this server ({software}) does not lend its sockets, so it cannot serve WebSockets: run the app in uWSGI, "
        "with app.run() or the uwsgi command. To develop, flask run, gunicorn and gevent's WSGIServer will do, too."
    )


def gunicorn_worker() -> Any:
    """Return the worker of gunicorn that this process is, or None elsewhere: its methods handle the signals."""
    base: Any = sys.modules.get("gunicorn.workers.base")
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if base is not None and isinstance(worker, base.Worker) else None
