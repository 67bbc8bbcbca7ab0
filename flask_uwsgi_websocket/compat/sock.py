"""flask-sock's ``Sock``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, TypeVar

from flask import Blueprint, Flask, current_app

from ..connection.base import closing_of
from ..connection.blocking import WebSocketClient
from ..dispatch import RULE_OPTIONS, make_view
from ..state import RouteOptions
from .shared import DEFAULTS, SETTINGS, kin, prepare
from .simple_websocket import ConnectionClosed, Server

F = TypeVar("F", bound=Callable[..., Any])


class Sock:
    """flask-sock's extension.

    :param app: the app, unless :meth:`init_app` is called later.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self.app: Flask | None = None
        self.bp: Blueprint | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve the routes on *app*."""
        prepare(app, "flask-sock")
        if self.bp is not None:
            app.register_blueprint(self.bp)
        self.app = app

    def route(self, path: str, bp: Blueprint | None = None, **kwargs: Any) -> Callable[[F], F]:
        """Declare the handler of a URL. It gets a :class:`Server`, and the variables of the URL.

        :param bp: the blueprint to add the route to; None for the app.
        :param kwargs: options of :meth:`flask.Flask.route`.
        """

        def decorator(f: F) -> F:
            view = make_view(_make_handler(f), RouteOptions(SETTINGS, _defaults))
            target = bp or self.app
            if target is None:
                target = self.bp = self.bp or Blueprint("__flask_sock", __name__)
            if isinstance(target, Blueprint):
                target.record(lambda setup: prepare(setup.app, "flask-sock"))
            target.route(path, **{**kwargs, **RULE_OPTIONS})(view)
            return f

        return decorator


def _make_handler(f: Callable[..., Any]) -> Callable[..., None]:
    @wraps(f)
    def handler(connection: WebSocketClient, **values: Any) -> None:
        try:
            f(Server(connection), **values)
        except kin(ConnectionClosed, "simple_websocket"):  # also that of another connection
            pass
        except Exception as error:
            if connection.is_end(error):
                raise
            current_app.handle_user_exception(error)  # raises it unless the application has an error handler for it
            connection.close(*closing_of(error), wait=False)

    return handler


def _defaults(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return _defaults_of(**config.get("SOCK_SERVER_OPTIONS", {}))


def _defaults_of(
    subprotocols: str | Iterable[str] | None = None,
    ping_interval: float | None = None,
    max_message_size: int | None = None,
    receive_bytes: object = None,
    thread_class: object = None,
    event_class: object = None,
    selector_class: object = None,
) -> Mapping[str, Any]:
    """Return the settings for the parameters of ``simple_websocket.Server``. The last four have no effect."""
    defaults = dict(DEFAULTS)
    if subprotocols:
        defaults["subprotocols"] = [subprotocols] if isinstance(subprotocols, str) else list(subprotocols)
    if ping_interval:
        defaults.update(ping_interval=ping_interval, ping_timeout=ping_interval)
    if max_message_size:
        defaults["max_message_size"] = max_message_size
    return defaults
