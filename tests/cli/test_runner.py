"""The runner finds uWSGI and the application, and runs uWSGI with the application."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from flask_uwsgi_websocket.cli import runner
from flask_uwsgi_websocket.exceptions import AsyncioNotAvailable, UwsgiNotFound
from support.projects import DEADLINE, change, run, serving, write

FACTORY = """
from flask import Flask
from start import start

def create_app(greeting="hello"):
    app = Flask(__name__)
    app.add_url_rule("/", "index", lambda: greeting)
    return app
"""

SCRIPT = f"""{FACTORY}
app = create_app()
if __name__ == "__main__":
    start(app)
"""


class Layout(NamedTuple):
    """A project: its files, Python's arguments that start it, and the uWSGI options that load its app."""

    files: Mapping[str, str]
    arguments: list[str]
    options: Mapping[str, str]


LAYOUTS = {
    "script": Layout({"app.py": SCRIPT}, ["app.py"], {"pythonpath": "{}", "module": "app:app"}),
    "script elsewhere": Layout(
        {"src/web.py": f"import beside\n{SCRIPT}", "src/beside.py": ""},
        ["src/web.py"],
        {"pythonpath": "{}/src", "module": "web:app"},
    ),
    "directory that is a pattern": Layout(
        {"[ab]/app.py": SCRIPT}, ["[ab]/app.py"], {"pythonpath": "{}/[[]ab]", "module": "app:app"}
    ),
    "module of a package": Layout(
        {
            "package/__init__.py": "",
            "package/beside.py": "",
            "package/web.py": f"from . import beside\n{SCRIPT}",
        },
        ["-m", "package.web"],
        {"pythonpath": "{}", "module": "package.web:app"},
    ),
    "package": Layout(
        {"package/__init__.py": "", "package/__main__.py": SCRIPT},
        ["-m", "package"],
        {"pythonpath": "{}", "module": "package.__main__:app"},
    ),
    "directory": Layout(
        {"project/__main__.py": SCRIPT},
        ["project"],
        {"pythonpath": "{}/project", "wsgi-file": "{}/project/__main__.py", "callable": "app"},
    ),
    "another variable": Layout(
        {"app.py": FACTORY + "site = create_app()\nif __name__ == '__main__': start(site)"},
        ["app.py"],
        {"pythonpath": "{}", "module": "app:site"},
    ),
    "imported variable": Layout(
        {"run.py": "from app import app as site\nfrom start import start\nstart(site)", "app.py": SCRIPT},
        ["run.py"],
        {"pythonpath": "{}", "module": "run:site"},
    ),
    "star import": Layout(
        {"run.py": "from app import *\nfrom start import start\nstart(app)", "app.py": SCRIPT},
        ["run.py"],
        {"pythonpath": "{}", "module": "run:app"},
    ),
    "variable of another module": Layout(
        {
            "run.py": "def main():\n from package import app\n from start import start\n start(app)\n"
            "if __name__ == '__main__': main()",
            "package/__init__.py": SCRIPT,
        },
        ["run.py"],
        {"pythonpath": "{}", "module": "package:app"},
    ),
    "factory": Layout(
        {"app.py": FACTORY + "if __name__ == '__main__': start(create_app())"},
        ["app.py"],
        {"pythonpath": "{}", "module": "app:create_app()"},
    ),
    "guarded variable": Layout(
        {"app.py": FACTORY + "if __name__ == '__main__':\n app = create_app()\n start(app)"},
        ["app.py"],
        {"pythonpath": "{}", "module": "app:create_app()"},
    ),
    "variable bound both ways": Layout(
        {
            "app.py": FACTORY
            + "if '__main__' == __name__:\n site = app = create_app()\n start(app)\nelse: app = create_app()"
        },
        ["app.py"],
        {"pythonpath": "{}", "module": "app:app"},
    ),
    "file name that is no module's": Layout(
        {"my-app.py": SCRIPT},
        ["my-app.py"],
        {"pythonpath": "{}", "wsgi-file": "{}/my-app.py", "callable": "app"},
    ),
    "file name without suffix": Layout(
        {"serve": SCRIPT}, ["serve"], {"pythonpath": "{}", "wsgi-file": "{}/serve", "callable": "app"}
    ),
    "script called uwsgi": Layout(
        {"uwsgi.py": SCRIPT},
        ["uwsgi.py"],
        {"pythonpath": "{}", "wsgi-file": "{}/uwsgi.py", "callable": "app"},
    ),
}


def executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return str(path)


def uwsgi_with(path: Path, *options: str) -> str:
    """Make an executable whose help lists these options."""
    lines = "".join(f"    --{option:<40}what it does\n" for option in options)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
    path.chmod(0o755)
    return str(path)


def arguments(options: Mapping[str, object], *, app: str = "no_such_module:app", reload: bool = False) -> list[str]:
    return runner.uwsgi_arguments(app, binary="/bin/uwsgi", reload=reload, options=options)


# The binary


def test_the_binary_is_searched_in_the_argument_the_variable_beside_python_and_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, variable, beside, on_path = (
        executable(tmp_path / directory / "uwsgi") for directory in ("argument", "variable", "beside", "path")
    )
    monkeypatch.setenv("FLASK_UWSGI_BINARY", variable)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "beside/python"))

    assert runner.find_uwsgi(argument) == argument
    assert runner.find_uwsgi() == variable
    monkeypatch.delenv("FLASK_UWSGI_BINARY")
    assert runner.find_uwsgi() == beside
    os.remove(beside)
    assert runner.find_uwsgi() == on_path


def test_a_binary_can_be_given_as_the_name_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = executable(tmp_path / "uwsgi-core")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runner.find_uwsgi("uwsgi-core") == command


@pytest.mark.parametrize(("line", "is_set"), [("from pyuwsgi import run", True), ("exec /opt/uwsgi/uwsgi", False)])
def test_pyuwsgi_gets_the_python_that_reloads_it(tmp_path: Path, line: str, is_set: bool) -> None:
    path = tmp_path / "uwsgi"
    path.write_text(f"#!/bin/sh\n{line}\n")
    arguments = runner.uwsgi_arguments("no_such_module:app", binary=str(path))
    assert (f"--binary-path={sys.executable}" in arguments) is is_set


def test_a_missing_uwsgi_is_an_error_that_names_cause_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLASK_UWSGI_BINARY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UwsgiNotFound, match=r"There is no uWSGI.*pip install uwsgi.*C compiler.*FLASK_UWSGI_BINARY"):
        runner.find_uwsgi()


def test_a_missing_binary_that_was_asked_for_is_an_error_even_if_another_one_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.path.dirname(executable(tmp_path / "uwsgi")))
    with pytest.raises(UwsgiNotFound, match="uwsgi_binary names '/nowhere/uwsgi'"):
        runner.find_uwsgi("/nowhere/uwsgi")
    monkeypatch.setenv("FLASK_UWSGI_BINARY", "/nowhere/else")
    with pytest.raises(UwsgiNotFound, match="FLASK_UWSGI_BINARY names '/nowhere/else'"):
        runner.find_uwsgi()


@pytest.mark.parametrize("options", [(), ("asyncio",), ("greenlet", "asyncio-like")], ids=str)
def test_a_uwsgi_without_the_asyncio_engine_is_an_error_that_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os, "execvpe", lambda *args: None)
    binary = uwsgi_with(tmp_path / "uwsgi", "threads", *options)
    with pytest.raises(AsyncioNotAvailable, match=r"uwsgi was compiled without .*docs/modes\.md.*flask run"):
        runner.exec_uwsgi([binary, "--asyncio=9", "--greenlet"], None, False)


@pytest.mark.parametrize(
    "arguments",
    [["--asyncio=9", "--greenlet"], ["--plugin=asyncio", "--plugin=greenlet", "--asyncio=9", "--greenlet"]],
    ids=["built in", "loaded"],
)
def test_a_uwsgi_with_the_asyncio_engine_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execvpe", lambda file, arguments, environ: ran.append(arguments))
    built_in = () if "--plugin=asyncio" in arguments else ("asyncio", "greenlet")
    binary = uwsgi_with(tmp_path / "uwsgi", *built_in)
    runner.exec_uwsgi([binary, *arguments], None, False)
    assert ran == [[binary, *arguments]]


# The arguments


