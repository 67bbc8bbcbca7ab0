"""Modules import only from the layers below their own, and import optional packages only where they use them."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flask_uwsgi_websocket

PACKAGE = Path(flask_uwsgi_websocket.__file__).parent

#: The folders and modules of the package, in order. Each may import only earlier ones.
ORDER = [
    "_uwsgi",
    "exceptions",
    "signals",
    "protocol",
    "loops",
    "settings",
    "worker",
    "hooks",
    "state",
    "connection",
    "servers",
    "rooms",
    "typing",
    "dispatch",
    "legacy",
    "middleware",
    "views",
    "blueprints",
    "testing",
    "cli",
    "extension",
    "compat",
    "__init__",
]

#: The packages that this package needs at run time, besides the standard library.
REQUIRED = {"blinker", "click", "flask", "werkzeug"}


def imports(nodes: list[ast.stmt], *, for_types: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements in some code.

    :param for_types: whether to yield the imports for type checkers, too.
    """
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            yield from imports(node.orelse)
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import | ast.ImportFrom):
                yield inner


MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imported(module: Path) -> Iterator[Path]:
    """Yield the modules of the package that a module imports."""
    for node in imports(ast.parse((PACKAGE / module).read_text()).body, for_types=True):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = PACKAGE.joinpath(*module.parts[: len(module.parts) - node.level])
            target = start.joinpath(*(node.module or "").split("."))
            for name in (
                [target.with_suffix(".py")] if node.module else [start / f"{each.name}.py" for each in node.names]
            ):
                if not name.exists():
                    name = target / "__init__.py"
                if name.exists():  # a compiled module has no such file
                    yield name.relative_to(PACKAGE)
        else:
            names = {node.module} if isinstance(node, ast.ImportFrom) else {alias.name for alias in node.names}
            assert PACKAGE.name not in {str(name).partition(".")[0] for name in names}, "import it relatively"


def place(module: Path) -> int:
    return ORDER.index(module.parts[0].removesuffix(".py"))


def test_every_module_is_in_the_list_of_layers() -> None:
    assert set(ORDER) == {module.parts[0].removesuffix(".py") for module in MODULES}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_from_the_layers_below_its_own(module: Path) -> None:
    for other in imported(module):
        assert other.parts[0] == module.parts[0] or place(other) < place(module), other


def test_no_two_modules_import_each_other() -> None:
    order = TopologicalSorter({module: list(imported(module)) for module in MODULES})
    order.prepare()  # raises a CycleError


def run_python(code: str, path: Path | None = None) -> str:
    """Run code in another interpreter that finds only the packages in *path*, and return its output."""
    command = [sys.executable, "-W", "error"]
    if path is None:
        command += ["-c", f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n{code}"]
    else:
        command += ["-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with this package, Flask, and the packages that Flask needs."""
    directory = tmp_path_factory.mktemp("packages")
    wanted = ["Flask", "Werkzeug", "Jinja2", "MarkupSafe", "itsdangerous", "click", "blinker"]
    if sys.version_info < (3, 10, 2):
        wanted += ["importlib-metadata", "zipp"]
    for name in wanted:
        distribution = importlib.metadata.distribution(name)
        for file in {str(file).partition("/")[0] for file in distribution.files or []}:
            target = Path(str(distribution.locate_file(file)))
            if not file.startswith((".", "__")) and target.exists():
                (directory / file).symlink_to(target)
    (directory / PACKAGE.name).symlink_to(PACKAGE)
    return directory


def test_importing_the_package_imports_no_optional_package() -> None:
    code = f"""
before = set(sys.modules)
import {PACKAGE.name}
for name in set(sys.modules) - before:
    print(name.partition(".")[0])
"""
    imported = {name for name in run_python(code).split() if "cython_" not in name}  # Cython's own modules
    third_party = imported - set(sys.stdlib_module_names) - {PACKAGE.name}
    # Modules that Flask imports are allowed.
    flasks = set(run_python("import flask\nfor name in sys.modules: print(name.partition('.')[0])").split())
    assert third_party <= flasks
    assert third_party >= {"flask", "werkzeug"}


def test_the_import_needs_neither_gevent_nor_greenlet_nor_uwsgi(bare: Path) -> None:
    code = f"""
from importlib.util import find_spec
assert not any(map(find_spec, ["gevent", "greenlet", "uwsgi", "websockets"]))
from {PACKAGE.name} import *
from flask import Flask
print(uwsgi, WebSocket(Flask("x")))
"""
    assert run_python(code, bare).startswith("None <flask_uwsgi_websocket.extension.WebSocket")


def test_the_test_client_needs_neither_gevent_nor_greenlet_nor_uwsgi(bare: Path) -> None:
    code = f"""
from flask import Flask
from {PACKAGE.name} import WebSocket
app = Flask("x")
@WebSocket(app).route("/")
def echo(ws):
    ws.send(ws.receive())
with app.test_client().websocket("/") as ws:
    ws.send("hello")
    print(ws.receive())
"""
    assert run_python(code, bare) == "hello\n"


@pytest.mark.parametrize(
    ("name", "error", "remedy"),
    [
        ("GeventWebSocket", "GeventNotInstalled", "pip install gevent"),
        ("AsyncioWebSocket", "AsyncioNotAvailable", "pip install greenlet"),
    ],
)
def test_a_mode_whose_library_is_missing_says_what_to_install(bare: Path, name: str, error: str, remedy: str) -> None:
    code = f"""
import {PACKAGE.name} as package
try:
    package.{name}()
except package.{error} as error:
    assert isinstance(error, (ImportError, package.WebSocketError))
    print(error)
"""
    assert remedy in run_python(code, bare)


def test_a_project_may_have_a_module_called_uwsgi(tmp_path: Path) -> None:
    (tmp_path / "uwsgi.py").write_text("raise SystemExit('imported')")
    code = f"""
sys.path.insert(0, {str(tmp_path)!r})
import {PACKAGE.name} as package
print(package.uwsgi)
"""
    assert run_python(code).strip() == "None"


def test_the_metadata_lists_every_package_that_is_needed_at_run_time() -> None:
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            for inner in imports([node]):
                if isinstance(inner, ast.ImportFrom):
                    imported |= set() if inner.level else {str(inner.module).partition(".")[0]}
                else:
                    imported |= {alias.name.partition(".")[0] for alias in inner.names}
    third_party = imported - set(sys.stdlib_module_names) - {"_typeshed"}
    assert third_party - REQUIRED <= {"gevent", "greenlet", "hiredis", "redis"}
