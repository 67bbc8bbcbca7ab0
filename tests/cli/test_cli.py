"""``flask uwsgi run`` serves each app that the ``flask`` command finds, and ``flask routes`` marks WebSocket routes."""

from __future__ import annotations

import http.client
import json
import os
import pty
import re
import shlex
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import flask.cli
import pytest
import websockets.sync.client
from flask import Flask
from flask.cli import NoAppException, ScriptInfo

from flask_uwsgi_websocket import AsyncioWebSocket, GeventWebSocket, WebSocket
from flask_uwsgi_websocket.cli import commands, runner
from flask_uwsgi_websocket.cli.commands import LOADER, uwsgi_cli
from flask_uwsgi_websocket.cli.runner import read_arguments
from flask_uwsgi_websocket.cli.startup import describe
from flask_uwsgi_websocket.cli.wsgi import load_app
from support.projects import DEADLINE, change, environment, run, serving, write

pytestmark = pytest.mark.once

FACTORY = """
import os
from flask import Flask
from flask_uwsgi_websocket import GeventWebSocket

websocket = GeventWebSocket()

@websocket.route("/echo")
def echo(ws):
    for message in ws:
        ws.send(message)

def create_app(greeting="hello", end=""):
    app = Flask(__name__)
    websocket.init_app(app)
    app.add_url_rule("/", "index", lambda: os.environ.get("GREETING", greeting) + end)
    return app
"""

SCRIPT = f"{FACTORY}\napp = create_app()\n"


class Found(NamedTuple):
    """What the ``flask`` command finds: a project's files, the command's arguments, environment and directory."""

    files: Mapping[str, str]
    arguments: Sequence[str] = ()
    variables: Sequence[tuple[str, str]] = ()
    directory: str = "."
    answer: str = "hello"


FOUND = {
    "factory": Found({"package/__init__.py": FACTORY}, ["--app", "package:create_app"]),
    "factory with arguments": Found(
        {"package/__init__.py": FACTORY}, ["--app", "package:create_app('good', end=' day')"], answer="good day"
    ),
    "file of a package elsewhere": Found(
        {
            "src/package/__init__.py": "",
            "src/package/web.py": f"from . import beside\n{SCRIPT}",
            "src/package/beside.py": "",
        },
        ["--app", "src/package/web.py"],
    ),
    "file in another directory": Found(
        {"src/my-app.py": SCRIPT, "here/x": ""}, ["--app", "../src/my-app.py:app"], (), "here"
    ),
    "wsgi.py that changes what it imports": Found(
        {
            "wsgi.py": "from package import create_app\nsite = create_app()\n"
            "site.view_functions['index'] = lambda: 'changed'",
            "package.py": FACTORY,
        },
        answer="changed",
    ),
    "variable of the environment": Found({"src/web.py": SCRIPT}, (), [("FLASK_APP", "src/web.py")]),
    "file of variables": Found({".flaskenv": "FLASK_APP=web:create_app\nGREETING=hi", "web.py": FACTORY}, answer="hi"),
    "file of variables that is named": Found(
        {"web.env": "FLASK_APP=web:create_app\nGREETING=hey", "web.py": FACTORY},
        ["--env-file", "web.env"],
        answer="hey",
    ),
}


@pytest.mark.live
@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND.keys())
def test_uwsgi_serves_what_the_flask_command_finds(found: Found, project: Path, port: int) -> None:
    write(project, found.files)
    arguments = [*found.arguments, "uwsgi", "run", "--port", str(port)]
    with serving(project / found.directory, port, "-m", "flask", *arguments, **dict(found.variables)) as server:
        assert server.get() == found.answer


@pytest.mark.live
def test_uwsgi_serves_the_app_of_another_flask_group(project: Path, port: int) -> None:
    script = (
        f"{FACTORY}\nfrom flask.cli import FlaskGroup\nif __name__ == '__main__': FlaskGroup(create_app=create_app)()"
    )
    write(project, {"manage.py": script})
    with serving(project, port, "manage.py", "uwsgi", "run", "--port", str(port)) as server:
        assert server.get() == "hello"


