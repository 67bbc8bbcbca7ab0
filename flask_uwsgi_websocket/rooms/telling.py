"""What the application is told of its rooms: who comes and goes, and that members have missed messages."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from flask import Flask

from ..connection.base import BaseClient
from ..loops.tasks import AsyncioLoop, background_asyncio_loop
from ..signals import websocket_gap, websocket_joined, websocket_left
from ..state import state_of
from .brokers.base import Presence
from .local_room import Room

logger = logging.getLogger("flask_uwsgi_websocket")


class Teller:
    """Calls the functions and the receivers of signals of an app, one after the other, in an app context."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        #: The event loop where coroutines of the application run, once it is known.
        self.loop: AsyncioLoop | None = None

    def tell_presence(self, kind: str, presence: Presence) -> None:
        """Tell that a member has come or gone.

        :param kind: "join" or "leave".
        """
        for rooms in state_of(self._app).rooms.values():
            if (announced := rooms.announced(self._app, presence)) is None:
                continue
            room, member = announced
            for function in rooms.listeners[kind]:
                self._tell(function, f"the {kind} of a member", room, member)
            signal = websocket_joined if kind == "join" else websocket_left
            for receiver in signal.receivers_for(self._app):
                self._tell(receiver, f"the signal {signal.name}", self._app, room=room, member=member)

    def tell_gap(self, room: Room, missed: int | None, members: Iterable[BaseClient]) -> None:
        """Tell that members of this process have missed messages.

        :param missed: how many, or None if that is not known.
        """
        logger.warning("The room %r has missed %s messages.", room.name, "some" if missed is None else missed)
        self.loop = next((each.loop for each in members if isinstance(each.loop, AsyncioLoop)), self.loop)
        for receiver in websocket_gap.receivers_for(self._app):
            self._tell(receiver, f"the signal {websocket_gap.name}", self._app, room=room, missed=missed)

    def _tell(self, function: Callable[..., Any], name: str, *args: Any, **values: Any) -> None:
        """Call a function of the application in an app context. A coroutine runs in the event loop of connections."""
        try:
            with self._app.app_context():
                value = function(*args, **values)
            if inspect.isawaitable(value):
                (self.loop or background_asyncio_loop()).submit(self._await(value, name))
        except Exception:
            self._app.logger.exception("%r failed on %s", function, name)

    async def _await(self, value: Awaitable[Any], name: str) -> None:
        """Await what a coroutine function has returned."""
        try:
            await value
        except Exception:
            self._app.logger.exception("a coroutine failed on %s", name)