def test_the_arguments_serve_http_with_websockets_under_a_master() -> None:
    result = arguments({"virtualenv": None})
    assert result == [
        "/bin/uwsgi",
        "--module=no_such_module:app",
        "--master",
        "--enable-threads",
        "--die-on-term",
        "--http=localhost:5000",
        "--http-websockets",
        "--need-app",
        "--add-header=Connection: close",
    ]


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({"add_header": "X: 1"}, ["X: 1", "Connection: close"]),
        ({"add_header": ["X: 1", "Y: 2"]}, ["X: 1", "Y: 2", "Connection: close"]),
        ({"add_header": None, "http_keepalive": False}, ["Connection: close"]),
        ({"http_keepalive": 30}, []),
        ({"http11_socket": ":80", "add_header": "X: 1"}, ["X: 1"]),
    ],
)
def test_a_header_announces_that_uwsgi_closes_connections_unless_it_keeps_them(
    options: Mapping[str, object], headers: list[str]
) -> None:
    added = [argument for argument in arguments(options) if argument.startswith("--add-header")]
    assert added == [f"--add-header={header}" for header in headers]


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_host_is_put_in_brackets(host: str) -> None:
    result = runner.uwsgi_arguments("no_such_module:app", binary="uwsgi", host=host, port=80)
    assert "--http=[::1]:80" in result


def test_true_is_a_flag_and_false_and_none_omit_an_option() -> None:
    result = arguments({"lazy_apps": True, "master": False, "need_app": None, "http_keepalive": 0})
    assert "--lazy-apps" in result
    assert "--master" not in result
    assert "--need-app" not in result
    assert "--http-keepalive=0" in result


def test_a_list_repeats_an_option() -> None:
    result = arguments({"env": ["A=1", "B=2"], "static_map": ("/a=/b",)})
    assert [argument for argument in result if argument.startswith(("--env", "--static-map"))] == [
        "--env=A=1",
        "--env=B=2",
        "--static-map=/a=/b",
    ]


@pytest.mark.parametrize("option", ["http", "http_socket", "https", "socket", "uwsgi_socket"])
def test_an_address_among_the_options_replaces_host_and_port(option: str) -> None:
    result = arguments({option: "127.0.0.1:1"})
    listening = [a for a in result if a.startswith("--") and a.partition("=")[0][2:] in runner.LISTEN_OPTIONS]
    assert listening == [f"--{option.replace('_', '-')}=127.0.0.1:1"]


def test_a_virtual_environment_is_passed_to_uwsgi_unless_the_options_choose_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "prefix", "/venv")
    assert "--virtualenv=/venv" in arguments({})
    for option in ("home", "virtualenv", "venv", "pyhome"):
        assert [a for a in arguments({option: "/other"}) if "venv" in a or "other" in a] == [f"--{option}=/other"]
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert not [a for a in arguments({}) if a.startswith("--virtualenv")]


def test_a_change_soon_causes_a_reload() -> None:
    result = arguments({}, reload=True)
    assert "--python-autoreload=1" in result
    assert "--worker-reload-mercy=3" in result
    assert "--worker-reload-mercy=9" in arguments({"worker_reload_mercy": 9}, reload=True)


@pytest.mark.parametrize("app", ["web:create_app('$(HOME)')", "%(x):app", "web:@(x)", "web:app\n"])
def test_a_name_that_uwsgi_would_change_is_refused(app: str) -> None:
    with pytest.raises(RuntimeError, match=r"literally: .* has a meaning in its options"):
        arguments({}, app=app)
    assert "--env=A=$(HOME)" in arguments({"env": "A=$(HOME)"})  # an option of uWSGI itself


def test_plugins_are_loaded_before_the_options_that_need_them() -> None:
    result = arguments({"plugins": "http,python3", "plugin_dir": "/plugins"})
    assert result[1:3] == ["--plugin-dir=/plugins", "--plugins=http,python3"]


def test_arguments_are_read_as_uwsgi_reads_them() -> None:
    spelled = ["uwsgi", "--http=:80", "--master", "--env", "A=1", "--env=B=2", "-p", "4", "--gevent", "9", "app.ini"]
    assert runner.read_arguments(spelled) == {
        "http": [":80"],
        "master": [True],
        "env": ["A=1", "B=2"],
        "gevent": ["9"],
    }


