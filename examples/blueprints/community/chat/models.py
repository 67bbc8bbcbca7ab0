"""Rooms."""

from sqlalchemy.orm import Mapped, mapped_column

from ..extensions import Model, db


class Room(Model):
    __tablename__ = "room"

    name: Mapped[str] = mapped_column(db.String(32), primary_key=True)


def open_first_room() -> None:
    if db.session.get(Room, "Lobby") is None:
        db.session.add(Room(name="Lobby"))
        db.session.commit()
