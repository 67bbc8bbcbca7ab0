"""Stays in rooms, in the database: all workers see them, and they outlive a worker that is killed."""

import time
from typing import Any

from flask import current_app
from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from ...accounts.models import User
from ...extensions import Model, db


class Stay(Model):
    """A stay of a user in a room: one for each window. Past stays remain."""

    __tablename__ = "stay"

    id: Mapped[str] = mapped_column(primary_key=True)
    """The id of the WebSocket."""
    room: Mapped[str] = mapped_column(ForeignKey("room.name"), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(User.id))
    seen_at: Mapped[float] = mapped_column(default=time.time)
    """When the window last answered. It answers a ping every ``WEBSOCKET_PING_INTERVAL`` seconds."""
    ended_at: Mapped[float | None] = mapped_column(default=None)


def begin_stay(id: str, room: str, user_id: int) -> None:
    db.session.add(Stay(id=id, room=room, user_id=user_id))
    db.session.commit()


def renew_stay(id: str) -> bool:
    """Note that a window has answered. Return False when its stay has ended."""
    query = db.update(Stay).filter_by(id=id, ended_at=None).values(seen_at=time.time())
    is_open = db.session.execute(query).rowcount == 1
    db.session.commit()
    return is_open


def end_stay(id: str) -> None:
    db.session.execute(db.update(Stay).filter_by(id=id, ended_at=None).values(ended_at=time.time()))
    db.session.commit()


def end_lost_stays(room: str) -> bool:
    """End the stays of windows that have not answered for long. Return whether there were any.

    A worker that ends closes its WebSockets, which ends their stays. A worker that is killed does not.
    """
    query = db.update(Stay).filter_by(room=room, ended_at=None).filter(Stay.seen_at < time.time() - patience())
    are_some = db.session.execute(query.values(ended_at=Stay.seen_at)).rowcount > 0
    db.session.commit()
    return are_some


def patience() -> float:
    """Return the seconds after which a window that has not answered is lost."""
    seconds: float = 3 * current_app.config["WEBSOCKET_PING_INTERVAL"]
    return seconds


def people_in(room: str, earlier: int = 20) -> dict[str, Any]:
    """Return who is in a room, and who was there earlier, the last one first.

    Workers may publish such lists at the same time, in any order. The latest list has the largest ``version``, because
    each begin and each end of a stay adds 1.

    :param earlier: the most people to list of those who were there earlier.
    """
    begins, ends, last = db.func.count(), db.func.count(Stay.ended_at), db.func.max(Stay.ended_at)
    query = db.select(User.name, begins, ends, last).join_from(Stay, User).filter(Stay.room == room)
    rows = db.session.execute(query.group_by(User.name).order_by(User.name)).all()
    gone = [{"name": name, "at": at} for name, begun, ended, at in rows if begun == ended]
    gone.sort(key=lambda each: each["at"], reverse=True)
    return {
        "version": sum(begun + ended for _, begun, ended, _ in rows),
        "here": [name for name, begun, ended, _ in rows if begun > ended],
        "earlier": gone[:earlier],
    }


def people_by_room() -> dict[str, list[str]]:
    """Return who is in each room that is not empty."""
    query = db.select(Stay.room, User.name).join_from(Stay, User).distinct().order_by(User.name)
    query = query.filter(Stay.ended_at.is_(None), Stay.seen_at > time.time() - patience())
    people: dict[str, list[str]] = {}
    for room, name in db.session.execute(query):
        people.setdefault(room, []).append(name)
    return people
