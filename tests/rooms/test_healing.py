"""Members of rooms get messages again after the local broker was away, and learn whether they have missed some."""

from __future__ import annotations

import queue
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flask_uwsgi_websocket import Room, websocket_gap
from flask_uwsgi_websocket.rooms.brokers import local_directory
from flask_uwsgi_websocket.rooms.exchange import exchange_of
from support.inprocess import DEADLINE, Site, join, serving, wait_for_background, wait_until


@pytest.fixture
def directory() -> Iterator[Path]:
    """The directory of the broker, whose path is short."""
    with tempfile.TemporaryDirectory(prefix="broker-") as name:
        yield Path(name).resolve() / "rooms"


@pytest.fixture
def site(mode: str, directory: Path) -> Iterator[Site]:
    for site in serving(mode, broker=f"local://{directory}"):
        yield site
    wait_for_background()
    exchange_of(site.app).broker().close()


@pytest.fixture
def gaps(site: Site) -> Iterator[queue.Queue[Any]]:
    """What is told of missed messages: the room and their number."""
    gaps: queue.Queue[Any] = queue.Queue()

    def note(app: Any, room: Room, missed: int | None) -> None:
        gaps.put((room.name, missed))

    with websocket_gap.connected_to(note, site.app):
        yield gaps


def enter(site: Site) -> Any:
    """Connect a client, and wait until it is a member of the room "news"."""

    @site.route("/")
    async def handler(ws: Any) -> None:
        await join(site.websocket.room("news"), ws)
        await ws.send("joined")
        async for _ in ws:
            pass

    client = site.connect()
    assert client.recv() == "joined"
    return client


def test_members_get_messages_again_after_the_directory_was_deleted_and_learn_that_some_are_missing(
    site: Site, directory: Path, gaps: queue.Queue[Any]
) -> None:
    client, room = enter(site), site.websocket.room("news")
    room.publish("before")
    assert client.recv() == "before"
    wait_until(lambda: not exchange_of(site.app).has_unsent(), "the publisher does not know that its message is there")
    epochs = {log.parent for log in directory.glob("log-*/log")}
    shutil.rmtree(directory)
    assert gaps.get(timeout=DEADLINE) == ("news", None)
    room.publish("after")
    assert client.recv() == "after"
    assert epochs.isdisjoint(log.parent for log in directory.glob("log-*/log"))
    logged = [site.logged().getMessage() for _ in range(3)]
    assert logged[0].startswith("Messages of rooms do not arrive until the broker is available again: ")
    assert "was deleted" in logged[0]
    assert logged[1:] == ["The messages of rooms arrive again.", "The room 'news' has missed some messages."]
    stats = site.websocket.stats()["rooms"]
    assert (stats["gaps"], stats["lost"], stats["broker_errors"]) == (1, 0, [])
    assert stats["broker_losses"] > 0


def test_a_lock_that_passes_delays_messages_and_loses_neither_them_nor_the_subscription(
    site: Site, directory: Path, gaps: queue.Queue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, room = enter(site), site.websocket.room("news")
    room.publish("before")
    assert client.recv() == "before"
    monkeypatch.setattr(local_directory, "LOCK_TIMEOUT", 0.05)
    (log,) = directory.glob("log-*/log")
    with closing(sqlite3.connect(log, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        room.publish("meanwhile")
        error = site.logged().getMessage()
        assert error.startswith("The broker of the rooms is not available, and messages wait for it: Another process ")
        holder.execute("COMMIT")
    assert client.recv() == "meanwhile"
    assert site.logged().getMessage() == "The broker of the rooms is available again."
    assert gaps.empty()
    stats = site.websocket.stats()["rooms"]
    assert (stats["gaps"], stats["lost"], stats["broker_losses"]) == (0, 0, 0)
