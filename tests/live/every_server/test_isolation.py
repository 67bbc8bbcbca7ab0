"""No client can affect another client or the worker, whatever it sends: on one worker, interleaved, malformed."""

from __future__ import annotations

import json
import random
import struct
from contextlib import ExitStack
from itertools import pairwise

import pytest

from support.live import DEADLINE, Server
from support.wire import BINARY, CLOSE, CONTINUATION, KEY, PING, PONG, TEXT, frame, header


def pieces_of(rng: random.Random, message: bytes) -> list[bytes]:
    """Return the frames of a message in fragments, some with a ping between them."""
    cuts = [0, *sorted(rng.choices(range(len(message) + 1), k=rng.randint(1, 8))), len(message)]
    pieces = []
    for i, (start, end) in enumerate(pairwise(cuts)):
        opcode = BINARY if i == 0 else CONTINUATION
        pieces.append(frame(opcode, message[start:end], fin=i == len(cuts) - 2, key=rng.randbytes(4)))
        if rng.random() < 0.3:
            pieces.append(frame(PING, message[:1], key=KEY))
    return pieces


@pytest.mark.parametrize("seed", range(3))
def test_interleaved_fragments_of_twenty_clients_do_not_mix(server: Server, seed: int) -> None:
    rng = random.Random(seed)
    with ExitStack() as stack:
        clients = [stack.enter_context(server.raw()) for _ in range(20)]
        messages = [[bytes([65 + number]) * rng.randint(1, 2000) for _ in range(5)] for number in range(20)]
        queues = {number: [p for m in messages[number] for p in pieces_of(rng, m)] for number in range(20)}
        while queues:
            number = rng.choice(list(queues))
            data = queues[number].pop(0)
            if not queues[number]:
                del queues[number]
            cut = rng.randint(0, len(data))  # TCP may cut anywhere
            clients[number].send(data[:cut])
            clients[number].send(data[cut:])
        for number, client in enumerate(clients):
            received = []
            while len(received) < len(messages[number]):
                opcode, payload = client.receive()
                if opcode == PONG:
                    assert payload == bytes([65 + number])
                else:
                    received.append(payload)
            assert received == messages[number]


def test_data_of_a_closed_connection_never_reaches_another_connection(server: Server) -> None:
    # uWSGI has one environ for each core, which it clears and fills again for the next request.
    told = []
    for _ in range(5):
        with server.connect("/previous") as client:
            told += json.loads(client.recv(DEADLINE))
        server.wait_for_access_log(client)
    assert told
    assert all(before == after for before, after in told), told


def test_the_frames_that_crash_uwsgis_own_parser_do_no_harm(server: Server) -> None:
    # unbit/uwsgi#2225: uWSGI's parser has one buffer for the fragments of all clients. Client A leaves a fragment
    # there, a whole message of client B empties it, and the rest of A's message finds a null pointer.
    with server.raw() as a, server.raw() as b, server.raw() as bystander:
        for _ in range(10):
            a.send_frame(TEXT, b"of A ", fin=False)
            a.send_frame(PING, b"A is there")  # so that the fragment arrives before B's message is sent
            assert a.receive() == (PONG, b"A is there")
            b.send_frame(TEXT, b"of B")
            assert b.receive() == (TEXT, b"of B")
            a.send_frame(CONTINUATION, b"and the rest")
            assert a.receive() == (TEXT, b"of A and the rest")
        # A continuation without a message.
        b.send_frame(CONTINUATION, b"of what?")
        assert b.receive_close()[0] == 1002
        bystander.send_frame(TEXT, b"alive")
        assert bystander.receive() == (TEXT, b"alive")
    assert len(server.workers) == server.mode.processes


MALFORMED = {
    "a frame without a mask": (1002, frame(TEXT, b"bare")),
    "RSV1": (1002, frame(TEXT, b"x", rsv=4, key=KEY)),
    "RSV2": (1002, frame(TEXT, b"x", rsv=2, key=KEY)),
    "RSV3": (1002, frame(TEXT, b"x", rsv=1, key=KEY)),
    **{f"opcode {opcode}": (1002, frame(opcode, key=KEY)) for opcode in (*range(3, 8), *range(11, 16))},
    "a ping over 125 bytes": (1002, frame(PING, bytes(126), key=KEY)),
    "a ping in fragments": (1002, frame(PING, b"x", fin=False, key=KEY)),
    "a length of 16 bits that fits in 7": (1002, frame(TEXT, b"x", wide=16, key=KEY)),
    "a length of 64 bits that fits in 16": (1002, frame(TEXT, b"x", wide=64, key=KEY)),
    "a length with the top bit": (1002, struct.pack("!BBQ", 0x81, 0xFF, 2**63 + 1) + KEY),
    "a continuation without a message": (1002, frame(CONTINUATION, b"x", key=KEY)),
    "a message within a message": (1002, frame(TEXT, b"x", fin=False, key=KEY) + frame(TEXT, b"y", key=KEY)),
    "text that is not UTF-8": (1007, frame(TEXT, b"\xff", key=KEY)),
    "text that ends within a character": (1007, frame(TEXT, "☃".encode()[:2], key=KEY)),
    "text that is not UTF-8 in its first fragment": (1007, frame(TEXT, b"\xc0\xaf", fin=False, key=KEY)),
    "too big at the header": (1009, header(BINARY, 2**20 + 1, key=KEY)),
    "much too big at the header": (1009, header(BINARY, 2**62, key=KEY)),
    "too big over its fragments": (
        1009,
        frame(BINARY, bytes(2**20), fin=False, key=KEY) + header(CONTINUATION, 1, key=KEY),
    ),
    "a close code of one byte": (1002, frame(CLOSE, b"\x03", key=KEY)),
    "a close code that must not be sent": (1002, frame(CLOSE, struct.pack("!H", 1005), key=KEY)),
    "a close code below 1000": (1002, frame(CLOSE, struct.pack("!H", 999), key=KEY)),
    "a close reason that is not UTF-8": (1007, frame(CLOSE, b"\x03\xe8\xff", key=KEY)),
    "an HTTP request": (1002, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
}


def test_malformed_frames_end_only_their_own_connection(server: Server) -> None:
    with server.connect("/echo") as bystander:
        for name, (code, data) in MALFORMED.items():
            with server.raw() as client:
                client.send_frame(TEXT, b"before")
                assert client.receive() == (TEXT, b"before"), name
                client.send(data)
                assert client.receive_close()[0] == code, name
                assert client.file.read() == b"", name  # the server ends TCP
            bystander.send(name)
            assert bystander.recv(DEADLINE) == name
    assert len(server.workers) == server.mode.processes


def test_random_bytes_end_only_their_own_connection(server: Server) -> None:
    rng = random.Random(6455)
    with server.connect("/echo") as bystander:
        for _ in range(50):
            with server.raw() as client:
                client.send(rng.randbytes(rng.randint(1, 500)))
            bystander.send("alive")
            assert bystander.recv(DEADLINE) == "alive"
    assert len(server.workers) == server.mode.processes
