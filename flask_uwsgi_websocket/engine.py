"""The choice between the compiled engine and the pure-Python one."""

from __future__ import annotations

import os

try:
    if os.environ.get("FLASK_UWSGI_WEBSOCKET_PURE") == "1":
        raise ImportError("the pure-Python engine is asked for")
    from ._speedups import Channel, apply_mask, frame, take_messages
except ImportError:
    from .channel import Channel
    from .frames import apply_mask, frame, take_messages

__all__ = ["COMPILED", "Channel", "apply_mask", "frame", "take_messages"]

#: Whether the compiled engine serves.
COMPILED = frame.__module__.endswith("._speedups")
