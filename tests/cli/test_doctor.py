"""The doctor reports uWSGI's options that break WebSockets, by the command and when the app is loaded."""

from __future__ import annotations

import functools
import json
import os
import pwd
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_uwsgi_websocket import GeventWebSocket, WebSocket, WebSocketBlueprint, WebSocketView
from flask_uwsgi_websocket.cli.doctor import all_routes_park, diagnose, diagnose_broker, read_ini
from flask_uwsgi_websocket.rooms.brokers.memory import MemoryBroker
from flask_uwsgi_websocket.settings import Settings
from support.needs import require
from support.redis_server import RedisServer, running

#: The id of a user who may do nothing.
NOBODY = pwd.getpwnam("nobody").pw_uid

#: Options with which the doctor finds nothing.
HTTP = {"http-socket": b"127.0.0.1:5000", "add-header": b"Connection: close"}
TREE = {"env": [b"A=1", b"GEVENT_TRACK_GREENLET_TREE=0"]}
GEVENT = {"gevent": b"100", "gevent-early-monkey-patch": True, "master": True, **HTTP, **TREE}
THREADS = {"threads": b"16", "master": True, **HTTP}
ASYNCIO = {"asyncio": b"100", "greenlet": True, "master": True, "socket": b"/run/app.sock"}


#: In development handlers may have less time to end.
RELOADING = {**GEVENT, "python-autoreload": b"1", "worker-reload-mercy": b"3"}


@pytest.mark.parametrize(
    ("options", "engines"),
    [
        (GEVENT, {"gevent"}),
        (GEVENT, ()),
        (THREADS, ()),
        (ASYNCIO, {"asyncio", "greenlet"}),
        (RELOADING, ()),
        ({**THREADS, "http": b":80", "http-websockets": True, "http-keepalive": True, "add-header": []}, ()),
        ({**THREADS, "http11-socket": b":80", "add-header": [b"X: 1", b"connection:Close"]}, ()),
        ({**THREADS, "processes": b"4"}, ()),
    ],
)
def test_good_options_give_no_complaint(options: dict[str, Any], engines: set[str]) -> None:
    assert list(diagnose(options, Settings(), engines)) == []


@pytest.mark.parametrize("broker", ["auto", "memory://", "local:///run/chat", "redis://localhost", MemoryBroker])
def test_any_broker_is_good_for_one_worker(broker: Any) -> None:
    assert list(diagnose(THREADS, Settings(broker=broker), ())) == []


@pytest.mark.parametrize("broker", ["redis://localhost", "rediss://localhost", "unix:///run/redis.sock"])
def test_redis_without_its_package_has_its_sentence(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)  # type: ignore[arg-type]
    settings = Settings(broker=broker)
    said = ['WEBSOCKET_BROKER needs redis-py: pip install "Flask-uWSGI-WebSocket[redis]".']
    assert list(diagnose(THREADS, settings, ())) == said
    assert list(diagnose_broker(THREADS, settings, Flask(__name__))) == []  # has nothing to add


def without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


