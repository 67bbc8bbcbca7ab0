"""How the tests of brokers wait for a subscription: as a feed does, for its descriptor, with a tick now and then."""

from __future__ import annotations

import inspect
import select
from collections.abc import Sequence

from flask_uwsgi_websocket.rooms.brokers.base import Event, Subscription


def take(subscription: Subscription, seconds: float = 1.0) -> Sequence[Event]:
    """Wait until a subscription has something to do, for at most some seconds, and return its events."""
    poll = select.poll()
    poll.register(subscription.fileno(), select.POLLIN)
    if not poll.poll(seconds * 1000):
        subscription.tick()
    return subscription.receive()


#: The same for scripts that tests run, after their imports.
TAKE = (
    f"import select\n{inspect.getsource(take).replace('Sequence[Event]', 'object').replace('Subscription', 'object')}"
)
