"""Connections end by either side, by accident and by neglect, and leave nothing behind."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from websockets.exceptions import ConnectionClosed

from support.live import DEADLINE, Network, Raw, Server, in_threads, processes, wait_until
from support.needs import require
from support.paths import SUPPORT
from support.wire import BINARY, CLOSE, KEY, PING, PONG, TEXT, frame

#: Handlers that receive, that only send, and that only check whether the client is connected.
HABITS = ["/receive", "/push", "/watch"]


def test_the_close_code_of_the_client_reaches_the_handler(server: Server) -> None:
    for habit in HABITS:
        with server.connect(habit) as client:
            client.close(4001, "bye ☃")
        end = server.wait_for("end", client)
        assert (end["code"], end["reason"]) == (4001, "bye ☃"), habit
        assert end["outcome"] == ("ConnectionClosed" if habit == "/push" else None)
        assert server.wait_for_access_log(client) == 101


def test_the_close_code_of_the_handler_reaches_the_client(server: Server) -> None:
    with server.connect("/close/4002/ciao") as client, pytest.raises(ConnectionClosed):
        client.recv(DEADLINE)
    assert (client.close_code, client.close_reason) == (4002, "ciao")
    assert server.wait_for("end", client)["code"] == 4002


def test_a_client_that_resets_directly_after_its_request_is_no_error(server: Server) -> None:
    for moment in range(100):
        client = Raw(server, server.path("/receive"))
        client.send_handshake({})
        time.sleep(moment * 0.00002)  # the answer takes about a millisecond
        client.reset()
        if server.front != "http":  # the router may not pass the request on
            server.wait_for_access_log(client)
    assert "chunked_input" not in server.log


def test_a_close_frame_without_a_code_is_answered_and_reported_as_1005(server: Server) -> None:
    with server.raw("/receive") as client:
        client.send_frame(CLOSE)
        opcode, _ = client.receive()
        assert opcode == CLOSE
        assert client.file.read() == b""
        assert server.wait_for("end", client)["code"] == 1005


def test_the_server_ends_tcp_as_soon_as_both_sides_have_closed(server: Server) -> None:
    with server.raw("/close/1000/done") as client:
        assert client.receive_close() == (1000, "done")
        client.send_frame(CLOSE, b"\x03\xe8")
        assert client.file.read() == b""


def test_an_exception_in_a_handler_closes_with_1011(server: Server) -> None:
    with server.raw("/raise") as client:
        assert client.receive_close() == (1011, "internal error")
        client.send_frame(CLOSE, b"\x03\xf3")
        assert client.file.read() == b""
    assert server.wait_for("end", client)["outcome"] == "Deliberate"
    assert server.wait_for_access_log(client) == 101


def test_an_http_exception_after_the_handshake_closes_with_4000_and_its_status(server: Server) -> None:
    with server.raw("/abort") as client:
        assert client.receive_close() == (4404, "Not Found")
    assert server.wait_for("end", client)["outcome"] == "NotFound"


def test_a_client_that_never_answers_a_close_is_dropped(server: Server) -> None:
    with server.raw("/unanswered/1000/now") as client:
        assert client.receive_close() == (1000, "now")
        with suppress(ConnectionResetError):
            assert client.file.read() == b""
        server.wait_for("end", client)


def test_messages_after_a_close_frame_are_not_processed(server: Server) -> None:
    with server.raw() as client:
        client.send(frame(CLOSE, b"\x03\xe8", key=KEY) + frame(TEXT, b"more", key=KEY))
        assert client.receive_close() == (1000, "")
        with suppress(ConnectionResetError):
            assert client.file.read() == b""


# Clients that vanish


def expect_the_end(server: Server, clients: list[Raw | str]) -> None:
    for client in clients:
        end = server.wait_for("end", client)
        assert end["code"] == 1006
        assert server.wait_for_access_log(client) == 101


@contextmanager
def client_process(server: Server, paths: list[str], network: Network | None = None) -> Iterator[object]:
    host = server.host if network is None else network.host
    command = [sys.executable, "-SE", str(SUPPORT / "live_client.py"), host, str(server.port), *paths]
    with processes(command if network is None else network.command(*command)) as (process,):
        for path in paths:
            server.wait_for("start", path)
        yield process


def test_a_reset_is_detected_whatever_the_handler_does(server: Server) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.raw(habit)) for habit in HABITS]
        for client in clients:
            server.wait_for("start", client)
            client.reset()
        expect_the_end(server, clients)


def test_the_end_of_tcp_without_a_close_frame_is_detected_whatever_the_handler_does(server: Server) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(server.raw(habit)) for habit in HABITS]
        for client in clients:
            server.wait_for("start", client)
            client.close()
        expect_the_end(server, clients)


def test_a_client_that_vanishes_in_the_middle_of_a_frame_ends_its_connection(server: Server) -> None:
    with server.raw("/receive") as client:
        client.send(frame(BINARY, bytes(1000), key=KEY)[:500])
        client.reset()
        expect_the_end(server, [client])


def test_a_killed_client_is_detected_whatever_the_handler_does(server: Server) -> None:
    paths = [server.path(habit) for habit in HABITS]
    with client_process(server, paths) as process:
        process.send_signal(signal.SIGKILL)
        expect_the_end(server, paths)


@pytest.mark.only_uwsgi  # slow, and independent of the server
def test_a_client_that_stops_answering_is_detected_whatever_the_handler_does(server: Server) -> None:
    paths = [server.path(f"/pinged{habit}") for habit in HABITS]
    with client_process(server, paths) as process:
        process.send_signal(signal.SIGSTOP)
        expect_the_end(server, paths)


@pytest.mark.only_uwsgi  # slow, and independent of the server
def test_a_client_whose_network_is_cut_is_detected_whatever_the_handler_does(
    server: Server, network: Network | None
) -> None:
    require("ip", "namespaces")
    assert network is not None
    network.link("up")
    paths = [server.path(f"/pinged{habit}") for habit in HABITS]
    with client_process(server, paths, network):
        network.link("down")
        expect_the_end(server, paths)


@pytest.mark.only_uwsgi  # slow, and independent of the server
def test_a_client_that_answers_pings_stays_whatever_the_handler_does(server: Server) -> None:
    def stay(number: int) -> None:
        with server.raw(f"/answered{HABITS[number]}") as client:
            for _ in range(8):  # longer than the ping timeout
                while (message := client.receive()) == (TEXT, b"push"):
                    pass
                opcode, payload = message
                assert opcode == PING
                client.send_frame(PONG, payload)
            client.send_frame(CLOSE, b"\x03\xe8")
            assert server.wait_for("end", client)["code"] == 1000

    in_threads(len(HABITS), stay)


# Clients that do not read


def memory_peak(server: Server) -> int:
    """Return the largest memory of all workers so far, in bytes."""
    peaks = []
    for pid in server.workers:
        with open(f"/proc/{pid}/status") as status:
            peaks += [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")]
    return max(peaks)


@pytest.mark.only_uwsgi  # slow, and independent of the server
def test_a_client_that_does_not_read_is_dropped_and_costs_no_more_memory_than_documented(server: Server) -> None:
    count = 10
    # A connection keeps at most WEBSOCKET_SEND_BUFFER and the one message that exceeded it: here a mebibyte and a
    # quarter. Twice that allows for copies that are made on the way.
    ceiling = count * 2 * (2**20 + 2**18) + 2**23
    with ExitStack() as stack:
        bystander = stack.enter_context(server.connect("/echo"))
        before = memory_peak(server)
        clients = [stack.enter_context(server.raw("/flood")) for _ in range(count)]
        for client in clients:
            server.wait_for("start", client)
            bystander.send("still served")
            assert bystander.recv(DEADLINE) == "still served"
        for client in clients:
            end = server.wait_for("end", client)
            assert (end["outcome"], end["code"]) == ("ConnectionClosed", 1006)
        assert memory_peak(server) - before < ceiling
        bystander.send("still served")
        assert bystander.recv(DEADLINE) == "still served"


# Nothing is left behind


def ways(server: Server, rng: random.Random) -> list[Callable[[], None]]:
    """Return functions that open and end connections in different ways."""

    def closed_by_client() -> None:
        with server.raw() as client:
            client.send_frame(TEXT, b"x")
            client.receive()
            client.send_frame(CLOSE, b"\x03\xe8")
            client.file.read()

    def closed_by_server() -> None:
        with server.raw("/silent") as client:
            client.receive_close()
            client.send_frame(CLOSE, b"\x03\xe8")

    def reset() -> None:
        with server.raw(rng.choice(HABITS)) as client:
            client.reset()

    def ended() -> None:
        with server.raw(rng.choice(HABITS)):
            pass

    def malformed() -> None:
        with server.raw() as client:
            client.send(rng.randbytes(100))

    def failed() -> None:
        with server.raw("/raise") as client:
            client.receive_close()

    def refused() -> None:
        assert server.handshake("/refuse/403").status == 403

    def bad_request() -> None:
        assert server.handshake("/echo", {"Sec-WebSocket-Key": "?"}).status == 400

    def vanished_before_the_answer() -> None:
        with server.socket() as sock:
            sock.sendall(
                f"GET {server.path('/echo')} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )

    def unread() -> None:
        with server.raw() as client:
            client.send(frame(TEXT, bytes(2**16), key=KEY) * 3)

    return [
        closed_by_client,
        closed_by_server,
        reset,
        ended,
        malformed,
        failed,
        refused,
        bad_request,
        vanished_before_the_answer,
        unread,
    ]


def test_five_hundred_connections_that_ended_in_every_way_leave_no_descriptor_open(server: Server) -> None:
    rng = random.Random(500)
    for end in ways(server, rng):  # descriptors that open only once stay open from now on
        end()
    idle = settled(server)
    todo = ways(server, rng) * 50
    rng.shuffle(todo)

    def work(number: int) -> None:
        for end in todo[number::8]:
            end()

    in_threads(8, work)
    wait_until(
        lambda: all(server.open_files()[pid] <= idle[pid] for pid in idle),
        lambda: f"descriptors stay open: {idle} before, {server.open_files()} after",
    )
    wait_until_ended(server)
    starts = [entry["token"] for entry in server.journal() if entry["event"] == "start"]
    ends = [entry["token"] for entry in server.journal() if entry["event"] == "end"]
    assert sorted(starts) == sorted(ends)  # every handler has ended, and only once


def wait_until_ended(server: Server) -> None:
    def ended() -> bool:
        events = [entry["event"] for entry in server.journal()]
        return events.count("start") == events.count("end")

    wait_until(ended, lambda: "handlers do not end")


def settled(server: Server) -> dict[int, int]:
    """Return the number of open descriptors of each worker once all handlers have ended."""
    wait_until_ended(server)
    counts: list[dict[int, int]] = []

    def steady() -> bool:
        counts.append(server.open_files())
        return len(counts) > 20 and len({tuple(count.items()) for count in counts[-20:]}) == 1

    wait_until(steady, lambda: f"the number of descriptors does not settle: {counts[-1]}")
    return counts[-1]


def test_many_quick_connects_and_disconnects_are_served(server: Server) -> None:
    async def come_and_go() -> None:
        for _ in range(10):
            async with server.open("/echo") as client:
                await client.send("x")
                assert await client.recv() == "x"

    async def main() -> None:
        await asyncio.gather(*(come_and_go() for _ in range(20)))

    asyncio.run(main())