@pytest.mark.live
def test_arguments_after_the_dashes_go_to_uwsgi_and_override_others(project: Path, port: int) -> None:
    text = SCRIPT.replace("lambda: ", "lambda: sorted(__import__('uwsgi').opt) or ")
    write(project, {"app.py": text})
    given = ["--http-socket", f"127.0.0.1:{port}", "--gevent", "7", "--lazy-apps"]
    with serving(project, port, "-m", "flask", "uwsgi", "run", "--processes", "2", "--", *given) as server:
        options = set(json.loads(server.get()))
        assert options >= {"http-socket", "gevent", "gevent-early-monkey-patch", "lazy-apps", "processes", "need-app"}
        assert not options & {"http", "threads", "python-autoreload"}
        log = server.log.read_text()
    assert log.startswith("Running: ")
    assert log.splitlines()[0].endswith(f" --processes=2 '--add-header=Connection: close' {' '.join(given)}")
    assert "--gevent=" not in log.splitlines()[0]
    assert f"spawned uWSGI master process (pid: {server.process.pid})" in log


@pytest.mark.live
def test_debug_mode_reloads_even_after_a_mistake_in_an_imported_module(project: Path, port: int) -> None:
    views = project / "views.py"
    views.write_text("GREETING = 'one'")
    text = SCRIPT.replace('os.environ.get("GREETING", greeting) + end', "f'{views.GREETING} {app.debug}'")
    write(project, {"app.py": f"import views\n{text}"})
    with serving(project, port, "-m", "flask", "--debug", "uwsgi", "run", "--port", str(port)) as server:
        assert server.get() == "one True"
        change(views, "(", server, "500")
        change(views, "GREETING = 'two'", server, "two True")


@pytest.mark.parametrize(
    ("views", "error"), [("import no_such_module", NoAppException), ("(", SyntaxError), ("1 / 0", ZeroDivisionError)]
)
def test_modules_that_could_not_be_imported_stay_watched(
    views: str, error: type[Exception], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, {"web.py": "import views", "views.py": views})
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    monkeypatch.setenv("FLASK_APP", str(project / "web.py"))
    with pytest.raises(error):
        load_app()
    watched = {getattr(module, "__file__", None) for module in sys.modules.values()}
    assert watched >= {str(project / "web.py"), str(project / "views.py")}


# In a terminal


