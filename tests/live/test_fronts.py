"""Every front with every mode, with the unchanged configuration files of the package."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

import flask_uwsgi_websocket
from flask_uwsgi_websocket import find_uwsgi
from support.fronts import ALL, DEPLOY, FRONTS, MODES, NAME, Client, Machine, make_certificate, running
from support.live import DEADLINE, request_in_a_row, serving, wait_until
from support.live import MODES as SERVER_MODES
from support.needs import require
from support.paths import DOCS

#: Seconds without a message.
IDLE = 90

# The first test waits for all machines to start, and the last one for the idle connections.
pytestmark = [pytest.mark.once, pytest.mark.timeout(2 * IDLE)]

CELLS = [pytest.param((front, mode), id=f"{front}-{mode}") for front in FRONTS for mode in MODES]


class Site(NamedTuple):
    """The application in one mode, behind one front."""

    machine: Machine
    is_secure: bool

    @property
    def schemes(self) -> tuple[str, str]:
        """The schemes of the site's WebSockets and of its pages."""
        return ("wss", "https") if self.is_secure else ("ws", "http")

    def connect(self, path: str, **options: Any) -> AbstractContextManager[Client]:
        """Open a WebSocket."""
        return self.machine.connect(path, is_secure=self.is_secure, **options)

    def json(self, path: str) -> Any:
        """Request a page of JSON."""
        return self.machine.json(path, is_secure=self.is_secure)


class Idle(NamedTuple):
    """Two connections without a message since a moment: pings flow on one, and the other is silent."""

    since: float
    pinged: Client
    silent: Client


def require_tools() -> None:
    """Skip a test whose machines cannot be created. In CI that is a failure."""
    require("namespaces", "ip", "proxies", "TLS")
    options = subprocess.run([find_uwsgi(), "--help"], capture_output=True, text=True, check=True).stdout
    if " --https " not in options:
        pytest.skip("uWSGI had no libssl-dev when it was compiled: remove .venv and .venvs")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Machine]]:
    """A machine for each front and mode."""
    require_tools()
    with running(tmp_path_factory.mktemp("fronts"), ALL) as machines:
        yield machines


@pytest.fixture(scope="module")
def sites(machines: dict[tuple[str, str], Machine]) -> dict[tuple[str, str], Site]:
    """A site for each front and mode."""
    return {(name, mode): Site(machines[f.setup, mode], f.is_secure) for name, f in FRONTS.items() for mode in MODES}


