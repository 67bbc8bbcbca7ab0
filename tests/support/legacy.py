"""What clients see of programs for 0.6.1: the same scenarios for version 0.6.1 itself and for the setting.

``records_0_6_1.json`` has the records of version 0.6.1. ``python -m support.legacy`` makes them anew, in the directory
``tests``. It needs the environment of ``make .venvs/original/ready``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from support import redis_server
from support.live import DEADLINE, PATHS, UWSGI, Raw, Response, wait_until
from support.needs import require
from support.paths import APPS, ROOT, SUPPORT
from support.ports import reserved_port
from support.wire import BINARY, CLOSE, PING, TEXT

ORIGINAL = ROOT / ".venvs/original"
RECORDS = SUPPORT / "records_0_6_1.json"

OPTIONS = {
    "WebSocket": ["--threads", "20"],
    "GeventWebSocket": ["--gevent", "30"],
    "AsyncioWebSocket": ["--asyncio", "30", "--greenlet"],
}

#: The scenarios of each mode. Each returns its record.
SCENARIOS: dict[str, dict[str, Callable[[Server], Any]]] = defaultdict(dict)

Scenario = Callable[["Server"], Any]


class Server:
    """A uWSGI with the programs.

    :param mode: the class of the extension.
    :param redis: the address of a Redis.
    :param original: whether they run on version 0.6.1.
    """

    host = "127.0.0.1"

    def __init__(self, directory: Path, mode: str, redis: str, *, original: bool) -> None:
        self.mode = mode
        self._reservation = ExitStack()
        self.port = self._reservation.enter_context(reserved_port())
        self._log = directory / "log"
        home, paths = (str(ORIGINAL), [str(APPS)]) if original else (sys.prefix, PATHS)
        command = [
            *(str(UWSGI), "--master", "--die-on-term", "--need-app", "--enable-threads", "--virtualenv", home),
            *(item for path in paths for item in ("--pythonpath", path)),
            *("--module", f"{'original' if original else 'programs'}_0_6_1:app"),
            *("--http-socket", f"{self.host}:{self.port}", *OPTIONS[mode]),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PROGRAMS": mode, "PROGRAMS_REDIS": redis},
                start_new_session=True,
                cwd=directory,  # uWSGI imports from its working directory, too
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def get(self, path: str) -> str:
        """Return the body of a page."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=DEADLINE) as response:
            return str(response.read().decode())

    def wait_until_ready(self) -> None:
        def answers() -> bool:
            assert self._process.poll() is None, self.log
            with suppress(OSError):
                return self.get("/") == "index"
            return False

        wait_until(answers, lambda: self.log)

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # some handlers never end
        self._process.wait()
        self._reservation.close()

    def socket(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), DEADLINE)

    @contextmanager
    def connect(self, path: str, **headers: str) -> Iterator[Client]:
        client = Client(self, path, headers)
        try:
            yield client
        finally:
            client.close()

    def seen(self, name: str, last: object = "returned") -> list[Any]:
        """Return what the handlers of a program have noted, once they have noted *last*."""

        def noted() -> list[Any]:
            return list(json.loads(self.get(f"/seen/{name}")))

        return wait_until(lambda: (notes := noted()) and notes[-1] == last and notes, lambda: f"{noted()}\n{self.log}")


class Client(Raw):
    """A client that records the messages that it gets. It answers no pings."""

    def __init__(self, server: Server, path: str, headers: dict[str, str]) -> None:
        super().__init__(server, path)  # type: ignore[arg-type]
        self.response: Response = self.handshake(headers)
        assert self.response.status == 101, self.response
        #: How the connection has ended: the code of the Close frame, or None.
        self.code: int | None = None

    def text(self, message: str) -> None:
        self.send_frame(TEXT, message.encode())

    def record(self) -> str:
        """Return the next message, or "end"."""
        try:
            while (received := self.receive())[0] == PING:
                pass
        except (OSError, ValueError):  # the end of TCP
            return "end"
        opcode, payload = received
        if opcode == CLOSE:
            self.code = int.from_bytes(payload[:2], "big")
            return "end"
        assert opcode in {TEXT, BINARY}, received
        kind = "text" if opcode == TEXT else "binary"
        return f"{kind} {payload.decode()}" if len(payload) < 100 else f"{kind} of {len(payload)} bytes"

    def records(self, count: int) -> list[str]:
        return [self.record() for _ in range(count)]

    def leave(self) -> None:
        """Close the connection, and wait for its end."""
        with suppress(OSError):
            self.send_frame(CLOSE, b"\x03\xe8")
        while self.record() != "end":
            pass


