"""The extensions: WebSocket for blocking handlers, GeventWebSocket for gevent, AsyncioWebSocket for coroutines."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakSet

from flask import Blueprint, Flask, request_started

from . import legacy
from ._uwsgi import uwsgi
from .blueprints import register_handlers
from .cli.commands import uwsgi_cli, websocket_cli
from .cli.doctor import all_routes_park, diagnose
from .cli.runner import debug_requested, run_uwsgi, with_defaults
from .connection.base import BaseClient, current_client, send_to_all
from .dispatch import Views, watch_requests
from .exceptions import AsyncioNotAvailable, GeventNotInstalled
from .hooks import F, Registrar
from .middleware import AsyncioWebSocketMiddleware, GeventWebSocketMiddleware, WebSocketMiddleware
from .protocol.protocol import SharedMessage, payload_of
from .rooms.brokers.choice import check_address
from .rooms.exchange import exchange_of, rooms_stats
from .rooms.rooms import Room, Rooms, user_room
from .servers.find import prepare_servers
from .settings import Settings, find_misspelt, resolve, suggesting_settings
from .state import check_handler, state_of
from .testing import WebSocketTestClient
from .typing import AsyncioClient, AsyncioHandler, AwaitableR, Client, Handler, P, R
from .worker.admission import descriptor_limit
from .worker.stats import NAMES as STATS_NAMES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

C = TypeVar("C", bound=BaseClient)

logger = logging.getLogger("flask_uwsgi_websocket")


class WebSocket(Registrar):
    """WebSockets for Flask apps, with blocking handlers: in processes, threads, or gevent's greenlets.

    ::

        websocket = WebSocket(app)          # or, in a factory: websocket.init_app(app)

        @websocket.route("/echo")
        def echo(ws):
            for message in ws:
                ws.send(message)

    One extension may serve many apps: the extension has the routes, and each app has its own state.

    :param app: the app to serve, unless :meth:`init_app` is called later.
    :param timeout: the ``ping_interval`` in seconds, under its name of 0.6.1.
    :param settings: the fields of :class:`~flask_uwsgi_websocket.settings.Settings`; they override ``app.config``.
    :raises TypeError: for an unknown keyword, or a value of the wrong type.
    :raises ValueError: for an invalid value.
    """

    #: The WSGI middleware to install. A subclass may set its own.
    middleware: type[WebSocketMiddleware] = WebSocketMiddleware

    #: The options that :meth:`run` gives to uWSGI if the caller gives none for the concurrency.
    run_options: Mapping[str, Any] = {"threads": 16}

    #: Whether handlers are coroutine functions.
    _coroutines = False

    def __init__(self, app: Flask | None = None, timeout: float | None = None, **settings: Any) -> None:
        if timeout is not None:
            settings.setdefault("ping_interval", timeout)
        resolve({}, settings)  # raises for a wrong setting where it is written
        self._settings = settings
        #: The handlers by endpoint.
        self.view_functions: dict[str, Callable[..., Any]] = {}
        self._views = Views()
        # Functions that register everything declared so far on an app, and the apps on which they were called.
        self._registrations: list[Callable[[Flask], None]] = []
        self._apps: WeakSet[Flask] = WeakSet()
        self._rooms = Rooms("", apps=self._apps)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve WebSockets on *app*: install the middleware, and the routes declared so far.

        You may declare more routes later, until the app serves its first request. ``app.run()`` then runs the app in
        uWSGI. The extension reads keys of ``app.config`` that start with ``WEBSOCKET_``; see
        :class:`~flask_uwsgi_websocket.settings.Settings`.

        :raises RuntimeError: when the app has a WebSocket extension already, or its broker needs a package that is not
            installed.
        :raises TypeError: when a setting in ``app.config`` has the wrong type, or a handler does not fit the mode.
        :raises ValueError: when a setting has an invalid value.
        """
        state = state_of(app)
        if state.coroutines is not None:
            raise RuntimeError(
                f"the app {app.name!r} has a WebSocket extension already: call init_app() once for each app"
            )
        settings = resolve(app.config, self._settings)  # raises for a wrong setting now, not at the first handshake
        check_address(settings.broker)
        for key, similar in find_misspelt(app.config):
            app.logger.warning("app.config[%r] is not a setting: did you mean %s?", key, similar)
        for register in self._registrations:
            register(app)
        request_started.disconnect(self._warn_of_no_app)
        state.initialise(self._coroutines, self._settings, self.run_options)
        state.compatibility = settings.compatibility
        if settings.compatibility is not None:
            legacy.set_up(self, app, settings.ping_interval, for_gevent="gevent" in state.engines)
        _warn_of_options(app, state.engines, state.settings(app.config))
        app.cli.add_command(uwsgi_cli)
        app.cli.add_command(websocket_cli)
        watch_requests(app)
        if debug_requested():
            from werkzeug.debug import DebuggedApplication

            app.debug = True
            app.wsgi_app = DebuggedApplication(app.wsgi_app, evalex=True)  # type: ignore[method-assign]
        app.wsgi_app = middleware = self.middleware(app.wsgi_app, self)  # type: ignore[method-assign]
        if settings.compatibility is not None:
            middleware.client = legacy.legacy_client(middleware.client)
        if app.test_client_class is None:
            app.test_client_class = WebSocketTestClient
        app.run = partial(self._run_app, app)  # type: ignore[method-assign]
        prepare_servers()
        self._apps.add(app)

    def route(self, rule: str, **options: Any) -> Callable[[Handler[Client, P, R]], Handler[Client, P, R]]:
        """Declare the handler of a URL.

        :param rule: the URL rule, as in :meth:`flask.Flask.route`. Its variables are passed to the handler.
        :param options: ``endpoint``; the settings of this route, such as ``subprotocols``; and options of
            Werkzeug's rule, such as ``defaults`` or ``subdomain``.
        :raises TypeError: when the handler does not fit the mode, or an option has the wrong type.
        :raises ValueError: when an option has an invalid value.
        """
        endpoint = options.pop("endpoint", None)

        def decorator(handler: Handler[Client, P, R]) -> Handler[Client, P, R]:
            self.add_url_rule(rule, endpoint, handler, **options)
            return handler

        return decorator

    def add_url_rule(
        self,
        rule: str,
        endpoint: str | None = None,
        view_func: Handler[Client, P, R] | None = None,
        **options: Any,
    ) -> None:
        """Declare the handler of a URL; see :meth:`route`.

        :param view_func: the handler, called with the client and the variables of the URL.
        :raises TypeError: when the handler is missing, or does not fit the mode.
        """
        if view_func is None:
            raise TypeError("a WebSocket rule needs its handler: add_url_rule(rule, endpoint, handler)")
        endpoint = endpoint or view_func.__name__
        view, options = self._make_view(endpoint, view_func, options)

        def register(app: Flask) -> None:
            with suggesting_settings(options):
                app.add_url_rule(rule, endpoint, view, **options)

        self._register(register)

    def register_blueprint(self, blueprint: Blueprint, **options: Any) -> None:
        """Register a blueprint: a :class:`WebSocketBlueprint`, or a plain one, whose views become handlers.

        Prefixes and nesting work as in Flask.

        :param options: the options of :meth:`flask.Flask.register_blueprint`.
        """

        def register(app: Flask) -> None:
            register_handlers(app, blueprint, self._make_view, **options)

        self._register(register)

    def _add(self, kind: str, function: F) -> F:
        self._register(lambda app: state_of(app).add(kind, None, function))
        return function

    def broadcast(self, message: str | ReadableBuffer, connections: Iterable[C]) -> list[C]:
        """Send a message to many connections, encoded once, without waiting for any of them.

        The message is also compressed once for all connections that compress without context takeover
        (``Compression(context_takeover=False)``). Every other connection compresses it again.

        Closed connections are skipped. If a connection's handshake was not sent yet, it is sent first, after the hooks
        of that connection. This is not a coroutine, also not in the asyncio mode.

        :param message: ``str`` is sent as text, bytes as binary.
        :param connections: clients of this worker, as handlers get them.
        :returns: the connections that did not get the message, because more than ``WEBSOCKET_SEND_BUFFER`` bytes
            already wait for them. A connection whose peer reads nothing for ``WEBSOCKET_SEND_TIMEOUT`` is dropped, as
            always.
        :raises TypeError: when *message* is neither ``str`` nor bytes, or *connections* is a single connection.
        """
        if isinstance(connections, BaseClient):
            raise TypeError("broadcast() takes many connections, not one: use send()")  # to iterate it would receive
        shared = SharedMessage(payload_of(message))
        return cast("list[C]", send_to_all(list(connections), shared, lambda connection: connection.offer(shared)))

    def room(self, name: str) -> Room:
        """Return a room of the app, by its name. See :class:`.Room`.

        :raises TypeError: when the name is no ``str``.
        :raises BadRoomName: when the name is empty, or has more than 255 bytes of UTF-8.
        """
        return self._rooms[name]

    def user(self, user_id: object) -> Room:
        """Return the room of a user: all connections of the user, in all workers. It needs :meth:`user_id`.

        :param user_id: what the function of :meth:`user_id` returns. Equal texts mean the same user.
        :raises BadRoomName: when its text is empty, or has more than 255 bytes of UTF-8.
        """
        return user_room(user_id, self._rooms)

    def user_id(self, function: F) -> F:
        """Call *function* before the handler of each connection, to know its user, for :meth:`user`.

        It takes no arguments and returns the id of the user, or None. In the asyncio mode it may be a coroutine
        function. ``ws.user_id`` has the id as text. If the function raises, there is no connection.
        """

        def identify() -> Any:
            ws = current_client()
            assert ws is not None
            return ws.perform(self._identify(ws, function))

        self._add("before", identify)
        return function

    async def _identify(self, ws: BaseClient, function: Callable[[], Any]) -> None:
        user_id = function()
        if inspect.isawaitable(user_id):
            user_id = await user_id
        if user_id is not None:
            ws.user_id = str(user_id)
            await exchange_of(ws.app).join(self.user(user_id), ws)

    def stats(self) -> dict[str, Any]:
        """Return the counters of this worker since its start, over all apps of this extension.

        :returns: a dictionary with the numbers ``open`` (connections now), ``total`` (all connections),
            ``messages_received``, ``messages_sent``, ``bytes_received``, ``bytes_sent``, ``rejected`` (upgrade requests
            that got another response), ``slow_consumers`` (connections dropped because the peer read nothing for
            ``WEBSOCKET_SEND_TIMEOUT``, or too little within the ``timeout`` of a ``send()``); and with ``closes``, a
            dictionary from close codes to the number of connections that ended with this code; and with ``rooms``, a
            dictionary of the counters of rooms: ``rooms`` and ``members`` (now, in this worker), ``published``,
            ``delivered``, ``slow`` (messages that a member did not get, because it did not read fast enough), ``gaps``
            (times that messages were missed), ``filled`` (times that the history had them), ``resumed`` and
            ``snapshots`` (joins after which a client had all that it had missed, and other joins with ``since`` or
            ``snapshot``), ``reaped`` (connections of dead processes that were removed from rooms with presence),
            ``waiting`` (messages for which the broker is awaited), ``lost`` (those that have waited for too long),
            ``broker_losses`` (times that the broker was lost) and ``broker_errors`` (why it is away now, a list).
        """
        sums: Counter[str] = Counter(dict.fromkeys(STATS_NAMES, 0))
        closes: Counter[int] = Counter()
        for app in list(self._apps):
            counted = state_of(app).stats.snapshot()
            closes.update(counted.pop("closes"))
            sums.update(counted)
        return {**sums, "closes": dict(closes), "rooms": rooms_stats(list(self._apps))}

    def run(
        self,
        app: Flask | str | None = None,
        debug: bool | None = None,
        host: str = "localhost",
        port: int = 5000,
        uwsgi_binary: str | None = None,
        **options: Any,
    ) -> None:
        """Run an app in uWSGI. This call does not return. ``app.run()`` calls this method.

        :param app: the app, or where uWSGI finds it (``"module:variable"``, ``"module:factory()"``). The default is the
            initialised app, if there is only one.
        :param debug: whether to reload when files change and to show Werkzeug's debugger. The default is ``app.debug``.
        :param host: the name or address to listen on.
        :param port: the TCP port to listen on.
        :param uwsgi_binary: the path of the uWSGI to run, instead of the one that is found.
        :param options: uWSGI's options: ``processes=4`` for ``--processes 4``, ``True`` for a flag.
        :raises UwsgiNotFound: when there is no uWSGI.
        :raises RuntimeError: when no app is given and there is not exactly one, or when the app has no importable name.
        """
        if app is None:
            apps = list(self._apps)
            if len(apps) != 1:
                raise RuntimeError(f"cannot choose an app: {len(apps)} are initialised. Pass app=, or call app.run()")
            app = apps[0]
        if debug is None:
            debug = isinstance(app, Flask) and app.debug
        run_uwsgi(app, debug, host, port, uwsgi_binary, **with_defaults(options, self.run_options))

    def _run_app(
        self,
        app: Flask,
        host: str | None = None,
        port: int | None = None,
        debug: bool | None = None,
        **options: Any,
    ) -> None:
        """Replace ``app.run()``, with the same order of parameters."""
        self.run(app, debug, host or "localhost", 5000 if port is None else port, **options)

    def _warn_of_no_app(self, app: Flask, **extra: Any) -> None:
        """Warn, at the first request of any app, that no app has these routes, so that clients get a 404."""
        request_started.disconnect(self._warn_of_no_app)
        app.logger.warning(
            "A %s with the handlers %s has no app, so their URLs are unknown: call its init_app().",
            type(self).__name__,
            list(self.view_functions),
        )

    def _make_view(
        self, endpoint: str, handler: Callable[..., Any], options: dict[str, Any]
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Return the view of a handler, and the options of its rule."""
        check_handler(handler, self._coroutines)
        view, options = self._views.make(endpoint, handler, options)
        self.view_functions[endpoint] = handler
        return view, options

    def _register(self, register: Callable[[Flask], None]) -> None:
        if not self._apps and not self._registrations:
            request_started.connect(self._warn_of_no_app)
        for app in list(self._apps):
            register(app)
        self._registrations.append(register)


class GeventWebSocket(WebSocket):
    """WebSockets for uWSGI's gevent mode (``--gevent 100 --gevent-early-monkey-patch``).

    :raises GeventNotInstalled: when gevent is not installed.
    """

    middleware: type[WebSocketMiddleware] = GeventWebSocketMiddleware
    run_options: Mapping[str, Any] = {"gevent": 100, "gevent_early_monkey_patch": True}

    def __init__(self, app: Flask | None = None, timeout: float | None = None, **settings: Any) -> None:
        if find_spec("gevent") is None:
            raise GeventNotInstalled("GeventWebSocket needs gevent: pip install gevent")
        super().__init__(app, timeout, **settings)


class AsyncioWebSocket(WebSocket):
    """WebSockets with coroutine handlers, for uWSGI's asyncio mode (``--asyncio 100 --greenlet``).

    uWSGI must be compiled for this mode: ``UWSGI_EMBED_PLUGINS=asyncio,greenlet pip install uwsgi``, with greenlet's
    header in the include path; see ``docs/modes.md``.

    :raises AsyncioNotAvailable: when greenlet is not installed.
    """

    middleware: type[WebSocketMiddleware] = AsyncioWebSocketMiddleware
    run_options: Mapping[str, Any] = {"asyncio": 100, "greenlet": True}
    _coroutines = True

    def __init__(self, app: Flask | None = None, timeout: float | None = None, **settings: Any) -> None:
        if find_spec("greenlet") is None:
            raise AsyncioNotAvailable("AsyncioWebSocket needs greenlet: pip install greenlet")
        super().__init__(app, timeout, **settings)

    if TYPE_CHECKING:  # the same methods, for coroutine handlers

        def route(  # type: ignore[override]
            self, rule: str, **options: Any
        ) -> Callable[[AsyncioHandler[AsyncioClient, P, AwaitableR]], AsyncioHandler[AsyncioClient, P, AwaitableR]]: ...

        def add_url_rule(  # type: ignore[override]
            self,
            rule: str,
            endpoint: str | None = None,
            view_func: AsyncioHandler[AsyncioClient, P, AwaitableR] | None = None,
            **options: Any,
        ) -> None: ...

    def init_app(self, app: Flask) -> None:
        """Serve WebSockets on *app*; see :meth:`WebSocket.init_app`."""
        super().init_app(app)
        app.ensure_sync = partial(_ensure_sync, app.ensure_sync)  # type: ignore[method-assign]


def _warn_of_options(app: Flask, engines: Collection[str], settings: Settings) -> None:
    """Warn of uWSGI's options that break WebSockets, once: in the first worker, or in the process that forks all."""
    if uwsgi is not None and uwsgi.worker_id() <= 1:
        # Routes that come later are not known.
        for complaint in diagnose(uwsgi.opt, settings, engines, descriptor_limit(), all_park=all_routes_park(app)):
            logger.warning("uWSGI's options: %s", complaint)


def _ensure_sync(ensure_sync: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace ``app.ensure_sync()``, through which decorators such as Flask-Login's call the decorated function.

    A coroutine function that is called in a task stays as it is: the caller of the decorator awaits the result.
    """
    if inspect.iscoroutinefunction(function) and _is_in_task():
        return function
    wrapped: Callable[..., Any] = ensure_sync(function)
    return wrapped


def _is_in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:  # no event loop runs in this thread
        return False
