"""Put uWSGI under all faults at the same time for half an hour, and check that clients without a fault see none.

    python -m benchmarks.soak --seconds 1800 --mode gevent

The server is a master and two workers. The clients are the polite ones of ``mixed.py``, which check every echo, and
others that are killed, stopped, or cut off from the network, send one byte a second, flood, read nothing, break every
rule of the protocol, or never finish their handshake. Handlers raise, hang, and exit, and the wall clock jumps by days.
Now and then the second worker is killed or exits. It has to be replaced, and only its clients may see that. The first
worker has to live, to serve, and to need no more memory to the end.

The script prints a table of the workers' memory and other resources, then the counts, and a verdict. It exits with 0
only if all of its checks hold. It checks the growth of the first worker under load in runs of ten minutes or more.
Clients are cut off if this process may create network namespaces. Otherwise they are stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection

from .measures import raise_file_limit
from .mixed import MALLOC, PATIENCE, Load, tear_down
from .servers import APPS, BIN, Running, ServerError, longest_backlog

ROOT = Path(__file__).parent.parent

#: The live tests have the client and the clock for these faults.
SUPPORT = ROOT / "tests" / "support"

HOST = "127.0.0.1"

#: For each mode: uWSGI's options, its cores, and the number of unfinished handshakes at a time. Each of them takes a
#: core until uWSGI gives it up after 4 s.
MODES = {
    "gevent": (["--gevent", "1500", "--gevent-early-monkey-patch"], 1500, 1000),
    "asyncio": (["--asyncio", "1500", "--greenlet"], 1500, 1000),
    "threads": (["--threads", "200"], 200, 50),
}

#: Seconds after which a peer that has vanished is dropped: the ping's interval and timeout, and rounding.
SILENCE = 18

#: Seconds after which the resources of the first worker have to be flat, because most combinations have happened, and
#: the seconds that their measurement takes at least.
WARM_UP = 300
JUDGED_FROM = 300

REQUEST = (
    "GET {} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)

Client = Callable[[], Coroutine[Any, Any, None]]


def masked(first: int, payload: bytes = b"") -> bytes:
    """Return a short frame, masked with zeros."""
    return bytes((first, 0x80 | len(payload), 0, 0, 0, 0)) + payload


#: Input that breaks a rule, and its close code.
MALFORMED = [
    (1002, b"\x81\x01x"),  # not masked
    *((1002, masked(0x81 | reserved, b"x")) for reserved in (0x40, 0x20, 0x10)),
    *((1002, masked(0x80 | opcode)) for opcode in (*range(3, 8), *range(11, 16))),
    (1002, b"\x89\xfe\x00\x7e" + bytes(4 + 126)),  # a long control frame
    (1002, masked(0x09, b"x")),  # a fragment of a control frame
    (1002, b"\x81\xfe\x00\x01" + bytes(4) + b"x"),  # a short length in 16 bits
    (1002, b"\x81\xff" + struct.pack("!Q", 1) + bytes(4) + b"x"),  # a short length in 64 bits
    (1002, b"\x81\xff" + struct.pack("!Q", 2**63 + 1) + bytes(4)),  # a length with the top bit
    (1002, masked(0x80, b"x")),  # a continuation without a message
    (1002, masked(0x01, b"x") + masked(0x81, b"y")),  # a message in a message
    *((1002, masked(0x88, body)) for body in (b"\x03", struct.pack("!H", 1005), struct.pack("!H", 999))),
    *((1007, masked(first, text)) for first, text in ((0x81, b"\xff"), (0x81, b"\xe2\x98"), (0x01, b"\xc0\xaf"))),
    (1007, masked(0x88, b"\x03\xe8\xff")),
    *((1009, b"\x82\xff" + struct.pack("!Q", size) + bytes(4)) for size in (2**20 + 1, 2**62)),
]

#: The beginnings of floods, and the parts that repeat: messages, pings, empty fragments of a message without an end.
FLOODS = [
    (b"", masked(0x81, b"flood " * 10) * 500),
    (b"", masked(0x89, b"ping" * 30) * 300),
    (masked(0x01), masked(0x00) * 5000),
]


# The server


@dataclass(frozen=True)
class State:
    """The resources of a worker at one moment."""

    pid: int
    pss: int
    descriptors: int
    threads: int
    greenlets: int
    blocks: int
    connections: int
    cpu_seconds: float


class Server:
    """uWSGI.

    :param mode: one of :data:`MODES`.
    :param directory: the directory of its log and its clock.
    :param hosts: more addresses to listen on.
    """

    def __init__(self, mode: str, directory: Path, hosts: list[str]) -> None:
        # Both workers accept from the first port, and one worker from each other port.
        self.ports = [free_port() for _ in range(3)]
        self._log = directory / "log"
        self._clock = directory / "clock"
        self.set_clock(0)
        library = directory / "clock.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, SUPPORT / "clock.c"], check=True)
        addresses = [*(f"{HOST}:{port}" for port in self.ports), *(f"{host}:{self.ports[0]}" for host in hosts)]
        backlog = min(1024, longest_backlog())
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(str(BIN / "uwsgi"), "--master", "--processes", "2", "--listen", str(backlog)),
                    *(item for address in addresses for item in ("--http-socket", address)),
                    *("--map-socket", "1:1", "--map-socket", "2:2"),
                    *MODES[mode][0],
                    # Otherwise uWSGI logs an error when a client resets its connection before it has its page.
                    *("--disable-write-exception", "--ignore-write-errors", "--ignore-sigpipe"),
                    *("--enable-threads", "--disable-logging", "--need-app", "--virtualenv", sys.prefix),
                    *("--pythonpath", str(APPS), "--pythonpath", str(ROOT), "--module", "soak_app:app"),
                ],
                env={
                    **os.environ,
                    **MALLOC,
                    "MODE": mode,
                    "LD_PRELOAD": str(library),
                    "CLOCK_OFFSET": str(self._clock),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def set_clock(self, offset: int) -> None:
        """Set the wall clock of the server's processes to *offset* seconds from the real one."""
        with self._clock.open(
            "r+b" if self._clock.exists() else "wb"
        ) as file:  # not truncated, because the clock maps this file
            file.write(struct.pack("q", offset))

    def log(self) -> str:
        """Return the output of the server."""
        return self._log.read_text(errors="replace")

    def check(self) -> None:
        """Raise SystemExit if the server has ended."""
        if self.process.poll() is not None:
            raise SystemExit(f"{self.log()[-3000:]}\nuWSGI ended with status {self.process.returncode}")

    def stop(self) -> int:
        """End the server as Ctrl+C does, and return its status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


class Door(Load):
    """The addresses of one of the two workers."""

    async def state(self) -> State:
        """Return the state of the worker.

        :raises ConnectionError: while the worker is being replaced.
        """
        try:
            code, body = await self.get("/status")
            assert code == 200, body
            status = json.loads(body)
            process, running = Path(f"/proc/{status['pid']}"), Running([self.port], [status["pid"]])
            return State(
                pid=status["pid"],
                pss=running.memory_kb(),
                descriptors=len(list((process / "fd").iterdir())),
                threads=len(list((process / "task").iterdir())),
                greenlets=status["greenlets"],
                blocks=status["blocks"],
                connections=status["connections"],
                cpu_seconds=running.cpu_seconds(),
            )
        except (OSError, IndexError, ServerError) as error:  # a page that was not finished has no lines
            raise ConnectionError("the worker is being replaced") from error


# A network that can be cut


class Network:
    """A network namespace for clients."""

    def __init__(self) -> None:
        self.name = f"soak{os.getpid()}"
        # Part of 198.18.0.0/15, which is for tests (RFC 2544).
        subnet = f"198.18.{os.getpid() % 256}"
        self.host = f"{subnet}.1"
        ip = ["ip"]
        self._do(*ip, "netns", "add", self.name)
        try:
            ends = [f"{self.name}s", "type", "veth", "peer", "name", f"{self.name}c", "netns", self.name]
            self._do(*ip, "link", "add", *ends)
            self._do(*ip, "address", "add", f"{self.host}/30", "dev", f"{self.name}s")
            self._do(*ip, "link", "set", f"{self.name}s", "up")
            self._do(*self.inside, *ip, "address", "add", f"{subnet}.2/30", "dev", f"{self.name}c")
        except BaseException:
            self.close()
            raise

    @property
    def inside(self) -> list[str]:
        """The beginning of a command that runs in the network."""
        return ["ip", "netns", "exec", self.name]

    def link(self, state: str) -> None:
        """Plug the cable in ("up") or out ("down"). Neither side is notified: packets are just lost."""
        self._do(*self.inside, "ip", "link", "set", f"{self.name}c", state)

    def close(self) -> None:
        self._do("ip", "netns", "delete", self.name)  # removes both ends of the cable, too

    @staticmethod
    def _do(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)


@contextmanager
def network() -> Iterator[Network | None]:
    """Create a network, or print that this process may not."""
    try:
        made = Network()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"no client is cut off from the network: {error}")
        yield None
        return
    try:
        yield made
    finally:
        made.close()


# The clients


class Soak(Load):
    """The clients, polite and other, and the faults of the server.

    :param deaths: how often the second worker dies.
    """

    def __init__(self, server: Server, seconds: float, mode: str, deaths: int, network: Network | None) -> None:
        super().__init__(server.ports[0], seconds)
        self.doors = [Door(port, seconds) for port in server.ports[1:]]
        self.counts: Counter[str] = Counter()
        self._server = server
        self._mode = mode
        self._death_interval = seconds / (deaths + 1)
        self._network = network
        #: Workers that have died, with the times of their replacement.
        self.dead: dict[int, float] = {}
        #: For the task of each client: the beginning of its last connection, and its worker.
        self._begun: dict[Any, tuple[float, int | None]] = {}

    async def run(self) -> None:
        """Run all clients to their end."""
        first = self.doors[0]
        clients: list[Client] = [
            *[self.echo] * 20,
            *[self.bursts] * 3,
            *[self.compressed] * 5,
            *[self.come_and_go] * 4,
            self.leave_unanswered,
            *[self.fall_silent] * 2,
            *[self.sleep] * 1,
            *[self.browse] * 2,
            *[self.drip] * 5,
            self.flood,
            self.read_nothing,
            self.break_rules,
            self.leave_unfinished,
            *[self.be_killed] * 2,
            *[self.be_stopped] * 2,
            *[self.meet_an_exception] * 2,
            *[self.meet_a_hanging_handler] * 3,
            self.end_workers,
            self.set_clock,
        ]
        if self._network is not None:
            clients.append(self.be_cut_off)
        # The clients of the first worker must see no fault.
        await asyncio.gather(*map(self._guard, clients), *(first._guard(first.echo) for _ in range(5)))

    async def _guard(self, client: Client) -> None:
        """Run a client, and run it again if its worker has died."""
        task = asyncio.current_task()
        while True:
            try:
                await client()
                return
            except Exception as error:
                began, worker = self._begun.get(task, (0.0, None))
                is_cut_off = worker in self.dead if worker else any(end > began for end in self.dead.values())
                if not is_cut_off:
                    self.fail(client, error)
                    return
                self.counts["connections of a worker that died"] += 1

    def fail(self, client: Client, error: Exception) -> None:
        self.tally.failures.append(f"{client.__name__}, {self.remaining:.1f} s before the end: {error!r}")
        print("FAILED", self.tally.failures[-1], flush=True)

    def _begin(self, worker: str | None = None) -> None:
        self._begun[asyncio.current_task()] = (time.monotonic(), int(worker) if worker else None)

    async def open(self, path: str, **options: Any) -> ClientConnection:
        """Connect, and note the worker that serves."""
        self._begin()
        ws = await super().open(path, **options)
        assert ws.response is not None
        self._begin(ws.response.headers["X-Worker"])
        return ws

    async def get(self, path: str) -> tuple[int, bytes]:
        """Return the status and the body of a page."""
        self._begin()
        return await super().get(path)

    @asynccontextmanager
    async def raw(self, path: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a WebSocket that sends exactly the bytes that it is given, and drop it at the end."""
        self._begin()
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(REQUEST.format(path).encode())
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)).decode()
            assert head.startswith("HTTP/1.1 101 "), head
            found = re.search(r"X-Worker: (\d+)", head)
            assert found is not None
            self._begin(found[1])
            yield reader, writer
        finally:
            writer.transport.abort()

    @staticmethod
    async def read_message(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        """Return the opcode and payload of the next short frame that is not a Ping."""
        while True:
            first, size = await asyncio.wait_for(reader.readexactly(2), PATIENCE)
            payload = await reader.readexactly(size)
            if first != 0x89:
                return first & 0x0F, payload

    # Clients that are slow, fast, or faulty

    async def drip(self) -> None:
        """Send one byte a second, so that there is no room for a Pong."""
        while self.remaining > 15:
            async with self.raw("/echo") as (reader, writer):
                for byte in masked(0x81, b"drip"):
                    writer.write(bytes([byte]))
                    await asyncio.sleep(1)
                assert await self.read_message(reader) == (1, b"drip")
            self.counts["messages of one byte a second"] += 1

    async def flood(self) -> None:
        """Send as much as possible for two seconds, and read the answers."""
        for start, data in cycle(FLOODS):
            if self.remaining < 10:
                return
            async with self.raw("/echo") as (reader, writer):
                deadline = time.monotonic() + 2
                reading = asyncio.create_task(self._drain(reader))
                writer.write(start)
                try:
                    while time.monotonic() < deadline:
                        writer.write(data)
                        await writer.drain()
                finally:
                    reading.cancel()
            self.counts["floods"] += 1
            await asyncio.sleep(random.uniform(2, 6))

    @staticmethod
    async def _drain(reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while await reader.read(65536):
                pass

    async def read_nothing(self) -> None:
        """Send until no more bytes fit, and wait for the end of the connection."""
        while self.remaining > 30:
            async with self.raw("/echo") as (_, writer):
                with suppress(ConnectionError):
                    while True:
                        writer.write(FLOODS[0][1])
                        await asyncio.wait_for(writer.drain(), PATIENCE)
            self.counts["clients dropped because they read nothing"] += 1

    async def break_rules(self) -> None:
        """Send malformed frames, and expect the close code of each."""
        for code, data in cycle(MALFORMED):
            if self.remaining < 5:
                return
            async with self.raw("/echo") as (reader, writer):
                writer.write(data)
                opcode, payload = await self.read_message(reader)
                assert (opcode, payload[:2]) == (8, struct.pack("!H", code)), (data, opcode, payload)
                assert await asyncio.wait_for(reader.read(1), PATIENCE) == b""
            self.counts["malformed frames"] += 1
            await asyncio.sleep(random.uniform(0, 0.3))

    async def leave_unfinished(self) -> None:
        """Begin many handshakes, and finish none of them."""
        while self.remaining > 20:
            await begin_handshakes(self.port, MODES[self._mode][2], random.uniform(0, 6))
            self.counts["handshakes never finished"] += MODES[self._mode][2]
            await asyncio.sleep(random.uniform(5, 15))

    # Clients that vanish

    @asynccontextmanager
    async def other_process(
        self, paths: list[str], host: str = HOST, prefix: tuple[str, ...] = ()
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Connect in another process, which is killed at the end."""
        self._begin()
        process = await asyncio.create_subprocess_exec(
            *(*prefix, sys.executable, "-SE", str(SUPPORT / "live_client.py"), host, str(self.port), *paths),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"connected\n"
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def be_killed(self) -> None:
        """End by SIGKILL."""
        while self.remaining > 5:
            async with self.other_process(["/echo", "/hang", "/compressed"]):
                await asyncio.sleep(random.uniform(0, 3))
            self.counts["client processes killed"] += 1

    async def be_stopped(self) -> None:
        """Stop by SIGSTOP for longer than a client may be silent."""
        while self.remaining > SILENCE + 5:
            async with self.other_process(["/echo"] * 5) as process:
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(SILENCE)
            self.counts["client processes stopped"] += 1

    async def be_cut_off(self) -> None:
        """Be cut off from the network for longer than a client may be silent."""
        assert self._network is not None
        while self.remaining > SILENCE + 5:
            self._network.link("up")
            async with self.other_process(["/echo"] * 10, self._network.host, tuple(self._network.inside)):
                self._network.link("down")
                await asyncio.sleep(SILENCE)
            self.counts["client processes cut off"] += 1

    # Handlers, workers, clocks

    async def meet_an_exception(self) -> None:
        """Expect the close code of an exception in the handler."""
        while self.remaining > 5:
            ws = await self.open("/raise")
            await ws.send("go")
            await asyncio.wait_for(ws.wait_closed(), PATIENCE)
            assert ws.close_code == 1011, ws.close_code
            self.counts["handlers that raised"] += 1
            await asyncio.sleep(random.uniform(0, 2))

    async def meet_a_hanging_handler(self) -> None:
        """Leave a handler that does not check its connection for a long time."""
        while self.remaining > 5:
            ws = await self.open("/hang")
            await asyncio.sleep(random.uniform(0, 3))
            if random.random() < 0.5:
                await ws.close()
            else:
                tear_down(ws, reset=random.random() < 0.5)
            self.counts["handlers that hung"] += 1

    async def end_workers(self) -> None:
        """Let the second worker die in different ways, while the first one continues."""
        first, second = self.doors
        survivor = (await first.state()).pid
        for way in cycle(["SIGKILL", "os._exit"]):
            if self.remaining < 1.5 * self._death_interval:
                return
            await asyncio.sleep(self._death_interval)
            victim = (await second.state()).pid
            self.dead[victim] = float("inf")
            if way == "SIGKILL":
                os.kill(victim, signal.SIGKILL)
            else:
                ws = await second.open(f"/exit/{way}")
                with suppress(Exception):
                    await ws.send("go")
                    await asyncio.wait_for(ws.wait_closed(), PATIENCE)
            self.counts[f"workers ended by {way}"] += 1
            deadline = time.monotonic() + PATIENCE
            while await self._pid_of(second) in {None, victim}:
                assert time.monotonic() < deadline, f"worker {victim} was not replaced after {way}"
                await asyncio.sleep(0.1)
            self.dead[victim] = time.monotonic()
            assert await self._pid_of(first) == survivor, "the first worker has been replaced"

    @staticmethod
    async def _pid_of(door: Door) -> int | None:
        with suppress(ConnectionError):
            return (await door.state()).pid
        return None

    async def set_clock(self) -> None:
        """Set the wall clock, by days."""
        while self.remaining > 0:
            self._server.set_clock(random.randint(-3, 3) * 86_400)
            self.counts["jumps of the clock"] += 1
            await asyncio.sleep(random.uniform(2, 10))


async def begin_handshakes(port: int, count: int, seconds: float) -> None:
    """Begin many handshakes, and give them up after some seconds."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            await loop.sock_connect(sock, (HOST, port))
            with suppress(ConnectionError):  # the worker has died
                await loop.sock_sendall(sock, REQUEST.format("/echo")[:-3].encode())
        await asyncio.sleep(seconds)


# The verdict


Row = tuple[float, State, State]

HEAD = (
    "       -- worker 1 -----------------------------------------   -- worker 2 ------------------------ - - -\n"
    "     s   Pss kB  fds  threads  greenlets  connections  CPU %    Pss kB  fds  greenlets     pid    echoes  failed"
)


async def observe(soak: Soak, interval: float) -> list[Row]:
    """Print and return the resources of the workers until the load ends."""
    print(HEAD)
    rows: list[Row] = []
    began, cpu, cpu_at = time.monotonic(), (await soak.doors[0].state()).cpu_seconds, time.monotonic()
    while soak.remaining > interval:
        await asyncio.sleep(interval)
        try:
            first, second = [await door.state() for door in soak.doors]
        except ConnectionError:  # while there is only one worker, memory that both share counts differently
            continue
        now = time.monotonic()
        rows.append((now - began, first, second))
        print(
            f"{now - began:6.0f} {first.pss:8,} {first.descriptors:4} {first.threads:8} {first.greenlets:10} "
            f"{first.connections:12} {(first.cpu_seconds - cpu) / (now - cpu_at):6.0%}  {second.pss:8,} "
            f"{second.descriptors:4} {second.greenlets:10} {second.pid:7} {soak.tally.echoes:9,} "
            f"{len(soak.tally.failures):7}",
            flush=True,
        )
        cpu, cpu_at = first.cpu_seconds, now
    return rows


async def settled(soak: Soak) -> list[State]:
    """Wait until no connection and no hanging handler is left, at most a minute, and return the workers' states."""
    before: list[State] = []
    for _ in range(12):
        await asyncio.sleep(5)
        states = [await door.state() for door in soak.doors]
        if before and all(
            (state.connections, state.descriptors, state.greenlets) == (0, last.descriptors, last.greenlets)
            for state, last in zip(states, before, strict=True)
        ):
            break
        before = states
    return states


def growth(
    rows: list[Row], value: Callable[[State], int], choose: Callable[[Iterator[int]], float] = statistics.median
) -> tuple[float, float, float]:
    """Return a value of the first worker in the first and the last third of the rows, and its growth per minute.

    :param choose: chooses the row of a third: some rows are from the moment with the most open handshakes.
    """
    third = len(rows) // 3
    parts = rows[:third], rows[-third:]
    times = [statistics.median(seconds for seconds, _, _ in part) for part in parts]
    early, late = (choose(value(first) for _, first, _ in part) for part in parts)
    return early, late, (late - early) / (times[1] - times[0]) * 60


async def test(server: Server, soak: Soak, mode: str, seconds: float, slope_limit: float) -> bool:
    """Load the server, print the results, and return whether all checks hold."""
    while True:
        try:
            for door in soak.doors:
                await door.state()
                async with door.polite("/echo") as ws:
                    await door.exchange(ws, ["first"])
            break
        except ConnectionError:
            server.check()
            await asyncio.sleep(0.1)
    for door in soak.doors:  # the first use of each core allocates memory that stays
        await begin_handshakes(door.port, MODES[mode][1] - 50, 1)
    before = await settled(soak)
    _, body = await soak.doors[0].get("/status")
    print(f"functions: {json.loads(body)['functions']}")

    for load in (soak, *soak.doors):
        load.deadline = time.monotonic() + seconds
    _, rows = await asyncio.gather(soak.run(), observe(soak, min(30, max(5, seconds / 60))))
    after = await settled(soak)
    await asyncio.sleep(5)
    idle = [await door.state() for door in soak.doors]
    exit_code = server.stop()

    tally, own = soak.tally, soak.doors[0].tally
    print(f"\nechoes {tally.echoes + own.echoes:,}, pages {tally.pages:,}, connections {tally.connections:,}")
    print(*(f"{what}: {count:,}" for what, count in sorted(soak.counts.items())), sep="\n")
    print("\nwithout load        Pss kB   fds  threads  greenlets   blocks  connections")
    for name, states in (("before", before), ("after", after)):
        for number, state in enumerate(states, 1):
            print(
                f"worker {number} {name:8} {state.pss:9,} {state.descriptors:5} {state.threads:8} "
                f"{state.greenlets:10} {state.blocks:8,} {state.connections:12}"
            )

    failures = tally.failures + own.failures
    altered = tally.altered + tally.disordered + own.altered + own.disordered + own.lost
    tracebacks = server.log().split("Traceback (most recent call last):")[1:]
    tracebacks = [traceback for traceback in tracebacks if "soak_app.Deliberate" not in traceback]
    died = [int(pid) for pid in re.findall(r"DAMN ! worker \d+ \(pid: (\d+)\) died", server.log())]
    cpu = [late.cpu_seconds - early.cpu_seconds for early, late in zip(after, idle, strict=True)]
    checks = {
        f"clients that failed: {len(failures)}": not failures,
        f"echoes lost, altered or out of order: {altered}": not altered,
        f"the first worker: pid {before[0].pid} before, {after[0].pid} after": before[0].pid == after[0].pid,
        f"workers that died: {len(died)}, on purpose: {len(soak.dead)}": set(died) == soak.dead.keys(),
        f"connections left: {[state.connections for state in after]}": not any(each.connections for each in after),
        f"CPU of both workers in 5 s without load: {sum(cpu):.2f} s": sum(cpu) < 0.5,
        f"tracebacks in the log that are not deliberate: {len(tracebacks)}": not tracebacks,
        f"exit status of uWSGI: {exit_code}": exit_code >= 0,
    }
    for name in ("descriptors", "threads", "greenlets"):
        counts = [[getattr(state, name) for state in states] for states in (before, after)]
        checks[f"{name} without load: {counts[0]} before, {counts[1]} after"] = all(
            late <= early for early, late in zip(*counts, strict=True)
        )
    blocks = (before[0].blocks, after[0].blocks)
    if mode == "asyncio":
        print("uWSGI's asyncio engine leaks a block of memory with each request, also in a plain WSGI application")
        slope_limit *= 2  # at more than 2,000 requests in a minute
    else:
        text = f"blocks of memory of Python in the first worker without load: {blocks[0]:,} before, {blocks[1]:,} after"
        checks[text] = blocks[1] <= 1.1 * blocks[0]
    warm = [row for row in rows if row[0] >= WARM_UP]
    if seconds - WARM_UP >= JUDGED_FROM:
        early, late, slope = growth(warm, lambda state: state.pss)
        checks[f"memory under load: Pss {early:,.0f} kB at first, {late:,.0f} kB at last, {slope:+,.0f} kB/min"] = (
            slope <= slope_limit
        )
        for name in ("descriptors", "greenlets"):
            early, late, slope = growth(warm, lambda state, name=name: getattr(state, name), min)
            checks[f"{name} under load: {early:,.0f} at first, {late:,.0f} at last, {slope:+.1f} /min"] = (
                late <= 1.5 * early
            )
    else:
        print("the run was too short to judge what grows under load")
    for traceback in tracebacks[:3]:
        print(traceback[:2000])
    print()
    for text, holds in checks.items():
        print("ok    " if holds else "FAILED", text)
    print("\nflat" if all(checks.values()) else "\nNOT FLAT, or clients were harmed")
    return all(checks.values())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--mode", choices=list(MODES), default="gevent")
    parser.add_argument("--slope-limit", type=float, default=200, help="largest growth of the memory in kB/min")
    options = parser.parse_args()
    raise_file_limit()
    logging.getLogger("asyncio").disabled = True  # it logs every send to a worker that has died
    with tempfile.TemporaryDirectory() as directory, network() as cut:
        server = Server(options.mode, Path(directory), [cut.host] if cut else [])
        try:
            deaths = max(2, round(options.seconds / 60))
            soak = Soak(server, options.seconds, options.mode, deaths, cut)
            passed = asyncio.run(test(server, soak, options.mode, options.seconds, options.slope_limit))
        finally:
            with suppress(ProcessLookupError):  # the server has ended
                os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
    sys.exit(not passed)


if __name__ == "__main__":
    main()
