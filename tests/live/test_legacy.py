"""Programs for 0.6.1, with ``WEBSOCKET_COMPATIBILITY``, and its examples with only ``WEBSOCKET_TEXT_AS_BYTES``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from support import legacy as programs
from support.live import DEADLINE, MODES, Server, in_threads, serving


@pytest.fixture(scope="module", params=["threads", "gevent", "asyncio"])
def legacy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp(request.param)
    with serving(directory, MODES[request.param], "http-socket", module="legacy_app") as server:
        # A handler that never forgets a user may send to a client that has just left.
        server.expected += r"|flask_uwsgi_websocket\.exceptions\.ConnectionClosed"
        yield server


def test_the_old_echoes_echo_text(legacy: Server) -> None:
    is_asyncio = legacy.mode == MODES["asyncio"]
    for name in ("echo",) if is_asyncio else ("readme", "echo", "echo-gevent"):
        with legacy.connect(f"/legacy/{name}") as client:
            for message in ("hello", "☃" * 100):
                client.send(message)
                assert client.recv(DEADLINE) == message
        legacy.wait_for_access_log(client)


def test_the_old_chat_sends_to_the_others_and_forgets_users_who_have_left(legacy: Server) -> None:
    with legacy.connect("/legacy/chat") as first, legacy.connect("/legacy/chat") as second:
        first.send("one")
        assert second.recv(DEADLINE) == "one"
        with legacy.connect("/legacy/chat") as third:
            assert third.recv(DEADLINE) == "one"  # from the backlog
            third.send("two")
            assert (first.recv(DEADLINE), second.recv(DEADLINE)) == ("two", "two")
        legacy.wait_for_access_log(third)
        second.send("three")
        assert first.recv(DEADLINE) == "three"


def test_the_old_sender_reaches_the_other_client_until_that_leaves(legacy: Server) -> None:
    if legacy.mode == MODES["asyncio"]:
        return  # 0.6.1 had no such example

    both = threading.Barrier(2, timeout=DEADLINE)

    def listen(_: int) -> None:  # the first message makes the handshake, so no client connects alone
        with legacy.connect("/legacy/chatty") as client:
            assert str(client.recv(DEADLINE)).startswith("hi from ")
            both.wait()  # when one client has left, the handler of the other one ends
        legacy.wait_for_access_log(client)

    in_threads(2, listen)


@pytest.fixture(scope="module")
def compatible() -> Iterator[Callable[[str], programs.Server]]:
    with programs.servers(original=False) as servers:
        yield servers


@pytest.mark.parametrize(("mode", "name"), programs.CASES)
def test_a_client_sees_what_it_saw_with_0_6_1(
    mode: str, name: str, compatible: Callable[[str], programs.Server]
) -> None:
    server = compatible(mode)
    assert programs.is_recorded(server, name)
    assert "Traceback" not in server.log
