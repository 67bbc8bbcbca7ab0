"""Werkzeug's development server, behind ``flask run``."""

from __future__ import annotations

from io import BufferedReader
from typing import TYPE_CHECKING, Any

from .base import SocketServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


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