@pytest.mark.parametrize(
    ("options", "settings", "complaint"),
    [
        ({**GEVENT, "harakiri": b"30"}, {}, "harakiri = 30 kills a worker"),
        ({**GEVENT, "max-requests": [b"10", b"1000"]}, {}, "max-requests = 1000 ends a worker and closes all"),
        ({**GEVENT, "https-socket": b":443,a,b"}, {}, "https-socket keeps TLS to itself"),
        ({**GEVENT, "http-socket": [b"127.0.0.1:80", b":8000"]}, {}, "http-socket = :8000 lets any client occupy"),
        ({**GEVENT, "http-socket": b"0.0.0.0:80"}, {}, "http-socket = 0.0.0.0:80 lets any client occupy"),
        ({**GEVENT, "http11-socket": b":80"}, {}, "http11-socket answers only the first request of each"),
        ({**ASYNCIO, "http11-socket": b":80"}, {}, "http11-socket answers only the first request of each"),
        ({**GEVENT, "add-header": b"X: Connection: close"}, {}, "requests: add add-header = Connection: close."),
        ({**THREADS, "http": b":80", "http-websockets": True, "add-header": []}, {}, "requests: add add-header ="),
        ({**GEVENT, "http": b":80"}, {}, "http-websockets is missing"),
        ({**GEVENT, "https": b":443,a,b"}, {}, "http-websockets is missing"),
        (
            {**GEVENT, "http": b":80", "http-websockets": True, "http-timeout": b"20"},
            {},
            "http-timeout = 20 ends silent connections before their next ping, as WEBSOCKET_PING_INTERVAL is 25 s",
        ),
        ({**GEVENT, "http": b":80", "http-websockets": True}, {"ping_interval": 60}, "http-timeout = 60 ends"),
        ({**GEVENT, "http": b":80", "http-websockets": True}, {"ping_interval": None}, "PING_INTERVAL is None"),
        ({**GEVENT, "worker-reload-mercy": b"5"}, {}, "worker-reload-mercy = 5 leaves handlers less time"),
        ({**GEVENT, "worker-reload-mercy": b"10"}, {"shutdown_timeout": 9}, "worker-reload-mercy = 10 leaves"),
        (without(GEVENT, "master"), {}, "master is missing"),
        (without(GEVENT, "gevent-early-monkey-patch"), {}, "gevent-early-monkey-patch is missing"),
        ({**GEVENT, "gevent": b"1"}, {}, "each worker has one core"),
        ({"async": b"10", "ugreen": True, "master": True}, {}, "async without gevent or asyncio: a WebSocket blocks"),
        ({"processes": b"4", "master": True, "enable-threads": True}, {}, "each worker has one core"),
        ({**GEVENT, "processes": b"4"}, {"broker": "memory://"}, "no messages between the 4 workers"),
        ({**GEVENT, "workers": b"8", "cheaper": b"2"}, {"broker": "memory://"}, "no messages between the 8 workers"),
    ],
)
def test_each_harmful_option_has_its_sentence(
    options: dict[str, Any], settings: dict[str, Any], complaint: str
) -> None:
    (said,) = diagnose(options, Settings(**settings), ())
    assert complaint in said


@pytest.mark.parametrize(
    ("options", "descriptors", "complaint"),
    [
        (
            {**GEVENT, "gevent": b"1000"},
            1024,
            "enough for 464 WebSockets that are not parked, and each worker should take 980: allow 2125",
        ),
        (
            {**THREADS, "threads": b"40"},
            128,
            "enough for 24 WebSockets that are not parked, and each worker should take 36: allow 154",
        ),
        ({**GEVENT, "gevent": b"1000"}, 2125, None),
        ({**THREADS, "threads": b"40"}, 154, None),
        ({**THREADS, "threads": b"40"}, sys.maxsize, None),
    ],
)
def test_descriptors_for_fewer_connections_than_cores_have_their_sentence(
    options: dict[str, Any], descriptors: int, complaint: str | None
) -> None:
    said = list(diagnose(options, Settings(), (), descriptors))
    assert [complaint in each for each in said if complaint] == [True] * (complaint is not None)
    assert complaint or said == []
    assert list(diagnose(options, Settings(max_connections=10), (), descriptors)) == []
    (said,) = diagnose(options, Settings(max_connections=1000), (), min(descriptors, 2000))
    assert "each worker should take 1000: allow" in said


def test_parked_connections_need_half_as_many_descriptors() -> None:
    settings = Settings(max_connections=10_000)
    (said,) = diagnose(THREADS, settings, (), 1024, all_park=True)
    assert "may open 1024 files, which is enough for 912 WebSockets, and each worker should take 10000" in said
    needed = int(said.partition("allow ")[2].split()[0])
    assert needed < 11_000
    assert list(diagnose(THREADS, settings, (), needed, all_park=True)) == []
    assert list(diagnose(THREADS, settings, (), needed - 2, all_park=True)) != []
    assert list(diagnose(THREADS, settings, (), needed)) != []


