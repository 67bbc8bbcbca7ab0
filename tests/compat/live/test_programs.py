"""Programs for flask-sock and Flask-Sockets do the same with the drop-ins, on each server, with one line changed.

The original is the oracle: a client records what it sees of a program with its own package, and with the drop-in. Where
the records differ, a test names the difference, which is also in ``docs/migrating.md``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.programs import DEADLINE, Program, rest, running, vanish, wait_until

PROGRAMS = Path(__file__).parents[1] / "programs"

#: The servers of the drop-in for flask-sock. Its original runs on the second one.
SERVERS = ["flask-run", "gunicorn-threads", "gunicorn-gevent", "uwsgi-threads", "uwsgi-gevent"]

#: The servers of the drop-in for Flask-Sockets, whose programs use gevent. Its original runs on its own worker.
GEVENT_SERVERS = ["gunicorn-gevent", "uwsgi-gevent"]

Scenario = Callable[[Program], Any]


# What clients do with each program


def use_echo(program: Program) -> Any:
    seen: list[Any] = []
    with program.connect("/echo", subprotocols=["v3", "v1", "v2"]) as ws:
        seen.append(ws.subprotocol)
        for message in ("text", "", b"bytes", b"", "ü" * 500):
            ws.send(message)
            seen.append(ws.recv(DEADLINE))
        ws.close(4000, "mine")
        seen.append((ws.close_code, ws.close_reason))
    seen.append(program.talk("/sends/7"))
    for count, leave in enumerate([lambda ws: ws.close(4001, "why"), lambda ws: ws.close(), vanish], 1):
        with program.connect("/state?name=Ann", subprotocols=["v0"]) as ws:
            seen.append(ws.recv(DEADLINE))
            ws.send("hello")
            seen.append(ws.recv(DEADLINE))
            leave(ws)
            program.records(5 * count)
    for reason, message in (("4000", "bye"), ("0", ""), ("1005", "x"), ("1000", "y" * 200)):
        seen.append(program.talk("/close", reason, message))
    seen.append(program.talk("/returns"))
    seen.append(program.talk("/echo", "x" * 1001)[-1][0])
    return seen, program.records(19)


def use_blueprints(program: Program) -> Any:
    return [
        program.talk("/ws/Ann", "hello", "close"),
        [str(message).replace(str(program.port), "PORT") for message in program.talk("/late")],
        program.talk("/direct"),
    ]


def media(chunk: bytes) -> str:
    return json.dumps({"event": "media", "media": {"payload": base64.b64encode(chunk).decode()}})


def use_media_stream(program: Program) -> Any:
    seen = [program.talk("/media", media(b"abc"), media(b"\x00\xff"), json.dumps({"event": "stop"}))]
    with program.connect("/media") as ws:
        ws.send(media(b"x"))
        seen.append([ws.recv(DEADLINE)])
        ws.close(1001)
    return seen, program.records(1)


def use_terminal(program: Program) -> Any:
    def read_until(text: str) -> str:
        seen = ""
        while text not in seen:
            seen += str(ws.recv(DEADLINE))
        return seen

    with program.connect("/terminal") as ws:
        read_until("ready")
        ws.send("hello\n")
        seen: list[Any] = [read_until(">\r\n").lstrip()]
        vanish(ws)
    program.records(1)
    with program.connect("/terminal") as ws:
        read_until("ready")
        ws.send("\4")  # Ctrl-D
        seen.append(rest(ws)[-1])
    return seen, program.records(1)


def use_pushes(program: Program) -> Any:
    seen: list[Any] = []
    with program.connect("/subscribe/Ann") as ann:
        seen.append(ann.recv(DEADLINE))
        with program.connect("/subscribe/Bob") as bob:
            seen.append(bob.recv(DEADLINE))
            seen.append(program.request("POST", "/push", '{"number": 1}'))
            seen += [ann.recv(DEADLINE), bob.recv(DEADLINE)]
            vanish(bob)
            program.records(1)
        seen.append(program.request("POST", "/push", '{"number": 2}'))
        seen.append(ann.recv(DEADLINE))
    return seen, program.records(2)


def use_chat(program: Program) -> Any:
    seen: list[Any] = []
    with program.connect("/chat") as ann:
        seen.append(ann.recv(DEADLINE))
        with program.connect("/chat") as bob:
            seen.append(bob.recv(DEADLINE))
            bob.send("hello")
            seen += [ann.recv(DEADLINE), bob.recv(DEADLINE)]
            vanish(bob)
            program.records(1)
        ann.send("still there?")
        seen.append(ann.recv(DEADLINE))
    program.records(2)
    with program.connect("/careless") as ann:
        ann.recv(DEADLINE)
    with program.connect("/careless") as bob:
        bob.recv(DEADLINE)
        bob.send("hello")
        seen.append(rest(bob))
    return seen, program.records(2)


def use_login(program: Program) -> Any:
    seen: list[Any] = [program.talk("/private"), program.talk("/private", "a guess")]
    with program.connect("/private") as ws:
        ws.send("secret")
        seen.append(ws.recv(DEADLINE))
        ws.close(1000, "done")
    return seen, [record for record in program.records(5) if record != "torn down"]


SOCK_SCENARIOS: dict[str, Scenario] = {
    "echo": use_echo,
    "blueprints": use_blueprints,
    "media_stream": use_media_stream,
    "terminal": use_terminal,
    "pushes": use_pushes,
    "chat": use_chat,
    "login": use_login,
}


def use_sockets_echo(program: Program) -> Any:
    seen: list[Any] = []
    with program.connect("/echo") as ws:
        for message in ("text", "", b"bytes", b"", "ü" * 500):
            ws.send(message)
            seen.append(ws.recv(DEADLINE))
    with program.connect("/state/3?name=Ann", subprotocols=["v1"], origin="https://www.example.com") as ws:
        seen.append(ws.recv(DEADLINE))
        ws.send(b"bytes")
        seen += [ws.recv(DEADLINE) for _ in range(9)]
        ws.close()
    program.records(4)
    seen.append(program.talk("/close", "hello")[:-1])
    return seen, program.records(6)


def use_sockets_chat(program: Program) -> Any:
    seen: list[Any] = []
    with program.connect("/everybody") as ann:
        seen.append(ann.recv(DEADLINE))
        with program.connect("/everybody") as bob:
            seen.append(bob.recv(DEADLINE))
            ann.send("hello")
            seen += [ann.recv(DEADLINE), bob.recv(DEADLINE)]
            bob.close()
            program.records(1)
        ann.send("still there?")
        seen.append(ann.recv(DEADLINE))
    program.records(2)
    with program.connect("/receive") as ann, program.connect("/receive") as bob, program.connect("/submit") as ws:
        seen += [ann.recv(DEADLINE), bob.recv(DEADLINE)]
        for message in "12":
            ws.send(message)
            seen += [ann.recv(DEADLINE), bob.recv(DEADLINE)]
        vanish(bob)
        for message in "34":
            ws.send(message)
            seen.append(ann.recv(DEADLINE))
    seen.append(program.talk("/private", "a guess")[:-1])
    with program.connect("/private") as ws:
        ws.send("secret")
        seen.append(ws.recv(DEADLINE))
        ws.send(b"hello")
        seen.append(ws.recv(DEADLINE))
    return seen, program.records(3)


SOCKETS_SCENARIOS: dict[str, Scenario] = {"sockets_echo": use_sockets_echo, "sockets_chat": use_sockets_chat}


# The same record


#: How often a program runs with its own package: what its client sees there is not the same each time.
ATTEMPTS = 5


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], None]:
    """Return a function that checks that a record of a program is one that it also has with its own package."""
    records: dict[str, list[Any]] = {}

    def record(name: str) -> Any:
        server = "gunicorn-threads" if name in SOCK_SCENARIOS else "flask-sockets-worker"
        with run(tmp_path_factory.mktemp(name), name, server, original=True) as program:
            return {**SOCK_SCENARIOS, **SOCKETS_SCENARIOS}[name](program)

    def check(name: str, ours: Any) -> None:
        known = records.setdefault(name, [])
        while ours not in known and len(known) < ATTEMPTS:
            try:
                known.append(record(name))
            except Exception as error:  # such as an end that does not come
                known.append(error)
        assert ours in known, f"{ours} is none of {known}"

    return check


def run(directory: Path, name: str, server: str, **options: Any) -> Any:
    return running(directory, PROGRAMS / f"{name}.py", server, **options)


@pytest.mark.parametrize("name", SOCK_SCENARIOS)
@pytest.mark.parametrize("server", SERVERS)
def test_a_program_for_flask_sock_does_the_same(
    tmp_path: Path, check: Callable[[str, Any], None], name: str, server: str
) -> None:
    with run(tmp_path, name, server) as program:
        check(name, SOCK_SCENARIOS[name](program))


@pytest.mark.parametrize("name", SOCKETS_SCENARIOS)
@pytest.mark.parametrize("server", GEVENT_SERVERS)
def test_a_program_for_flask_sockets_does_the_same(
    tmp_path: Path, check: Callable[[str, Any], None], name: str, server: str
) -> None:
    with run(tmp_path, name, server) as program:
        check(name, SOCKETS_SCENARIOS[name](program))


@pytest.mark.parametrize("server", ["gevent", "flask-run", "uwsgi-threads"])
def test_a_program_for_flask_sockets_runs_on_other_servers_too(
    tmp_path: Path, check: Callable[[str, Any], None], server: str
) -> None:
    with run(tmp_path, "sockets_echo", server) as program:
        check("sockets_echo", use_sockets_echo(program))


@pytest.mark.parametrize("server", ["gunicorn-gevent", "uwsgi-gevent"])
def test_the_blueprints_of_flask_sockets_work(tmp_path: Path, server: str) -> None:
    """Flask-Sockets' own cannot be registered with Flask 2 or newer, so there is no oracle."""
    with run(tmp_path, "sockets_blueprints", server) as program:
        assert program.request("GET", "/") == (200, "Hello World!")
        for path in ("/echo", "/echo/Ann"):
            with program.connect(path) as ws:
                for message in ("text", b"bytes"):
                    ws.send(message)
                    assert ws.recv(DEADLINE) == message


