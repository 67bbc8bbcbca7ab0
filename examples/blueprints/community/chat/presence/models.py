"""Past visits to rooms."""

import time

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from ...accounts.models import User
from ...extensions import Model, db


class Visit(Model):
    __tablename__ = "visit"

    room: Mapped[str] = mapped_column(ForeignKey("room.name"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    ended_at: Mapped[float]


def store_visit(room: str, user_id: int) -> None:
    """Store that a user leaves a room now."""
    db.session.merge(Visit(room=room, user_id=user_id, ended_at=time.time()))
    db.session.commit()


def last_visits(room: str, count: int = 20) -> list[tuple[str, float]]:
    """Return the names of past visitors and the ends of their visits, the latest first."""
    query = db.select(User.name, Visit.ended_at).join_from(Visit, User).filter(Visit.room == room)
    return [(name, at) for name, at in db.session.execute(query.order_by(Visit.ended_at.desc()).limit(count))]
