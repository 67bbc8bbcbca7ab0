"""WebSocketBlueprint: a Flask blueprint with WebSocket routes, hooks and listeners. Plain blueprints with handlers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, cast, overload
from weakref import WeakSet

from flask import Blueprint, Flask
from flask.sansio.app import App
from flask.sansio.blueprints import BlueprintSetupState

from .dispatch import Views
from .hooks import AppRegistrar, F
from .rooms.rooms import HISTORY_SIZE, HISTORY_TTL, PRESENCE_GRACE, Rooms, Slow
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

    def rooms(
        self,
        namespace: str | None = None,
        *,
        slow: Slow = "close",
        history: int = 0,
        history_ttl: float = HISTORY_TTL,
        history_size: int = HISTORY_SIZE,
        presence: bool = False,
        presence_grace: float = PRESENCE_GRACE,
        announce: bool = True,
    ) -> Rooms:
        """Return the rooms of this blueprint: ``rooms["lobby"]`` is the room ``chat:lobby`` of the blueprint "chat".

        :param namespace: what the names of the rooms begin with, instead of the blueprint's name.
        :param slow: what becomes of a member that does not read fast enough: ``"close"`` or ``"skip"``; see
            :class:`.Rooms`.
        :param history: the most messages of each room that are kept for ``join(since=)``, up to 10,000; 0 for none.
        :param history_ttl: the most seconds for which they are kept, up to a day.
        :param history_size: the most bytes of them for each room.
        :param presence: whether :meth:`.Room.members` knows who is in the rooms.
        :param presence_grace: the seconds for which a member stays after its last connection, up to an hour, so that a
            reload or a reconnect is no leave and join.
        :param announce: whether :meth:`.Rooms.on_join` and :meth:`.Rooms.on_leave` report who comes and goes.
        :raises ValueError: when a number is out of its range, or the blueprint is registered on an app that has
            such a namespace already.
        """
        apps: WeakSet[Any] = WeakSet()
        rooms = Rooms(
            namespace or self.name,
            slow,
            history=history,
            history_ttl=history_ttl,
            history_size=history_size,
            presence=presence,
            presence_grace=presence_grace,
            announce=announce,
            apps=apps,
        )

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


#: Returns the view of a handler, and the options of its rule, for an endpoint, the handler, and the rule's options.
MakeView = Callable[[str, Callable[..., Any], dict[str, Any]], tuple[Callable[..., Any], dict[str, Any]]]


def register_handlers(app: Flask, blueprint: Blueprint, make_view: MakeView, **options: Any) -> None:
    """Register a plain blueprint whose views are handlers of WebSockets.

    :param options: the options of :meth:`flask.Flask.register_blueprint`.
    """
    # Not blueprint.register(), because Flask's method checks that the app has not served a request.
    Flask.register_blueprint(cast(Flask, _WebSocketRules(app, make_view)), blueprint, **options)


class _WebSocketRules:
    """An app for the registration of a plain blueprint, which makes WebSocket routes of the blueprint's rules."""

    def __init__(self, app: Flask, make_view: MakeView) -> None:
        vars(self).update(flask_app=app, _make_view=make_view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.flask_app, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.flask_app, name, value)

    def add_url_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        view_func: Callable[..., Any] | None = None,
        provide_automatic_options: bool | None = None,
        **options: Any,
    ) -> None:
        # The only view that is a method of the blueprint serves its static files.
        if view_func is not None and not isinstance(getattr(view_func, "__self__", None), Blueprint):
            assert endpoint is not None  # a blueprint always passes it
            view_func, options = self._make_view(endpoint, view_func, options)
        with suggesting_settings(options):
            self.flask_app.add_url_rule(rule, endpoint, view_func, **options)