def test_a_server_of_gevent_websocket_says_what_to_change(tmp_path: Path) -> None:
    with run(tmp_path, "sockets_echo", "flask-sockets-worker") as program:
        assert program.talk("/echo") == [(1005, "")]
        wait_until(lambda: "leave out handler_class=WebSocketHandler" in program.log, lambda: program.log)


# The differences


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with run(tmp_path_factory.mktemp("login"), "login", "gunicorn-threads") as program:
        yield program


# The original sends a response within the frames, or nothing at all.
@pytest.mark.parametrize(
    ("what", "end"),
    [("denied", (1011, "internal error")), ("abort", (4404, "Not Found")), ("other", (1011, "internal error"))],
)
def test_an_exception_of_a_view_has_a_close_code_and_not_a_response_within_the_frames(
    login: Program, what: str, end: tuple[int, str]
) -> None:
    before = login.log.count("RECORD torn down")
    assert login.talk(f"/raises/{what}", "hello") == [end]
    wait_until(lambda: login.log.count("RECORD torn down") > before, lambda: login.log)
    if what == "denied":  # the error handler of the application
        assert "RECORD denied: you" in login.log


def test_close_frames_have_their_codes(tmp_path: Path) -> None:
    """The original's Close frames have no codes, or invalid ones."""
    with run(tmp_path, "sockets_echo", "gunicorn-gevent") as program:
        assert program.talk("/close", "hello")[-1] == (1000, "")
        with program.connect("/echo") as ws:
            ws.close(4000, "mine")
        assert ws.close_code == 4000