@contextmanager
def terminal(project: Path, *arguments: str, **variables: object) -> Iterator[Iterator[str]]:
    """Run Python with these arguments in a terminal, and yield the lines of its output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=project,
        env=environment(project, **variables),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        with open(ours, errors="replace") as output:
            yield (line.rstrip("\n") for line in output)
    finally:
        process.kill()
        process.wait(DEADLINE)


COMMANDS = {
    "flask uwsgi run": ["-m", "flask", "uwsgi", "run", "--port"],
    "app.run()": ["app.py"],
}


@pytest.mark.live
@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminal_shows_one_block_about_what_starts(command: str, project: Path, port: int) -> None:
    die = "app.add_url_rule('/die', 'die', lambda: os.kill(os.getpid(), 9))"
    write(project, {"app.py": f"{SCRIPT}\n{die}\nif __name__ == '__main__': app.run(port=int(os.environ['PORT']))"})
    arguments = COMMANDS[command]
    with terminal(project, *arguments, *[str(port)] * (arguments[-1] == "--port"), PORT=port) as lines:
        before = []
        while (line := next(lines)) != " * Serving 'app' in uWSGI":
            before.append(line)
        assert any("running gevent loop engine" in line for line in before)
        assert not any(line.startswith("   Command") for line in before)
        block = [next(lines) for _ in range(6)]
        assert block[:4] == [
            "   Mode        gevent, 100 greenlets per worker",
            "   Workers     1",
            f"   WebSockets  ws://localhost:{port}/echo",
            "   Debug       off",
        ]
        assert block[4].startswith(f"   Command     {Path(sys.executable).parent}/uwsgi ")
        assert f"--http=localhost:{port}" in block[4]
        assert block[5] == f"   Address     http://localhost:{port}"
        with pytest.raises(http.client.HTTPException):  # a worker that starts again prints nothing
            urllib.request.urlopen(f"http://localhost:{port}/die", timeout=DEADLINE)
        with websockets.sync.client.connect(f"ws://localhost:{port}/echo") as client:
            client.send("hello")
            assert client.recv() == "hello"
        while "GET /echo" not in (line := next(lines)):
            assert "Serving" not in line


@pytest.mark.live
@pytest.mark.parametrize("command", COMMANDS)
def test_a_port_in_use_is_reported_in_a_sentence(command: str, project: Path) -> None:
    write(project, {"app.py": f"{SCRIPT}\nif __name__ == '__main__': app.run(port=int(os.environ['PORT']))"})
    arguments = COMMANDS[command]
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run(project, *arguments, *[str(port)] * (arguments[-1] == "--port"), PORT=port)
    said = f"Port {port} is in use by another program. Stop that program, or choose another port by port= of app.run()"
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"{said} or --port of flask uwsgi run.\n")


@pytest.mark.live
@pytest.mark.parametrize("command", COMMANDS)
def test_an_invalid_port_is_reported_in_a_sentence(command: str, project: Path) -> None:
    write(project, {"app.py": f"{SCRIPT}\nif __name__ == '__main__': app.run(port=65536)"})
    arguments = COMMANDS[command]
    result = run(project, *arguments, *["65536"] * (arguments[-1] == "--port"))
    said = "There is no port 65536: choose one up to 65535.\n"  # uWSGI would listen on another port
    assert (result.returncode, result.stdout, result.stderr) == (1, "", said)


# The command line

threaded, greenlets, tasks = Flask("threaded"), Flask("greenlets"), Flask("tasks")
WebSocket(threaded)
GeventWebSocket(greenlets)
AsyncioWebSocket(tasks)

#: The arguments that all modes have.
USUAL = {"--master", "--enable-threads", "--die-on-term", "--http-websockets", "--add-header=Connection: close"}


class Executed(BaseException):
    """Raised instead of running uWSGI, which would replace this process."""


@pytest.fixture
def uwsgi_run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], set[str]]]:
    """Return a function that runs ``flask uwsgi run`` with an app's name and arguments.

    The function returns uWSGI's arguments, and the variables that enable debugging.
    """

    def execute(file: str, arguments: list[str], environment: Mapping[str, str]) -> None:
        raise Executed(arguments, environment)

    def run(app: str, *arguments: str) -> tuple[list[str], set[str]]:
        info = ScriptInfo(f"{__name__}:{app}")
        with pytest.raises(Executed) as execution, redirect_stdout(StringIO()) as output:
            uwsgi_cli.main(["run", *arguments], obj=info, standalone_mode=False)
        command, environment = execution.value.args
        assert output.getvalue() == f"Running: {shlex.join(command)}\n"
        assert set(command) > {*USUAL, f"--module={LOADER}", f"--env=FLASK_APP={__name__}:{app}"}
        rest = [argument for argument in command[1:] if not re.match("--(pythonpath|module|env=FLASK_APP)", argument)]
        return [argument for argument in rest if argument not in USUAL], {
            name for name in DEBUGGING if environment[name] == "true"
        }

    monkeypatch.setattr(os, "execvpe", execute)
    monkeypatch.setattr(runner, "_is_in_use", lambda host, port: False)  # other servers may run on this machine
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # no virtual environment
    for name in DEBUGGING:
        monkeypatch.setenv(name, "")
    return run


DEBUGGING = {"FLASK_DEBUG", "FLASK_UWSGI_DEBUG"}
HTTP = "--http=localhost:5000"
PATCHED = "--gevent-early-monkey-patch"


@pytest.mark.parametrize(
    ("app", "arguments", "expected"),
    [
        ("threaded", "", [HTTP, "--need-app", "--threads=16"]),
        ("greenlets", "", [HTTP, "--need-app", "--gevent=100", PATCHED]),
        ("tasks", "", [HTTP, "--need-app", "--asyncio=100", "--greenlet"]),
        ("threaded", "--threads 4 --processes 2", [HTTP, "--need-app", "--threads=4", "--processes=2"]),
        ("threaded", "--gevent 9", [HTTP, "--need-app", "--gevent=9", PATCHED]),
        ("threaded", "--asyncio 9", [HTTP, "--need-app", "--asyncio=9", "--greenlet"]),
        ("greenlets", "--threads 4", [HTTP, "--need-app", "--threads=4"]),
        ("threaded", "-h :: -p 80", ["--http=[::]:80", "--need-app", "--threads=16"]),
        ("greenlets", "-- --gevent 9 --env A=1", [HTTP, "--need-app", PATCHED, "--gevent", "9", "--env", "A=1"]),
        ("greenlets", "-- --threads=4 x.ini", [HTTP, "--need-app", "--threads=4", "x.ini"]),
        ("threaded", "-- --socket /x -p 4", ["--need-app", "--threads=16", "--socket", "/x", "-p", "4"]),
    ],
)
def test_the_mode_is_that_of_the_extension_unless_the_arguments_choose_another(
    app: str, arguments: str, expected: list[str], uwsgi_run: Callable[..., tuple[list[str], set[str]]]
) -> None:
    assert uwsgi_run(app, *arguments.split()) == (expected, set())


RELOADING = ["--python-autoreload=1", "--worker-reload-mercy=3"]


@pytest.mark.parametrize(
    ("arguments", "is_debugging", "is_reloading"),
    [
        ("--reload", False, True),
        ("--debug", True, True),
        ("--debug --no-reload", True, False),
        ("--no-debug", False, False),
    ],
)
def test_it_reloads_if_an_option_or_debugging_asks_for_it(
    arguments: str, is_debugging: bool, is_reloading: bool, uwsgi_run: Callable[..., tuple[list[str], set[str]]]
) -> None:
    told = [HTTP, *(RELOADING if is_reloading else ["--need-app"]), "--threads=16"]
    assert uwsgi_run("threaded", *arguments.split()) == (told, DEBUGGING if is_debugging else set())


def test_an_option_overrides_the_environment(
    uwsgi_run: Callable[..., tuple[list[str], set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_DEBUG", "1")
    assert uwsgi_run("threaded", "--no-debug")[1] == set()


@pytest.mark.parametrize("variable", sorted(DEBUGGING))
def test_the_environment_can_ask_for_debugging(
    variable: str, uwsgi_run: Callable[..., tuple[list[str], set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert uwsgi_run("threaded")[1] == DEBUGGING


@pytest.mark.parametrize("version", [(3, 14), (3, 15)])
def test_on_python_3_15_a_variable_keeps_gevent_from_crashing(
    version: tuple[int, int], uwsgi_run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    environs = []
    execute = os.execvpe
    monkeypatch.setattr(os, "execvpe", lambda *args: environs.append(args[2]) or execute(*args))
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.delenv("GEVENT_TRACK_GREENLET_TREE", raising=False)
    for app in ("greenlets", "threaded"):
        uwsgi_run(app)
    trees = [environ.get("GEVENT_TRACK_GREENLET_TREE") for environ in environs]
    assert trees == ["0" if version == (3, 15) else None, None]


def test_two_modes_are_an_error() -> None:
    result = threaded.test_cli_runner().invoke(args=["uwsgi", "run", "--gevent", "9", "--threads", "2"])
    assert result.exit_code == 2
    assert "A worker has one mode: choose one of --gevent, --threads." in result.output


def test_an_app_that_cannot_run_is_reported_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    # No name leads to the app of the runner's own command.
    result = Flask("nowhere").test_cli_runner().invoke(args=["uwsgi", "run"])
    assert result.exit_code == 2  # the app has no extension
    app = Flask("nowhere")
    WebSocket(app)
    result = app.test_cli_runner().invoke(args=["uwsgi", "run"])
    assert (result.exit_code, result.output.partition(",")[0]) == (1, "Error: uWSGI imports the application by a name")
    monkeypatch.setenv("FLASK_UWSGI_BINARY", "/nowhere/uwsgi")
    result = app.test_cli_runner().invoke(args=["uwsgi", "run"])
    assert (result.exit_code, "FLASK_UWSGI_BINARY names '/nowhere/uwsgi'" in result.output) == (1, True)


# Configuration; live/test_fronts.py serves with it


def config(kind: str, app: str = "greenlets", **values: object) -> str:
    """Return what ``flask uwsgi config`` prints, or its error."""
    info = ScriptInfo(f"{__name__}:{app}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setitem(info.load_app().config, name, value)
        result = info.load_app().test_cli_runner().invoke(args=["uwsgi", "config", kind], obj=info)
    assert result.exit_code == result.output.startswith("Error: ")
    return result.output


@pytest.fixture
def forum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working directory of this process."""
    directory = tmp_path / "forum"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return directory


