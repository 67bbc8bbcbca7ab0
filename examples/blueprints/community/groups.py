"""Groups of open WebSockets, such as all of a user or all in a room."""

from collections import defaultdict
from collections.abc import Hashable
from contextlib import suppress
from typing import Any

from flask import current_app

from flask_uwsgi_websocket import ConnectionClosed, WebSocketClient


class Groups:
    """The WebSockets of this process in groups, each group under a key and each WebSocket with a label."""

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
        return list(self._groups.get(key, ()))  # a copy, because members come and go during a send

    def labels(self, key: Hashable) -> list[str]:
        """Return the distinct labels of a group, sorted."""
        return sorted(set(self._groups.get(key, {}).values()))

    def send(self, key: Hashable, **message: Any) -> None:
        """Send a message to all members of a group."""
        text = current_app.json.dumps(message)
        for ws in self.members(key):
            with suppress(ConnectionClosed):  # the client has just left, and its own handler ends
                ws.send(text, timeout=1)  # a client that does not read is dropped, so that the others need not wait
