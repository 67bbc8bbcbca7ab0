"""A worker with as many WebSockets as it accepts still serves pages, and more than 1,024 descriptors work."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.live import MODES, Raw, check_room, serving
from support.wire import TEXT

#: The options for uWSGI's cores in each mode, and the number of connections that they allow.
CORES = {"threads": (["--threads", "10"], 9), "gevent": (["--gevent", "20"], 18), "asyncio": (["--asyncio", "20"], 18)}


@pytest.mark.parametrize(("mode", "options", "most"), [(mode, *CORES[mode]) for mode in CORES])
def test_a_worker_keeps_some_of_its_cores_for_http(
    tmp_path: Path, mode: str, options: Sequence[str], most: int
) -> None:
    with serving(tmp_path, MODES[mode], "http-socket", options=options) as server:
        check_room(server, most)


@pytest.mark.parametrize(("mode", "options", "most"), [(mode, *CORES[mode]) for mode in CORES])
def test_clients_that_leave_before_their_handshake_make_room_for_others(
    tmp_path: Path, mode: str, options: Sequence[str], most: int
) -> None:
    with serving(tmp_path, MODES[mode], "http-socket", options=options) as server:
        for leave in (Raw.close, Raw.reset):
            clients = [Raw(server, server.path("/wait")) for _ in range(most)]
            for client in clients:
                client.send_handshake({})
            for client in clients:
                server.wait_for("start", client)
            for client in clients:
                leave(client)
            for client in clients:
                assert server.wait_for("end", client)["outcome"] is None
                assert server.wait_for_access_log(client) == 499
        check_room(server, most)


#: The cores in each mode, and the number of connections for which 64 descriptors suffice: each thread has its own.
FEW = {"threads": (["--threads", "12"], 8), "gevent": (["--gevent", "40"], 14), "asyncio": (["--asyncio", "40"], 14)}


@pytest.mark.parametrize(("mode", "options", "most"), [(mode, *FEW[mode]) for mode in FEW])
def test_a_worker_with_few_descriptors_accepts_fewer_connections_and_logs_this_once(
    tmp_path: Path, mode: str, options: Sequence[str], most: int
) -> None:
    with serving(tmp_path, MODES[mode], "http-socket", options=[*options, "--max-fd", "64"]) as server:
        for _ in range(2):
            client = Raw(server, server.path("/starve"))
            response = client.handshake({})
            assert (response.status, response.headers["Retry-After"]) == (503, "10")
            client.close()
            assert server.wait_for_access_log(client) == 503  # descriptors are free again
        check_room(server, most)
        assert max(server.open_files().values()) < 64
        log = server.log
        assert log.count("this process may open 64 files, which is enough for") == 2  # the doctor has logged it, too
        assert log.count("this process may open no more files") == 1


def test_descriptors_above_1023_work(tmp_path: Path) -> None:
    count = 700  # each connection takes two descriptors
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        options = ["--gevent", str(count + 50), "--listen", "100"]
        with serving(tmp_path, MODES["gevent"], "http-socket", options=options) as server, ExitStack() as stack:
            clients = [stack.enter_context(server.raw("/echo")) for _ in range(count)]
            for client in clients:
                client.send_frame(TEXT, b"hello")
            for client in clients:
                assert client.receive() == (TEXT, b"hello")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
