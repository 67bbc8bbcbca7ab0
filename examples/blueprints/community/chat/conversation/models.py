"""The messages in a room, and who was there."""

import time
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ...accounts.models import User
from ...extensions import Model, db
from ..models import Room


class Message(Model):
    __tablename__ = "message"

    id: Mapped[int] = mapped_column(primary_key=True)
    room: Mapped[str] = mapped_column(ForeignKey(Room.name), index=True)
    author_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    text: Mapped[str]
    sent_at: Mapped[float] = mapped_column(default=time.time)

    author: Mapped[User] = relationship(lazy="joined")

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.id, "author": self.author.name, "text": self.text, "sent_at": self.sent_at}


def last_messages(room: str, count: int = 50) -> list[dict[str, Any]]:
    """Return the last messages in a room, the oldest first."""
    query = db.select(Message).filter_by(room=room).order_by(Message.id.desc()).limit(count)
    return [message.as_dict() for message in reversed(db.session.scalars(query).all())]


def store_message(room: str, author_id: int, text: str) -> dict[str, Any]:
    """Store a message and return it as a dictionary."""
    message = Message(room=room, author_id=author_id, text=text)
    db.session.add(message)
    db.session.flush()
    stored = message.as_dict()
    db.session.commit()  # last, because it gives the database connection back
    return stored


class Visit(Model):
    """The last visit of a user to a room, after its end."""

    __tablename__ = "visit"

    room: Mapped[str] = mapped_column(ForeignKey(Room.name), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id), primary_key=True)
    ended_at: Mapped[float] = mapped_column(index=True)


def last_visits(room: str, count: int = 20) -> dict[str, float]:
    """Return who was in a room last, and until when. Some of them may be there again."""
    query = db.select(User.name, Visit.ended_at).join_from(Visit, User).filter(Visit.room == room)
    rows = db.session.execute(query.order_by(Visit.ended_at.desc()).limit(count))
    return {row.name: row.ended_at for row in rows}


def store_visit(room: str, user_id: int) -> float:
    """Store that a visit has ended, and return when."""
    at = time.time()
    db.session.merge(Visit(room=room, user_id=user_id, ended_at=at))
    db.session.commit()
    return at
