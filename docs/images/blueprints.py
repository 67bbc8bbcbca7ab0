"""Make blueprints.png: two people chat in examples/blueprints.

Run it in an environment that has the extra "dev".
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).parents[2]
PORT = 5987
URL = f"http://127.0.0.1:{PORT}"
TALK = [
    ("Ann", "Morning! Did the release go out?"),
    ("Bob", "Ten minutes ago. All 1,000 connections moved over, nobody noticed."),
    ("Ann", "Lovely. And <b>tags</b> stay text, I see."),
    ("Bob", "As they should."),
    ("Cleo", "I have to go, see you tomorrow."),
    ("Ann", "Bye Cleo!"),
]


def main() -> None:
    with ExitStack() as stack:
        stack.enter_context(serving(stack.enter_context(tempfile.TemporaryDirectory())))
        people = {
            name: stack.enter_context(browsing()) for name in ("Ann", "Bob", "Cleo")
        }
        for name, browser in people.items():
            scheme = "dark" if name == "Bob" else "light"
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": features}
            )
            metrics = {
                "width": 780,
                "height": 720,
                "deviceScaleFactor": 1,
                "mobile": False,
            }
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            eleven = f"Etc/GMT{time.gmtime().tm_hour - 11:+}"  # where it is about 11 AM
            browser.execute_cdp_cmd(
                "Emulation.setTimezoneOverride", {"timezoneId": eleven}
            )
            browser.get(f"{URL}/signup")
            browser.find_element(By.ID, "name").send_keys(name)
            browser.find_element(By.ID, "password").send_keys("a long password\n")
            wait_for(browser, "Rooms")
            browser.get(f"{URL}/rooms/Lobby")
            wait_for(browser, "connected")
        for number, (name, text) in enumerate(TALK, 1):
            people[name].execute_script(
                "document.getElementById('text').value = arguments[0];"
                "say.requestSubmit()",
                text,
            )
            for browser in people.values():
                until(
                    browser,
                    lambda b, n=number: (
                        len(b.find_elements(By.CSS_SELECTOR, "#log li")) == n
                    ),
                )
        people["Cleo"].get("about:blank")
        shots = []
        for name in ("Ann", "Bob"):
            until(
                people[name], lambda b: "Cleo" in b.find_element(By.ID, "earlier").text
            )
            shots.append(people[name].get_screenshot_as_base64())
        Path(__file__).with_suffix(".png").write_bytes(
            side_by_side(people["Cleo"], shots)
        )


@contextmanager
def serving(directory):
    database = f"sqlite:///{directory}/community.sqlite"
    environ = {"PYTHONPATH": str(ROOT), "HOST": "127.0.0.1", "PORT": str(PORT)}
    server = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=ROOT / "examples/blueprints",
        env={**os.environ, **environ, "COMMUNITY_SQLALCHEMY_DATABASE_URI": database},
    )
    try:
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", PORT)):
                break
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


@contextmanager
def browsing():
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(
        options, webdriver.ChromeService("/usr/bin/chromedriver")
    )
    try:
        yield browser
    finally:
        browser.quit()


def side_by_side(browser, shots):
    images = "".join(f'<img src="data:image/png;base64,{shot}">' for shot in shots)
    style = "body{margin:0;display:flex;gap:1px;background:#888}img{width:780px}"
    page = f"<style>{style}</style>{images}"
    metrics = {"width": 1561, "height": 720, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_script("document.documentElement.innerHTML = arguments[0]", page)
    until(
        browser,
        lambda b: b.execute_script(
            "return [...document.images].every((i) => i.complete)"
        ),
    )
    return base64.b64decode(browser.get_screenshot_as_base64())


def wait_for(browser, text):
    until(browser, lambda b: text in b.find_element(By.TAG_NAME, "main").text)


def until(browser, condition):
    WebDriverWait(browser, 30, 0.1).until(condition)


if __name__ == "__main__":
    main()
