"""gevent's server: https://www.gevent.org/api/gevent.pywsgi.html

The process ends with the script that has started the server, after ``WSGIServer.stop()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import SocketServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


class GeventServer(SocketServer):
    """gevent's ``pywsgi.WSGIServer``. The socket is only reachable through ``wsgi.input``."""

    @classmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether the server calls itself gevent."""
        return str(environ.get("SERVER_SOFTWARE", "")).startswith("gevent/")

    def __init__(self, environ: WSGIEnvironment) -> None:
        reader: Any = environ["wsgi.input"]  # a buffered reader, or a reader of bodies around one
        self._reader = getattr(reader, "rfile", reader)
        super().__init__(self._reader.raw._sock)

    def _has_early_data(self) -> bool:
        return self._has_read(self._reader)
