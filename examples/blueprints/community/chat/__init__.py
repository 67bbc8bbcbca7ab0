"""Rooms to chat in."""

from .views import chat

__all__ = ["chat"]
