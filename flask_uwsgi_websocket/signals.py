"""The signals (blinker), for whoever wants to know of connections without being their handler.

The sender is always the app object, so that a receiver can choose its app: ``websocket_closed.connect(left, app)``.
Receivers are called with the client as ``ws`` and the keywords below, within the contexts of its connection:
``request``, ``session`` and ``g`` are those of its handler. New keywords may be added, so take ``**extra``.

A receiver that raises is logged, and harms neither the connection nor the other receivers. In the asyncio mode,
coroutine functions are awaited. blinker holds receivers weakly: a function that is defined in a factory is forgotten
with it, unless it is connected with ``weak=False``. :meth:`.WebSocketBlueprint.on_connect` and its like hold it.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

websocket_connected = _signals.signal("websocket-connected")
"""The handshake was sent."""

websocket_message = _signals.signal("websocket-message")
"""The handler is about to get ``message``, ``str`` or ``bytes``."""

websocket_sent = _signals.signal("websocket-sent")
"""``message``, ``str`` or bytes-like, was given to the connection. The peer need not have read it."""

websocket_closed = _signals.signal("websocket-closed")
"""The connection has ended: sent exactly once for each one that was connected, before the contexts are torn down.

``code`` and ``reason`` are those of the Close frame that ended it (1005: it had no code; 1006: there was none);
``initiator`` is ``"client"``, ``"server"``, ``"timeout"``, ``"error"`` (the handler raised, or the client broke the
protocol) or ``"shutdown"``; ``duration`` is in seconds; ``messages_received`` counts those that the handler got,
``messages_sent`` those given to the connection.
"""

websocket_rejected = _signals.signal("websocket-rejected")
"""A request for a WebSocket was answered with the HTTP ``response``."""

websocket_error = _signals.signal("websocket-error")
"""``exception`` has left the handler, after the handshake. The connection is about to close with 1011."""
