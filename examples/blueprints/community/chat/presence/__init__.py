"""Who is in a room: a blueprint nested in the blueprint of the rooms."""

from .views import people_in, presence

__all__ = ["people_in", "presence"]
