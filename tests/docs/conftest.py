"""Examples that run, and browsers for them and for the pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from support.examples import browsing, serving
from support.needs import require
from support.paths import EXAMPLES
from support.redis_server import RedisServer, running

#: The variables that name the broker, of one example or another.
BROKER = ("WEBSOCKET_BROKER", "COMMUNITY_WEBSOCKET_BROKER")


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, port: int) -> Iterator[str]:
    """Start an example by its name, and return its host and port."""
    with serving(EXAMPLES / request.param, port, tmp_path / "log") as address:
        yield address


@pytest.fixture(params=["auto", "redis"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Configure the broker of an example as its users do."""
    if request.param == "auto":
        for name in BROKER:
            monkeypatch.delenv(name, raising=False)
        yield
        return
    require("redis")
    (tmp_path / "redis").mkdir()
    with running(RedisServer(tmp_path / "redis")) as redis:
        for name in BROKER:
            monkeypatch.setenv(name, redis.url)
        yield


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
