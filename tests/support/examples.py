"""Examples, started like a reader starts them, and a browser for them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
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

DEADLINE = 30  # seconds, for steps that take one or two on an idle machine

#: The directories where the examples find the package.
PACKAGE_PATH = str(Path(flask_uwsgi_websocket.__file__).parents[1])


def environment() -> dict[str, str]:
    """Return the environment of an example."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLASK_")}
    return {**inherited, "PYTHONPATH": PACKAGE_PATH}


@contextmanager
def serving(directory: Path, port: int, log: Path) -> Iterator[str]:
    """Serve the example in a directory, and yield its host and port."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=directory,
            env={**environment(), "HOST": "127.0.0.1", "PORT": str(port)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            # Connecting is not enough, because uWSGI's router accepts long before the application is loaded.
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
        # Otherwise the next server of the same app removes it, and a copy of an example has no next server.
        for place in ("/dev/shm", tempfile.gettempdir()):
            for broker in Path(place).glob(f"flask-uwsgi-websocket-{os.getuid()}-*-{process.pid}"):
                shutil.rmtree(broker, ignore_errors=True)  # a worker may not have ended yet


def run_script(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the example in a directory, and return its output and status.

    :param arguments: the name of the script, and its arguments.
    """
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment(), capture_output=True, text=True, timeout=DEADLINE
    )


@contextmanager
def browsing() -> Iterator[webdriver.Chrome]:
    """Start Chromium without a window."""
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
