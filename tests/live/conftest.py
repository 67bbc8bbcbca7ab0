"""The brokers that live tests of rooms share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.needs import require
from support.redis_server import RedisServer, running
from support.rooms import Group, serving_groups


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


@pytest.fixture(scope="module")
def rooms_name(request: pytest.FixtureRequest) -> str:
    """What keeps the rooms of a module apart from those of others."""
    return request.path.stem.removeprefix("test_")


@pytest.fixture(scope="module")
def local_directory(shared_memory: Path, rooms_name: str) -> Path:
    return shared_memory / rooms_name


@pytest.fixture(scope="module")
def groups(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    redis: RedisServer,
    local_directory: Path,
    rooms_name: str,
) -> Iterator[dict[str, Group]]:
    """The servers of the module's ``SETUPS``, by their broker."""
    brokers = {"local": f"local://{local_directory}", "redis": f"{redis.url}?prefix={rooms_name}"}
    with serving_groups(tmp_path_factory.mktemp(rooms_name), request.module.SETUPS, brokers) as groups:
        yield groups