def test_the_configuration_is_for_this_app_in_this_directory(forum: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"src{os.pathsep}/lib")
    lines = config("ini").splitlines()
    assert {f"chdir = {forum}", "gevent = 1000", "socket = /run/forum/uwsgi.sock", f"module = {LOADER}"} <= {*lines}
    environment = [line for line in lines if line.startswith("env =")]
    assert environment[:2] == [f"env = FLASK_APP={__name__}:greenlets", f"env = PYTHONPATH={forum}/src:/lib"]
    assert "asyncio = 1000" in config("ini", "tasks")
    assert "threads = 100" in config("ini", "threaded")
    assert f"--ini {forum}/uwsgi.ini\n" in config("systemd")
    assert "server_name forum.example.com;" in config("nginx")
    assert "server_name example.org;" in config("nginx", SERVER_NAME="example.org:8443")


@pytest.mark.parametrize("app", ["threaded", "greenlets", "tasks"])
def test_the_doctor_finds_no_fault_in_the_printed_configuration(app: str, forum: Path) -> None:
    (forum / "uwsgi.ini").write_text(config("ini", app))
    info = ScriptInfo(f"{__name__}:{app}")
    result = info.load_app().test_cli_runner().invoke(args=["websocket", "doctor", "uwsgi.ini"], obj=info)
    assert (result.exit_code, result.output) == (0, "Nothing in uwsgi.ini harms WebSockets.\n")


