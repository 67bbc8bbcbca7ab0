"""Examples that run, and browsers for them and for the pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from support.examples import browsing, serving
from support.paths import EXAMPLES


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, port: int) -> Iterator[str]:
    """Start an example by its name, and return its host and port."""
    with serving(EXAMPLES / request.param, port, tmp_path / "log") as address:
        yield address


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a window."""
    with browsing() as driver:
        yield driver


@pytest.fixture
def other_browser() -> Iterator[webdriver.Chrome]:
    """Another Chromium, with its own cookies."""
    with browsing() as driver:
        yield driver
