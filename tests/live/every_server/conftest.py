"""Fixtures that run each test on every server: on uWSGI in each mode behind each front, and on the other servers.

A server stays up for all tests that use it.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
from collections.abc import Iterator

import pytest

from support.live import MATRIX, MODES, OTHERS, Network, Server, serving
from support.needs import NEEDS

#: One server of coroutine handlers in the background suffices, because all have the same event loop.
ON_OTHERS = [
    pytest.param((name, None), id=name, marks=pytest.mark.once) for name in OTHERS if name != "flask-run-asyncio"
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on every server, or on uWSGI alone."""
    is_uwsgis = metafunc.definition.get_closest_marker("only_uwsgi") is not None
    servers = MATRIX if is_uwsgis else MATRIX + ON_OTHERS
    metafunc.parametrize("server", servers, indirect=True, scope="session")


@pytest.fixture(scope="session")
def network() -> Iterator[Network | None]:
    """A network of clients that can be cut off from the server; None where the system does not allow one."""
    if not (NEEDS["ip"].is_here() and NEEDS["namespaces"].is_here()):
        yield None
        return
    name = f"live{os.getpid()}"
    # Part of 198.18.0.0/15, which is for tests (RFC 2544).
    ours, theirs = list(ipaddress.ip_network("198.18.0.0/16").subnets(new_prefix=30))[os.getpid() % 2**14].hosts()
    network = Network(name, str(ours))
    commands = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", f"{name}s", "type", "veth", "peer", "name", f"{name}c", "netns", name],
        ["ip", "address", "add", f"{ours}/30", "dev", f"{name}s"],
        ["ip", "link", "set", f"{name}s", "up"],
        network.command("ip", "address", "add", f"{theirs}/30", "dev", f"{name}c"),
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True)
        yield network
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)  # removes both ends of the cable, too


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server. The parameter is uWSGI's mode and front, or the name of another server and None."""
    name, front = request.param
    if front is None:
        with serving(tmp_path_factory.mktemp(name), OTHERS[name], None) as server:
            yield server
        return
    network = request.getfixturevalue("network")
    hosts = [] if network is None else [network.host]
    with serving(tmp_path_factory.mktemp(f"{name}-{front}"), MODES[name], front, hosts=hosts) as server:
        yield server
