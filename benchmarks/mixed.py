"""Put one gevent worker under mixed load for ten minutes, and check that it loses nothing and does not grow.

    python benchmarks/mixed.py --seconds 600

These run at the same time: clients that wait for each echo, clients that send 50 messages at a time, compressed ones, a
room of 100 members of which some come and go and some pause, a client that reads nothing for a while, clients that
connect and then close, reset, or vanish in the middle of a frame, and HTTP requests. The clients compare all answers
with the expected ones. The script prints the state of the worker every 10 s and a summary at the end. It exits with 0
only if all of its checks hold. It checks the memory in runs of three minutes or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

APP = """
import gc
from collections import Counter

from flask import Flask, g, request
from greenlet import greenlet

from flask_uwsgi_websocket import GeventWebSocket, WebSocketBlueprint, websocket_closed
from flask_uwsgi_websocket.protocol import speedups
from flask_uwsgi_websocket.worker import housekeeper

app = Flask(__name__)
app.config.update(WEBSOCKET_PING_INTERVAL=5, WEBSOCKET_PING_TIMEOUT=10)
websocket = GeventWebSocket(app)
mixed = WebSocketBlueprint("mixed", __name__)
members = set()
counts = Counter(connected=0, closed=0, published=0, too_slow=0)
initiators = Counter()


@mixed.websocket("/echo")
def echo(ws):
    for message in ws.messages():
        assert "message" not in g
        g.message = message
        ws.send(g.message)


@mixed.websocket("/compressed", compression=True)
def compressed(ws):
    for message in ws:
        ws.send(message)


@mixed.websocket("/brief")
def brief(ws):
    ws.send(ws.receive())


@mixed.websocket("/room")
def room(ws):
    ws.accept()
    members.add(ws)
    try:
        ws.send(f"joined {counts['published']}")
        ws.receive()
    finally:
        members.discard(ws)
    if ws.connected:
        ws.send(f"left {counts['published']}")
        ws.receive()


@mixed.websocket("/publish")
def publish(ws):
    for message in ws.messages():
        counts["published"] += 1
        counts["too_slow"] += len(websocket.broadcast(message, members))
        ws.send(str(counts["published"]))


@mixed.on_connect
def connected(app, ws, **extra):
    counts["connected"] += 1


@websocket_closed.connect
def closed(app, ws, initiator, **extra):
    counts["closed"] += 1
    initiators[initiator] += 1


@mixed.route("/page/<int:number>")
def page(number):
    return f"page {number} " * 100


@mixed.route("/status")
def status():
    if "collect" in request.args:
        gc.collect()
    objects = gc.get_objects()
    return {
        "functions": "compiled" if speedups.COMPILED else "pure Python",
        "connections": len(housekeeper.connections()),
        "members": len(members),
        "greenlets": sum(issubclass(type(each), greenlet) for each in objects),
        "objects": len(objects),
        "counts": counts,
        "initiators": initiators,
    }


