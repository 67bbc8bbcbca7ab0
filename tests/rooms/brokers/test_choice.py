"""The setting chooses the broker: which one, in which process, and what "auto" does with directories."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from flask import Flask

import flask_uwsgi_websocket
from flask_uwsgi_websocket import BrokerUnavailable, WebSocket
from flask_uwsgi_websocket.rooms.brokers import choice
from flask_uwsgi_websocket.rooms.brokers.base import Broker, Outgoing
from flask_uwsgi_websocket.rooms.brokers.choice import make_broker
from flask_uwsgi_websocket.rooms.brokers.local_directory import is_in_use
from flask_uwsgi_websocket.rooms.brokers.memory import MemoryBroker
from support.inprocess import wait_until
from support.live import UWSGI

MESSAGE = [Outgoing("a", b"message", 1)]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where directories are made. Its path is short."""
    with tempfile.TemporaryDirectory(prefix="broker-") as name:
        place = Path(name).resolve()
        monkeypatch.setattr(choice, "_PLACES", (place,))
        # The servers of these tests have numbers of processes that may exist.
        monkeypatch.setattr(choice, "_is_running", lambda server: server == str(os.getpid()))
        yield place


@pytest.fixture
def app(place: Path) -> Flask:
    return Flask("chat", root_path=str(place))


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this process a worker of uWSGI; those that serve no requests have the number 0."""

    def become(*, worker: int = 1, master: int = 4711, processes: int = 2) -> None:
        uwsgi = SimpleNamespace(worker_id=lambda: worker, masterpid=lambda: master, numproc=processes)
        monkeypatch.setattr(choice, "uwsgi", uwsgi)

    return become


@contextmanager
def used(app: Flask, *, is_serving: bool = True) -> Iterator[Broker]:
    """The broker for "auto", open."""
    with closing(make_broker("auto", app, is_serving=is_serving)) as broker:
        broker.publish([], "me")
        yield broker


def directories(place: Path) -> list[str]:
    """Return the ids of the servers that have a directory."""
    return sorted(path.name.rpartition("-")[2] for path in place.glob("flask-uwsgi-websocket-*"))


def make_foreign(directory: Path) -> None:
    """Make a directory that this user may not use for messages: of another user, if that is possible."""
    directory.mkdir(0o700)
    if os.geteuid() == 0:
        os.chown(directory, 1, 1)
    else:
        directory.chmod(0o755)


def test_an_address_chooses_its_broker_which_opens_nothing(app: Flask, place: Path) -> None:
    assert isinstance(make_broker("memory://", app, is_serving=True), MemoryBroker)
    broker = make_broker(f"local://{place}/a%20b", app, is_serving=True)
    assert not list(place.iterdir())
    with closing(broker):
        broker.publish(MESSAGE, "me")
        assert [path.name for path in place.iterdir()] == ["a b"]
    assert make_broker(lambda: broker, app, is_serving=True) is broker


@pytest.mark.parametrize("address", ["redis://localhost:port", "redis://localhost/0?unknown=1"])
def test_a_wrong_address_is_refused_when_the_app_is_initialised(app: Flask, address: str) -> None:
    app.config["WEBSOCKET_BROKER"] = address
    with pytest.raises(ValueError, match="URL of Redis"):
        WebSocket(app)


def test_the_only_process_of_a_server_keeps_messages_to_itself(
    app: Flask, place: Path, become: Callable[..., None]
) -> None:
    assert isinstance(make_broker("auto", app, is_serving=True), MemoryBroker)
    become(processes=1)
    assert isinstance(make_broker("auto", app, is_serving=True), MemoryBroker)
    assert not list(place.iterdir())


def test_an_app_that_is_tested_keeps_messages_to_itself(app: Flask) -> None:
    app.testing = True
    assert isinstance(make_broker("auto", app, is_serving=False), MemoryBroker)


def test_the_workers_of_a_server_share_a_directory_of_their_own(
    app: Flask, place: Path, become: Callable[..., None]
) -> None:
    become()
    with used(app) as one, closing(one.subscribe(["a"])):
        become(worker=2)
        with used(app) as two:
            assert two.publish(MESSAGE, "you") == [1]
            assert directories(place) == ["4711"]
        with used(Flask("another", root_path=str(place))) as other, used(Flask("chat")) as elsewhere:
            assert other.publish(MESSAGE, "another") == elsewhere.publish(MESSAGE, "elsewhere") == [0]
            assert directories(place) == ["4711"] * 3
        become(master=4712)
        with used(app) as second:
            assert second.publish(MESSAGE, "second") == [0]
            assert directories(place) == ["4711", "4712"]  # nobody uses those of the other apps any more


def test_workers_without_a_master_share_the_directory_of_their_process_group(
    app: Flask, place: Path, become: Callable[..., None]
) -> None:
    become(master=0)
    with used(app):
        assert directories(place) == [str(os.getpgrp())]


def test_other_processes_publish_to_the_only_server_that_runs(
    app: Flask, place: Path, become: Callable[..., None]
) -> None:
    become(master=4700)
    with used(app):
        pass  # this server has ended
    become()
    with used(app) as broker, closing(broker.subscribe(["a"])):
        become(worker=0)  # a mule
        with used(app, is_serving=False) as mule:
            assert mule.publish(MESSAGE, "mule") == [1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choice, "uwsgi", None)  # a script
            with used(app, is_serving=False) as script:
                assert script.publish(MESSAGE, "script") == [1]


def test_other_processes_get_a_sentence_when_no_server_runs_or_several_do(
    app: Flask, place: Path, become: Callable[..., None]
) -> None:
    remedy = r'set the same address in both, such as WEBSOCKET_BROKER = "local:///run/chat/rooms"'
    with ExitStack() as servers:
        for master, problem in [
            (4711, "no server with several workers serves the app"),
            (4712, None),
            (4713, "several servers serve the app"),
        ]:
            become(worker=0)
            if problem is None:
                make_broker("auto", app, is_serving=False)
            else:
                with pytest.raises(BrokerUnavailable, match=f"^{problem}, .*{remedy}$"):
                    make_broker("auto", app, is_serving=False)
            become(master=master)
            servers.enter_context(used(app))
    become(worker=0)
    with pytest.raises(BrokerUnavailable, match=r"^no server"):
        make_broker("auto", app, is_serving=False)


def test_a_server_that_starts_removes_the_directories_of_servers_that_have_ended(
    app: Flask, place: Path, become: Callable[..., None]
) -> None:
    for name in ("chat", "another"):
        for master in (1001, 1002):
            become(master=master)
            with used(Flask(name, root_path=str(place))):
                pass
    assert directories(place) == ["1002"]
    become(master=1000)
    with used(app):
        become()
        with used(app):
            assert directories(place) == ["1000", "4711"]  # both run


def test_the_directory_of_a_server_that_runs_is_kept_when_it_has_no_worker_for_a_moment(
    app: Flask, place: Path, become: Callable[..., None]
) -> None:
    become(master=os.getpid())
    with used(app):
        pass  # all of its workers were killed
    become(master=1001)
    with used(Flask("another", root_path=str(place))):
        assert directories(place) == sorted([str(os.getpid()), "1001"])


def test_a_server_runs_as_long_as_its_master_or_its_process_group_exists() -> None:
    group = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert choice._is_running(str(os.getpid()))
        assert choice._is_running(str(group.pid))
    finally:
        group.kill()
        group.wait()
    assert not choice._is_running(str(group.pid))
    assert not any(map(choice._is_running, ("", "x", "9" * 30)))


def test_what_has_the_name_of_a_directory_and_is_not_ours_is_left_alone(
    app: Flask, place: Path, become: Callable[..., None]
) -> None:
    become()
    with used(app):
        (ours,) = place.iterdir()
    ours = ours.with_name(ours.name.removesuffix("4711"))
    make_foreign(Path(f"{ours}1"))
    Path(f"{ours}2").touch()
    Path(f"{ours}3").symlink_to(place)
    with used(app) as broker, closing(broker.subscribe(["a"])):
        assert directories(place) == ["1", "2", "3", "4711"]
        become(worker=0)
        with used(app, is_serving=False) as script:
            assert script.publish(MESSAGE, "script") == [1]
    become(master=1)
    with pytest.raises(BrokerUnavailable, match="belongs to user" if os.geteuid() == 0 else "Other users may use"):
        make_broker("auto", app, is_serving=True).publish(MESSAGE, "me")


def test_directories_are_made_where_the_system_has_a_place_for_them(
    app: Flask, place: Path, become: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_PLACES", (place / "missing", place))
    become()
    with used(app):
        assert directories(place) == ["4711"]


APP = """
import os
from pathlib import Path
from flask import Flask
from flask_uwsgi_websocket import WebSocket, uwsgi
from flask_uwsgi_websocket.rooms.brokers import choice, local  # uWSGI imports it before its fork
from flask_uwsgi_websocket.rooms.exchange import exchange_of

