"""Open WebSockets in groups: those of a user, those in a room."""

from collections import defaultdict
from collections.abc import Hashable
from contextlib import suppress
from typing import Any

from flask import current_app

from flask_uwsgi_websocket import ConnectionClosed, WebSocketClient


class Groups:
    """WebSockets by what they have in common, each with a label. It knows those of this process only."""

    def __init__(self) -> None:
        self._groups: defaultdict[Hashable, dict[WebSocketClient, str]] = defaultdict(dict)

    def add(self, key: Hashable, ws: WebSocketClient, label: str = "") -> None:
        self._groups[key][ws] = label

    def discard(self, key: Hashable, ws: WebSocketClient) -> None:
        group = self._groups[key]
        group.pop(ws, None)
        if not group:
            del self._groups[key]

    def members(self, key: Hashable) -> list[WebSocketClient]:
        return list(self._groups.get(key, ()))  # a copy, since members come and go while one is sent to

    def labels(self, key: Hashable) -> list[str]:
        """Return the different labels of a group, sorted."""
        return sorted(set(self._groups.get(key, {}).values()))

    def send(self, key: Hashable, **message: Any) -> None:
        """Send the same to all members of a group."""
        text = current_app.json.dumps(message)
        for ws in self.members(key):
            with suppress(ConnectionClosed):  # it has just left, as its own handler will tell
                ws.send(text, timeout=1)  # one that does not read is dropped, so that the others need not wait
