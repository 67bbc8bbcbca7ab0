"""Which server serves a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._uwsgi import uwsgi
from .base import Server
from .gevent import GeventServer
from .gunicorn import GunicornServer
from .uwsgi import UwsgiServer
from .werkzeug import WerkzeugServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment


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
