"""The brokers that live tests of rooms share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.needs import require
from support.redis_server import RedisServer, running


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    require("redis")
    with tempfile.TemporaryDirectory() as directory, running(RedisServer(Path(directory))) as server:
        yield server


@pytest.fixture(scope="module")
def shared_memory() -> Iterator[Path]:
    """A directory for the directories of local brokers, whose paths have to be short."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)
