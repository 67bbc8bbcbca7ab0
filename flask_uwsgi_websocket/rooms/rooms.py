"""What an application uses: a room, the rooms of a blueprint, and the room of a user."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from urllib.parse import quote

from flask import Flask, current_app, has_app_context
from werkzeug.exceptions import Forbidden

from ..connection.aio import AsyncioWebSocketClient
from ..connection.base import BaseClient
from ..connection.blocking import WebSocketClient
from ..exceptions import BadRoomName
from ..loops.current import wait_for
from ..protocol.protocol import check_close, payload_of
from ..state import state_of
from .exchange import exchange_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: The longest name of a room, in bytes of UTF-8.
LONGEST_NAME = 255

#: What becomes of a member that does not read fast enough.
Slow = Literal["close", "skip"]

F = TypeVar("F", bound=Callable[..., Any])


class Rooms:
    """The rooms of a blueprint, or of an app: ``rooms["lobby"]`` is one of them.

    A room exists as long as something uses it: any name is a room, and an empty room costs nothing.

    :param namespace: what the names of the rooms begin with, such as the blueprint's name; empty for the app's rooms.
    :param slow: what becomes of a member that does not read fast enough, so that more than ``WEBSOCKET_SEND_BUFFER``
        bytes wait for it: ``"close"`` closes it with 1013 (try again later); ``"skip"`` leaves messages out.
    :param apps: the apps that have these rooms.
    """

    def __init__(self, namespace: str, slow: Slow = "close", *, apps: Collection[Flask]) -> None:
        if slow not in {"close", "skip"}:
            raise ValueError(f'slow must be "close" or "skip", not {slow!r}')
        self.namespace = namespace
        self.slow: Slow = slow
        self._apps = apps
        self._before_join: list[Callable[..., Any]] = []
        # So that no name of a room of one kind is the key of a room of another kind.
        self._prefix = f"b:{quote(namespace, safe='')}:" if namespace else "a:"

    def __getitem__(self, name: str) -> Room:
        """Return the room with a name. The name may be any text, such as a part of a URL.

        :raises TypeError: when the name is no ``str``.
        :raises BadRoomName: when the name is empty, or has more than 255 bytes of UTF-8.
        """
        _check_name(name)
        return Room(self, self._prefix + name, f"{self.namespace}:{name}" if self.namespace else name)

    def before_join(self, function: F) -> F:
        """Call *function* with the room and the connection before a connection joins one of these rooms.

        It may refuse by ``abort()``, or by returning False, which means 403. Before the handshake the client gets the
        HTTP response, after it the connection closes with 4403. In the asyncio mode it may be a coroutine function.
        """
        self._before_join.append(function)
        return function

    async def check_join(self, room: Room, client: BaseClient) -> None:
        """Call the ``before_join`` functions.

        :raises HTTPException: when one of them refuses.
        """
        for function in self._before_join:
            answer = function(room, client)
            if inspect.isawaitable(answer):
                answer = await answer
            if answer is False:
                raise Forbidden("You may not join this room.")

    @property
    def app(self) -> Flask:
        """The app whose rooms these are: the current one, or the only one that has the blueprint or extension.

        :raises RuntimeError: outside of an app context, when there is not exactly one.
        """
        if has_app_context():
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        elif len(self._apps) == 1:
            (app,) = self._apps
        else:
            raise RuntimeError(f"cannot choose an app: {len(self._apps)} have these rooms. Use app.app_context()")
        if state_of(app).coroutines is None:
            raise RuntimeError(f"the app {app.name!r} has no WebSocket extension: call init_app() of one")
        return app


class Room:
    """Connections with a common name, in all workers and on all machines of an app.

    All members get the messages in the same order, and those of one publisher in the order of its calls. Get a room
    from :meth:`.WebSocketBlueprint.rooms`, :meth:`.WebSocket.room` or :meth:`.WebSocket.user`.
    """

    __slots__ = ("_rooms", "key", "name")

    def __init__(self, rooms: Rooms, key: str, name: str) -> None:
        self._rooms = rooms
        #: What brokers call the room. No other room of the app has this key.
        self.key = key
        #: The name over the whole app: ``chat:lobby`` for the room "lobby" of the blueprint "chat".
        self.name = name

    @property
    def local_name(self) -> str:
        """The name within the blueprint: "lobby"."""
        namespace = self._rooms.namespace
        return self.name.removeprefix(f"{namespace}:") if namespace else self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Room) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def slow(self) -> Slow:
        """What becomes of a member that does not read fast enough: ``"close"`` or ``"skip"``."""
        return self._rooms.slow

    @overload
    def join(self, ws: WebSocketClient) -> None: ...
    @overload
    def join(self, ws: AsyncioWebSocketClient) -> Awaitable[None]: ...
    def join(self, ws: BaseClient) -> Any:
        """Make a connection a member until it ends or leaves. Await the call in a coroutine handler.

        It calls the ``before_join`` functions, and sends the handshake if that was not done: when the client sees it,
        the connection is a member, and gets every message that is published from then on by any process. Does nothing
        when the connection is a member already.

        :raises ~werkzeug.exceptions.HTTPException: when a ``before_join`` function refuses. Let it end the handler.
        :raises ConnectionClosed: when the connection has ended.
        """
        return ws.perform(self.admit(ws))

    async def admit(self, ws: BaseClient) -> None:
        """Do the work of :meth:`join`, as a coroutine in every mode."""
        await self._rooms.check_join(self, ws)
        await exchange_of(ws.app).join(self, ws)
        await ws.ensure_accepted()

    def leave(self, ws: BaseClient) -> None:
        """End the membership of a connection of this worker. Does nothing when it is no member."""
        exchange_of(ws.app).leave(self.key, ws)

    def publish(self, message: str | ReadableBuffer, exclude: Iterable[BaseClient] = ()) -> None:
        """Send a message to all members: ``str`` as text, bytes as binary. This is never a coroutine.

        Inside a worker it does not wait, and does not fail when the broker is away: the message waits for the broker,
        for at most 30 s and among at most 16 MiB. In any other process, such as a Celery worker, a script or
        ``flask shell``, it returns when the broker has the message.

        :param exclude: connections of this worker that do not get the message, such as the one that sent it.
        :raises BrokerUnavailable: outside of a worker, when the broker does not have the message.
        :raises TypeError: when *message* is neither ``str`` nor bytes, or *exclude* is a single connection.
        :raises ValueError: when *message* has lone surrogates, or more than 16 MiB.
        """
        if isinstance(exclude, BaseClient):
            raise TypeError("exclude takes many connections, not one: publish(message, exclude=[ws])")
        exchange_of(self._rooms.app).publish(self.key, payload_of(message), [ws.id for ws in exclude])

    def publish_json(self, value: Any, exclude: Iterable[BaseClient] = ()) -> None:
        """Send *value* as JSON, by ``app.json``, to all members. See :meth:`publish`."""
        self.publish(self._rooms.app.json.dumps(value), exclude)

    def close(self, code: int = 1000, reason: str = "", *, user: object = None) -> None:
        """Close the connections of all members, in all workers, without waiting for them.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
        :param reason: at most 123 bytes of UTF-8.
        :param user: close only the connections of the user with this id.
        :raises ValueError: when *code* or *reason* is not valid.
        :raises BrokerUnavailable: outside of a worker, when the broker cannot be reached.
        """
        check_close(code, reason)
        exchange_of(self._rooms.app).close(self.key, code, reason, None if user is None else str(user))

    @property
    def local_members(self) -> tuple[BaseClient, ...]:
        """The members in this worker, in the order in which they joined."""
        return exchange_of(self._rooms.app).members(self.key)

    def count(self) -> int:
        """Return the number of members in all workers.

        It asks the workers, and waits for their answers, at most a second. A worker that does not answer, such as one
        that is stopped, does not count. In a coroutine handler, call it by ``await asyncio.to_thread(room.count)``.

        :raises BrokerUnavailable: when the broker cannot be reached.
        :raises RuntimeError: in a coroutine.
        """
        return sum(answer["count"] for answer in self.ask())

    def ask(self) -> list[dict[str, Any]]:
        """Return what the workers say about their members, for the command ``flask websocket members``."""
        exchange = exchange_of(self._rooms.app)
        return wait_for(lambda loop: exchange.ask(self.key, loop))


def user_room(user_id: object, rooms: Rooms) -> Room:
    """Return the room of a user: all connections of the user in all workers.

    :param user_id: what the application's ``user_id`` function returns. Equal texts mean the same user.
    :param rooms: the rooms of the app.
    """
    name = str(user_id)
    _check_name(name)
    return Room(rooms, f"u:{name}", f"user {name}")


def room_named(app: Flask, name: str) -> Room:
    """Return the room that has a name: ``chat:lobby`` is the room "lobby" of the blueprint's rooms "chat".

    Where the app has no such rooms, it is the app's room of the whole name. A namespace may have colons: the longest
    one that fits is meant.

    :raises BadRoomName: when the name is empty, or has more than 255 bytes of UTF-8.
    """
    namespaces: dict[str, Rooms] = state_of(app).rooms
    fitting = [each for each in namespaces if name.startswith(f"{each}:")]
    if not fitting:
        return Rooms("", apps=[app])[name]
    namespace = max(fitting, key=len)
    return namespaces[namespace][name[len(namespace) + 1 :]]


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a room is a str, not {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadRoomName("The name of a room has a lone surrogate.") from None
    if not 0 < size <= LONGEST_NAME:
        raise BadRoomName(f"The name of a room has 1 to {LONGEST_NAME} bytes of UTF-8, not {size:,}.")
