"""What the drop-ins share: the extension of their apps, the settings of their routes, the exceptions of others."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

from flask import Flask
from flask.sansio.app import App

from ..extension import WebSocket
from ..state import state_of

E = TypeVar("E", bound=Exception)

PAGE = "https://github.com/zeekay/flask-uwsgi-websocket/blob/HEAD/docs/migrating.md"

#: The settings of all routes: the handshake comes before the handler.
SETTINGS: Mapping[str, Any] = {"accept": "early"}

#: The values of settings that nobody gives. The originals check no origin, limit no message, and drop no client that
#: answers no ping. There is a limit nevertheless, because one message must not take all memory.
DEFAULTS: Mapping[str, Any] = {"origins": "*", "max_message_size": 64 * 2**20, "ping_timeout": None}


def prepare(app: App, package: str) -> None:
    """Give *app* an extension unless it has one, and log, once for each app, where the documentation goes on.

    :param package: the package whose interface the app uses.
    :raises TypeError: when the app's extension is for coroutine functions, or for handlers of another version.
    """
    state = state_of(app)
    if state.coroutines is None:
        assert isinstance(app, Flask)
        run = app.run
        WebSocket(app)  # in threads and in greenlets: a connection finds its loop by itself
        app.run = run  # type: ignore[method-assign]  # only an extension of the app's own changes how it is started
    elif state.coroutines:
        raise TypeError(f"the app {app.name!r} has an AsyncioWebSocket, but handlers of {package} are plain functions")
    if state.compatibility is not None:
        raise TypeError(
            f"the app {app.name!r} has WEBSOCKET_COMPATIBILITY, but handlers of {package} need other connections: "
            "make two apps of it"
        )
    if state.warned.is_first_time("drop-in", package):
        app.logger.warning(
            "The app uses the interface of %s. What differs, and how to move on: %s#from-%s. Pages of any origin may "
            "connect unless WEBSOCKET_ALLOWED_ORIGINS is set.",
            package,
            PAGE,
            package.lower(),
        )


def kin(ours: type[E], module: str) -> tuple[type[E], ...]:
    """Return *ours*, and the exception of the same name in another package if the application has imported that."""
    theirs = getattr(sys.modules.get(module), ours.__name__, None)
    return (ours, cast("type[E]", theirs)) if isinstance(theirs, type) and issubclass(theirs, Exception) else (ours,)


def raisable(ours: type[E], module: str) -> type[E]:
    """Return an exception that is caught as each of :func:`kin`, for code that goes on to import the other one."""
    return cast("type[E]", _union(kin(ours, module)))


@cache
def _union(classes: tuple[type[Exception], ...]) -> type[Exception]:
    ours = classes[0]
    return ours if len(classes) == 1 else type(ours.__name__, classes, {"__module__": ours.__module__})
