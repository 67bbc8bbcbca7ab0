"""uWSGI: https://uwsgi-docs.readthedocs.io/en/latest/PythonModule.html

This module has the socket and the capacity. :mod:`.uwsgi_worker` has the life and the end of uWSGI's workers.
"""

from __future__ import annotations

import os
import socket
from _socket import socket as RawSocket  # gevent replaces socket.socket by one whose recv() waits
from _socket import socketpair
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from werkzeug.exceptions import BadRequest

from .._uwsgi import uwsgi
from ..loops.base import allocate_lock
from ..worker.admission import Capacity
from .base import EARLY_DATA, Server
from .uwsgi_worker import handle_signals_in_gevent, prepare_workers

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class UwsgiServer(Server):
    """uWSGI, in each of its loop engines.

    Use it from the thread or greenlet that serves the request: uWSGI finds the request by it.
    """

    @classmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether this process is uWSGI's."""
        return uwsgi is not None

    @classmethod
    def capacity(cls) -> Capacity:
        """Return how many cores this worker has. Each thread waits for requests with a descriptor of its own."""
        return Capacity(uwsgi.cores, descriptors_per_core=0 if uwsgi.loop in {b"gevent", b"asyncio"} else 1)

    @classmethod
    def prepare(cls) -> None:
        """Prepare every worker, after its fork, if this is uWSGI's process."""
        prepare_workers()

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

    def watch(self) -> None:
        """Hear of the worker's end in gevent, in case the application has replaced uWSGI's ``post_fork_hook``."""
        handle_signals_in_gevent()

    def open(self) -> RawSocket:
        """Duplicate ``uwsgi.connection_fd()``."""
        _null_device()
        _silent_socket()
        sock = RawSocket(fileno=os.dup(self._fd))
        sock.settimeout(0)  # whatever socket.setdefaulttimeout() says
        if _has_data(sock) or self._has_read_data(sock):
            sock.close()
            raise BadRequest(EARLY_DATA)
        return sock

    def _has_read_data(self, sock: RawSocket) -> bool:
        """Return whether uWSGI has read more than the request into its own buffer, which it does not give back.

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
    """Return whether there is something to be read from *sock*, which does not block."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:  # nothing yet; or a reset, which the next read finds
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
