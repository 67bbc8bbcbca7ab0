"""The choice between the compiled functions and their pure-Python twins."""

from __future__ import annotations

import os

_pure_is_asked_for = os.environ.get("FLASK_UWSGI_WEBSOCKET_PURE") == "1"
try:
    if _pure_is_asked_for:
        raise ImportError("pure Python is asked for")
    from ._frames import apply_mask, frame, take_messages
except ImportError:
    from .frames import apply_mask, frame, take_messages

__all__ = ["COMPILED", "FALLBACK", "apply_mask", "frame", "take_messages"]

#: Whether the compiled functions serve, these and those of the channel.
COMPILED = frame.__module__.endswith("._frames")

#: Why pure Python serves although it was not asked for, and the remedy. Empty otherwise.
FALLBACK = (
    ""
    if COMPILED or _pure_is_asked_for
    else "pure Python, as there was no C compiler: install gcc and Python's header files, then this package again"
)
