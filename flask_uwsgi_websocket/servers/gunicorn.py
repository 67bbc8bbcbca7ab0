"""gunicorn, with threads (``gthread``) or gevent: https://docs.gunicorn.org/en/stable/design.html

A worker of gunicorn waits for its requests, of which each WebSocket is one, before it exits. So we look once a second
whether it is about to end, and close its connections then. It does not know whether another worker takes its place.
"""

from __future__ import annotations

import signal
import sys
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from ..loops.base import BlockingLoop, run
from ..loops.current import current_blocking_loop
from ..loops.greenlets import is_in_gevent
from ..loops.threads import ThreadLoop
from ..worker.admission import UNLIMITED, Capacity
from .base import SocketServer
from .ending import close_at_exit, close_connections
from .gevent import GeventServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: Seconds between two looks whether a worker is to end.
CHECK_INTERVAL = 1.0

#: Seconds within which a worker that is to end has noticed it, too, and accepts no more: new clients reach another one.
ACCEPTING_TIME = 1.0


class GunicornServer(SocketServer):
    """gunicorn's own handling of requests, in threads or in gevent's greenlets."""

    @classmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether gunicorn has put the socket into the environ."""
        return "gunicorn.socket" in environ

    @classmethod
    def capacity(cls) -> Capacity:
        """Return how many threads or greenlets this worker has; any number when the worker is not found."""
        worker = gunicorn_worker()
        if worker is None:
            return UNLIMITED
        has_threads = hasattr(worker, "tpool")
        return Capacity(worker.cfg.threads if has_threads else worker.cfg.worker_connections)  # those of gevent

    def __init__(self, environ: WSGIEnvironment) -> None:
        if not environ["wsgi.multithread"]:
            raise RuntimeError(
                "a sync worker of gunicorn serves one request at a time, and is killed when that takes longer than "
                "its --timeout: start gunicorn with --threads 100, or with --worker-class gevent"
            )
        super().__init__(environ["gunicorn.socket"])
        self._body: Any = environ["wsgi.input"]

    def watch(self) -> None:
        """Close the connections when this worker is about to end."""
        watch_worker()

    def _has_early_data(self) -> bool:
        """Look into the buffer from which the body would be read, if there were one."""
        unreader = getattr(getattr(self._body, "reader", None), "unreader", None)
        return unreader is not None and bool(unreader.buf.getvalue())


class GunicornPywsgiServer(GeventServer):
    """gevent's server in a worker of gunicorn: ``--worker-class gevent_pywsgi``."""

    @classmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether gunicorn's variant of gevent's server has the request."""
        return "gunicorn.sock" in environ and super().serves(environ)

    @classmethod
    def capacity(cls) -> Capacity:
        """Return how many greenlets this worker has."""
        return GunicornServer.capacity()

    def watch(self) -> None:
        """Close the connections when this worker is about to end."""
        watch_worker()


def gunicorn_worker() -> Any:
    """Return the worker of gunicorn that this process is, or None elsewhere: its methods handle the signals."""
    base: Any = sys.modules.get("gunicorn.workers.base")
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if base is not None and isinstance(worker, base.Worker) else None


@cache
def watch_worker() -> None:
    """Close the connections of this worker when it is about to end, and at the latest when the interpreter exits."""
    close_at_exit(_is_worker)
    worker = gunicorn_worker()
    if worker is not None:
        loop = current_blocking_loop() if is_in_gevent() else ThreadLoop()
        loop.run_every(CHECK_INTERVAL, partial(_go_on_or_end, worker, loop))


def _is_worker() -> bool:
    return gunicorn_worker() is not None


def _go_on_or_end(worker: Any, loop: BlockingLoop) -> float | None:
    if worker.alive:
        return CHECK_INTERVAL
    run(loop.sleep(ACCEPTING_TIME))
    close_connections(restarts=True, mercy=worker.cfg.graceful_timeout)
    return None
