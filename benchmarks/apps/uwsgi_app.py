"""uWSGI's C API in a bare WSGI function under gevent: no framework, and no Python code around a message.

The API cannot distinguish text from binary, so this app sends everything as text. `websocket_recv` waits in gevent's
hub.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import uwsgi


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    uwsgi.websocket_handshake(environ["HTTP_SEC_WEBSOCKET_KEY"])
    try:
        while True:
            uwsgi.websocket_send(uwsgi.websocket_recv())
    except OSError:  # the client has closed
        return []
