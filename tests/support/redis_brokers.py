"""Redis brokers of the tests: they are closed at the end, and their subscriptions are waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import redis

from flask_uwsgi_websocket.rooms.brokers.base import Compared, Delivered, Event, Position, Subscription
from flask_uwsgi_websocket.rooms.brokers.redis import RedisBroker

from .brokers import take
from .inprocess import DEADLINE


@contextmanager
def opened(source: str | redis.Redis, **options: str) -> Iterator[RedisBroker]:
    broker = RedisBroker(source, **options)
    try:
        yield broker
    finally:
        broker.close()


@contextmanager
def subscribed(broker: RedisBroker, *rooms: str) -> Iterator[Subscription]:
    """A subscription that has compared its rooms."""
    subscription = broker.subscribe(rooms)
    try:
        if rooms:
            receive(subscription, lambda events: compared(events).keys() == set(rooms))
        yield subscription
    finally:
        subscription.close()


def receive(subscription: Subscription, is_enough: Callable[[list[Event]], object]) -> list[Event]:
    """Receive until there is enough."""
    deadline = time.monotonic() + DEADLINE
    events: list[Event] = []
    while not is_enough(events):
        assert time.monotonic() < deadline, events
        events += take(subscription, 0.05)
    return events


def receive_messages(subscription: Subscription, count: int) -> list[Delivered]:
    return messages(receive(subscription, lambda events: len(messages(events)) >= count))


def messages(events: Sequence[Event]) -> list[Delivered]:
    return [event for event in events if isinstance(event, Delivered)]


def compared(events: Sequence[Event]) -> dict[str, Position | None]:
    return {room: at for event in events if isinstance(event, Compared) for room, at in event.positions.items()}


def check_chain(events: Sequence[Delivered]) -> None:
    """Check that between messages of one room and epoch none is missing."""
    for before, after in pairwise(events):
        assert (after.room, after.position.epoch) == (before.room, before.position.epoch)
        assert after.previous == before.position.offset
        assert after.position.offset == before.position.offset + 1


@contextmanager
def threads(*functions: Callable[[], object]) -> Iterator[None]:
    started = [threading.Thread(target=function) for function in functions]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        for thread in started:
            thread.join()
