"""Chat rooms: the list of all rooms, and one blueprint for what happens in a room."""

from .views import chat

__all__ = ["chat"]