@contextmanager
def running(mode: str, *, original: bool) -> Iterator[Server]:
    require("redis")
    with (
        tempfile.TemporaryDirectory() as directory,
        redis_server.running(redis_server.RedisServer(Path(directory))) as redis,
    ):
        server = Server(Path(directory), mode, redis.url, original=original)
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()


@contextmanager
def servers(*, original: bool) -> Iterator[Callable[[str], Server]]:
    """Yield a function that returns the server of a mode, which starts with its first use."""
    with ExitStack() as stack:
        yield lru_cache(lambda mode: stack.enter_context(running(mode, original=original)))


def is_recorded(server: Server, name: str) -> bool:
    """Return whether the scenario has the record of version 0.6.1 on *server*, and print both if not."""
    made = SCENARIOS[server.mode][name](server)
    record = json.loads(RECORDS.read_text())[server.mode][name]
    if made != record:
        print(f"0.6.1: {record}\nhere:  {made}\n{server.log}")  # noqa: T201
    return bool(made == record)


def scenario(*modes: str) -> Callable[[Scenario], Scenario]:
    def decorator(function: Scenario) -> Scenario:
        for mode in modes:
            SCENARIOS[mode][function.__name__] = function
        return function

    return decorator


GEVENT, THREADS, ASYNCIO = "GeventWebSocket", "WebSocket", "AsyncioWebSocket"


@scenario(GEVENT, THREADS)
def the_handshake_accepts_any_origin_and_the_subprotocol(server: Server) -> Any:
    headers = {"Origin": "http://elsewhere", "Sec-WebSocket-Protocol": "chat"}
    with server.connect("/readme", **headers) as client:
        return client.response.headers.get("Sec-WebSocket-Protocol")


@scenario(THREADS)
def the_readme_echoes(server: Server) -> Any:
    with server.connect("/readme") as client:
        client.text("one")
        client.text("two")
        return client.records(2)


@scenario(GEVENT)
def the_readme_echoes_and_sends_the_empty_message_that_follows(server: Server) -> Any:
    with server.connect("/readme") as client:
        client.text("one")
        return client.records(2)


@scenario(GEVENT)
def the_echo_example_ends_at_the_empty_message(server: Server) -> Any:
    with server.connect("/echo") as client:
        client.text("one")
        return client.records(2)


@scenario(GEVENT)
def the_echo_gevent_example_echoes(server: Server) -> Any:
    record = []
    with server.connect("/echo-gevent") as client:
        for message in ("one", "☃" * 20):
            client.text(message)
            record += client.records(2)
    return record


@scenario(ASYNCIO, THREADS)
def the_echo_example_echoes(server: Server) -> Any:
    record = []
    with server.connect("/echo") as client:
        for message in ("one", "☃" * 20):
            client.text(message)
            record.append(client.record())
    return record


@scenario(GEVENT, ASYNCIO)
def the_chat_example_sends_to_the_others(server: Server) -> Any:
    with server.connect("/chat") as first, server.connect("/chat") as second:
        per_message = 2 if server.mode == GEVENT else 1  # an empty message follows
        first.text("one")
        record = second.records(per_message)
        with server.connect("/chat") as third:
            record += third.records(per_message)
            third.leave()
        second.text("two")
        record += first.records(per_message)
        first.leave()
        second.leave()
    return record


@scenario(GEVENT)
def the_chatty_example_sends_to_the_others(server: Server) -> Any:
    with server.connect("/chatty") as first, server.connect("/chatty") as second:
        record = [first.record(), second.record()]
        second.leave()
        return [*record, *first.records(20)]  # the handler of the second goes on


@scenario(GEVENT)
def empty_messages_follow_each_message_and_come_in_between(server: Server) -> Any:
    with server.connect("/ticks") as client:
        client.text("one")
        record = client.records(4)  # the first two come at once
        client.text("two")
        record += client.records(2)
        client.leave()
    return [record, server.seen("ticks")]


@scenario(GEVENT, THREADS)
def messages_are_received_as_bytes_and_sent_as(server: Server) -> Any:
    with server.connect("/types") as client:
        for opcode, payload in ((TEXT, "é".encode()), (BINARY, b"binary"), (TEXT, b"last")):
            client.send_frame(opcode, payload)
        record = client.records(6)
    return [record, server.seen("types")]


@scenario(GEVENT, THREADS)
def the_id_and_other_attributes(server: Server) -> Any:
    with server.connect("/identity?name=x") as client:
        return client.records(4)


@scenario(GEVENT, THREADS)
def close_ends_the_connection(server: Server) -> Any:
    with server.connect("/closes") as client:
        record = client.records(2)
    return [record, server.seen("closes")]


@scenario(GEVENT, THREADS)
def a_page_and_a_websocket_may_have_one_url(server: Server) -> Any:
    with server.connect("/page") as client:
        return [client.records(2), server.get("/page")]


