"""Views for the tests of both forms: parked, and inside their request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from flask_uwsgi_websocket import AsyncioWebSocket, WebSocketBlueprint, WebSocketView
from support.inprocess import AwaitableClient, Site, run


def in_mode(site: Site, view: type[WebSocketView]) -> type[WebSocketView]:
    """Turn the coroutine functions of a view into plain methods, except in the asyncio modes."""
    if site.mode.extension is AsyncioWebSocket:
        return view

    def plain(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, ws, *args, **kwargs: run(method(self, AwaitableClient(ws), *args, **kwargs))

    methods = {name: getattr(view, name) for name in ("on_connect", "on_message", "on_close")}
    coroutines = {name: plain(method) for name, method in methods.items() if inspect.iscoroutinefunction(method)}
    return type(view.__name__, (view,), coroutines)


def serve(
    site: Site, view: type[WebSocketView], *args: Any, route: Mapping[str, Any] = MappingProxyType({}), **kwargs: Any
) -> None:
    """Serve a view at ``/<room>``. Its constructor gets the site, and the other arguments.

    :param route: options of the route.
    """
    chat = WebSocketBlueprint("chat", __name__)
    handler = in_mode(site, view).as_view("talk", site, *args, **kwargs)
    chat.add_websocket_rule("/<room>", handler=handler, **route)
    site.app.register_blueprint(chat)