@pytest.fixture(scope="module")
def idle(sites: dict[tuple[str, str], Site]) -> Iterator[dict[tuple[str, str], Idle]]:
    """Connections to each site that are idle from now on, while other tests run."""
    with ExitStack() as stack:
        idle = {}
        for cell, site in sites.items():
            pinged, silent = (stack.enter_context(site.connect(path)) for path in ("/pinged", "/silent"))
            idle[cell] = Idle(time.monotonic(), pinged, silent)
        yield idle


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The name of each front and mode."""
    front, mode = request.param
    return front, mode


@pytest.fixture
def site(cell: tuple[str, str], sites: dict[tuple[str, str], Site], idle: object) -> Site:
    """Each site. Its idle connections open before the first test."""
    return sites[cell]


def test_messages_come_back_unchanged(site: Site) -> None:
    samples: list[str | bytes] = ["text ☃", bytes(range(256)), "", b"", "é" * 2**19, random.Random(5).randbytes(2**20)]
    with site.connect("/echo") as client:
        for message in samples:
            client.send(message)
            assert client.receive() == message


def test_close_codes_arrive_in_both_directions(site: Site) -> None:
    with site.connect("/close/4002/ciao") as client, pytest.raises(ConnectionClosed):
        client.receive()
    assert client.ending == (4002, "ciao")

    token = site.machine.token()
    with site.connect(f"/echo?token={token}") as client:
        client.close(4001, "bye ☃")
    closing = wait_until(
        lambda: site.json(f"/closing/{token}")["closing"], lambda: "the application does not see the close"
    )
    assert closing == [4001, "bye ☃"]


def test_the_application_knows_the_address_of_the_client_and_its_own(site: Site) -> None:
    scheme, _ = site.schemes
    with site.connect("/seen") as client:
        assert json.loads(client.receive()) == {"client": site.machine.client, "url": f"{scheme}://{NAME}/seen"}
    page = site.json("/")
    assert page == {"mode": site.machine.mode, "client": site.machine.client, "url": f"{scheme}://{NAME}/seen"}


#: False claims of a client: another client's address, and another address of the site.
CLAIMS = {"For": "6.6.6.6", "Host": "evil.example", "Port": "666", "Prefix": "/evil"}


@pytest.mark.parametrize("separator", ["-", "_"], ids=["hyphens", "underscores"])
def test_the_application_does_not_believe_forwarding_headers_of_a_client(site: Site, separator: str) -> None:
    scheme, _ = site.schemes
    claims = {**CLAIMS, "Proto": "http" if site.is_secure else "https", "Ssl": "off" if site.is_secure else "on"}
    headers = {separator.join(["X", "Forwarded", name]): value for name, value in claims.items()}
    with site.connect("/seen", additional_headers=headers) as client:
        seen = json.loads(client.receive())
    assert seen == {"client": site.machine.client, "url": f"{scheme}://{NAME}/seen"}


def test_only_pages_of_the_same_origin_may_connect(site: Site) -> None:
    _, scheme = site.schemes
    with site.connect("/echo", origin=f"{scheme}://{NAME}"):
        pass
    others = ["https://evil.example", f"{scheme}://{NAME}:8443", f"{scheme}://evil.{NAME}", "null"]
    if site.is_secure:
        others.append(f"http://{NAME}")
    for origin in others:
        with pytest.raises(InvalidStatus) as refusal, site.connect("/echo", origin=origin):
            pass
        assert refusal.value.response.status_code == 403, origin


def test_a_handshake_may_have_large_cookies(site: Site) -> None:
    # Browsers send cookies of up to 4096 bytes, and Flask's session is a cookie.
    with site.connect("/echo", additional_headers={"Cookie": "session=" + "x" * 4096}) as client:
        client.send("hello")
        assert client.receive() == "hello"


def test_clients_that_keep_their_connections_lose_no_request(site: Site) -> None:
    answers = {"/": 200, "/nowhere": 404, "/echo": 426}
    statuses = request_in_a_row(lambda: site.machine.open(is_secure=site.is_secure), *list(answers) * 5)
    assert statuses == list(answers.values()) * 5


@pytest.mark.parametrize("front", FRONTS)
def test_clients_that_never_end_their_headers_take_no_core(front: str, sites: dict[tuple[str, str], Site]) -> None:
    site = sites[front, "threads"]
    cores = int(re.findall(r"(?m)^threads = (\d+)", (DEPLOY / "threads.ini").read_text())[0])
    with ExitStack() as stack:
        for _ in range(cores + 10):
            sock = stack.enter_context(site.machine.open(is_secure=site.is_secure))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: " + NAME.encode() + b"\r\nX: ")
        assert site.machine.get("/", is_secure=site.is_secure).status == 200


def test_the_http_router_redirects_to_the_https_router(sites: dict[tuple[str, str], Site]) -> None:
    response = sites["router-https", "gevent"].machine.get("/seen?a=b")
    assert (response.status, response.headers["Location"]) == (301, f"https://{NAME}/seen?a=b")


@pytest.mark.parametrize("unit", ["chat.service", "chat-router.service"])
def test_systemd_finds_no_fault_in_the_services(sites: dict[tuple[str, str], Site], unit: str) -> None:
    result = sites["router-http", "gevent"].machine.run("systemd-analyze", "--man=no", "verify", str(DEPLOY / unit))
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("mode", MODES)
def test_the_service_reloads_and_stops_with_a_close_frame_for_its_clients(tmp_path: Path, mode: str) -> None:
    require_tools()
    with running(tmp_path, [("nginx-uwsgi", mode)], first=len(ALL)) as machines:
        (machine,) = machines.values()
        with machine.connect("/echo", is_secure=True) as client:
            client.send("hello")
            assert client.receive() == "hello"
            machine.reload_service()
            with pytest.raises(ConnectionClosed):
                client.receive()
            assert client.ending == (1012, "the server restarts")
        with machine.connect("/echo", is_secure=True) as client:  # this client waits for the new worker
            client.send("hello")
            assert client.receive() == "hello"
            machine.stop_service()
            with pytest.raises(ConnectionClosed):
                client.receive()
            assert client.ending == (1001, "the server stops")


FACTORY = """
from flask import Flask
import flask_uwsgi_websocket

