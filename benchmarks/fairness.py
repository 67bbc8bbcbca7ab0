"""Measure how long a polite client of one worker waits beside other clients that flood it.

    python -m benchmarks.fairness --mode gevent
    python -m benchmarks.fairness --mode asyncio --pure --kinds pings bombs

For each kind of flood, 20 connections write as fast as the server lets them, from their own process, and read all
answers. One more connection sends a message of 64 bytes again and again, a few milliseconds apart, and waits for the
echo. The script prints the median, the 99th percentile and the maximum of the waits, in milliseconds; the median of the
CPU time that the server used during a wait, which is the figure to compare on a busy machine; and the bytes of the
flood.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import selectors
import socket
import statistics
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from .servers import HANDSHAKE, SERVERS, Running, running

#: Masked with zeros, because random masks make no difference.
MASK = bytes(4)

COMPRESSED = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"

CONTINUATION, TEXT, BINARY, PING, PONG = 0x0, 0x1, 0x2, 0x9, 0xA
FIN, RSV1 = 0x80, 0x40

#: The longest pause between two messages of the polite client, in seconds.
PAUSE = 0.01


def frame(first: int, payload: bytes = b"") -> bytes:
    length = len(payload)
    if length < 126:
        return bytes([first, 0x80 | length]) + MASK + payload
    if length < 65536:
        return bytes([first, 0x80 | 126]) + length.to_bytes(2, "big") + MASK + payload
    return bytes([first, 0x80 | 127]) + length.to_bytes(8, "big") + MASK + payload


def fragments(payload: bytes) -> bytes:
    """Return a message of 10,000 fragments, which are equal except for the first and the last one."""
    middle = frame(CONTINUATION, payload)
    return frame(BINARY, payload) + middle * 9_998 + frame(FIN | CONTINUATION, payload)


def deflated(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return frame(FIN | RSV1 | BINARY, (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4])


#: The floods: with or without compression, and the bytes that are repeated.
KINDS: dict[str, tuple[bool, Callable[[], bytes]]] = {
    "nothing": (False, lambda: b""),
    "pings": (False, lambda: frame(FIN | PING) * 10_000),
    "pongs": (False, lambda: frame(FIN | PONG) * 10_000),
    "empty fragments": (False, lambda: fragments(b"")),
    "fragments of a byte": (False, lambda: fragments(b"x")),
    "empty messages": (False, lambda: frame(FIN | TEXT) * 10_000),
    "tiny messages": (False, lambda: frame(FIN | TEXT, b"x") * 10_000),
    "messages of 4 KiB": (False, lambda: frame(FIN | TEXT, bytes(4096)) * 16),
    "messages of 64 KiB": (False, lambda: frame(FIN | TEXT, bytes(65_536))),
    "messages of 1 MiB": (False, lambda: frame(FIN | TEXT, bytes(2**20))),
    "bombs": (True, lambda: deflated(bytes(2**20))),
    "bombs of 64 KiB": (True, lambda: deflated(bytes(2**16)) * 20),
    "final blocks": (True, lambda: frame(FIN | RSV1 | BINARY, b"\x03\x00" * 30_000 + b"\0")),
    "compressed messages": (True, lambda: deflated(b"x") * 1_000),
}


def connect(port: int, *, compressed: bool) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 30)
    request = HANDSHAKE
    if compressed:
        request = HANDSHAKE.replace(b"/echo", b"/compressed").removesuffix(b"\r\n") + COMPRESSED
    sock.sendall(request)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise SystemExit(f"the handshake failed: {head!r}")
        head += byte
    return sock


def flood(port: int, kind: str, connections: int, control: Connection) -> None:
    """Flood until the parent stops this process, then send the number of written bytes. Runs in its own process."""
    compressed, make_block = KINDS[kind]
    block = memoryview(make_block())
    selector = selectors.DefaultSelector()
    positions = {}
    for _ in range(connections if block else 0):
        sock = connect(port, compressed=compressed)
        sock.setblocking(False)
        positions[sock] = 0
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
    selector.register(control, selectors.EVENT_READ)
    control.send("flooding")
    written = 0
    while True:
        for key, events in selector.select():
            sock = key.fileobj  # type: ignore[assignment]
            if key.fileobj is control:
                control.send((written, len(positions)))
                return
            try:
                if events & selectors.EVENT_READ and not sock.recv(65_536):
                    raise ConnectionResetError
                if events & selectors.EVENT_WRITE:
                    sent = sock.send(block[positions[sock] :])
                    positions[sock] = (positions[sock] + sent) % len(block)
                    written += sent
            except BlockingIOError:
                continue
            except OSError:  # the server closed it
                selector.unregister(sock)
                del positions[sock]


def cpu_ms(target: Running) -> float:
    """Return the CPU time of the server so far, up to the kernel's last update."""
    tasks = [path for pid in target.pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text().split()[0]) for path in tasks) / 1e6


def waits(target: Running, seconds: float) -> list[tuple[float, float]]:
    """Return a polite client's waits for its echoes, and the CPU time of the server in each, in milliseconds."""
    sock = connect(target.port, compressed=False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = frame(FIN | TEXT, b"x" * 64)
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        cpu = cpu_ms(target)
        began = time.monotonic()
        sock.sendall(message)
        missing = 66
        while missing:
            echo = sock.recv(missing)
            if not echo:
                raise SystemExit("the polite client was closed")
            missing -= len(echo)
        waited = 1000 * (time.monotonic() - began)
        found.append((waited, cpu_ms(target) - cpu))
        time.sleep(random.uniform(0, PAUSE))
    sock.close()
    return found


def measure(target: Running, kind: str, connections: int, seconds: float) -> str:
    """Return the line of the table for one kind of flood."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=flood, args=(target.port, kind, connections, theirs))
    process.start()
    try:
        ours.recv()
        time.sleep(0.5)  # until all connections flood
        found = waits(target, seconds)
        ours.send("stop")
        written, left = ours.recv()
    finally:
        process.kill()
        process.join()
    waited = sorted(wait for wait, _ in found)
    p99 = waited[min(len(found) - 1, len(found) * 99 // 100)]
    return (
        f"{kind:20} {statistics.median(waited):8.2f} {p99:8.2f} {waited[-1]:8.2f} "
        f"{statistics.median(cpu for _, cpu in found):8.2f} {len(found):6} {written / 2**20 / seconds:8.1f} {left:5}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", choices=["gevent", "asyncio", "threads"], default="gevent")
    parser.add_argument("--pure", action="store_true", help="with pure Python")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="only these floods")
    parser.add_argument("--connections", type=int, default=20, help="connections that flood (20)")
    parser.add_argument("--seconds", type=float, default=3, help="seconds of each flood (3)")
    options = parser.parse_args()
    (server,) = (each for each in SERVERS if each.name == f"this package, {options.mode}")
    if options.pure:
        server = replace(server, environ={**server.environ, "FLASK_UWSGI_WEBSOCKET_PURE": "1"})
    print(f"{server.name}{', pure Python' if options.pure else ''}, beside {options.connections} that flood:")
    print(f"{'':20} {'median':>8} {'p99':>8} {'most':>8} {'CPU':>8} {'echoes':>6} {'MiB/s':>8} {'left':>5}")
    for kind in options.kinds:
        with running(server, options.connections + 1) as target:
            print(measure(target, kind, options.connections, options.seconds), flush=True)


if __name__ == "__main__":
    main()
