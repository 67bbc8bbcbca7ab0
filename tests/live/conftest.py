"""The live tests: each starts a real server, or uses one that is up."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.live)
