"""Questions to all processes that have rooms: which rooms they have, and which connections are in one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from ..exceptions import BrokerUnavailable
from ..loops.base import Loop
from .envelope import Command, encode_command
from .feed import ALL_PROCESSES, Feed
from .local_room import LocalRooms
from .outbox import Outbox, Receipt

#: The most seconds that a question waits for the answers of all processes.
ANSWER_TIME = 1.0

#: Seconds between two looks for them.
LOOK = 0.0005

#: The most members, or rooms, that one process lists in an answer.
MOST_LISTED = 10_000


class Question:
    """A question to all processes, and their answers."""

    __slots__ = ("answers", "is_subscribed")

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        #: Whether the answers can arrive.
        self.is_subscribed = False


class Questions:
    """The questions of this process, and its answers to those of others.

    :param rooms: the rooms of this process.
    :param outbox: takes the answers.
    """

    def __init__(self, rooms: LocalRooms, outbox: Outbox) -> None:
        self._rooms = rooms
        self._outbox = outbox
        # By the key where the answers arrive. Every change of it is one operation of the interpreter.
        self._questions: dict[str, Question] = {}

    def get(self, key: str) -> Question | None:
        """Return the question whose answers arrive under a key, or None."""
        return self._questions.get(key)

    async def ask(
        self, key: str | None, loop: Loop, feed: Feed, put: Callable[[str, bytes, Receipt], None]
    ) -> list[dict[str, Any]]:
        """Ask all processes that have rooms, and return their answers.

        Processes that do not answer within a second are left out, such as one that is stopped.

        :param key: the room whose members they list, see :meth:`_answer_members`; or None: they list their rooms, see
            :meth:`_answer_rooms`.
        :param loop: the loop of the caller.
        :param feed: brings the answers.
        :param put: publishes the question, and waits if nobody waits for the caller.
        :raises BrokerUnavailable: when the broker cannot be reached.
        """
        name, question = uuid4().hex, Question()
        self._questions[name] = question
        deadline = time.monotonic() + ANSWER_TIME
        try:
            feed.add(name, loop)
            while not question.is_subscribed:
                await _pause(loop, deadline, feed.error)
            command, receipt = encode_command("ask", question=name, room=key), Receipt()
            await loop.call_blocking(lambda: put(ALL_PROCESSES, command, receipt))
            while receipt.reached is None:
                await _pause(loop, deadline, self._outbox.error)
            while len(question.answers) < receipt.reached and time.monotonic() < deadline:
                await loop.sleep(LOOK)
            return list(question.answers)
        finally:
            del self._questions[name]
            feed.remove(name)

    def take(self, command: Command, key: str) -> None:
        """Take an answer that has arrived under a key, or answer a question."""
        values = command.values
        if command.name == "answer":
            self._take_answer(key, values)
            return
        answer = self._answer_rooms() if values["room"] is None else self._answer_members(values["room"])
        if not self._take_answer(values["question"], answer):  # it is the question of another process
            self._outbox.put(values["question"], encode_command("answer", **answer))

    def _take_answer(self, name: str, answer: dict[str, Any]) -> bool:
        """Keep an answer to a question of this process; return False when this process has no such question."""
        question = self._questions.get(name)
        if question is not None:
            question.answers.append(answer)
        return question is not None

    def _answer_members(self, key: str) -> dict[str, Any]:
        """Return the members of a room in this process, as JSON has them."""
        members = self._rooms.members(key)
        listed = [
            {"id": client.id, "user": client.user_id, "address": client.environ.get("REMOTE_ADDR")}
            for client in members[:MOST_LISTED]
        ]
        return {"pid": os.getpid(), "count": len(members), "members": listed}

    def _answer_rooms(self) -> dict[str, Any]:
        """Return the rooms that have members in this process, as JSON has them."""
        with self._rooms.lock:
            rooms = [(local.room, len(local.members)) for local in self._rooms.occupied()]
        listed = [{"key": room.key, "name": room.name, "count": count} for room, count in rooms[:MOST_LISTED]]
        return {"pid": os.getpid(), "count": len(rooms), "rooms": listed}


async def _pause(loop: Loop, deadline: float, error: str | None) -> None:
    """Wait a moment for the broker.

    :raises BrokerUnavailable: when it is too late.
    """
    if time.monotonic() > deadline:
        raise BrokerUnavailable(error or f"the broker has not answered within {ANSWER_TIME:g} s")
    await loop.sleep(LOOK)
