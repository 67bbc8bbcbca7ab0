"""Blueprints, contexts, hooks and signals on real uWSGI, with the extensions that large applications use."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets.sync.client
from flask import Flask
from flask.sessions import SecureCookieSessionInterface

from support.live import DEADLINE, MATRIX, MODES, Server, in_threads, processes, serving, token_of, wait_until
from support.paths import SUPPORT
from support.wire import CLOSE, KEY, TEXT, frame

pytestmark = pytest.mark.matrix

DIRECT = [param for param in MATRIX if "http-socket" in param.values[0]]
ROUTED = [param for param in MATRIX if param not in DIRECT]

#: For tests whose result is the same behind the router, which only passes bytes on.
direct = pytest.mark.parametrize("server", DIRECT, indirect=True)

CROWD = 200
#: The number of connections that end. Behind the router a smaller number suffices.
ENDS = {"http-socket": 1000, "http": 200}


@pytest.fixture(scope="module", params=DIRECT + ROUTED)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the blueprints' application for each mode and front."""
    mode, front = request.param
    options = ["--threads", "250"] if mode == "threads" else []
    directory = tmp_path_factory.mktemp(f"blueprints-{mode}-{front}")
    with serving(directory, MODES[mode], front, options=options, module="live_blueprints_app") as server:
        yield server


_signer = Flask(__name__)
_signer.secret_key = "live"
_serializer: Any = SecureCookieSessionInterface().get_signing_serializer(_signer)


def session_cookie(values: dict[str, object]) -> str:
    """Return the cookie of a session, signed with the application's key."""
    return f"session={_serializer.dumps(values)}"


def cookies_of(response: http.client.HTTPResponse) -> str:
    """Return the Cookie header of a browser that has got *response*."""
    cookies = SimpleCookie()
    for line in response.headers.get_all("Set-Cookie", []):
        cookies.load(line)
    return "; ".join(f"{name}={morsel.value}" for name, morsel in cookies.items() if morsel.value)


def post(server: Server, path: str, cookies: str = "") -> str:
    """Send a form, and return the cookies after it."""
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE)) as client:
        client.request("POST", path, headers={"Cookie": cookies})
        response = client.getresponse()
        response.read()
        assert response.status == 200
        return cookies_of(response)


# Routes


@pytest.mark.parametrize(
    ("path", "blueprint"),
    [
        ("/rooms/red/exchange", "rooms"),
        ("/halls/red/exchange", "halls"),
        ("/building/3/offices/red/exchange", "building.offices"),
        ("/campus/red/exchange", "campus"),
        ("/campus/house/red/exchange", "campus.house"),
        ("/campus/house/flat/r%C3%B6d%20%C3%BC/exchange", "campus.house.flat"),
    ],
)
def test_a_client_reaches_the_websocket_at_the_address_in_the_page_at_the_same_url(
    server: Server, path: str, blueprint: str
) -> None:
    path = server.path(path)
    page = server.json(path)
    assert page["blueprint"] == blueprint
    assert page["address"] == f"ws://{server.host}:{server.port}{path}"
    with websockets.sync.client.connect(page["address"], open_timeout=DEADLINE) as client:
        client.send("question")
        while (text := client.recv(DEADLINE)) == "hello":
            pass
        answer = json.loads(text)
    assert answer["message"] == "question"
    assert answer["view_args"]["name"] in {"red", "röd ü"}
    assert server.wait_for("end", client)["code"] == 1000


@direct
def test_a_url_whose_variables_do_not_convert_gets_404(server: Server) -> None:
    assert server.handshake("/building/3/offices/red/exchange").status == 101
    assert server.handshake("/building/third/offices/red/exchange").status == 404
    assert server.handshake("/campus/flat/red/exchange").status == 404


# Contexts

