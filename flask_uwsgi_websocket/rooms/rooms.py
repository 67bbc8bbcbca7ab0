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
from .brokers.base import Position, Presence, Retention
from .envelope import stamped
from .exchange import Exchange, exchange_of
from .presence import Member
from .replay import NOTHING, Replay, missed_since, position_of, text_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: The longest name of a room, in bytes of UTF-8.
LONGEST_NAME = 255

#: The most messages of a history, and the most seconds.
MOST_HISTORY = 10_000
LONGEST_TTL = 86_400

#: The seconds and bytes of a history, unless the application says more.
HISTORY_TTL = 300.0
HISTORY_SIZE = 2**20

#: The seconds for which a member stays after its last connection, and the most that an application may choose.
PRESENCE_GRACE = 10.0
LONGEST_GRACE = 3600

#: The longest information of a member, in bytes of JSON.
LONGEST_INFO = 4096

#: What becomes of a member that does not read fast enough.
Slow = Literal["close", "skip"]

F = TypeVar("F", bound=Callable[..., Any])


class Rooms:
    """The rooms of a blueprint, or of an app: ``rooms["lobby"]`` is one of them.

    A room exists as long as something uses it: any name is a room, and an empty room costs nothing.

    :param namespace: what the names of the rooms begin with, such as the blueprint's name; empty for the app's rooms.
    :param slow: what becomes of a member that does not read fast enough, so that more than ``WEBSOCKET_SEND_BUFFER``
        bytes wait for it: ``"close"`` closes it with 1013 (try again later); ``"skip"`` leaves messages out.
    :param history: the most messages of each room that the broker keeps for members that come back; 0 for none.
    :param history_ttl: the most seconds for which it keeps them.
    :param history_size: the most bytes of them.
    :param presence: whether the broker knows who is in the rooms.
    :param presence_grace: the seconds for which a member stays after its last connection.
    :param announce: whether joins and leaves are announced. Large rooms may turn it off.
    :param apps: the apps that have these rooms.
    """

    def __init__(
        self,
        namespace: str,
        slow: Slow = "close",
        *,
        history: int = 0,
        history_ttl: float = HISTORY_TTL,
        history_size: int = HISTORY_SIZE,
        presence: bool = False,
        presence_grace: float = PRESENCE_GRACE,
        announce: bool = True,
        apps: Collection[Flask],
    ) -> None:
        if slow not in {"close", "skip"}:
            raise ValueError(f'slow must be "close" or "skip", not {slow!r}')
        if not 0 <= history <= MOST_HISTORY:
            raise ValueError(f"history must be 0 to {MOST_HISTORY:,} messages, not {history!r}")
        if history and not (0 < history_ttl <= LONGEST_TTL and history_size > 0):
            raise ValueError(f"history_ttl must be at most {LONGEST_TTL:,} seconds, and history_size positive")
        if not 0 <= presence_grace <= LONGEST_GRACE:
            raise ValueError(f"presence_grace must be 0 to {LONGEST_GRACE:,} seconds, not {presence_grace!r}")
        self.namespace = namespace
        self.slow: Slow = slow
        self.retention = Retention(history, history_ttl, history_size) if history else None
        self.has_presence = presence
        self.grace = presence_grace
        #: The functions of :meth:`on_join` and :meth:`on_leave`.
        self.listeners: dict[str, list[Callable[..., Any]]] = {"join": [], "leave": []}
        self._announces = announce
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

    def on_join(self, function: F) -> F:
        """Call *function* with the room and the :class:`.Member` when a member has come, in one process of all.

        It runs in an app context, in a thread or greenlet of its own, without a request. In the asyncio mode it may be
        a coroutine function.

        :raises RuntimeError: when the rooms have no presence, or announce nothing.
        """
        return self._listen("join", function)

    def on_leave(self, function: F) -> F:
        """Call *function* with the room and the :class:`.Member` when a member is gone; see :meth:`on_join`."""
        return self._listen("leave", function)

    def _listen(self, kind: str, function: F) -> F:
        if not (self.has_presence and self._announces):
            raise RuntimeError("these rooms announce nobody: rooms(presence=True) does, without announce=False")
        self.listeners[kind].append(function)
        return function

    def announced(self, app: Flask, presence: Presence) -> tuple[Room, Member] | None:
        """Return the room and the member to announce, or None if the room is another one's or announces nobody."""
        if not self._announces or not presence.room.startswith(self._prefix):
            return None
        room = self[presence.room[len(self._prefix) :]]
        return room, _member_of(app, presence)

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

    @property
    def retention(self) -> Retention | None:
        """The history that the broker keeps, or None."""
        return self._rooms.retention

    @property
    def has_presence(self) -> bool:
        """Whether the broker knows who is in the room."""
        return self._rooms.has_presence

    @overload
    def join(
        self,
        ws: WebSocketClient,
        *,
        since: str | None = None,
        snapshot: Callable[[str], object] | None = None,
        info: object = None,
    ) -> bool: ...
    @overload
    def join(
        self,
        ws: AsyncioWebSocketClient,
        *,
        since: str | None = None,
        snapshot: Callable[[str], object] | None = None,
        info: object = None,
    ) -> Awaitable[bool]: ...
    def join(
        self,
        ws: BaseClient,
        *,
        since: str | None = None,
        snapshot: Callable[[str], object] | None = None,
        info: object = None,
    ) -> Any:
        """Make a connection a member until it ends or leaves. Await the call in a coroutine handler.

        It calls the ``before_join`` functions, and sends the handshake if that was not done: when the client sees it,
        the connection is a member, and gets every message that is published from then on by any process. A connection
        that is a member already stays one.

        With *since* or *snapshot*, the connection first gets what it has missed: either all messages after *since*, or
        what *snapshot* sends. Messages that are published meanwhile follow, none twice, and none is left out.

        :param since: the position of the last message that the client has: what :meth:`publish_json` has put into it,
            or what *snapshot* got. Any other text is a position that is too old.
        :param snapshot: called, when the history does not have all messages after *since*, with the position after
            which messages follow. It sends the state of the application. In the asyncio mode it may be a coroutine
            function.
        :param info: a value that JSON can represent, of at most 4 KiB, which :meth:`members` returns. It needs rooms
            with presence.
        :returns: whether the connection got all messages after *since*.
        :raises ~werkzeug.exceptions.HTTPException: when a ``before_join`` function refuses. Let it end the handler.
        :raises BrokerUnavailable: with *since* or *snapshot*, when the broker cannot be reached. It is a 503, too.
        :raises ConnectionClosed: when the connection has ended.
        :raises RuntimeError: when there is *info* and the rooms have no presence.
        :raises ValueError: when *info* is too long.
        """
        return ws.perform(self._join(ws, since, snapshot, info))

    async def _join(
        self, ws: BaseClient, since: str | None, snapshot: Callable[[str], object] | None, info: object
    ) -> bool:
        """Do the work of :meth:`join`, as a coroutine in every mode."""
        data = self._presence_data(ws, info)
        await self._rooms.check_join(self, ws)
        exchange = exchange_of(ws.app)
        is_whole = False
        if since is None and snapshot is None:
            await exchange.join(self, ws)
            await ws.ensure_accepted()
        else:
            try:
                is_whole = await self._resume(exchange, ws, position_of(since, self.key), snapshot)
            except BaseException:
                exchange.leave(self.key, ws)
                raise
        if self.has_presence:
            exchange.enter(self, ws, _member_name(ws), data, self._rooms.grace)
        return is_whole

    async def _resume(
        self, exchange: Exchange, ws: BaseClient, since: Position | None, snapshot: Callable[[str], object] | None
    ) -> bool:
        """Join, and send what the client has missed; return whether the history has all of it."""
        replay = Replay()
        await exchange.join(self, ws, replay)
        history = await exchange.read_history(self, since, ws.loop)
        missed = missed_since(since, history)
        await ws.ensure_accepted()
        last = history.position or NOTHING
        if missed is None and snapshot is not None:
            sending = snapshot(text_of(last, self.key))
            if inspect.isawaitable(sending):
                await sending
        await exchange.resume(self, ws, replay, missed, last)
        return missed is not None

    def _presence_data(self, ws: BaseClient, info: object) -> bytes:
        if not self.has_presence:
            if info is not None:
                raise RuntimeError("join(info=) needs rooms with presence: rooms(presence=True)")
            return b""
        data = ws.app.json.dumps([ws.user_id, info]).encode()
        if len(data) > LONGEST_INFO:
            raise ValueError(f"join(info=) takes at most {LONGEST_INFO:,} bytes of JSON, not {len(data):,}")
        return data

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
        self._publish(payload_of(message), exclude)

    def publish_json(self, value: Any, exclude: Iterable[BaseClient] = (), *, stamp: str | None = None) -> None:
        """Send *value* as JSON, by ``app.json``, to all members. See :meth:`publish`.

        :param stamp: the key under which members get the position of the message, a string, for ``join(since=)``. The
            value must be a JSON object then; what it has under this key is replaced.
        """
        text = self._rooms.app.json.dumps(value)
        if stamp is None:
            self._publish(text, exclude)
        else:
            self._publish(stamped(text, stamp), exclude, is_stamped=True)

    def _publish(self, payload: str | bytes, exclude: Iterable[BaseClient], *, is_stamped: bool = False) -> None:
        if isinstance(exclude, BaseClient):  # to iterate it would receive
            raise TypeError("exclude takes many connections, not one: publish(message, exclude=[ws])")
        excluded = [ws.id for ws in exclude] if exclude else ()
        exchange_of(self._rooms.app).publish(self, payload, excluded, is_stamped=is_stamped)

    def close(self, code: int = 1000, reason: str = "", *, user: object = None) -> None:
        """Close the connections of all members, in all workers, without waiting for them.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999 (RFC 6455 section 7.4).
        :param reason: at most 123 bytes of UTF-8.
        :param user: close only the connections of the user with this id.
        :raises ValueError: when *code* or *reason* is not valid.
        :raises BrokerUnavailable: outside of a worker, when the broker cannot be reached.
        """
        check_close(code, reason)
        exchange_of(self._rooms.app).close(self, code, reason, None if user is None else str(user))

    @property
    def local_members(self) -> tuple[BaseClient, ...]:
        """The members in this worker, in the order in which they joined."""
        return exchange_of(self._rooms.app).members(self.key)

    def members(self) -> list[Member]:
        """Return the members in all workers, in the order in which they came, of a room with presence.

        A user is one member with all connections. Connections without a user are a member each. In a coroutine handler,
        call it by ``await asyncio.to_thread(room.members)``.

        :raises BrokerUnavailable: when the broker cannot be reached.
        :raises RuntimeError: when the rooms have no presence, or in a coroutine.
        """
        if not self.has_presence:
            raise RuntimeError("members() needs rooms with presence: rooms(presence=True)")
        app = self._rooms.app
        exchange = exchange_of(app)
        return [_member_of(app, each) for each in wait_for(lambda loop: exchange.present(self.key, loop))]

    def count(self) -> int:
        """Return the number of members in all workers: with presence, of what :meth:`members` returns.

        Without presence, it asks the workers, and waits for their answers, at most a second. A worker that does not
        answer, such as one that is stopped, does not count. In a coroutine handler, call it by ``await
        asyncio.to_thread(room.count)``.

        :raises BrokerUnavailable: when the broker cannot be reached.
        :raises RuntimeError: in a coroutine.
        """
        exchange = exchange_of(self._rooms.app)
        if self.has_presence:
            return wait_for(lambda loop: exchange.count_present(self.key, loop))
        return sum(answer["count"] for answer in wait_for(lambda loop: exchange.ask(self.key, loop)))


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


def _member_name(ws: BaseClient) -> str:
    """Return what brokers call the member whose connection this is. No user has the name of a connection."""
    return f"c{ws.id}" if ws.user_id is None else f"u{ws.user_id}"


def _member_of(app: Flask, presence: Presence) -> Member:
    """Return what the broker knows of a member, as the application gets it."""
    user_id, info = app.json.loads(presence.data)
    return Member(presence.member[1:], user_id, info, presence.since)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a room is a str, not {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadRoomName("The name of a room has a lone surrogate.") from None
    if not 0 < size <= LONGEST_NAME:
        raise BadRoomName(f"The name of a room has 1 to {LONGEST_NAME} bytes of UTF-8, not {size:,}.")
