"""The commands of ``flask websocket`` for rooms: they publish, list and close what other processes serve."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, request
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from flask_uwsgi_websocket import WebSocket, WebSocketBlueprint
from flask_uwsgi_websocket.rooms import questions
from flask_uwsgi_websocket.rooms.exchange import exchange_of
from support.inprocess import Site, serving, wait_for_background, wait_until
from support.pages import block_not_run
from support.projects import DEADLINE, environment, write
from support.projects import serving as project_serving


def add_handlers(site: Site) -> None:
    """Add handlers whose connections join the room of their path: below ``/chat`` one of a blueprint."""
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    rooms = chat.rooms()
    site.websocket.user_id(lambda: request.args.get("user"))

    async def hold(ws: Any, room: Any) -> None:
        room.join(ws.blocking)
        await ws.send(ws.id)
        async for _ in ws:
            pass

    @site.route("/<name>")
    async def app_room(ws: Any, name: str) -> None:
        await hold(ws, site.websocket.room(request.args.get("name", name)))

    async def chat_room(ws: Any, name: str) -> None:
        await hold(ws, rooms[name])

    chat.websocket("/<name>")(site.mode.handler(chat_room))
    site.app.register_blueprint(chat)
    club = WebSocketBlueprint("club", __name__, url_prefix="/club")
    club_rooms = club.rooms(presence=True)

    async def club_room(ws: Any, name: str) -> None:
        club_rooms[name].join(ws.blocking, info={"from": request.args.get("from")})
        await ws.send(ws.id)
        async for _ in ws:
            pass

    club.websocket("/<name>")(site.mode.handler(club_room))
    site.app.register_blueprint(club)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short, as that of a local broker has to be."""
    with tempfile.TemporaryDirectory(prefix="rooms-") as name:
        yield Path(name).resolve()


@pytest.fixture
def site(directory: Path) -> Iterator[Site]:
    """A site with such handlers, and a broker that commands in other processes could reach."""
    for site in serving("threads", broker=f"local://{directory}/broker"):
        add_handlers(site)
        yield site
    wait_for_background()  # which uses the directory
    exchange_of(site.app).broker().close()


def enter(site: Site, path: str) -> Any:
    """Connect a client, and return it with the id of its connection when it is a member."""
    client = site.connect(path)
    return client, client.recv()