#: The path, view arguments and blueprint of a numbered connection, and the blueprints whose listeners it has.
TALKS: list[Callable[[int], tuple[str, dict[str, object], str, list[str]]]] = [
    lambda n: (f"/rooms/r{n}", {"name": f"r{n}"}, "rooms", ["rooms"]),
    lambda n: (f"/halls/r{n}", {"name": f"r{n}"}, "halls", ["rooms"]),
    lambda n: (f"/building/{n}/offices/o{n}", {"floor": n, "name": f"o{n}"}, "building.offices", ["offices"]),
    lambda n: (f"/campus/c{n}", {"name": f"c{n}"}, "campus", ["campus"]),
    lambda n: (f"/campus/house/h{n}", {"name": f"h{n}"}, "campus.house", ["campus", "house"]),
    lambda n: (f"/campus/house/flat/f{n}", {"name": f"f{n}"}, "campus.house.flat", ["campus", "house", "flat"]),
    lambda n: (f"/plain/p/{n}", {"name": f"p/{n}"}, "plain", []),
]

#: The places that record their contexts: first for each message, then all. Each pair has single places, and places of
#: each owner of listeners.
AT_MESSAGES = ["handler", "message_context", "websocket_message"], ["on_message"]
ALL = (
    [
        *AT_MESSAGES[0],
        "before_request",
        "websocket_connected",
        "websocket_sent",
        "websocket_closed",
        "teardown_request",
    ],
    ["before_websocket", "after_websocket", "on_connect", "on_message", "on_close", "teardown_websocket"],
)


def places(names: list[str], as_such: list[str], of_each: list[str]) -> set[str]:
    return {*as_such, *(f"{name} {place}" for name in ["app", *names] for place in of_each)}


class Talk:
    """One of many connections. It knows the values that its contexts must have."""

    def __init__(self, server: Server, batch: str, number: int) -> None:
        path, view_args, blueprint, self.names = TALKS[number % len(TALKS)](number)
        self.n = f"{batch}{number}"
        self.path = f"{path}/exchange?n={self.n}"
        self.view_args = view_args
        session = session_cookie({"user": f"u{self.n}"})
        self.options = {"additional_headers": {"Cookie": f"flavour=f{self.n}; {session}"}}
        self.seen: set[str] = set()
        self.who = {
            "ws": self.n,
            "app": "live_blueprints_app",
            "path": f"{path}/exchange",
            "n": self.n,
            "cookie": f"f{self.n}",
            "user": f"u{self.n}",
            "g": f"g{self.n}",
            "view_args": view_args,
            "blueprint": blueprint,
            "endpoint": f"{blueprint}.exchange",
            "address": f"ws://{server.host}:{server.port}{path}/exchange",
        }

    def check(self, seen: list[tuple[str, object]]) -> set[str]:
        """Check the recorded values, and return the places that recorded them."""
        for place, who in seen:
            assert who == self.who, place
        where = {place for place, _ in seen}
        self.seen |= where
        return where

    async def run(self, client: Any) -> None:
        """Exchange messages, several at a time."""
        await client.send("one")
        await self.receive(client, "one")
        await client.send("two")
        await client.send("three")
        await self.receive(client, "two")
        await client.send("four")
        await self.receive(client, "three")
        await self.receive(client, "four")

    async def receive(self, client: Any, message: str) -> None:
        while (text := await client.recv()) == "hello":  # sent by the handler of another connection
            pass
        answer = json.loads(text)
        assert answer["message"] == message
        assert answer["view_args"] == self.view_args
        assert self.check(answer["seen"]) >= places(self.names, *AT_MESSAGES)


@direct
def test_no_value_of_one_of_two_hundred_connections_is_ever_seen_in_another(server: Server) -> None:
    talks = [Talk(server, "n", number) for number in range(CROWD)]

    async def talk_all(first: int = 0) -> None:
        """Let every second client talk, while the others connect and talk, too."""
        group = talks[first::2]
        async with server.open_many([talk.path for talk in group], lambda i: group[i].options) as clients:
            talking = asyncio.gather(*(talk.run(client) for talk, client in zip(group, clients, strict=True)))
            if first == 0:
                await talk_all(1)
            await talking

    asyncio.run(talk_all())

    def ended() -> bool:
        last = [e for e in server.journal() if e["event"] == "seen" and e["place"] == "teardown_request"]
        return len(last) == len(talks)

    wait_until(ended, lambda: f"some connections are not torn down:\n{server.log[-5000:]}")
    talk_of = {talk.n: talk for talk in talks}
    for entry in server.journal():
        if entry["event"] == "seen":
            talk_of[entry["n"]].check(entry["seen"])
    for talk in talks:
        assert talk.seen == places(talk.names, *ALL)