here = Path(__file__).parent
choice._PLACES = (here,)
app = Flask("chat", root_path=str(here))

def subscribe():
    global subscription  # which stays open
    broker = exchange_of(app).broker()
    subscription = broker.subscribe(["a"])
    note = here / f"{os.getpid()}.made"
    note.write_text(type(broker).__name__)
    note.rename(note.with_suffix(".note"))

if uwsgi is not None:
    uwsgi.post_fork_hook = subscribe
WebSocket(app)
if uwsgi is None:
    subscribe()
"""


def uwsgi_command(place: Path, processes: int) -> list[str]:
    return [
        *(str(UWSGI), "--master", "--die-on-term", "--need-app", "--enable-threads"),
        *("--virtualenv", sys.prefix) * (sys.prefix != sys.base_prefix),
        *("--processes", str(processes), "--socket", str(place / "socket"), "--wsgi-file", str(place / "app.py")),
        *("--callable", "app"),
    ]


def gunicorn_command(place: Path, processes: int) -> list[str]:
    options = ("--no-control-socket", "--workers", str(processes), "--bind", f"unix:{place / 'socket'}")
    return [sys.executable, "-m", "gunicorn", *options, "--chdir", str(place), "app:app"]


@pytest.mark.parametrize(
    ("command", "processes", "expected"),
    [(uwsgi_command, 2, "LocalBroker"), (uwsgi_command, 1, "MemoryBroker"), (gunicorn_command, 2, "LocalBroker")],
    ids=["uwsgi", "uwsgi with one worker", "gunicorn"],
)
def test_a_script_reaches_all_workers_of_a_real_server(
    app: Flask, place: Path, command: Callable[[Path, int], list[str]], processes: int, expected: str
) -> None:
    (place / "app.py").write_text(APP)
    environ = {**os.environ, "PYTHONPATH": str(Path(flask_uwsgi_websocket.__file__).parents[1])}
    log = place / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command(place, processes), stdout=output, stderr=output, env=environ, start_new_session=True
        )
    try:
        wait_until(
            lambda: server.poll() is not None or len(list(place.glob("*.note"))) == processes,
            lambda: f"workers are missing:\n{log.read_text()}",
        )
        assert {note.read_text() for note in place.glob("*.note")} == {expected}, log.read_text()
        if expected == "LocalBroker":
            assert directories(place) == [str(server.pid)]
            with used(app, is_serving=False) as script:
                assert script.publish(MESSAGE, "script") == [processes]
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # a worker that is starting ignores other signals
        server.wait()
    assert not any(word in log.read_text() for word in ("Traceback", "Exception ignored")), log.read_text()
    wait_until(lambda: not any(is_in_use(directory) for directory in place.glob("flask-uwsgi-websocket-*")))
    with pytest.raises(BrokerUnavailable, match=r"^no server"):
        make_broker("auto", app, is_serving=False)