def run(app: Flask, *arguments: str, stdin: bytes | None = None) -> str:
    """Run a command and return what it prints."""
    result = app.test_cli_runner().invoke(args=["websocket", *arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return result.output


def failure(app: Flask, *arguments: str, stdin: bytes | None = None) -> tuple[int, str]:
    """Run a command that fails, and return its exit status and its last line."""
    result = app.test_cli_runner().invoke(args=["websocket", *arguments], input=stdin)
    assert isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output.splitlines()[-1]


def closed_with(client: Any) -> tuple[int, str]:
    """Return the code and the reason with which a client is closed, and nothing else happens."""
    with pytest.raises(ConnectionClosed):
        client.recv(DEADLINE)
    return client.close_code, client.close_reason


@pytest.mark.parametrize(
    ("arguments", "stdin", "received"),
    [
        (["hello"], None, "hello"),
        (["--json", '{"a": "ü"}'], None, '{"a": "ü"}'),
        (["--", "-1"], None, "-1"),
        ([""], None, ""),
        ([], "zwölf\r\nBoxkämpfer\n".encode(), "zwölf\r\nBoxkämpfer\n"),
        (["-"], b"text", "text"),
        ([], b"", ""),
        (["--binary"], b"\xff\x00\r\n", b"\xff\x00\r\n"),
        (["--binary", "--json"], b"[1]", b"[1]"),
    ],
)
def test_a_message_from_the_command_line_or_standard_input_reaches_the_members_unchanged(
    site: Site, arguments: list[str], stdin: bytes | None, received: str | bytes
) -> None:
    client, _ = enter(site, "/news")
    assert run(site.app, "publish", "news", *arguments, stdin=stdin) == ""
    assert client.recv() == received


def test_a_room_is_named_by_its_blueprint_and_a_user_by_an_option(site: Site) -> None:
    lobby, _ = enter(site, "/chat/lobby")
    news, _ = enter(site, "/news?user=7")
    other, _ = enter(site, "/other:lobby?user=8")
    run(site.app, "publish", "chat:lobby", "to the lobby")
    run(site.app, "publish", "news", "to the news")
    run(site.app, "publish", "other:lobby", "to no blueprint")
    run(site.app, "publish", "--user", "7", "to a user")
    run(site.app, "publish", "--user", "8", stdin=b"to another user")
    assert lobby.recv() == "to the lobby"
    assert [news.recv(), news.recv()] == ["to the news", "to a user"]
    assert [other.recv(), other.recv()] == ["to no blueprint", "to another user"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "sentence"),
    [
        (["publish", "news", "--json", "{"], None, 1, "the message is not JSON: Expecting property name"),
        (["publish", "news", "--json", "[NaN]"], None, 1, "the message is not JSON: NaN is no value of JSON"),
        (["publish", "news", "--json"], b"[" * 100_000, 1, "the message is not JSON: "),
        (["publish", "news"], b"\xff", 1, "standard input is not UTF-8: "),
        (["publish", "news", "--binary", "text"], None, 2, "--binary publishes standard input: leave MESSAGE out."),
        (["publish", "x" * 256, "text"], None, 1, "The name of a room has 1 to 255 bytes of UTF-8, not 256"),
        (["publish", "chat:", "text"], None, 1, "The name of a room has 1 to 255 bytes of UTF-8, not 0"),
        (["publish"], None, 2, "Name a room, or a user by --user."),
        (["publish", "news", "text", "--user", "7"], None, 2, "--user takes the place of ROOM: name one of them."),
        (["members"], None, 2, "Name a room, or a user by --user."),
        (["members", "news", "--user", "7"], None, 2, "--user takes the place of ROOM: name one of them."),
        (["close"], None, 2, "Name a room, or a user by --user."),
        (["close", "news", "--code", "1005"], None, 1, "1005"),
        (["close", "news", "--reason", "x" * 124], None, 1, "123"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    site: Site, arguments: list[str], stdin: bytes | None, status: int, sentence: str
) -> None:
    exit_status, line = failure(site.app, *arguments, stdin=stdin)
    assert exit_status == status
    assert line.startswith("Error: ")
    assert sentence in line


def test_rooms_are_listed_with_their_members_the_largest_first(site: Site) -> None:
    assert run(site.app, "rooms") == "No room has members.\n"
    for path in ("/news", "/chat/lobby", "/chat/lobby?user=7", "/chat:lobby"):
        enter(site, path)
    assert run(site.app, "rooms").splitlines() == [
        "ROOM        MEMBERS  WORKERS",
        "chat:lobby  2        1",
        "chat:lobby  1        1",
        "news        1        1",
        "user 7      1        1",
    ]


def test_members_are_listed_with_their_workers(site: Site) -> None:
    assert run(site.app, "members", "news") == "The room has no members.\n"
    assert json.loads(run(site.app, "members", "news", "--json")) == []
    (_, one), (_, two), (_, other) = (enter(site, path) for path in ("/news", "/news?user=7", "/chat/lobby?user=7"))
    pid = os.getpid()
    assert run(site.app, "members", "news").splitlines() == [
        f"{'ID':32}  USER  ADDRESS    WORKER",
        f"{one}  -     127.0.0.1  {pid}",
        f"{two}  7     127.0.0.1  {pid}",
    ]
    assert json.loads(run(site.app, "members", "--user", "7", "--json")) == [
        {"id": id, "user": "7", "address": "127.0.0.1", "pid": pid} for id in (two, other)
    ]


def test_members_of_a_room_with_presence_are_listed_with_what_they_say(site: Site) -> None:
    assert run(site.app, "members", "club:bar") == "The room has no members.\n"
    for path in ("/club/bar?user=ann&from=%1B", "/club/bar?user=ann&from=home"):
        enter(site, path)
    _, nobody = enter(site, "/club/bar")
    ann, other = json.loads(run(site.app, "members", "club:bar", "--json"))
    assert (ann["id"], ann["user_id"], ann["info"]) == ("ann", "ann", {"from": "home"})
    assert (other["id"], other["user_id"], other["info"]) == (nobody, None, {"from": None})
    titles, *lines = run(site.app, "members", "club:bar").splitlines()
    assert titles.split() == ["MEMBER", "SINCE", "INFO"]
    since = datetime.fromtimestamp(ann["since"], timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    assert lines[0].split(maxsplit=4) == ["ann", *since.split(), '{"from": "home"}']


def test_what_a_client_has_chosen_does_not_control_the_terminal(site: Site) -> None:
    enter(site, "/any?name=%1B[2J%0A&user=%1B")
    assert "\\x1b[2J\\n  1        1" in run(site.app, "rooms")
    assert "  \\x1b  127.0.0.1" in run(site.app, "members", "\x1b[2J\n")


def test_what_a_worker_does_not_list_is_counted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MOST_LISTED", 1)
    for path in ("/news", "/news", "/news", "/other"):
        enter(site, path)
    for arguments, rest in [(["rooms"], 1), (["members", "news"], 2)]:
        assert run(site.app, *arguments).splitlines()[-1] == f"{rest} more are not listed."


def test_a_room_or_a_user_in_it_or_a_user_everywhere_is_closed(site: Site) -> None:
    paths = ["/news", "/news?user=7", "/news?user=8", "/other?user=8", "/other?user=9"]
    anyone, seven, eight, eight_elsewhere, nine = (enter(site, path)[0] for path in paths)

    assert run(site.app, "close", "news", "--user", "7", "--code", "4401", "--reason", "logged out") == ""
    assert closed_with(seven) == (4401, "logged out")
    run(site.app, "close", "news")
    assert closed_with(anyone) == closed_with(eight) == (1000, "")
    run(site.app, "close", "--user", "8", "--code", "1001")
    assert closed_with(eight_elsewhere) == (1001, "")
    run(site.app, "publish", "other", "still open")
    assert nine.recv() == "still open"


@pytest.mark.parametrize("command", [["publish", "news", "text"], ["rooms"], ["members", "news"], ["close", "news"]])
def test_a_broker_of_one_process_is_refused(command: list[str]) -> None:
    app = Flask(__name__)
    WebSocket(app, broker="memory://")
    status, line = failure(app, *command)
    assert status == 1
    assert line.startswith('Error: WEBSOCKET_BROKER = "memory://" carries messages within one process, so no command')


@pytest.mark.parametrize("command", [["publish", "news", "text"], ["rooms"], ["members", "news"], ["close", "news"]])
def test_a_broker_that_cannot_be_used_is_explained_in_a_sentence(command: list[str], directory: Path) -> None:
    (directory / "file").touch()
    app = Flask(__name__)
    WebSocket(app, broker=f"local://{directory}/file")
    status, line = failure(app, *command)
    assert (status, f"Error: {directory}/file is not a directory." in line) == (1, True)


APP = """
import os

from flask import Flask, request

from flask_uwsgi_websocket import GeventWebSocket, WebSocketBlueprint

chat = WebSocketBlueprint("chat", __name__)
rooms = chat.rooms()


@chat.websocket("/<name>")
def talk(ws, name):
    rooms[name].join(ws)
    ws.send(str(os.getpid()))
    for message in ws:
        pass


app = Flask(__name__)
app.config.from_prefixed_env()
app.register_blueprint(chat)
app.add_url_rule("/", "index", lambda: "ready")
GeventWebSocket(app).user_id(lambda: request.args.get("user"))
"""


def enter_lobby(stack: ExitStack, port: int, is_wanted: Callable[[int], bool], query: str = "") -> tuple[Any, int]:
    """Connect until a wanted worker has accepted, and return the client and the process id of the worker."""
    while True:
        url = f"ws://127.0.0.1:{port}/lobby{query}"
        client = stack.enter_context(connect(url, proxy=None, open_timeout=DEADLINE))
        pid = int(client.recv(DEADLINE))
        if is_wanted(pid):
            return client, pid
        client.close()


@pytest.mark.live
def test_the_commands_reach_all_workers_as_the_page_shows(project: Path, port: int, directory: Path) -> None:
    write(project, {"app.py": APP, "message.json": '{"tea": "ready"}'})
    (project / "picture.png").write_bytes(b"\x89PNG\r\n")
    variables = {
        "FLASK_WEBSOCKET_BROKER": f"local://{directory}/broker",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def shell(line: str) -> str:
        environ = environment(project, **variables)
        done = subprocess.run(["sh", "-c", line], cwd=project, env=environ, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), server.log.read_text()
        return done.stdout

    arguments = ["-m", "flask", "uwsgi", "run", "--processes", "2", "--port", str(port), "--"]
    arguments += ["--stats", f"{directory}/stats", "--metric", "name=websocket.members,type=gauge"]
    with project_serving(project, port, *arguments, **variables) as server, ExitStack() as stack:
        assert server.get() == "ready"
        ann, pid = enter_lobby(stack, port, lambda _: True, "?user=Ann")
        beside, _ = enter_lobby(stack, port, lambda other: other == pid)
        elsewhere, other_pid = enter_lobby(stack, port, lambda other: other != pid)

        command, expected = block_not_run("docs/cli.md: $ flask websocket rooms").split("\n", 1)
        wait_until(lambda: shell(command[2:]) == expected, lambda: shell(command[2:]))

        command, expected = block_not_run("docs/cli.md: $ flask websocket members").split("\n", 1)
        expected = expected.replace("4711", str(pid)).replace("4712", str(other_pid))
        lines = [re.sub(r"\b[0-9a-f]{32}\b", "…", text).split() for text in (shell(command[2:]), expected)]
        assert sorted(lines[0]) == sorted(lines[1])

        command, expected = f"flask websocket stats {directory}/stats", "websocket.members  4\n"  # Ann is in two rooms
        wait_until(lambda: shell(command) == expected, lambda: shell(command))

        commands = block_not_run("docs/cli.md: flask websocket publish").splitlines()
        for command in commands[:-1]:
            assert shell(command) == ""
        for client in (ann, beside, elsewhere):
            assert [client.recv(DEADLINE) for _ in range(3)] == [
                "Tea is ready.",
                '{"tea": "ready"}',
                b"\x89PNG\r\n",
            ]
        assert ann.recv(DEADLINE) == "Your order has left."
        assert [closed_with(client) for client in (ann, beside, elsewhere)] == [(4000, "The lobby is closed.")] * 3
        ann, _ = enter_lobby(stack, port, lambda _: True, "?user=Ann")
        assert shell(commands[-1]) == ""
        assert closed_with(ann) == (4401, "You have logged out.")