# The response to the handshake


def handshake_bytes(server: Server, path: str, cookies: str) -> list[bytes]:
    """Return the header lines of the response to a handshake, and check that frames follow."""
    with server.socket() as sock, sock.makefile("rb") as file:
        sock.sendall(
            f"GET {server.path(path)} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Cookie: {cookies}\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        lines = []
        while (line := file.readline()) != b"\r\n":
            assert line.endswith(b"\r\n")
            lines.append(line[:-2])
        assert file.read(1)[0] in {0x80 | TEXT, 0x80 | CLOSE}
        return lines


def test_the_session_and_the_headers_of_hooks_are_in_the_bytes_of_the_101_response(server: Server) -> None:
    lines = handshake_bytes(server, "/visits/early", session_cookie({"visits": 41}))
    assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
    fields = [tuple(line.decode().split(": ", 1)) for line in lines[1:]]
    assert [value for name, value in fields if name == "X-Visits"] == ["42"]
    assert [value for name, value in fields if name == "X-Via"] == ["one", "two"]
    assert ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") in fields
    assert not {"Content-Length", "Content-Type"} & {name for name, _ in fields}
    taste, cookie = (value for name, value in fields if name == "Set-Cookie")
    assert taste == "taste=sweet; Path=/visits"
    value, *attributes = cookie.split("; ")
    assert _serializer.loads(value.removeprefix("session=")) == {"visits": 42}
    assert set(attributes) == {"HttpOnly", "Path=/"}


def test_a_session_passes_from_a_websocket_to_the_next_one_and_to_pages(server: Server) -> None:
    cookies = session_cookie({})
    for count in (1, 2, 3):
        with server.connect("/visits/early", additional_headers={"Cookie": cookies}) as client:
            assert client.recv(DEADLINE) == str(count)
            assert client.response is not None
            jar = SimpleCookie("; ".join(client.response.headers.get_all("Set-Cookie")))
            cookies = f"session={jar['session'].value}"
    with closing(http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE)) as browser:
        browser.request("GET", "/visits/", headers={"Cookie": cookies})
        assert json.loads(browser.getresponse().read()) == {"visits": 3}


@direct
def test_a_session_changed_after_the_handshake_is_not_saved_and_logged_once(server: Server) -> None:
    for _ in range(5):
        lines = handshake_bytes(server, "/visits/late", "")
        cookies = [line for line in lines if line.startswith(b"Set-Cookie: ")]
        assert cookies == [b"Set-Cookie: taste=sweet; Path=/visits"]
    with server.connect("/visits/late") as client:
        server.wait_for_access_log(client)

    def warnings() -> int:
        return server.log.count("The session was changed in '/visits/late' after the handshake")

    # The thread that logs the warning may be later than all others.
    wait_until(warnings, lambda: f"there is no warning:\n{server.log[-5000:]}")
    assert warnings() <= server.mode.processes


# Refusals


def test_a_before_request_that_aborts_stops_every_websocket_before_the_handshake(server: Server) -> None:
    urls = [urlsplit(address).path for address in server.json("/websockets")]
    paths = [server.path(url) for url in urls]
    assert len(paths) > 20
    for path in paths:
        response = server.handshake(path, {"X-Closed": "today"})
        assert response.status == 403
        assert "Sec-WebSocket-Accept" not in response.headers
    for path in paths:
        server.wait_for_access_log(path)
    tokens = {token_of(path) for path in paths}
    noted = [(entry["event"], entry.get("status")) for entry in server.journal() if entry.get("token") in tokens]
    assert noted == [("rejected", 403)] * len(paths)
    # Without the abort, each one is open to users with access.
    cookies = post(server, "/account/login/ann")
    urls.remove("/ends/stubborn")  # its handler never ends
    for path in map(server.path, urls):
        assert server.handshake(path, {"Cookie": cookies}).status == (409 if "/refuse" in path else 101)