def test_the_users_pythonpath_comes_after_that_of_the_application_and_so_overrides_it() -> None:
    result = arguments({"pythonpath": "/mine"}, app="json:app")
    paths = [a for a in result if a.startswith("--pythonpath=")]
    assert paths == [f"--pythonpath={Path(json.__file__).parents[1]}", "--pythonpath=/mine"]


def test_installed_packages_do_not_come_before_the_standard_library() -> None:
    assert runner.locate_app("pytest:app") == {"module": "pytest:app"}


def test_options_are_added_to_the_defaults_of_a_mode() -> None:
    defaults = {"gevent": 100, "gevent-early-monkey-patch": True}
    assert runner.with_defaults({"processes": 4}, defaults) == {**defaults, "processes": 4}
    assert runner.with_defaults({"gevent": 500}, defaults) == {**defaults, "gevent": 500}
    assert runner.with_defaults({"gevent_early_monkey_patch": False}, defaults) == {
        "gevent": 100,
        "gevent-early-monkey-patch": False,
    }


def test_another_concurrency_replaces_the_defaults_of_a_mode() -> None:
    assert runner.with_defaults({"gevent": 10}, {"threads": 16}) == {"gevent": 10}
    assert runner.with_defaults({"gevent": None}, {"threads": 16}) == {"gevent": None, "threads": 16}


def test_positional_arguments_are_those_of_0_6_1() -> None:
    assert list(inspect.signature(runner.run_uwsgi).parameters)[:5] == [
        "app",
        "debug",
        "host",
        "port",
        "uwsgi_binary",
    ]


