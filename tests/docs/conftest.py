"""Examples that run, and browsers that look at them and at what the pages define."""

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
    """Chromium without a screen."""
    with browsing() as driver:
        yield driver


@pytest.fixture
def other_browser() -> Iterator[webdriver.Chrome]:
    """Chromium once more, with cookies of its own."""
    with browsing() as driver:
        yield driver
