"""Who is in a room: a blueprint nested in the blueprint of the rooms."""

from .models import people_by_room
from .views import presence, watchers

__all__ = ["people_by_room", "presence", "watchers"]
