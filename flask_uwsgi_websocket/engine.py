"""The choice between the compiled engine and the pure-Python one."""

from __future__ import annotations

import os

_pure_is_asked_for = os.environ.get("FLASK_UWSGI_WEBSOCKET_PURE") == "1"
try:
    if _pure_is_asked_for:
        raise ImportError("the pure-Python engine is asked for")
    from ._speedups import Channel, apply_mask, frame, memory_of, take_messages
except ImportError:
    from sys import getsizeof as memory_of

    from .channel import Channel
    from .frames import apply_mask, frame, take_messages

__all__ = ["COMPILED", "FALLBACK", "Channel", "apply_mask", "frame", "memory_of", "take_messages"]

#: Whether the compiled engine serves.
COMPILED = frame.__module__.endswith("._speedups")

#: Why the pure-Python engine serves although it was not asked for, and the remedy. Empty otherwise.
FALLBACK = (
    ""
    if COMPILED or _pure_is_asked_for
    else "pure Python, as there was no C compiler: install gcc and Python's header files, then this package again"
)
