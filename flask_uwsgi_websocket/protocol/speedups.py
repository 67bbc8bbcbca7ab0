"""The choice between the compiled functions and their pure-Python twins."""

from __future__ import annotations

import os

_pure_is_asked_for = os.environ.get("FLASK_UWSGI_WEBSOCKET_PURE") == "1"
try:
    if _pure_is_asked_for:
        raise ImportError("FLASK_UWSGI_WEBSOCKET_PURE=1 asks for pure Python")
    from ._frames import apply_mask, frame, take_messages
except ImportError:
    from .frames import apply_mask, frame, take_messages

__all__ = ["COMPILED", "FALLBACK", "apply_mask", "frame", "take_messages"]

#: Whether the compiled twins are in use, here and in all other folders.
COMPILED = frame.__module__.endswith("._frames")

#: Why pure Python is in use although nobody asked for it, and the remedy. Empty otherwise.
FALLBACK = (
    ""
    if COMPILED or _pure_is_asked_for
    else "missing, as there was no C compiler, and pure Python runs instead: install gcc and Python's header files, "
    "then reinstall this package"
)
