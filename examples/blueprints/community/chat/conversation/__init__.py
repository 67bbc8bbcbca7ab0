"""A room: a blueprint nested in that of all rooms."""

from .views import conversation, conversations, names_in

__all__ = ["conversation", "conversations", "names_in"]
