"""uWSGI: https://uwsgi-docs.readthedocs.io/en/latest/PythonModule.html

This module has the socket and the capacity. :mod:`.uwsgi_worker` has the event loop and the end of a worker.
"""

from __future__ import annotations

import os
import select
from _socket import socket as RawSocket  # gevent replaces socket.socket by a class whose recv() waits
from _socket import socketpair
from contextlib import suppress
from fcntl import ioctl
from functools import cache
from termios import FIONREAD
from typing import TYPE_CHECKING

from werkzeug.exceptions import BadRequest

from .._uwsgi import uwsgi
from ..loops.base import allocate_lock, original
from ..loops.parking import IS_AVAILABLE
from ..worker.admission import Capacity
from .base import EARLY_DATA, Server
from .uwsgi_worker import handle_signals_in_gevent, prepare_workers, wait_in_threads

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class UwsgiServer(Server):
    """uWSGI, with any loop engine.

    Use an instance in the thread or greenlet that serves the request, because uWSGI finds the request by it.
    """

    @classmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether uWSGI runs this process."""
        return uwsgi is not None

    @classmethod
    def capacity(cls) -> Capacity:
        """Return how many cores this worker has. With threads, each core waits for requests with its own descriptor."""
        has_loop = uwsgi.loop in {b"gevent", b"asyncio"}
        parks = IS_AVAILABLE and (has_loop or (uwsgi.has_threads and "async" not in uwsgi.opt))
        return Capacity(uwsgi.cores, 0 if has_loop else 1, parks)

    @classmethod
    def prepare(cls) -> None:
        """Prepare every worker after its fork. Does nothing outside of uWSGI."""
        prepare_workers()

    @classmethod
    def prepare_parking(cls) -> None:
        """Let the exit of a worker with threads wait for its connections."""
        wait_in_threads()

    def __init__(self, environ: WSGIEnvironment) -> None:
        options = uwsgi.opt
        if environ.get("UWSGI_ROUTER") == "http":
            if options.keys() & {"http", "https"} and not options.keys() & {"http-websockets", "http-raw-body"}:
                raise RuntimeError(
                    "uWSGI's HTTP router drops the frames of WebSockets: start uwsgi with --http-websockets"
                )
        elif "HTTPS" in environ and "https-socket" in options:
            raise RuntimeError(
                "uWSGI gives no access to the TLS of --https-socket, so a WebSocket cannot use its connections: "
                "use the --https router, or a proxy such as nginx that terminates TLS before uWSGI"
            )
        self._fd: int = uwsgi.connection_fd()

    def watch(self) -> None:
        """Prepare the end of the worker again, because the application may have replaced uWSGI's hooks."""
        handle_signals_in_gevent()

    def open(self) -> RawSocket:
        """Duplicate ``uwsgi.connection_fd()``."""
        _null_device()
        _silent_socket()
        sock = RawSocket(fileno=os.dup(self._fd))
        sock.settimeout(0)  # socket.setdefaulttimeout() may have changed it
        if _has_data(sock) or self._has_read_data(sock):
            sock.close()
            raise BadRequest(EARLY_DATA)
        return sock

    def _has_read_data(self, sock: RawSocket) -> bool:
        """Return whether uWSGI's own buffer has data beyond the request, which uWSGI never returns.

        ``chunked_read_nb()`` reads the buffer and then the socket. A silent socket takes the place of the client's
        socket during the call, so that the duplicate still gets all later input. The call returns None when it finds
        EAGAIN in errno. That may be stale, so another error is put into errno first. Data that may begin the length of
        a chunk looks like no data. Of all frames, this applies only to a lone first byte of a compressed fragment.
        """
        os.dup2(_silent_socket().fileno(), self._fd, inheritable=False)
        os.isatty(-1)
        try:
            return uwsgi.chunked_read_nb() is not None
        except OSError:
            return True
        finally:
            os.dup2(sock.fileno(), self._fd, inheritable=False)

    def release(self) -> None:
        """Let uWSGI write its response to the null device, so that its access log has the right status.

        Unless the connection outlives its request, uWSGI's own descriptor is its last one. To replace it closes the
        connection.
        """
        if uwsgi.loop == b"gevent":
            _forget_in_hub(self._fd)
        os.dup2(_null_device(), self._fd, inheritable=False)


def _forget_in_hub(fd: int) -> None:
    """Remove *fd* from the epoll of gevent's hub, which keeps what is replaced as long as a duplicate is open.

    libev would make another epoll for all descriptors when it is told of input on a descriptor that it does not know.
    """
    from gevent import get_hub

    hub_fd = get_hub().loop.fileno()
    if hub_fd is not None:
        with suppress(OSError):  # fd is not there, or the hub uses something else
            _epoll_of(hub_fd).unregister(fd)


@cache
def _epoll_of(hub_fd: int) -> select.epoll:
    """Return an object for the epoll of a hub. It is kept, because its end would close the descriptor."""
    epoll: select.epoll = original("select", "epoll").fromfd(hub_fd)
    return epoll


def _has_data(sock: RawSocket) -> bool:
    """Return whether *sock* has data to read."""
    # Not recv(), because the exception that it would raise costs much more.
    return ioctl(sock.fileno(), FIONREAD, _NOTHING) != _NOTHING


_NOTHING = bytes(4)  # a C int, which is 0


def _silent_socket() -> RawSocket:
    """Return a socket that never gets any data, so that reading it fails with EAGAIN."""
    with _opening:
        return _open_silent_sockets()[0]


@cache
def _open_silent_sockets() -> tuple[RawSocket, RawSocket]:
    pair = socketpair()
    pair[0].setblocking(False)
    return pair


def _null_device() -> int:
    """Return a descriptor of the null device. It is opened early, because release() must not fail."""
    with _opening:
        return _open_null_device()


@cache
def _open_null_device() -> int:
    return os.open(os.devnull, os.O_RDWR)


_opening = allocate_lock()  # otherwise two threads that come first at once would each open one
