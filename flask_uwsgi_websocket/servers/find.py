"""The servers in their order, and the choice of the one that serves a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..worker.admission import UNLIMITED, Capacity
from .base import Server
from .gevent import GeventServer
from .gunicorn import GunicornPywsgiServer, GunicornServer
from .uwsgi import UwsgiServer
from .werkzeug import WerkzeugServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: All servers. The first one whose ``serves()`` returns True is chosen.
SERVERS: tuple[type[Server], ...] = (UwsgiServer, WerkzeugServer, GunicornServer, GunicornPywsgiServer, GeventServer)


def find_server(environ: WSGIEnvironment) -> Server:
    """Return the server that serves the request of *environ*.

    :raises RuntimeError: when the server is unknown, or was started so that it cannot serve WebSockets.
    """
    server = _first_that_serves(environ)
    if server is not None:
        return server(environ)
    software = environ.get("SERVER_SOFTWARE", "without a name")
    raise RuntimeError(
        f"this server ({software}) does not lend its sockets, so it cannot serve WebSockets: run the app in uWSGI, "
        "with app.run() or the uwsgi command. For development, flask run, gunicorn and gevent's WSGIServer also work."
    )


def find_capacity(environ: WSGIEnvironment) -> Capacity:
    """Return how many requests the server of *environ* serves at once in this process; no limit if it is unknown."""
    server = _first_that_serves(environ)
    return UNLIMITED if server is None else server.capacity()


def prepare_parking(environ: WSGIEnvironment) -> None:
    """Prepare the server of *environ* for a connection that outlives its request."""
    server = _first_that_serves(environ)
    if server is not None:
        server.prepare_parking()


def prepare_servers() -> None:
    """Call :meth:`.Server.prepare` of every server. Called when an app is initialised."""
    for server in SERVERS:
        server.prepare()


def _first_that_serves(environ: WSGIEnvironment) -> type[Server] | None:
    for server in SERVERS:
        if server.serves(environ):
            return server
    return None
