"""Chat rooms."""

from .views import chat

__all__ = ["chat"]
