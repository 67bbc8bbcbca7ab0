"""What becomes of the events of a feed: messages go to the members of their room, and gaps are filled or told."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from flask import Flask

from ..connection.base import SLOW_CLOSE, BaseClient, send_to_all
from ..exceptions import ConnectionClosed
from ..loops.base import Loop
from ..protocol.protocol import SharedMessage
from ..state import state_of
from .brokers.base import Compared, Delivered, Event, History, Position
from .envelope import BadEnvelope, Command, Message, decode, unseal
from .feed import SLICE
from .local_room import Gap, LocalRoom, LocalRooms, Room
from .questions import Questions
from .replay import NOTHING, missed_since, text_of
from .telling import Teller

#: Seconds for which a room without members stays subscribed: members often come back.
LINGER = 1.0

#: Members between two looks at the clock.
STEP = 32

#: How a connection is closed that has missed messages: it may connect again, and resume.
MISSED_CLOSE = (1013, "messages were missed")

#: The most publishers whose last numbers are known.
MOST_PUBLISHERS = 10_000

#: Reads the history of a room; see :meth:`.Exchange.read_history`.
ReadHistory = Callable[[Room, Position | None, Loop], Awaitable[History]]

logger = logging.getLogger("flask_uwsgi_websocket")


class Arrivals:
    """Handles the events of the feed of this process. Only the feed calls it.

    For each message, few coroutines are made: methods return an awaitable only for what takes long.

    :param app: the app.
    :param rooms: the rooms of this process.
    :param questions: the questions of this process.
    :param teller: tells the application of gaps.
    :param read_history: reads the history of a room.
    """

    def __init__(
        self, app: Flask, rooms: LocalRooms, questions: Questions, teller: Teller, read_history: ReadHistory
    ) -> None:
        self._app = app
        self._rooms = rooms
        self._questions = questions
        self._teller = teller
        self._read_history = read_history
        self._last_numbers: dict[bytes, int] = {}  # of each publisher

    def read(self, event: Event, loop: Loop) -> Awaitable[None] | None:
        """Handle an event of the broker; see :meth:`.Reader.read`."""
        if isinstance(event, Delivered):
            return self._deliver(event, loop)
        if isinstance(event, Compared):
            return self._compare_all(event, loop)
        for key in event.rooms:
            if (subscribed := self._rooms.get(key) or self._questions.get(key)) is not None:
                subscribed.is_subscribed = True
        return None

    def on_loss(self) -> None:
        """Note that no messages arrive until the rooms are subscribed again."""
        self._rooms.lose()

    def sweep(self, give_up: Callable[[str], None]) -> None:
        """Give up the rooms that have been without members for a while."""
        self._rooms.sweep(time.monotonic() - LINGER, give_up)

    def _deliver(self, event: Delivered, loop: Loop) -> Awaitable[None] | None:
        local = self._rooms.get(event.room)
        if local is None or local.advance_by_one(event):
            return self._handle(event, local, loop)
        return self._deliver_behind(event, local, loop)

    async def _deliver_behind(self, event: Delivered, local: LocalRoom, loop: Loop) -> None:
        """Handle a message that is not the next one after the last."""
        if (gap := local.gap_before(event)) is not None:
            await self._close_gap(local, gap, loop)
        if local.advance(event) and (rest := self._handle(event, local, loop)) is not None:
            await rest

    def _handle(self, event: Delivered, local: LocalRoom | None, loop: Loop) -> Awaitable[None] | None:
        """Send a message to the members, or do what it asks for."""
        publisher, number, message = open_message(self._app, event)
        # What is read from histories is older than what other rooms have got. There, positions show what is new: a
        # broker has a message twice only in two epochs, between which these rooms close their members.
        has_history = local is not None and local.room.retention is not None
        if message is None or not (has_history or self._is_new(publisher, number)):
            return None
        if isinstance(message, Command):
            self._obey(message, event.room)
        elif local is not None:
            return self._send(local, message, event, loop)
        return None

    def _is_new(self, publisher: bytes, number: int) -> bool:
        """Return whether a message is not one that a publisher repeated, because the broker did not confirm it."""
        if number <= self._last_numbers.get(publisher, 0):
            return False
        self._last_numbers[publisher] = number
        if len(self._last_numbers) > MOST_PUBLISHERS:
            for oldest in list(self._last_numbers)[: MOST_PUBLISHERS // 2]:
                del self._last_numbers[oldest]
        return True

    async def _compare_all(self, compared: Compared, loop: Loop) -> None:
        for key, position in compared.positions.items():
            if (local := self._rooms.get(key)) is not None:
                await self._compare(local, position or NOTHING, loop)

    async def _compare(self, local: LocalRoom, position: Position, loop: Loop) -> None:
        """Compare the last message that was delivered with the last one of the room."""
        if (gap := local.gap_until(position)) is not None:
            await self._close_gap(local, gap, loop)
        local.compare(position)

    async def _close_gap(self, local: LocalRoom, gap: Gap, loop: Loop) -> None:
        """Send the members what they have missed. If the room's history does not have it, tell that.

        :raises BrokerUnavailable: when the broker cannot be reached.
        """
        if local.room.retention is not None:
            history = await self._read_history(local.room, gap.after, loop)
            missed = missed_since(gap.after, history)
            if missed is not None:
                self._rooms.count("filled")
                for event in missed:
                    local.position = event.position
                    if (rest := self._handle(event, local, loop)) is not None:
                        await rest
                return
        members = self._rooms.members(local.room.key)
        self._rooms.count("gaps")
        self._teller.tell_gap(local.room, gap.missed, members)
        if local.room.retention is not None:
            for client in members:
                client.begin_close(*MISSED_CLOSE)

    def _send(self, local: LocalRoom, message: Message, event: Delivered, loop: Loop) -> Awaitable[None] | None:
        """Send a message to the members."""
        shared = SharedMessage(payload_for_members(message, event))
        with self._rooms.lock:
            lost = local.lost(event) if local.ahead else ()
            members = local.receivers(event)
            if message.excluded:
                members = [client for client in members if client.id not in message.excluded]
            self._rooms.counts["delivered"] += len(members)
            late = local.hold(event, shared, message.excluded) if local.replays else ()
        for client in lost:
            client.begin_close(*MISSED_CLOSE)
        for client in late:
            self._rooms.count("slow")
            client.begin_close(*SLOW_CLOSE)
        if len(members) > STEP:
            return self._send_in_steps(local, members, shared, loop)
        self._send_to(local, members, shared)
        return None

    async def _send_in_steps(
        self, local: LocalRoom, members: Sequence[BaseClient], shared: SharedMessage, loop: Loop
    ) -> None:
        """Send a message to many members, and let others run meanwhile."""
        end = time.monotonic() + SLICE
        for start in range(0, len(members), STEP):
            self._send_to(local, members[start : start + STEP], shared)
            if time.monotonic() > end:
                await loop.sleep(0)
                end = time.monotonic() + SLICE

    def _send_to(self, local: LocalRoom, members: Sequence[BaseClient], shared: SharedMessage) -> None:
        for client in send_to_all(members, shared, partial(_deliver_to_one, shared)):
            self._on_slow(local, client)

    def _on_slow(self, local: LocalRoom, client: BaseClient) -> None:
        """Close a member that does not read fast enough, or leave it out."""
        self._rooms.count("slow")
        if local.room.slow == "close":
            local.discard(client)
            client.begin_close(*SLOW_CLOSE)

    def _obey(self, command: Command, key: str) -> None:
        """Do what another process asks for."""
        if command.name != "close":
            self._questions.take(command, key)
            return
        values = command.values
        for client in self._rooms.members(key):
            if values["user"] is None or client.user_id == values["user"]:
                client.begin_close(values["code"], values["reason"])


def open_message(app: Flask, event: Delivered) -> tuple[bytes, int, Message | Command | None]:
    """Return the publisher of a message, its number, and what it is; None if it is not from this package."""
    try:
        publisher, number, data = unseal(event.data)
        return publisher, number, decode(data)
    except BadEnvelope as error:
        if state_of(app).warned.is_first_time("envelope"):
            logger.error("The broker has delivered something to the room %r: %s", event.room, error)
        return b"", 0, None


def payload_for_members(message: Message, event: Delivered) -> str | bytes:
    """Return what members get of a message.

    :param event: the event that has brought it.
    """
    return message.at(text_of(event.position, event.room)) if message.is_stamped else message.payload


def _deliver_to_one(shared: SharedMessage, client: BaseClient) -> bool:
    """Send a message of a room to a connection; return whether there was room for it."""
    try:
        return client.deliver(shared)
    except ConnectionClosed:
        raise
    except Exception:  # of one connection, which must not keep the message from the others
        logger.exception("sending to WebSocket %s failed", client.id)
        return True
