"""Messages through real servers: whole, in pieces, many at a time, and from many clients at a time."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from flask import Flask

from support.live import CROWD, DEADLINE, Server, in_threads
from support.wire import BINARY, CONTINUATION, KEY, PING, PONG, TEXT, frame

SAMPLES = {
    "text": "Hello",
    "binary": bytes(range(256)),
    "empty text": "",
    "empty binary": b"",
    "text that is not ASCII": "Grüße, \U0001f30d \0 \u2028",
    "a mebibyte of text": "é" * 2**19,
    "a mebibyte of binary": random.Random(1).randbytes(2**20),
}


@pytest.mark.parametrize("path", ["/echo", "/old"])
def test_messages_come_back_unchanged(server: Server, path: str) -> None:
    with server.connect(path) as client:
        for name, message in SAMPLES.items():
            client.send(message)
            assert client.recv(DEADLINE) == message, name


def test_messages_come_back_through_compression(server: Server) -> None:
    with server.connect("/echo-compressed", compression="deflate") as client:
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for name, message in SAMPLES.items():
            client.send(message)
            assert client.recv(DEADLINE) == message, name


def test_a_hundred_messages_in_one_segment_come_back_in_order(server: Server) -> None:
    with server.raw() as client:
        client.send(b"".join(frame(TEXT, b"%d" % i, key=KEY) for i in range(100)))
        assert [client.receive() for _ in range(100)] == [(TEXT, b"%d" % i) for i in range(100)]


def test_frames_may_arrive_one_byte_at_a_time(server: Server) -> None:
    with server.raw() as client:
        pieces = (
            frame(BINARY, b"one", key=KEY, fin=False),
            frame(PING, b"p", key=KEY),
            frame(CONTINUATION, b"!", key=KEY),
        )
        for byte in b"".join(pieces):
            client.send(bytes([byte]))
        assert client.receive() == (PONG, b"p")
        assert client.receive() == (BINARY, b"one!")


def test_a_ping_is_answered_with_its_payload(server: Server) -> None:
    with server.raw() as client:
        for payload in (b"", b"payload", bytes(range(125))):
            client.send_frame(PING, payload)
            assert client.receive() == (PONG, payload)


@pytest.mark.parametrize("path", ["/push", "/watch"])
def test_a_ping_is_answered_while_the_handler_does_not_receive(server: Server, path: str) -> None:
    with server.raw(path) as client:
        client.send_frame(PING, b"payload")
        while (answer := client.receive()) == (TEXT, b"push"):
            pass
        assert answer == (PONG, b"payload")


def test_a_small_message_does_not_wait_for_an_acknowledgement_of_the_previous_one(server: Server) -> None:
    with server.connect("/delay") as client:
        assert json.loads(client.recv(DEADLINE)) == {"family": "AF_INET", "waits": False}


def test_a_handler_gets_the_round_trip_time_of_its_ping(server: Server) -> None:
    with server.connect("/latency") as client:
        assert client.recv(DEADLINE) == "answered"


def test_a_hundred_clients_exchange_messages_while_http_is_served(server: Server) -> None:
    async def exchange(client: object, number: int) -> None:
        for i in range(10):
            message = f"{number}: {i} " + "x" * (number * i)
            await client.send(message)
            assert await client.recv() == message

    paths = [server.path("/echo") for _ in range(CROWD)]

    async def main() -> None:
        async with server.open_many(paths) as clients:
            exchanges = asyncio.gather(*(exchange(client, i) for i, client in enumerate(clients)))
            for _ in range(5):
                assert (await asyncio.to_thread(server.get, "/")).body == b"hello"
            await exchanges
            assert (await asyncio.to_thread(server.get, "/")).body == b"hello"

    asyncio.run(main())
    wait_until_over(server, paths)


def test_each_of_a_hundred_clients_sees_its_own_request_session_and_g(server: Server) -> None:
    signer = Flask(__name__)
    signer.secret_key = "live"
    serializer = signer.session_interface.get_signing_serializer(signer)

    def options(number: int) -> dict[str, object]:
        cookies = f"flavour=f{number}; session={serializer.dumps({'user': f'u{number}'})}"
        return {"additional_headers": {"Cookie": cookies}}

    paths = [server.path(f"/people/p{number}/context?n={number}") for number in range(CROWD)]

    async def main() -> None:
        async with server.open_many(paths, options) as clients:
            for message in ("one", "two", "three"):
                await asyncio.gather(*(client.send(message) for client in clients))
                answers = await asyncio.gather(*(client.recv() for client in clients))
                for number, answer in enumerate(answers):
                    assert json.loads(answer) == {
                        "message": message,
                        "path": f"/people/p{number}/context",
                        "name": f"p{number}",
                        "n": str(number),
                        "cookie": f"f{number}",
                        "user": f"u{number}",
                        "g": f"p{number}",
                        "blueprint": "people",
                    }

    asyncio.run(main())
    wait_until_over(server, paths)


def wait_until_over(server: Server, paths: list[str]) -> None:
    """Wait until the worker has finished with closed connections, because it has no room for as many new ones."""
    for path in paths:
        assert server.wait_for_access_log(path) == 101


def test_a_client_that_never_pauses_does_not_starve_other_clients(server: Server) -> None:
    done = False

    def flood(_: int) -> None:
        with server.raw("/receive") as client:
            messages = frame(TEXT, b"x", key=KEY) * 1000
            while not done:
                client.send(messages)
            client.reset()  # discards the messages that are on their way
            server.wait_for("end", client)

    def others(_: int) -> None:
        nonlocal done
        try:
            for _ in range(5):
                with server.connect("/echo") as client:
                    client.send("still here?")
                    assert client.recv(DEADLINE) == "still here?"
                assert server.get("/").status == 200
        finally:
            done = True

    in_threads(2, lambda number: (flood, others)[number](number))


# Broadcasts


def test_one_connection_sends_to_all_others(server: Server) -> None:
    async def main() -> None:
        async with server.open_many(["/room/all"] * 20) as clients:
            pids = [await client.recv() for client in clients]
            speaker = pids[0]
            members = [client for client, pid in zip(clients, pids, strict=True) if pid == speaker]
            await clients[0].send("hello, all")
            for member in members:
                assert await member.recv() == "hello, all"

    asyncio.run(main())


def test_another_connection_may_send_the_first_message(server: Server) -> None:
    async def main() -> None:
        name = f"/late/{id(server)}"
        paths = [server.path(name) for _ in range(3)]
        late = [asyncio.ensure_future(client_of(path)) for path in paths]
        entries = [await asyncio.to_thread(server.wait_for, "in the room", path) for path in paths]

        # The speaker has to be served by the same worker. Many speakers at the same time reach all workers.
        workers = {str(entry["pid"]) for entry in entries}
        while workers:
            async with server.open_many([f"/room/{id(server)}"] * 20) as speakers:
                for speaker in speakers:
                    pid = await speaker.recv()
                    if pid in workers:
                        workers.remove(pid)
                        await speaker.send("release")
                        assert await speaker.recv() == "release"
        for waiting in late:
            assert await waiting == ["release", "and back"]

    async def client_of(path: str) -> list[str]:
        async with server.open(path) as client:
            first = await client.recv()
            await client.send("and back")
            return [first, await client.recv()]

    asyncio.run(main())


def test_another_thread_may_send_the_first_message(server: Server) -> None:
    with server.connect("/other-thread") as client:
        assert client.recv(DEADLINE) == "from another thread"
        client.send("and back")
        assert client.recv(DEADLINE) == "and back"


@pytest.mark.only_uwsgi
def test_shared_memory_is_sent_as_text_and_as_binary(server: Server) -> None:
    with server.connect("/sharedarea") as client:
        assert client.recv(DEADLINE) == "tür ☃"
        assert client.recv(DEADLINE) == "☃".encode()


@pytest.mark.only_uwsgi
def test_the_package_exports_the_module_uwsgi(server: Server) -> None:
    answer = server.json("/uwsgi")
    assert answer["version"].startswith("2.")
    assert answer["pid"] in server.workers