@pytest.mark.parametrize("path", ["/account/news", "/account/members/news"])
def test_a_user_who_is_not_logged_in_gets_401_before_the_handshake(server: Server, path: str) -> None:
    cookies = post(server, "/account/login/ann")
    logged_out = post(server, "/account/logout", cookies)
    for refused in ("", logged_out, cookies.replace("=", "=x")):
        path = server.path(path.partition("?")[0])
        response = server.handshake(path, {"Cookie": refused})
        assert response.status == 401
        assert "Sec-WebSocket-Accept" not in response.headers
        assert server.wait_for("rejected", path)["status"] == 401
        assert server.wait_for_access_log(path) == 401
        assert {e["event"] for e in server.journal() if e.get("token") == token_of(path)} == {"rejected"}
    assert server.handshake(path, {"Cookie": cookies}).status == 101


@direct
def test_each_connection_of_many_users_has_its_own_current_user(server: Server) -> None:
    names = [f"user{number}" for number in range(20)]
    headers = [{"Cookie": post(server, f"/account/login/{name}")} for name in names]
    paths = [server.path(["/account/news", "/account/members/news"][number % 2]) for number in range(len(names))]

    async def main() -> None:
        async with server.open_many(paths, lambda number: {"additional_headers": headers[number]}) as clients:
            for name, client in zip(names, clients, strict=True):
                assert await client.recv() == f"hello {name}"
            for message in ("one", "two"):
                await asyncio.gather(*(client.send(message) for client in clients))
                answers = await asyncio.gather(*(client.recv() for client in clients))
                assert answers == [f"{name}: {message}" for name in names]

    asyncio.run(main())
    for name, path in zip(names, paths, strict=True):
        assert server.wait_for("left", path)["user"] == name


# A database


def pools(server: Server) -> dict[int, tuple[int, int]]:
    """Return the size of each worker's pool of database connections, and the number of connections in use."""
    found: dict[int, tuple[int, int]] = {}

    def ask() -> bool:
        answer = server.json("/store/pool")
        found[answer["pid"]] = answer["size"], answer["taken"]
        return found.keys() >= server.workers

    wait_until(ask, lambda: f"a worker does not answer:\n{server.log[-5000:]}")
    return found


@direct
def test_twenty_idle_sockets_share_one_database_connection(server: Server) -> None:
    names = [f"v{number}" for number in range(20)]

    def all_free() -> bool:
        return set(pools(server).values()) == {(1, 0)}

    def counts() -> list[int]:
        return [server.json(f"/store/{name}")["count"] for name in names]

    def wait_until_idle(visits: int) -> None:
        # The handlers store their rows after they have answered.
        wait_until(lambda: counts() == [visits] * len(names), lambda: f"visits are missing: {counts()}")
        wait_until(all_free, lambda: f"idle sockets hold a connection: {pools(server)}")

    async def visit(client: Any, message: str) -> None:
        await client.send(message)
        assert await client.recv() == f"{message} seen"

    async def main() -> None:
        async with server.open_many([f"/store/{name}/messages" for name in names]) as clients:
            for client in clients:
                await visit(client, "alone")
            await asyncio.to_thread(wait_until_idle, 1)
            for _ in range(3):
                await asyncio.gather(*(visit(client, "with all others") for client in clients))
            await asyncio.to_thread(wait_until_idle, 4)

    asyncio.run(main())
    # Outside of messages() a WebSocket holds the database connection to its end.
    with server.connect("/store/keeper/connection") as client:
        client.send("visit")
        assert client.recv(DEADLINE) == "visit seen"
        pid = server.wait_for("start", client)["pid"]
        wait_until(lambda: pools(server)[pid] == (1, 1), lambda: f"the connection is not held: {pools(server)}")
    wait_until(all_free, lambda: f"the connection is not returned: {pools(server)}")


# Signals


