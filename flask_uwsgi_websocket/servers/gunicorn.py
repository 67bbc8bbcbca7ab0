"""gunicorn, with threads (``gthread``) or gevent: https://docs.gunicorn.org/en/stable/design.html

A gunicorn worker waits for its requests before it exits, and each WebSocket is one. So once a second this module checks
whether the worker is about to end, and then closes its connections. The worker does not know whether another one takes
its place.
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

#: Seconds between two checks whether the worker is about to end.
CHECK_INTERVAL = 1.0

#: Seconds within which a worker that is about to end stops accepting. Then new clients reach another worker.
ACCEPTING_TIME = 1.0


class GunicornServer(SocketServer):
    """gunicorn with its own request handling, in threads or in gevent's greenlets."""

    @classmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether gunicorn has put the socket into the environ."""
        return "gunicorn.socket" in environ

    @classmethod
    def capacity(cls) -> Capacity:
        """Return how many threads or greenlets this worker has; no limit when the worker is not found."""
        worker = gunicorn_worker()
        if worker is None:
            return UNLIMITED
        has_threads = hasattr(worker, "tpool")
        return Capacity(worker.cfg.threads if has_threads else worker.cfg.worker_connections)  # greenlets, in gevent

    def __init__(self, environ: WSGIEnvironment) -> None:
        if not environ["wsgi.multithread"]:
            raise RuntimeError(
                "a sync worker of gunicorn serves one request at a time, and gunicorn kills it when a request takes "
                "longer than --timeout: start gunicorn with --threads 100, or with --worker-class gevent"
            )
        super().__init__(environ["gunicorn.socket"])
        self._body: Any = environ["wsgi.input"]

    def watch(self) -> None:
        """Close the connections when this worker is about to end."""
        watch_worker()

    def _has_early_data(self) -> bool:
        """Return whether the buffer of the request's body has data."""
        unreader = getattr(getattr(self._body, "reader", None), "unreader", None)
        return unreader is not None and bool(unreader.buf.getvalue())


class GunicornPywsgiServer(GeventServer):
    """gevent's server in a worker of gunicorn: ``--worker-class gevent_pywsgi``."""

    @classmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether gunicorn's subclass of gevent's server serves the request."""
        return "gunicorn.sock" in environ and super().serves(environ)

    @classmethod
    def capacity(cls) -> Capacity:
        """Return how many greenlets this worker has."""
        return GunicornServer.capacity()

    def watch(self) -> None:
        """Close the connections when this worker is about to end."""
        watch_worker()


def gunicorn_worker() -> Any:
    """Return gunicorn's worker object, whose methods handle the signals; None outside of a gunicorn worker."""
    base: Any = sys.modules.get("gunicorn.workers.base")
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if base is not None and isinstance(worker, base.Worker) else None


@cache
def watch_worker() -> None:
    """Close the connections when this worker is about to end, at the latest when the interpreter exits."""
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
