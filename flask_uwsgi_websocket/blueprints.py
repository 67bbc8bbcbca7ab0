"""WebSocketBlueprint: a Flask blueprint with WebSocket routes, hooks and listeners."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, overload
from weakref import WeakSet

from flask import Blueprint
from flask.sansio.app import App
from flask.sansio.blueprints import BlueprintSetupState

from .dispatch import Views
from .hooks import AppRegistrar, F
from .rooms.rooms import Rooms, Slow
from .settings import suggesting_settings
from .state import state_of
from .typing import AsyncioClient, AsyncioHandler, AwaitableR, Client, Handler, HandlerDecorator, P, R


class _SetupState(BlueprintSetupState):
    """One registration of a blueprint. It explains wrong options of WebSocket routes."""

    def add_url_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        view_func: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        with suggesting_settings(options if options.get("websocket") else ()):
            super().add_url_rule(rule, endpoint, view_func, **options)


class WebSocketBlueprint(AppRegistrar, Blueprint):
    """A Flask blueprint that may also have WebSocket routes.

    ::

        chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")

        @chat.websocket("/<room>")
        def talk(ws, room):
            for message in ws:
                ws.send(message)

        app.register_blueprint(chat)

    Prefixes, subdomains, nesting, URL processors, several registrations and several apps work as in Flask. The app
    needs ``init_app()`` of one of the extensions, before or after the registration. Hooks and listeners apply to the
    connections of this blueprint and of the blueprints nested in it.
    """

    @cached_property
    def _views(self) -> Views:
        return Views()

    def rooms(self, namespace: str | None = None, *, slow: Slow = "close") -> Rooms:
        """Return the rooms of this blueprint: ``rooms["lobby"]`` is the room ``chat:lobby`` of the blueprint "chat".

        :param namespace: what the names of the rooms begin with, instead of the blueprint's name.
        :param slow: what becomes of a member that does not read fast enough: ``"close"`` or ``"skip"``; see
            :class:`.Rooms`.
        :raises ValueError: when the blueprint is registered on an app that has such a namespace already.
        """
        apps: WeakSet[Any] = WeakSet()
        rooms = Rooms(namespace or self.name, slow, apps=apps)

        def add(setup: BlueprintSetupState) -> None:
            apps.add(setup.app)
            state_of(setup.app).add_rooms(rooms.namespace, rooms)

        self.record(add)
        return rooms

    def register(self, app: App, options: dict[str, Any]) -> None:
        """Register the blueprint. Called by Flask."""
        # A plain parent that the extension registers makes WebSockets of its own views, not of those of this blueprint.
        super().register(getattr(app, "flask_app", app), options)

    def make_setup_state(
        self, app: App, options: dict[str, Any], first_registration: bool = False
    ) -> BlueprintSetupState:
        """Return the state of one registration. Called by Flask."""
        return _SetupState(self, app, options, first_registration)

    def websocket(self, rule: str, **options: Any) -> HandlerDecorator:
        """Declare the handler of a URL.

        :param rule: the URL rule, as in :meth:`flask.Flask.route`. Its variables are passed to the handler.
        :param options: ``endpoint``; settings of this route, such as ``subprotocols``, ``origins`` or
            ``max_message_size`` (see :class:`~flask_uwsgi_websocket.settings.Settings`); and options of Werkzeug's
            rule, such as ``defaults`` or ``subdomain``.
        """
        endpoint = options.pop("endpoint", None)

        def decorator(handler: F) -> F:
            self.add_websocket_rule(rule, endpoint, handler, **options)
            return handler

        return decorator

    @overload
    def add_websocket_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        handler: Handler[Client, P, R] | None = None,
        **options: Any,
    ) -> None: ...
    @overload
    def add_websocket_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        handler: AsyncioHandler[AsyncioClient, P, AwaitableR] | None = None,
        **options: Any,
    ) -> None: ...
    def add_websocket_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        handler: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        """Declare the handler of a URL; see :meth:`websocket`.

        :param handler: the function to call with the client and the variables of the URL; a coroutine function in the
            asyncio mode.
        :raises TypeError: when the handler is missing, or an option has the wrong type.
        :raises ValueError: when an option has an invalid value.
        """
        if handler is None:
            raise TypeError("a WebSocket rule needs its handler: add_websocket_rule(rule, endpoint, handler)")
        endpoint = endpoint or handler.__name__
        view, options = self._views.make(endpoint, handler, options)
        self.add_url_rule(rule, endpoint, view, **options)
        self.record_once(lambda setup: state_of(setup.app).add_handler(handler))

    def _add(self, kind: str, function: F) -> F:
        def add(setup: BlueprintSetupState) -> None:
            full_name = f"{setup.name_prefix}.{setup.name}".lstrip(".")
            state_of(setup.app).add(kind, full_name, function)

        self.record(add)
        return function

    def _add_for_app(self, kind: str, function: F) -> F:
        self.record_once(lambda setup: state_of(setup.app).add(kind, None, function))
        return function