@pytest.mark.parametrize(
    ("options", "parks"),
    [
        ({"enable-threads": True, **HTTP}, True),
        ({"gevent": b"1", "gevent-early-monkey-patch": True, **HTTP}, True),
        ({"asyncio": b"1", "socket": b"/run/app.sock"}, True),
        ({"threads": b"1", **HTTP}, False),  # uWSGI then has no threads
        (HTTP, False),
        ({"async": b"1", "enable-threads": True, **HTTP}, False),
    ],
)
def test_one_core_is_enough_for_parked_views(options: dict[str, Any], parks: bool) -> None:
    options = {"master": True, **options}
    said = list(diagnose({**options, **TREE}, Settings(), (), all_park=True))
    assert any("each worker has one core" in each for each in said) != parks
    assert any("each worker has one core" in each for each in diagnose(options, Settings(), ()))


class Parked(WebSocketView):
    pass


class Waiting(WebSocketView):
    parked = False


def decorated(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    return call


def test_the_command_knows_which_routes_are_parked(tmp_path: Path) -> None:
    ini = tmp_path / "uwsgi.ini"
    ini.write_text("[uwsgi]\nmaster = true\nenable-threads = true\nmax-fd = 500\n")
    app = Flask(__name__)
    websocket = WebSocket(app, max_connections=400)
    assert not all_routes_park(app)  # there are none yet
    chat = WebSocketBlueprint("chat", __name__)
    chat.add_websocket_rule("/chat/<room>", handler=Parked.as_view("talk"))
    app.register_blueprint(chat)
    websocket.add_url_rule("/news", view_func=decorated(Parked.as_view("news")))
    app.add_url_rule("/", view_func=lambda: "a page", endpoint="page")
    assert all_routes_park(app)
    listed = "/chat/<room>  chat.talk  (parked)\n/news         news  (parked)\n"
    assert run(app, "routes") == (0, listed)
    assert run(app, "doctor", str(ini)) == (0, f"Nothing in {ini} harms WebSockets.\n")

    websocket.add_url_rule("/slow", view_func=Waiting.as_view("slow"))
    assert not all_routes_park(app)
    assert run(app, "routes") == (0, f"{listed}/slow         slow\n")
    status, said = run(app, "doctor", str(ini))
    assert status == 1
    assert [line.partition(" ")[2][:12] for line in said.splitlines()] == ["each worker ", "this process"]


@pytest.mark.parametrize(
    ("options", "variable", "is_told"),
    [
        ({"env": []}, "", True),
        ({"env": [b"A=1"]}, "1", True),
        ({"env": []}, "0", False),
        (TREE, "", False),
    ],
)
def test_the_crash_of_gevent_on_python_3_15_has_its_sentence(
    options: dict[str, Any], variable: str, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEVENT_TRACK_GREENLET_TREE", variable)
    said = "on Python 3.15, uWSGI with gevent crashes at its start: add env = GEVENT_TRACK_GREENLET_TREE=0."
    for version, expected in ((3, 15), [said] * is_told), ((3, 14), []):
        monkeypatch.setattr(sys, "version_info", version)
        assert list(diagnose({**GEVENT, **options}, Settings(), ())) == expected
    assert list(diagnose(THREADS, Settings(), ())) == []


def test_numbers_are_read_as_uwsgi_reads_them() -> None:
    options = {**GEVENT, "gevent": b"100 greenlets", "http": b":80", "http-websockets": True, "http-timeout": b"20s"}
    (said,) = diagnose(options, Settings(), ())
    assert "http-timeout = 20 ends" in said


@pytest.mark.parametrize(
    ("options", "engines", "complaint"),
    [
        (
            THREADS,
            {"gevent"},
            "gevent is missing, which GeventWebSocket needs: add gevent = 100 and gevent-early-monkey-patch = true.",
        ),
        (
            without(ASYNCIO, "greenlet"),
            {"asyncio", "greenlet"},
            "greenlet is missing, which AsyncioWebSocket needs: add greenlet = true.",
        ),
        (
            THREADS,
            {"asyncio", "greenlet"},
            "asyncio and greenlet are missing, which AsyncioWebSocket needs: add asyncio = 100 and greenlet = true.",
        ),
    ],
)
def test_a_mode_that_does_not_fit_the_extension_has_its_sentence(
    options: dict[str, Any], engines: set[str], complaint: str
) -> None:
    assert list(diagnose(options, Settings(), engines)) == [complaint]


def test_several_harmful_options_are_reported_together() -> None:
    said = list(diagnose({"processes": b"4"}, Settings(), {"gevent"}))
    assert [sentence.split(" is missing")[0] for sentence in said[:-1]] == ["gevent", "master", "enable-threads"]
    assert "one core" in said[-1]


def app_with(extension: type[WebSocket], **config: Any) -> Flask:
    app = Flask(__name__)
    app.config.update(config)
    websocket = extension(app)
    chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat")
    chat.add_websocket_rule("/<room>", "talk", lambda ws, room: None)
    app.register_blueprint(chat)
    websocket.add_url_rule("/echo", "echo", lambda ws: None)
    return app


def run(app: Flask, *arguments: str) -> tuple[int, str]:
    """Run ``flask websocket``, and return its exit status and its output."""
    result = app.test_cli_runner().invoke(args=["websocket", *arguments])
    return result.exit_code, result.output


def test_the_command_reads_an_ini_file(tmp_path: Path) -> None:
    ini = tmp_path / "uwsgi.ini"
    ini.write_text(
        "[other]\nharakiri = 1\n[uwsgi]\n; a comment\nmaster = true\ngevent = 100\nharakiri = 30\nlazy = false\n"
        "env = GEVENT_TRACK_GREENLET_TREE=0\n"
    )
    options = read_ini(ini)
    assert options == {"master": [True], "gevent": ["100"], "harakiri": ["30"], "env": ["GEVENT_TRACK_GREENLET_TREE=0"]}
    status, said = run(app_with(GeventWebSocket), "doctor", str(ini))
    assert status == 1
    assert [line[:12] for line in said.splitlines()] == ["- harakiri =", "- gevent-ear"]

    ini.write_text(
        "[uwsgi]\nmaster = true\ngevent = 100\ngevent-early-monkey-patch = true\nenv = GEVENT_TRACK_GREENLET_TREE=0\n"
    )
    assert run(app_with(GeventWebSocket), "doctor", str(ini)) == (0, f"Nothing in {ini} harms WebSockets.\n")
    ini.write_text(f"{ini.read_text()}max-fd = 128\n")
    status, said = run(app_with(GeventWebSocket), "doctor", str(ini))
    assert (status, "may open 128 files" in said) == (1, True)
    status, said = run(app_with(GeventWebSocket, WEBSOCKET_BROKER="local:///no/rooms"), "doctor", str(ini))
    assert (status, "the directory /no does not exist" in said) == (1, True)
    status, said = run(app_with(GeventWebSocket, WEBSOCKET_SHUTDOWN_TIMEOUT=100), "doctor", str(ini))
    assert status == 1
    assert "reload-mercy = 60 leaves handlers" in said


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short, as that of a local broker has to be."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as name:
        yield Path(name).resolve()


def diagnosis(broker: str, **options: str) -> list[str]:
    """Return what the doctor says about a broker."""
    return list(diagnose_broker(options, Settings(broker=broker), Flask(__name__)))


def test_a_broker_that_works_is_passed_over_and_a_directory_is_not_made(directory: Path) -> None:
    assert diagnosis("auto") == diagnosis("memory://") == diagnosis(f"local://{directory}/rooms") == []
    assert list(directory.iterdir()) == []
    (directory / "rooms").mkdir(0o700)
    assert diagnosis(f"local://{directory}/rooms") == []
    assert diagnosis(f"local://{directory}/rooms", uid=str(os.geteuid())) == []


def test_a_directory_that_the_local_broker_cannot_use_has_its_sentence(directory: Path) -> None:
    (directory / "file").touch()
    (directory / "open").mkdir()
    (directory / "open").chmod(0o755)
    (said,) = diagnosis(f"local://{directory}/missing/rooms")
    assert said == f"WEBSOCKET_BROKER: the directory {directory}/missing does not exist. Make it, or choose another."
    (said,) = diagnosis(f"local://{directory}/file")
    assert said.startswith(f"the broker of the rooms cannot be used: {directory}/file is not a directory")
    (said,) = diagnosis(f"local://{directory}/open")
    assert said.startswith(f"the broker of the rooms cannot be used: Other users may use {directory}/open (mode 0755)")


def test_a_directory_that_the_user_may_not_make_has_its_sentence() -> None:
    user = os.geteuid()
    os.seteuid(user or NOBODY)  # root may do anything
    try:
        (said,) = diagnosis("local:///rooms-of-a-test")
    finally:
        os.seteuid(user)
    assert said.startswith(f"WEBSOCKET_BROKER: user {user or NOBODY} may not make /rooms-of-a-test. Make it with mode")


@pytest.mark.parametrize("name", ["nobody", str(NOBODY)])
def test_a_directory_of_another_user_than_uwsgis_has_its_sentence(directory: Path, name: str) -> None:
    (directory / "rooms").mkdir(0o700)
    (said,) = diagnosis(f"local://{directory}/rooms", uid=name)
    assert said == (
        f"WEBSOCKET_BROKER: {directory}/rooms must be a directory of user {NOBODY}, as whom the workers run, with mode "
        f"0700. It belongs to user {os.geteuid()} and has mode 0700."
    )
    assert diagnosis(f"local://{directory}/others", uid=name) == []
    assert list(directory.iterdir()) == [directory / "rooms"]


def test_a_redis_that_cannot_be_used_has_its_sentence(directory: Path, port: int) -> None:
    require("redis")
    (said,) = diagnosis(f"redis://127.0.0.1:{port}/0")
    assert said.startswith(f"the broker of the rooms cannot be used: Redis at 127.0.0.1:{port}, database 0: ")
    assert "refused" in said
    with running(RedisServer(directory, password="secret")) as server:
        assert diagnosis(server.url) == []
        (said,) = diagnosis(server.unix_url)
        assert said.endswith("Put the password into the URL.")
    with running(RedisServer(directory, options=('rename-command HELLO ""',))) as server:  # as before Redis 6
        (said,) = diagnosis(server.url)
        assert "6.2 or newer" in said


def test_a_file_that_is_no_file_of_uwsgi_is_an_error(tmp_path: Path) -> None:
    ini = tmp_path / "uwsgi.ini"
    ini.write_text("[uwsgi]\nmaster\n")
    status, said = run(app_with(WebSocket), "doctor", str(ini))
    assert status == 1
    assert f"{ini}, line 2: an option is written name = value, not 'master'" in said


def test_the_command_lists_the_routes() -> None:
    assert run(app_with(WebSocket), "routes") == (0, "/chat/<room>  chat.talk\n/echo         echo\n")
    app = Flask(__name__)
    WebSocket(app)
    assert run(app, "routes") == (0, "The app has no WebSocket routes.\n")


@pytest.mark.parametrize("is_unix", [False, True], ids=["tcp", "unix"])
def test_the_command_prints_the_counters_of_uwsgis_stats_server(tmp_path: Path, is_unix: bool) -> None:
    metrics = {
        "core.x": {"type": 0, "value": 1},
        "websocket.open": {"value": 12},
        "websocket.bytes_sent": {"value": 1234},
    }
    path = str(tmp_path / "stats")
    server = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
    server.bind(path if is_unix else ("127.0.0.1", 0))
    server.listen()

    def answer() -> None:
        for answered in ({"metrics": metrics}, {}):
            client, _ = server.accept()
            with client:
                client.sendall(json.dumps(answered).encode())

    thread = threading.Thread(target=answer)
    thread.start()
    address = path if is_unix else f"127.0.0.1:{server.getsockname()[1]}"
    assert run(app_with(WebSocket), "stats", address) == (0, "websocket.open        12\nwebsocket.bytes_sent  1,234\n")
    status, said = run(app_with(WebSocket), "stats", address)
    assert (status, "no metrics of WebSockets" in said) == (1, True)
    thread.join()
    server.close()
    status, said = run(app_with(WebSocket), "stats", address)
    assert (status, f"does not answer at {address}" in said) == (1, True)