app.register_blueprint(mixed)
"""

#: Lines that must not be in the log.
SUSPICIOUS = re.compile("traceback|error|damn|warning", re.IGNORECASE)

INTERVAL = 10.0
#: Seconds after which an echo counts as lost.
PATIENCE = 30.0
#: glibc keeps larger and larger blocks when it learns which sizes come and go, up to eight heaps per processor for
#: threads, and up to 236 kB of small blocks per thread. These settings make it return the memory that the worker has
#: freed, so that growth is the worker's own.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}

#: Seconds after which the worker's memory has to be flat, and the seconds that its measurement takes at least.
WARM_UP = 60.0
JUDGED_FROM = 120.0

LARGEST = 200_000
BINARY = random.randbytes(2 * LARGEST)
TEXT = "".join(random.choices(["plain ", "words ", "between ", "größer ", "ещё ", "漢字", "😀"], k=LARGEST))
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST

Message = str | bytes


def some_message(label: str, largest: int = LARGEST) -> Message:
    """Return a message, text or binary, of 0 to *largest* characters or bytes. Most are small, and few are large."""
    size = int((largest + 1) ** random.random()) - 1
    start = random.randrange(LARGEST)
    if random.random() < 0.5:
        return (label + TEXT[start : start + size])[:size]
    return (label.encode() + BINARY[start : start + size])[:size]


@lru_cache(1000)
def room_message(number: int) -> Message:
    """Return message *number* of the room, which is the same for every caller."""
    size = 2 ** (number * 7 % 13)
    if number % 2:
        return f"{number}:{TEXT[number % LARGEST :][:size]}"
    return b"%d:%b" % (number, BINARY[number % LARGEST :][:size])


async def send(ws: ClientConnection, messages: list[Message]) -> None:
    """Send *messages*, every third or so in fragments. Some fragments are empty, or end within a character."""
    for message in messages:
        if random.random() < 0.7:
            await ws.send(message)
            continue
        data = message.encode() if isinstance(message, str) else message
        cuts = sorted(random.randint(0, len(data)) for _ in range(random.randint(0, 7)))
        fragments = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        await ws.send(fragments, text=isinstance(message, str))


def torn_frame() -> bytes:
    """Return the beginning of a masked frame: between its first byte and all but its last byte."""
    frame = b"\x82\xfe" + struct.pack("!H4x", 50_000) + BINARY[:50_000]
    return frame[: random.randint(1, len(frame) - 1)]


def tear_down(ws: ClientConnection, *, reset: bool) -> None:
    """End the TCP connection at once, with RST or FIN."""
    if reset:
        ws.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    ws.transport.abort()


@dataclass
class Tally:
    """The results of the clients."""

    echoes: int = 0
    deliveries: int = 0
    pages: int = 0
    connections: int = 0
    #: Connections that were reset before the answer to their handshake. The server may have opened them, or not.
    unanswered: int = 0
    lost: int = 0
    disordered: int = 0
    altered: int = 0
    #: How often a client that reads nothing has filled all buffers, so that the server stopped reading its messages.
    held_up: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)

    def check_echo(self, message: Message, pending: deque[Message]) -> None:
        """Compare an echo with the *pending* messages, and remove it from them."""
        if message == pending[0]:
            self.echoes += 1
            pending.popleft()
        elif message in pending:
            self.disordered += 1
            pending.remove(message)
        else:
            self.altered += 1
            pending.popleft()

    def check_delivery(self, message: Message, expected: int) -> int:
        """Compare a message of a member of the room with message *expected*, and return the number of the next one."""
        if message == room_message(expected):
            self.deliveries += 1
            return expected
        found = re.match(rb"(\d+):", message.encode() if isinstance(message, str) else message)
        number = int(found[1]) if found else expected
        self.lost += max(0, number - expected)
        self.disordered += number < expected
        self.altered += number == expected
        return max(number, expected - 1)


class Load:
    """The clients.

    :param port: where the server listens.
    :param seconds: the duration of the load.
    """

    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.deadline = time.monotonic() + seconds
        self.tally = Tally()

    async def run(self) -> None:
        """Run all clients to their end."""
        clients: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *[self.echo] * 50,
            *[self.bursts] * 5,
            *[self.compressed] * 10,
            *[self.room_mate] * 70,
            *[self.restless_room_mate] * 25,
            *[self.sleepy_room_mate] * 5,
            self.publish,
            *[self.come_and_go] * 8,
            self.leave_unanswered,
            *[self.fall_silent] * 3,
            *[self.sleep] * 2,
            *[self.browse] * 3,
        ]
        await asyncio.gather(*map(self._guard, clients))

    async def _guard(self, client: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await client()
        except Exception as error:
            at = self.remaining
            self.tally.failures.append(f"{client.__name__}, {at:.1f} s before the end: {error!r}")
            print("FAILED", self.tally.failures[-1], flush=True)

    @property
    def remaining(self) -> float:
        """The seconds until the end."""
        return self.deadline - time.monotonic()

    # Connections

    async def open(self, path: str, **options: Any) -> ClientConnection:
        """Connect."""
        defaults = {"compression": None, "proxy": None, "max_size": None, "open_timeout": PATIENCE, "ping_interval": 5}
        ws = await connect(f"ws://127.0.0.1:{self.port}{path}", **defaults | options)
        self.tally.connections += 1
        return ws

    @asynccontextmanager
    async def polite(self, path: str, **options: Any) -> AsyncIterator[ClientConnection]:
        """Connect, and close at the end."""
        ws = await self.open(path, **options)
        yield ws
        await ws.close()
        assert ws.close_code == 1000, f"closed with {ws.close_code} {ws.close_reason!r}"

    async def narrow_socket(self) -> socket.socket:
        """Return a connected socket whose buffers are small."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return sock

    async def exchange(self, ws: ClientConnection, messages: list[Message], pause: float = 0.0) -> None:
        """Send *messages* without a pause between them, and check their echoes.

        :param pause: seconds before the first echo is read.
        """
        began = time.monotonic()
        sending = asyncio.create_task(send(ws, messages))
        if pause:
            await asyncio.sleep(pause)
            self.tally.held_up += not sending.done()
        pending = deque(messages)
        try:
            while pending:
                self.tally.check_echo(await asyncio.wait_for(ws.recv(), PATIENCE), pending)
        finally:
            self.tally.lost += len(pending)
        await sending
        if not pause:
            self.tally.slowest = max(self.tally.slowest, time.monotonic() - began)

    # Echoes

    async def echo(self) -> None:
        """Wait for each echo."""
        async with self.polite("/echo") as ws:
            for number in self._numbers():
                await self.exchange(ws, [some_message(f"{number}:")])
                await asyncio.sleep(random.uniform(0, 0.1))

    async def bursts(self) -> None:
        """Send 50 messages at a time."""
        async with self.polite("/echo") as ws:
            for number in self._numbers():
                await self.exchange(ws, [some_message(f"{number}.{each}:") for each in range(50)])
                await asyncio.sleep(random.uniform(0, 1))

    async def compressed(self) -> None:
        """Compress, with different parameters on every second connection."""
        while self.remaining > 0:
            extension = ClientPerMessageDeflateFactory(
                server_no_context_takeover=random.random() < 0.3,
                client_no_context_takeover=random.random() < 0.3,
                client_max_window_bits=random.choice([True, 9, 12, 15]),
            )
            async with self.polite("/compressed", extensions=[extension]) as ws:
                assert ws.protocol.extensions, "no compression"
                for number in self._numbers(most=random.randint(1, 200)):
                    await self.exchange(ws, [some_message(f"{number}.{each}:") for each in range(random.randint(1, 5))])
                    await asyncio.sleep(random.uniform(0, 0.2))

    async def sleep(self) -> None:
        """Read nothing while 16 MB of echoes arrive."""
        while self.remaining > 10:
            options = {"sock": await self.narrow_socket(), "max_queue": 1, "ping_interval": None}
            async with self.polite("/echo", **options) as ws:
                messages: list[Message] = [BINARY[number : number + 100_000] for number in range(160)]
                await self.exchange(ws, messages, pause=random.uniform(3, 8))

    def _numbers(self, most: int = sys.maxsize) -> Iterator[int]:
        """Count until the end of the load."""
        for number in range(most):
            if self.remaining < 0:
                return
            yield number

    # The room

    async def publish(self) -> None:
        """Publish to the room, one to 20 messages at a time."""
        number = 0
        async with self.polite("/publish") as ws:
            while self.remaining > 0:
                burst = range(number + 1, number + random.randint(1, 20) + 1)
                for number in burst:
                    await ws.send(room_message(number))
                for each in burst:
                    assert await asyncio.wait_for(ws.recv(), PATIENCE) == str(each)
                await asyncio.sleep(random.uniform(0, 1.5))

    async def room_mate(self) -> None:
        """Stay in the room to the end."""
        await self._visit_room(self.remaining)

    async def restless_room_mate(self) -> None:
        """Join the room and leave it, again and again."""
        while self.remaining > 0:
            await self._visit_room(random.uniform(0, 5))

    async def sleepy_room_mate(self) -> None:
        """Stay in the room, and pause the reading for some seconds, no longer than the waiting messages allow."""
        options = {"sock": await self.narrow_socket(), "max_queue": 1}
        await self._visit_room(self.remaining, naps=5.0, **options)

    async def _visit_room(self, seconds: float, naps: float = 0.0, **options: Any) -> None:
        """Check that all messages that were published between joining and leaving have arrived, in order."""
        async with self.polite("/room", **options) as ws:
            leaving = asyncio.create_task(self._leave_room(ws, min(seconds, self.remaining)))
            try:
                number = self._number_in("joined", await ws.recv())
                awake_since = time.monotonic()
                while not isinstance(message := await ws.recv(), str) or not message.startswith("left "):
                    number = self.tally.check_delivery(message, number + 1)
                    # Several pauses in a row would leave a Ping unanswered for too long.
                    if naps and random.random() < 0.01 and time.monotonic() - awake_since > 2 * naps:
                        await asyncio.sleep(random.uniform(0, naps))
                        awake_since = time.monotonic()
                self.tally.lost += self._number_in("left", message) - number
            finally:
                leaving.cancel()

    @staticmethod
    async def _leave_room(ws: ClientConnection, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await ws.send("leave")

    @staticmethod
    def _number_in(word: str, message: Message) -> int:
        assert isinstance(message, str)
        assert message.startswith(word), message[:100]
        return int(message.removeprefix(word))

    # Connections that end

    async def come_and_go(self) -> None:
        """Connect, get some echoes or none, and end in one of many ways."""
        endings = [self._close, self._be_closed, self._reset, self._reset_while_sending, self._vanish, self._tear_frame]
        while self.remaining > 0:
            await random.choice(endings)()
            await asyncio.sleep(random.uniform(0, 0.2))

    async def _greet(self) -> ClientConnection:
        ws = await self.open("/echo")
        await self.exchange(ws, [some_message(f"{number}:", 1000) for number in range(random.randint(0, 3))])
        return ws

    async def _close(self) -> None:
        ws = await self._greet()
        await ws.close(4000, "done")
        assert ws.close_code == 4000, f"closed with {ws.close_code} {ws.close_reason!r}"

    async def _be_closed(self) -> None:
        async with self.polite("/brief") as ws:
            await self.exchange(ws, [some_message("brief:")])
            await asyncio.wait_for(ws.wait_closed(), PATIENCE)

    async def _reset(self) -> None:
        tear_down(await self._greet(), reset=True)

    async def _reset_while_sending(self) -> None:
        ws = await self._greet()
        sending = asyncio.create_task(send(ws, [some_message(f"{number}:") for number in range(50)]))
        await asyncio.sleep(random.uniform(0, 0.02))
        tear_down(ws, reset=True)
        with suppress(ConnectionClosed):
            await sending

    async def _vanish(self) -> None:
        tear_down(await self._greet(), reset=False)

    async def _tear_frame(self) -> None:
        ws = await self._greet()
        ws.transport.write(torn_frame())
        await asyncio.sleep(random.uniform(0, 0.1))
        tear_down(ws, reset=random.random() < 0.5)

    async def leave_unanswered(self) -> None:
        """Request a WebSocket, and reset the connection before the answer."""
        while self.remaining > 0:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.write(
                b"GET /echo HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            self.tally.unanswered += 1
            await asyncio.sleep(random.uniform(0, 0.002))
            writer.transport.abort()
            await asyncio.sleep(random.uniform(0, 0.5))

    async def fall_silent(self) -> None:
        """Stop in the middle of a frame, and neither read nor answer pings: the server has to end the connection."""
        while self.remaining > 20:
            ws = await self.open("/echo", ping_interval=None)
            ws.transport.write(torn_frame())
            ws.transport.pause_reading()
            await asyncio.sleep(18)  # the ping's interval and timeout, and rounding
            ws.transport.resume_reading()
            await asyncio.wait_for(ws.wait_closed(), 2)

    # HTTP

    async def get(self, path: str) -> tuple[int, bytes]:
        """Return the status and the body of a page."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            head, _, body = (await asyncio.wait_for(reader.read(-1), PATIENCE)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return int(head.split()[1]), body

    async def browse(self) -> None:
        """Get pages, and the URL of a WebSocket without an upgrade."""
        for number in self._numbers():
            assert await self.get(f"/page/{number}") == (200, b"page %d " % number * 100)
            assert (await self.get("/echo"))[0] == 426
            self.tally.pages += 2
            await asyncio.sleep(random.uniform(0, 0.2))


@dataclass(frozen=True)
class Sample:
    """The state of the worker at one moment, *seconds* after the beginning."""

    seconds: float
    rss: int
    pss: int
    descriptors: int
    status: dict[str, Any]


class Worker:
    """The server, which has one process.

    :param port: where the server listens.
    :param directory: the directory of its app and its log.
    """

    def __init__(self, port: int, directory: str) -> None:
        Path(directory, "mixed_app.py").write_text(APP)
        self._log = Path(directory, "log")
        backlog = min(1024, int(Path("/proc/sys/net/core/somaxconn").read_text()))  # uWSGI refuses to start above it
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("uwsgi")),
                    *("--http-socket", f"127.0.0.1:{port}", "--listen", str(backlog)),
                    *("--gevent", "1000", "--gevent-early-monkey-patch", "--enable-threads"),
                    # Otherwise uWSGI logs an error when a client resets its connection before it has its page.
                    *("--disable-write-exception", "--ignore-write-errors", "--ignore-sigpipe"),
                    *("--disable-logging", "--log-5xx", "--need-app", "--virtualenv", sys.prefix),
                    *("--pythonpath", directory, "--module", "mixed_app:app"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | MALLOC,
                start_new_session=True,
            )

    def log(self) -> list[str]:
        """Return the lines that the server has printed."""
        return self._log.read_text(errors="replace").splitlines()

    def check(self) -> None:
        """Raise SystemExit if the server has ended."""
        if self.process.poll() is not None:
            raise SystemExit("\n".join([*self.log()[-30:], f"uWSGI ended with status {self.process.returncode}"]))

    def cpu_seconds(self) -> float:
        """Return the CPU time of the server so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def sample(self, load: Load, seconds: float, query: str = "") -> Sample:
        """Take a sample. *query* is the query string of the status page."""
        self.check()
        code, body = await load.get(f"/status{query}")
        assert code == 200, body
        process = Path(f"/proc/{self.process.pid}")
        memory = dict(line.split(":") for line in (process / "smaps_rollup").read_text().splitlines()[1:])
        rss, pss = (int(memory[name].split()[0]) for name in ("Rss", "Pss"))
        return Sample(seconds, rss, pss, len(list((process / "fd").iterdir())), json.loads(body))

    def stop(self) -> int:
        """End the server as Ctrl+C does, and return its status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(10)


async def settled(worker: Worker, load: Load) -> Sample:
    """Wait until no connection is left, at most half a minute, and return the state of the worker."""
    for _ in range(15):
        await asyncio.sleep(2)  # the housekeeper of the connections ends within a second
        sample = await worker.sample(load, 0, "?collect")
        if not sample.status["connections"]:
            break
    return sample


async def observe(worker: Worker, load: Load) -> list[Sample]:
    """Print and return a sample every 10 s until the load ends."""
    print("     s     RSS kB     Pss kB  fds  connections  greenlets  objects    echoes  deliveries  lost  pages")
    samples = []
    began = time.monotonic()
    while load.remaining > INTERVAL:
        await asyncio.sleep(INTERVAL)
        sample = await worker.sample(load, time.monotonic() - began)
        samples.append(sample)
        status, tally = sample.status, load.tally
        print(
            f"{sample.seconds:6.0f} {sample.rss:10,} {sample.pss:10,} {sample.descriptors:4} "
            f"{status['connections']:12} {status['greenlets']:10} {status['objects']:8,} {tally.echoes:9,} "
            f"{tally.deliveries:11,} {tally.lost:5} {tally.pages:6,}",
            flush=True,
        )
    return samples


async def await_start(worker: Worker, load: Load) -> None:
    """Wait until the server serves pages and WebSockets. The first of each open descriptors that stay open."""
    while True:
        try:
            await load.get("/status")
            break
        except OSError:
            worker.check()
            await asyncio.sleep(0.1)
    async with load.polite("/echo") as ws:
        await load.exchange(ws, [some_message("first:")])


def cpu_of_load() -> float:
    """Return the CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def test(worker: Worker, port: int, seconds: float, slope_limit: float) -> bool:
    """Load the worker, print the summary, and return whether all checks hold."""
    load = Load(port, seconds)
    tally = load.tally
    await await_start(worker, load)
    printed = len(worker.log())
    before = await settled(worker, load)
    print(f"functions: {before.status['functions']}")

    load.deadline = time.monotonic() + seconds
    began, cpu_before, own_cpu_before = time.monotonic(), worker.cpu_seconds(), cpu_of_load()
    _, samples = await asyncio.gather(load.run(), observe(worker, load))
    lasted = time.monotonic() - began
    cpu, own_cpu = worker.cpu_seconds() - cpu_before, cpu_of_load() - own_cpu_before
    after = await settled(worker, load)
    exit_code = worker.stop()

    lines = worker.log()[printed:]
    suspicious = [line for line in lines if SUSPICIOUS.search(line)]
    counts = after.status["counts"]
    print(f"\nafter {lasted:.0f} s, CPU of the worker {cpu / lasted:.0%}, of the load {own_cpu / lasted:.0%}:")
    print(f"echoes {tally.echoes:,}, deliveries in the room {tally.deliveries:,}, pages {tally.pages:,}")
    print(f"connections {tally.connections:,}, reset before the answer {tally.unanswered:,}")
    print(f"closed by {after.status['initiators']}")
    print(f"times that a client that reads nothing has filled all buffers: {tally.held_up}")
    print(f"slowest echo, or burst of 50: {tally.slowest:.2f} s")
    for name in ("greenlets", "objects"):
        print(f"{name} without load: {before.status[name]:,} before, {after.status[name]:,} after")
    print(f"memory without load: RSS {before.rss:,} kB before, {after.rss:,} kB after")
    print(f"lines in the log: {len(lines)}")
    for line, times in Counter(re.sub(r"^\w+ \w+ +\d+ [\d:]+ \d+ - ", "", line) for line in lines).most_common(40):
        print(f"{times:6} x {line}")

    checks = {
        f"lost {tally.lost}, out of order {tally.disordered}, altered {tally.altered}": not (
            tally.lost or tally.disordered or tally.altered
        ),
        f"clients that failed: {len(tally.failures)}": not tally.failures,
        f"broadcasts refused as a member was too slow: {counts['too_slow']}": not counts["too_slow"],
        f"signals: {counts['connected']:,} connected, {counts['closed']:,} closed": (
            counts["connected"] == counts["closed"]
            and tally.connections <= counts["connected"] <= tally.connections + tally.unanswered
        ),
        f"connections left: {after.status['connections']}, members of the room {after.status['members']}": not (
            after.status["connections"] or after.status["members"]
        ),
        f"descriptors: {before.descriptors} before, {after.descriptors} after": (
            before.descriptors == after.descriptors
        ),
        f"suspicious lines in the log: {len(suspicious)}": not suspicious,
        f"exit status of uWSGI: {exit_code}": exit_code >= 0,
    }
    warm = [sample for sample in samples if sample.seconds >= WARM_UP]
    if warm and warm[-1].seconds - WARM_UP >= JUDGED_FROM - INTERVAL:
        slope = statistics.linear_regression(
            [sample.seconds / 60 for sample in warm], [sample.rss for sample in warm]
        ).slope  # the Pss depends on other processes that map the same libraries
        first, last = (statistics.median(sample.rss for sample in part) for part in (warm[:6], warm[-6:]))
        text = f"memory: RSS {first:,.0f} kB in the second minute, {last:,.0f} kB in the last, {slope:+,.0f} kB/min"
        checks[text] = slope <= slope_limit
    else:
        print("memory: the run was too short to judge it")
    for text, holds in checks.items():
        print("ok    " if holds else "FAILED", text)
    return all(checks.values())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--slope-limit", type=float, default=200, help="largest growth of the memory in kB/min")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        worker = Worker(port, directory)
        try:
            passed = asyncio.run(test(worker, port, arguments.seconds, arguments.slope_limit))
        finally:
            with suppress(ProcessLookupError):  # the server has ended
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
    sys.exit(not passed)


if __name__ == "__main__":
    main()