@direct
def test_a_failing_receiver_is_logged_and_harms_neither_the_connection_nor_other_receivers(server: Server) -> None:
    with server.connect("/ends/echo?fail=yes") as client:
        for message in ("one", "two"):
            client.send(message)
            assert client.recv(DEADLINE) == message
    closed = server.wait_for("closed", client)
    assert (closed["code"], closed["initiator"]) == (1000, "client")
    assert (closed["messages_received"], closed["messages_sent"]) == (2, 2)
    server.wait_for("connected", client)
    for name in ("websocket-connected", "websocket-message", "websocket-sent", "websocket-closed"):
        assert f"failed on the signal {name}" in server.log


HABITS = ["/ends/receive", "/ends/push", "/ends/watch"]


class Ends:
    """Ways to end connections, and the ``websocket_closed`` that each of them causes."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.rng = random.Random(1000)
        #: The expected initiator and code of each connection, by its token.
        self.expected: dict[str, tuple[str, int]] = {}
        self.counts: dict[str, int] = {}
        self.refused: list[str] = []

    def path(self, path: str, initiator: str, code: int) -> str:
        path = self.server.path(path)
        self.expected[token_of(path)] = initiator, code
        return path

    def habit(self, initiator: str, code: int) -> str:
        return self.path(self.rng.choice(HABITS), initiator, code)

    def closed_by_client(self) -> None:
        path = self.path("/ends/echo", "client", 4001)
        self.counts[token_of(path)] = count = self.rng.randrange(5)
        with self.server.raw(path) as client:
            for _ in range(count):
                client.send_frame(TEXT, b"x")
                assert client.receive() == (TEXT, b"x")
            client.send_frame(CLOSE, (4001).to_bytes(2, "big"))
            assert client.receive_close()[0] == 4001

    def closed_by_client_whatever_the_handler_does(self) -> None:
        with self.server.raw(self.habit("client", 1000)) as client:
            client.send_frame(CLOSE, b"\x03\xe8")
            while client.receive()[0] != CLOSE:
                pass

    def closed_without_a_code(self) -> None:
        with self.server.raw(self.path("/ends/receive", "client", 1005)) as client:
            client.send_frame(CLOSE)
            client.receive()

    def reset(self) -> None:
        with self.server.raw(self.habit("client", 1006)) as client:
            client.reset()

    def hung_up(self) -> None:
        with self.server.raw(self.habit("client", 1006)):
            pass

    def returned(self) -> None:
        self._ended_by_handler("/ends/return", "server", 1000)

    def crashed(self) -> None:
        self._ended_by_handler("/ends/crash", "error", 1011)

    def aborted(self) -> None:
        self._ended_by_handler("/ends/abort", "server", 4404)

    def _ended_by_handler(self, path: str, initiator: str, code: int) -> None:
        path = self.path(path, initiator, code)
        self.counts[token_of(path)] = 0
        with self.server.raw(path) as client:
            assert client.receive() == (TEXT, b"that is all")
            assert client.receive_close()[0] == code
            client.send_frame(CLOSE, code.to_bytes(2, "big"))

    def closed_by_handler(self) -> None:
        with self.server.raw(self.path("/ends/close", "server", 4002)) as client:
            assert client.receive_close() == (4002, "ciao")
            client.send_frame(CLOSE, (4002).to_bytes(2, "big"))

    def closed_by_handler_and_reset(self) -> None:
        with self.server.raw(self.path("/ends/close", "server", 4002)) as client:
            assert client.receive_close() == (4002, "ciao")
            client.reset()

    def broken(self) -> None:
        code, data = self.rng.choice(
            [(1002, frame(TEXT, b"bare")), (1007, frame(TEXT, b"\xff", key=KEY)), (1002, b"GET / HTTP/1.1\r\n\r\n")]
        )
        with self.server.raw(self.path("/ends/echo", "error", code)) as client:
            client.send(data)
            assert client.receive_close()[0] == code

    def not_connected(self) -> None:
        self.refused.append(self.server.path("/ends/refuse"))
        assert self.server.handshake(self.refused[-1]).status == 409

    @property
    def quick(self) -> list[Callable[[], None]]:
        return [
            self.closed_by_client,
            self.closed_by_client_whatever_the_handler_does,
            self.closed_without_a_code,
            self.reset,
            self.hung_up,
            self.returned,
            self.crashed,
            self.aborted,
            self.closed_by_handler,
            self.closed_by_handler_and_reset,
            self.broken,
        ]

    def killed(self, count: int) -> None:
        paths = [self.habit("client", 1006) for _ in range(count)]
        command = [sys.executable, "-SE", str(SUPPORT / "live_client.py"), self.server.host, str(self.server.port)]
        with processes([*command, *paths]) as (process,):
            process.send_signal(signal.SIGKILL)

    def neglected(self, count: int) -> None:
        """Do not answer pings, the server's Close frame, or messages."""
        ways = [
            *((habit.replace("/ends", "/ends/pinged"), "timeout", 1006) for habit in HABITS),
            ("/ends/unanswered", "server", 4002),
            ("/ends/flood", "timeout", 1006),
        ]
        with ExitStack() as stack:
            for number in range(count):
                path, initiator, code = ways[number % len(ways)]
                path = self.path(path, initiator, code)
                stack.enter_context(self.server.raw(path))
                stack.callback(self.server.wait_for, "end", path)  # called before the socket is closed