def test_a_page_and_a_socket_may_share_a_url(tmp_path: Path) -> None:
    answers = []
    for original, server in ((True, "flask-sockets-worker"), (False, "gunicorn-gevent")):
        directory = tmp_path / server
        directory.mkdir()
        with run(directory, "sockets_echo", server, original=original) as program:
            answers.append(program.request("GET", "/echo"))
    assert answers == [(500, "Internal Server Error"), (200, "a page of the same URL")]


@pytest.mark.parametrize(
    "server", ["uwsgi-threads", "uwsgi-gevent", "gunicorn-threads", "gunicorn-gevent", "flask-run"]
)
def test_a_client_that_stops_reading_does_not_stop_a_chat(tmp_path: Path, server: str) -> None:
    with run(tmp_path, "chat", server, WEBSOCKET_SEND_TIMEOUT=2) as program, program.connect("/chat") as ann:
        with program.connect("/chat", max_queue=1) as stuck:
            stuck.recv(DEADLINE)
            ann.recv(DEADLINE)
            for _ in range(24):  # more than the sockets and the buffer hold
                ann.send(bytes(2**20))
                assert len(ann.recv(DEADLINE)) == 2**20
        program.records(1)
        ann.send("on we go")
        assert ann.recv(DEADLINE) == "on we go"
