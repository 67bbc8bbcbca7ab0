"""Examples as they are started by a reader, and the browser that looks at them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import flask_uwsgi_websocket
from support.needs import require

DEADLINE = 30  # seconds, for what takes one or two on an idle machine

#: Where the examples find the package.
PACKAGE_PATH = str(Path(flask_uwsgi_websocket.__file__).parents[1])


@contextmanager
def serving(directory: Path, port: int, log: Path) -> Iterator[str]:
    """Serve the example in a directory, and return its host and port."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLASK_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=directory,
            env={**inherited, "PYTHONPATH": PACKAGE_PATH, "HOST": "127.0.0.1", "PORT": str(port)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            # Not only TCP, which uWSGI's router accepts long before the application is loaded.
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=DEADLINE):
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def browsing() -> Iterator[webdriver.Chrome]:
    """Start Chromium without a screen."""
    require("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def wait_for_text(browser: webdriver.Chrome, element: str, text: str) -> None:
    WebDriverWait(browser, DEADLINE).until(lambda driver: text in driver.find_element(By.ID, element).text)