@pytest.mark.parametrize(
    ("variable", "text"), [("PYTHONPATH", "a\nexec-asap = touch /x"), ("PYTHONPATH", "$(HOME)"), ("PYTHONPATH", "@(a)")]
)
def test_a_variable_with_a_meaning_in_uwsgis_options_is_refused(
    variable: str, text: str, forum: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert "has a meaning in its options" in config("ini")


@pytest.mark.parametrize("name", ["example.org;", "a b", "a{", "[::1]", "a\nb"])
def test_a_server_name_that_is_no_host_name_is_refused(name: str, forum: Path) -> None:
    assert "which is not a host name" in config("nginx", SERVER_NAME=name)


@pytest.mark.parametrize("command", [["run"], ["config", "ini"]])
@pytest.mark.parametrize("argument", ["$(HOME)", "%(socket)", "@(/etc/passwd)"])
def test_an_app_whose_name_uwsgi_would_change_is_refused(argument: str, command: list[str], project: Path) -> None:
    write(project, {"web.py": f"{FACTORY}"})
    result = run(project, "-m", "flask", "--app", f"web:create_app('{argument}')", "uwsgi", *command)
    assert result.returncode == 1
    assert f"Error: uWSGI would not take \"FLASK_APP=web:create_app('{argument}')\" literally" in result.stderr


def test_configuration_that_cannot_be_printed_is_reported_in_a_sentence(
    forum: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (forum / "a b").mkdir()
    monkeypatch.chdir(forum / "a b")
    assert "has characters with a meaning in configuration files" in config("systemd")
    monkeypatch.setenv("FLASK_UWSGI_BINARY", "/nowhere/uwsgi")
    assert "FLASK_UWSGI_BINARY names '/nowhere/uwsgi'" in config("ini")


# The start-up block


def block(app: Flask | None, *arguments: str, debug: bool = False) -> list[str]:
    """Return the lines of the block without those that are the same for all apps."""
    first, *lines = describe(["uwsgi", *arguments], read_arguments(arguments), app, debug).splitlines()
    assert first.endswith(" in uWSGI")
    lines.remove(f"   Command     {shlex.join(['uwsgi', *arguments])}")
    assert lines[-1].startswith("   Address  ")
    return [line.strip() for line in (lines[-1], *lines[:-1])]


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["--http=:80"], "http://localhost:80 (and all other addresses)"),
        (["--http-socket", "0.0.0.0:80"], "http://localhost:80 (and all other addresses)"),
        (["--http=[::1]:80"], "http://[::1]:80"),
        (["--https=:443,cert.pem,key.pem", "--http=:80"], "https://localhost:443 (and all other addresses)"),
        (["--http=/run/x"], "no HTTP: put a proxy in front of uWSGI"),
        (["--socket=:80"], "no HTTP: put a proxy in front of uWSGI"),
    ],
)
def test_the_address_is_a_link(arguments: list[str], address: str) -> None:
    assert block(None, *arguments)[0].split(maxsplit=1) == ["Address", address]


