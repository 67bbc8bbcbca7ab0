"""gunicorn, with threads (``gthread``) or gevent: https://docs.gunicorn.org/en/stable/design.html"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

from .base import SocketServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


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


def gunicorn_worker() -> Any:
    """Return the worker of gunicorn that this process is, or None elsewhere: its methods handle the signals."""
    base: Any = sys.modules.get("gunicorn.workers.base")
    worker = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return worker if base is not None and isinstance(worker, base.Worker) else None