@scenario(GEVENT, THREADS)
def a_blueprint_has_a_prefix(server: Server) -> Any:
    with server.connect("/blueprint/hello/you") as client:
        return client.records(2)


@scenario(GEVENT, THREADS)
def a_handler_cleans_up_after_its_loop(server: Server) -> Any:
    with server.connect("/after-the-end") as client:
        client.text("one")
        server.seen("after-the-end", "" if server.mode == GEVENT else "one")
        client.leave()
    return server.seen("after-the-end", "cleaned up")


@scenario(THREADS)
def receive_returns_none_again_and_again(server: Server) -> Any:
    with server.connect("/again-and-again") as client:
        client.leave()
    return server.seen("again_and_again")


@scenario(THREADS)
def recv_nb_returns_an_empty_message(server: Server) -> Any:
    with server.connect("/polls") as client:
        record = [client.record()]
        client.text("one")
        record.append(client.record())
    return [record, server.seen("polls")]


@scenario(THREADS)
def send_raises_an_oserror_when_the_client_has_left(server: Server) -> Any:
    with server.connect("/streams") as client:
        record = client.records(3)
        client.reset()
    return [record, server.seen("streams")]


@scenario(GEVENT)
def a_queue_is_polled_between_messages(server: Server) -> Any:
    with server.connect("/queue") as client:
        client.text("one")
        record = [client.record()]
        server.get("/put/two")
        return [*record, client.record()]


@scenario(GEVENT)
def the_first_message_authenticates(server: Server) -> Any:
    with server.connect("/auth") as client:
        client.text("secret")
        record = [client.record()]
        client.text("go")
        return [*record, *client.records(2)]


@scenario(GEVENT)
def a_handler_that_sleeps_is_registered(server: Server) -> Any:
    with server.connect("/registered") as client:
        server.get("/push/hello")
        record = [client.record()]
        client.leave()
    server.get("/push/late")  # to nobody
    with server.connect("/sends-to-the-dead") as other:
        return [*record, other.record()]


@scenario(GEVENT)
def a_timeout_interrupts_receive(server: Server) -> Any:
    with server.connect("/timeout") as client:
        record = client.records(2)
        client.text("one")
        record += client.records(2)
        client.leave()
    return [record, server.seen("timeout")]


@scenario(GEVENT)
def a_greenlet_sends_to_all_listeners(server: Server) -> Any:
    with server.connect("/listener") as first, server.connect("/listener") as second:
        server.get("/publish/one")
        record = [first.record(), second.record()]
        first.leave()
        server.get("/publish/two")
        record.append(second.record())
        second.leave()
    return [record, server.seen("listener")]


@scenario(GEVENT)
def a_client_that_stops_reading_holds_up_nobody(server: Server) -> Any:
    with server.connect("/flood"), server.connect("/flood") as client:
        record: Counter[str] = Counter()
        for _ in range(40):
            client.text("go")
            record.update(client.records(2))
    return record


@scenario(GEVENT)
def a_burst_arrives(server: Server) -> Any:
    with server.connect("/burst") as client:
        return Counter(client.records(257))


@scenario(GEVENT)
def the_standard_library_is_patched(server: Server) -> Any:
    return server.get("/patched")


@scenario(GEVENT)
def a_thread_that_starts_at_import_sends_to_all_listeners(server: Server) -> Any:
    with server.connect("/listener") as client:
        server.get("/jobs/one")
        record = client.record()
        client.leave()
    return record


@scenario(GEVENT)
def a_greenlet_listens_to_redis(server: Server) -> Any:
    with server.connect("/news") as first, server.connect("/news") as second:
        first.text("one")
        record = [first.record(), second.record()]
        first.leave()
        second.text("two")
        record.append(second.record())
        second.leave()
    return [record, server.seen("news")]


@scenario(ASYNCIO)
def nothing_waits_at_the_end(server: Server) -> Any:
    with server.connect("/ends") as client:
        record = [client.record()]
        client.text("one")
        server.seen("ends", "b'one'")
        client.leave()
    return [record, server.seen("ends", "cleaned up")]


@scenario(ASYNCIO)
def close_is_no_coroutine(server: Server) -> Any:
    with server.connect("/closes") as client:
        return [client.record(), server.seen("closes", False)]


#: The mode and the name of each scenario.
CASES = [(mode, name) for mode, scenarios in SCENARIOS.items() for name in scenarios]


def make_records() -> None:
    """Run all scenarios on version 0.6.1, and write their records."""
    records = {}
    for mode, scenarios in SCENARIOS.items():
        with running(mode, original=True) as server:
            records[mode] = {name: function(server) for name, function in scenarios.items()}
    RECORDS.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    make_records()
