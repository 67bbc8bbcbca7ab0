"""The worker whose loop is tested."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.inprocess import MODES, Threads


@pytest.fixture
def worker(mode: str) -> Iterator[Threads]:
    """The worker that serves requests in each mode, without a server."""
    worker = MODES[mode]()
    worker.start()
    yield worker
    worker.stop()
    assert not worker.errors, worker.errors
