"""Rooms and their messages."""

import time
from typing import Any

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column, relationship

from ..accounts.models import User
from ..extensions import Model, db


class Room(Model):
    __tablename__ = "room"

    name: Mapped[str] = mapped_column(db.String(32), primary_key=True)


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


def open_first_room() -> None:
    if db.session.get(Room, "Lobby") is None:
        db.session.add(Room(name="Lobby"))
        db.session.commit()