@pytest.mark.parametrize(
    ("arguments", "mode", "workers"),
    [
        (["--threads=16", "--processes=4"], "threads, 16 threads per worker", "4"),
        (["--asyncio", "9", "--workers", "2"], "asyncio, 9 tasks per worker", "2"),
        (["--gevent=9", "--gevent=10"], "gevent, 10 greenlets per worker", "1"),
        ([], "one request at a time per worker", "1"),
    ],
)
def test_the_block_has_the_mode_and_the_number_of_workers(arguments: list[str], mode: str, workers: str) -> None:
    assert [line.split(maxsplit=1) for line in block(None, *arguments)[1:3]] == [["Mode", mode], ["Workers", workers]]


def test_the_routes_have_addresses_and_a_long_list_is_cut() -> None:
    app = Flask("app", host_matching=False)
    websocket = WebSocket(app)
    for number in range(10):
        websocket.add_url_rule(f"/{number}", f"r{number}", lambda ws: None)
    shown = [f"wss://localhost:1/{number}" for number in range(10)]
    shown[0] = f"WebSockets  {shown[0]}"
    assert block(app, "--https=:1,c,k")[3:-1] == shown
    websocket.add_url_rule("/", "more", lambda ws: None, subdomain="sub")
    websocket.add_url_rule("/<x>", "most", lambda ws: None)
    assert block(app, "--http=:1")[-3:-1] == [
        "ws://localhost:1/9",
        "and 2 more, which 'flask websocket routes' lists",
    ]
    assert block(app, "--socket=/x")[3] == "WebSockets  /"


def test_the_block_says_whether_debugging_and_reloading_are_on() -> None:
    assert block(None)[-1] == "Debug       off"
    assert block(None, "--python-autoreload=1", debug=True)[-1] == "Debug       on, reloads when a module changes"


# flask routes

ROUTES = """\
Endpoint  Methods             Rule
--------  ------------------  -----------------------
index     GET, HEAD, OPTIONS  /
echo      WEBSOCKET           /echo
static    GET, HEAD, OPTIONS  /static/<path:filename>
"""


def test_flask_routes_marks_websocket_routes(project: Path) -> None:
    write(project, {"app.py": SCRIPT})
    listed = run(project, "-m", "flask", "routes", "--sort", "rule", "--all-methods")
    assert [line.rstrip() for line in listed.stdout.splitlines()] == ROUTES.splitlines()


@pytest.mark.parametrize("options", [[], ["--all-methods"], ["--sort", "methods"], ["--help"]])
def test_without_websocket_routes_the_output_is_that_of_flask(options: list[str]) -> None:
    app = Flask("app", subdomain_matching=True)
    app.add_url_rule("/", view_func=test_two_modes_are_an_error, subdomain="sub", methods=["POST"])
    ours, flasks = (
        app.test_cli_runner().invoke(command, options)
        for command in (commands.routes_command, flask.cli.routes_command)
    )
    assert (ours.exit_code, ours.output) == (0, flasks.output)


def test_flask_routes_does_not_change_the_rules() -> None:
    app = Flask("app")
    WebSocket(app).add_url_rule("/echo", "echo", lambda ws: None)
    before = [rule.methods for rule in app.url_map.iter_rules()]
    assert "WEBSOCKET  /echo" in app.test_cli_runner().invoke(commands.routes_command).output
    assert [rule.methods for rule in app.url_map.iter_rules()] == before