@pytest.mark.parametrize(
    ("value", "expected"), [("", False), ("0", False), ("False", False), ("1", True), ("true", True)]
)
def test_the_environment_can_enable_debugging(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_UWSGI_DEBUG", value)
    assert runner.debug_requested() is expected


# The application


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_an_application_is_found_in_a(layout: Layout, project: Path) -> None:
    write(project, layout.files)
    result = run(project, *layout.arguments)
    assert result.stdout, result.stderr
    assert json.loads(result.stdout) == {k: v.replace("{}", str(project)) for k, v in layout.options.items()}


def test_a_link_to_a_script_is_followed_as_python_follows_it(project: Path) -> None:
    write(project, {"src/app.py": f"import beside\n{SCRIPT}", "src/beside.py": ""})
    (project / "serve").symlink_to("src/app.py")
    assert json.loads(run(project, "serve").stdout) == {"pythonpath": f"{project}/src", "module": "app:app"}


@pytest.mark.parametrize(
    "end",
    [
        "if __name__ == '__main__':\n app = make()\n start(app)",
        "def main():\n app = make()\n start(app)\nif __name__ == '__main__': main()",
        "def create_app(name): pass\nif __name__ == '__main__': start(make())",
    ],
    ids=["guarded", "local", "factory with an argument"],
)
def test_an_application_that_an_import_does_not_create_is_an_error_that_names_cause_and_remedy(
    end: str, project: Path
) -> None:
    write(project, {"app.py": FACTORY.replace("create_app", "make") + end})
    assert "RuntimeError: uWSGI imports the application by a name, and no name leads to <Flask 'app'>" in (
        result := run(project, "app.py").stderr
    )
    assert 'pass app="module:variable"' in result


def test_an_application_of_an_interactive_session_is_an_error(project: Path) -> None:
    assert "RuntimeError: uWSGI imports the application" in run(project, "-c", SCRIPT).stderr


def test_a_factory_in_a_file_that_cannot_be_imported_is_an_error(project: Path) -> None:
    write(project, {"my-app.py": LAYOUTS["factory"].files["app.py"]})
    result = run(project, "my-app.py").stderr
    assert "RuntimeError: uWSGI calls factories of importable modules only, and create_app() is in" in result


def test_under_the_flask_command_run_is_ignored(project: Path) -> None:
    write(project, {"app.py": f"{FACTORY}app = create_app()\nstart(app)"})
    result = run(project, "-m", "flask", "routes", PORT=1)
    assert "Ignoring a call to app.run(): the 'flask' command has loaded the application" in result.stderr
    assert result.returncode == 0


# The whole way


@pytest.mark.live
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_uwsgi_serves_an_application_in_a(layout: Layout, project: Path, port: int) -> None:
    write(project, layout.files)
    with serving(project, port, *layout.arguments) as server:
        assert server.get() == "hello"


@pytest.mark.live
@pytest.mark.parametrize("app", ["app:app", "app:create_app()"])
def test_an_application_can_be_given_by_its_name(app: str, project: Path, port: int) -> None:
    write(project, {"src/app.py": SCRIPT, "src/run.py": f"from start import start\nstart({app!r})"})
    with serving(project, port, "src/run.py") as server:
        assert server.get() == "hello"


@pytest.mark.live
def test_inside_uwsgi_run_is_ignored(project: Path, port: int) -> None:
    write(project, {"app.py": f"{FACTORY}app = create_app()\nstart(app)"})
    with serving(project, port, "app.py") as server:
        assert server.get() == "hello"
    assert "Ignoring a call to app.run(): uWSGI has loaded the application" in server.log.read_text()


@pytest.mark.live
def test_a_directory_called_uwsgi_is_not_mistaken_for_uwsgi(project: Path, port: int) -> None:
    write(project, {"app.py": SCRIPT, "uwsgi/production.ini": "[uwsgi]"})
    with serving(project, port, "app.py") as server:
        assert server.get() == "hello"


@pytest.mark.live
def test_the_command_is_printed_and_replaces_the_process(project: Path, port: int) -> None:
    write(project, {"app.py": SCRIPT})
    with serving(project, port, "app.py") as server:
        server.get()
        log = server.log.read_text()
        assert log.startswith("Running: ")
        assert f"--pythonpath={project} --module=app:app" in log
        assert f"spawned uWSGI master process (pid: {server.process.pid})" in log


@pytest.mark.live
def test_the_application_runs_in_the_virtual_environment(project: Path, port: int) -> None:
    write(project, {"app.py": SCRIPT.replace("app = create_app()", "import sys\napp = create_app(sys.prefix)")})
    with serving(project, port, "app.py") as server:
        assert server.get() == sys.prefix


@pytest.mark.live
def test_options_reach_uwsgi(project: Path, port: int) -> None:
    text = f'{FACTORY}\nimport os\napp = create_app(f\'{{os.environ.get("ONE")}} {{os.environ.get("TWO")}}\')\n'
    write(
        project,
        {"app.py": f"{text}if __name__ == '__main__': start(app, env=['ONE=1', 'TWO=2'], lazy_apps=True)"},
    )
    with serving(project, port, "app.py") as server:
        assert server.get() == "1 2"


@pytest.mark.live
def test_sigterm_ends_the_server(project: Path, port: int) -> None:
    write(project, {"app.py": SCRIPT})
    with serving(project, port, "app.py") as server:
        server.get()
        server.process.terminate()
        assert server.process.wait(DEADLINE) == 0


@pytest.mark.live
def test_an_application_that_fails_to_load_ends_the_server(project: Path, port: int) -> None:
    write(project, {"app.py": f"{SCRIPT}else: raise ValueError('not like that')"})
    with serving(project, port, "app.py") as server:
        assert server.process.wait(DEADLINE) != 0
    assert "ValueError: not like that" in server.log.read_text()


@pytest.mark.live
@pytest.mark.parametrize("mode", ["threads=4", "gevent=10, gevent_early_monkey_patch=True"])
def test_debug_mode_serves_changes_even_after_a_mistake(mode: str, project: Path, port: int) -> None:
    def source(greeting: str) -> str:
        text = SCRIPT.replace("start(app)", f"start(app, debug=True, {mode})")
        return text.replace('"hello"', greeting).replace("create_app()", "create_app()\nimport os", 1)

    write(project, {"app.py": source('"one"')})
    with serving(project, port, "app.py") as server:
        assert server.get() == "one"
        for text, expected in (
            (source('__import__("os").environ["FLASK_UWSGI_DEBUG"]'), "true"),
            ("(", "500"),
        ):
            change(project / "app.py", text, server, expected)
        change(project / "app.py", source('"two"'), server, "two")