def test_each_of_a_thousand_connections_that_ended_in_every_way_has_one_closed_signal(server: Server) -> None:
    ends = Ends(server)
    killed, neglected = (ENDS[server.front] // 20, 15)
    quick = ENDS[server.front] - killed - neglected
    todo = [ends.quick[number % len(ends.quick)] for number in range(quick)] + [ends.not_connected] * (quick // 20)
    ends.rng.shuffle(todo)

    def work(number: int) -> None:
        if number == 0:
            ends.killed(killed)
        elif number == 1:
            ends.neglected(neglected)
        else:
            for end in todo[number - 2 :: 8]:
                end()

    in_threads(10, work)
    tokens = ends.expected.keys() | set(map(token_of, ends.refused))
    assert len(ends.expected) == ENDS[server.front]

    def events(name: str) -> list[dict[str, Any]]:
        return [e for e in server.journal() if e["event"] == name and e.get("token") in tokens]

    wait_until(
        lambda: len(events("torn down")) >= len(tokens),
        lambda: f"{len(events('torn down'))} of {len(tokens)} have ended:\n{server.log[-5000:]}",
    )
    connected = {entry["id"]: entry["token"] for entry in events("connected")}
    closed = {entry["id"]: entry for entry in events("closed")}
    assert sorted(connected.values()) == sorted(ends.expected)
    assert len(events("connected")) == len(events("closed")) == len(connected)  # each one once
    assert {id: entry["token"] for id, entry in closed.items()} == connected
    told = {entry["token"]: (entry["initiator"], entry["code"]) for entry in closed.values()}
    assert {t: (told[t], expected) for t, expected in ends.expected.items() if told[t] != expected} == {}
    for entry in closed.values():
        assert 0 <= entry["duration"] < DEADLINE
        if entry["token"] in ends.counts:
            received = ends.counts[entry["token"]]
            sent = received if entry["initiator"] == "client" else 1
            assert (entry["messages_received"], entry["messages_sent"]) == (received, sent)
    # The journal has an error for each handler that raised, and a rejection for each refused connection.
    crashed = sorted(token for token, (initiator, code) in told.items() if code == 1011)
    assert sorted(entry["token"] for entry in events("error")) == crashed
    assert {entry["exception"] for entry in events("error")} == {"Deliberate"}
    assert sorted(entry["token"] for entry in events("rejected")) == sorted(map(token_of, ends.refused))
    assert {entry["status"] for entry in events("rejected")} == {409}
    # Every teardown ran once, and got the exception of its handler.
    failed = {entry["token"]: entry["error"] for entry in events("torn down") if entry["error"] is not None}
    assert sorted(entry["token"] for entry in events("torn down")) == sorted(tokens)
    assert failed == dict.fromkeys(crashed, "Deliberate")
