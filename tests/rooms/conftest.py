"""Redis servers for the tests of rooms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.needs import require
from support.redis_server import RedisServer, StartServer, running


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Start more servers, each with options of its own."""
    require("redis")
    with ExitStack() as stack:
        count = 0

        def start(**options: object) -> RedisServer:
            nonlocal count
            count += 1
            directory = tmp_path / str(count)
            directory.mkdir()
            return stack.enter_context(running(RedisServer(directory, **options)))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def server(start_server: StartServer) -> RedisServer:
    return start_server()
