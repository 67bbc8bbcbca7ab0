"""Werkzeug's development server, behind ``flask run``.

With its reloader, ``flask run`` exits with code 3 to get restarted.
"""

from __future__ import annotations

import signal
import sys
from io import BufferedReader
from typing import TYPE_CHECKING, Any

import click
from flask.cli import run_command

from .base import SocketServer
from .ending import close_connections

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: The exit code with which Werkzeug's reloader asks its parent for another process.
_RELOAD_CODE = 3


class WerkzeugServer(SocketServer):
    """Werkzeug's development server (``flask run``), and any server that puts ``werkzeug.socket`` into the environ."""

    @classmethod
    def serves(cls, environ: WSGIEnvironment) -> bool:
        """Return whether the server has put the socket into the environ."""
        return "werkzeug.socket" in environ

    @classmethod
    def prepare(cls) -> None:
        """Close the connections at the end of ``flask run``. Does nothing in other processes."""
        context = click.get_current_context(silent=True)
        if context is None or context.command is not run_command:
            return
        context.call_on_close(_end_command)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # the default would end the process at once
            signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit())  # as Werkzeug does with its reloader

    def __init__(self, environ: WSGIEnvironment) -> None:
        if not environ["wsgi.multithread"] and not environ["wsgi.multiprocess"]:
            raise RuntimeError(
                "this server serves one request at a time, so a WebSocket would block all others: start it with "
                "threads, for example flask run without --without-threads"
            )
        super().__init__(environ["werkzeug.socket"])
        self._input: Any = environ["wsgi.input"]

    def _has_early_data(self) -> bool:
        return isinstance(self._input, BufferedReader) and self._has_read(self._input)


def _end_command() -> None:
    error = sys.exc_info()[1]  # the exception that ends the command
    close_connections(restarts=isinstance(error, SystemExit) and error.code == _RELOAD_CODE)