def create_app(extension):
    app = Flask(__name__)
    websocket = getattr(flask_uwsgi_websocket, extension)(app)

    if extension == "AsyncioWebSocket":
        @websocket.route("/echo")
        async def echo(ws):
            async for message in ws:
                await ws.send(message)
    else:
        @websocket.route("/echo")
        def echo(ws):
            for message in ws:
                ws.send(message)

    app.add_url_rule("/", "index", lambda: "hello")
    return app
"""


@pytest.mark.parametrize("mode", MODES)
def test_the_configuration_that_is_printed_for_an_application_serves_it(tmp_path: Path, mode: str) -> None:
    require_tools()
    forum, deploy = tmp_path / "forum", tmp_path / "deploy"
    package = forum / "src" / "package"
    package.mkdir(parents=True)
    deploy.mkdir()
    (package / "__init__.py").write_text(FACTORY)
    app = f"src/package:create_app({SERVER_MODES[mode].extension!r})"
    for kind, file in (("ini", f"{mode}.ini"), ("systemd", "chat.service"), ("nginx", "nginx-uwsgi.conf")):
        command = [sys.executable, "-m", "flask", "--app", app, "uwsgi", "config", kind]
        environ = {**os.environ, "PYTHONPATH": str(Path(flask_uwsgi_websocket.__file__).parents[1])}
        with (deploy / file).open("wb") as output:
            subprocess.run(command, cwd=forum, env=environ, check=True, stdout=output)
    shutil.copy(deploy / f"{mode}.ini", forum / "uwsgi.ini")

    with running(forum, [("nginx-uwsgi", mode)], first=len(ALL), deploy=deploy) as machines:
        (machine,) = machines.values()
        checks = (["nginx", "-t"], ["systemd-analyze", "--man=no", "verify", str(deploy / "chat.service")])
        for check in checks:
            result = machine.run(*check)
            assert result.returncode == 0, result.stdout
        with machine.connect("/echo", is_secure=True) as client:
            client.send("hello")
            assert client.receive() == "hello"


HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_https_socket_is_refused_with_a_reason(tmp_path: Path, port: int) -> None:
    require_tools()
    certificate = make_certificate(tmp_path)
    options = ["--https-socket", f"127.0.0.1:{port},{certificate},{certificate}"]
    with serving(tmp_path, SERVER_MODES["gevent"], "http-socket", options=options, expected="RuntimeError") as server:
        context = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPConnection(NAME, timeout=DEADLINE)
        with (
            socket.create_connection((server.host, port), DEADLINE) as sock,
            context.wrap_socket(sock, server_hostname=NAME) as connection.sock,
        ):
            connection.request("GET", "/echo", headers=HANDSHAKE)
            assert connection.getresponse().status == 500
        assert "use the --https router, or a proxy such as nginx that terminates TLS before uWSGI" in server.log
        assert server.handshake("/echo").status == 101  # the other socket still works


def test_the_matrix_in_the_documentation_is_the_tested_matrix() -> None:
    page = (DOCS / "deploying.md").read_text()
    assert re.findall(r"`([a-z-]+-(?:threads|gevent|asyncio))`", page) == [str(cell.id) for cell in CELLS]


def test_connections_may_be_idle(cell: tuple[str, str], idle: dict[tuple[str, str], Idle]) -> None:
    since, pinged, silent = idle[cell]
    time.sleep(max(0.0, since + IDLE - time.monotonic()))
    for client, habit in ((pinged, "pinged"), (silent, "silent")):
        client.send("still there?")
        assert client.receive() == habit
