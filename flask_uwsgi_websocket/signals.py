"""Signals that report what happens to connections.

The sender is always the app object, so that a receiver can choose its app: ``websocket_closed.connect(left, app)``.
Receivers get the client as ``ws`` and the keywords below. They run within the contexts of the connection: ``request``,
``session`` and ``g`` are those of its handler. Later versions may add keywords, so take ``**extra``.

When a receiver raises, the log has the exception; the connection and the other receivers go on. In the asyncio mode,
coroutine functions are awaited. blinker holds receivers weakly: it forgets a function that is defined in a factory,
unless you connect it with ``weak=False``. :meth:`.WebSocketBlueprint.on_connect` and the other listeners hold their
functions.
"""

from __future__ import annotations

from blinker import Namespace

_signals = Namespace()

websocket_connected = _signals.signal("websocket-connected")
"""Sent after the handshake."""

websocket_message = _signals.signal("websocket-message")
"""Sent before the handler gets ``message``, ``str`` or ``bytes``."""

websocket_sent = _signals.signal("websocket-sent")
"""Sent after ``message``, ``str`` or bytes-like, was given to the connection. The peer need not have read it."""

websocket_closed = _signals.signal("websocket-closed")
"""Sent exactly once for each connection that was open, after its end and before its contexts are torn down.

``code`` and ``reason`` are those of the Close frame that ended it (1005: the frame had no code; 1006: there was no
frame). ``initiator`` is ``"client"``, ``"server"``, ``"timeout"``, ``"error"`` (the handler raised, or the client broke
the protocol) or ``"shutdown"``. ``duration`` is in seconds. ``messages_received`` counts the messages that the handler
got, ``messages_sent`` those that were given to the connection.
"""

websocket_rejected = _signals.signal("websocket-rejected")
"""Sent when an upgrade request gets the HTTP ``response``, after all ``after_request`` functions."""

websocket_pong = _signals.signal("websocket-pong")
"""Sent when the peer has answered a ping, the connection's own or one of ``ws.ping()``.

``latency`` is the round trip in seconds (RFC 6455 section 5.5.3). While the handler is in ``receive()``, its own
thread, greenlet or task calls the receivers. Otherwise another one does, within about a second.
"""

websocket_gap = _signals.signal("websocket-gap")
"""Sent when members of a ``room`` of this worker have missed messages, because the broker was away or forgot them.

``missed`` is their number, or None if it is not known. There is no ``ws``, and no request: the receivers run once for
the room, in an app context.
"""

websocket_joined = _signals.signal("websocket-joined")
"""Sent when ``member``, a :class:`.Member`, has come to a ``room`` with presence, in one process of all.

There is no ``ws``, and no request: the receivers run in an app context, in a thread or greenlet of their own.
"""

websocket_left = _signals.signal("websocket-left")
"""Sent when ``member`` is gone from a ``room`` with presence, after its grace. Like ``websocket_joined``."""

websocket_error = _signals.signal("websocket-error")
"""Sent when ``exception`` has left the handler, or a method of a view, after the handshake.

The connection closes with 1011.
"""
