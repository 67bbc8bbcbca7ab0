"""Run a Flask application in uWSGI: find the binary, find the application, replace this process with uWSGI."""

from __future__ import annotations

import ast
import errno
import glob
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .._uwsgi import uwsgi
from ..exceptions import AsyncioNotAvailable, UwsgiNotFound
from ..servers.uwsgi_worker import BLOCK_VARIABLE
from ..state import state_of
from .startup import describe

if TYPE_CHECKING:
    from types import ModuleType

    from flask import Flask

#: uWSGI options that choose how one worker serves several requests at once. Each of them replaces the defaults of
#: another mode. ``processes`` is not one of them, because it only multiplies workers.
CONCURRENCY_OPTIONS = frozenset({"async", "asyncio", "gevent", "loop", "threads", "tornado", "ugreen"})

#: uWSGI options that name an address to listen on.
LISTEN_OPTIONS = frozenset({"http", "httprouter", "https", "https2", "socket"}).union(
    f"{protocol}-socket"
    for protocol in ("fastcgi", "http", "http11", "https", "puwsgi", "raw", "scgi", "ssl", "suwsgi", "uwsgi")
)

#: uWSGI closes a connection after each response. Without this header, clients of HTTP/1.1 would send their next request
#: to the closed connection.
CLOSE_HEADER = "Connection: close"

#: The options that make uWSGI keep connections open.
KEEPALIVE_OPTIONS = frozenset({"http-keepalive", "http11-socket"})

#: The environment variable that turns off gevent's tracking of greenlets, which is for debugging. With it on, uWSGI on
#: Python 3.15 crashes at its start, whatever app it serves.
GREENLET_TREE = "GEVENT_TRACK_GREENLET_TREE"

#: uWSGI options that load plugins, in the order in which uWSGI needs them.
_PLUGIN_OPTIONS = ("plugin-dir", "plugins-dir", "plugin", "plugins", "need-plugin", "need-plugins")
_MAIN_GUARDS = frozenset({"__name__ == '__main__'", "'__main__' == __name__"})
#: Finds what uWSGI expands in the value of any option, and what would end the line of an option in a file.
_find_special = re.compile(r"[$%@]\(|[\r\n]").search
_VIRTUALENV_OPTIONS = frozenset({"home", "pyhome", "venv", "virtualenv"})


def find_uwsgi(uwsgi_binary: str | None = None) -> str:
    """Return the path of the uWSGI binary.

    The first of these is used: the argument, the environment variable ``FLASK_UWSGI_BINARY``, ``uwsgi`` beside the
    running Python (where ``pip install`` puts it), ``uwsgi`` on ``PATH``.

    :param uwsgi_binary: a path, or the name of a command on ``PATH``.
    :raises UwsgiNotFound: when there is no uWSGI, or when the argument or the variable names no executable file.
    """
    for source, binary in (
        ("uwsgi_binary", uwsgi_binary),
        ("FLASK_UWSGI_BINARY", os.environ.get("FLASK_UWSGI_BINARY")),
    ):
        if binary:
            if found := shutil.which(binary):
                return found
            raise UwsgiNotFound(f"{source} names {binary!r}: neither an executable file nor a command on PATH.")

    directory = os.path.dirname(sys.executable)
    found = shutil.which("uwsgi", path=directory) or shutil.which("uwsgi")
    if found is None:
        raise UwsgiNotFound(
            f"There is no uWSGI: no 'uwsgi' in {directory} and none on PATH. Run 'pip install uwsgi', which needs a C "
            "compiler and the Python headers (python3-dev), or 'pip install pyuwsgi', which is precompiled. Or name a "
            "binary with uwsgi_binary= or the environment variable FLASK_UWSGI_BINARY."
        )
    return found


def _is_pyuwsgi(binary: str) -> bool:
    """Return whether a uWSGI binary is the script of pyuwsgi, which is uWSGI as a Python module."""
    try:
        with open(binary, "rb") as file:
            return b"from pyuwsgi import" in file.read(8192)
    except OSError:
        return False


def debug_requested() -> bool:
    """Return whether ``FLASK_UWSGI_DEBUG`` asks for debug mode: it is set, and not ``0``, ``false`` or ``no``."""
    return os.environ.get("FLASK_UWSGI_DEBUG", "").lower() not in {"", "0", "false", "no"}


def with_defaults(options: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Return uWSGI options with the defaults of a mode added, unless the options choose another mode.

    ``gevent=500`` replaces a default ``gevent=100`` and keeps the other defaults, while ``threads=4`` drops them all.

    :param options: the user's options, as for :func:`run_uwsgi`.
    :param defaults: the options of the mode, one of :data:`CONCURRENCY_OPTIONS` among them.
    """
    chosen, defaults = _dashed(options), _dashed(defaults)
    concurrency = {name for name in CONCURRENCY_OPTIONS & chosen.keys() if _is_on(chosen[name])}
    return {**defaults, **chosen} if concurrency <= defaults.keys() else chosen


def uwsgi_arguments(
    app: Flask | str,
    *,
    binary: str,
    host: str = "localhost",
    port: int = 5000,
    reload: bool = False,
    options: Mapping[str, object] | None = None,
) -> list[str]:
    """Return the argument list that serves an application with uWSGI, the binary first.

    Parameters and exceptions are those of :func:`run_uwsgi`.

    :param binary: the path of the uWSGI binary.
    :param reload: reload when a module changes.
    :param options: uWSGI options; they override the defaults.
    """
    chosen = _dashed(options or {})
    # In the threads mode, the housekeeper is a Python thread. Without die-on-term, SIGTERM would only reload uWSGI.
    defaults: dict[str, object] = {"master": True, "enable-threads": True, "die-on-term": True}
    if not LISTEN_OPTIONS & chosen.keys():
        defaults["http"] = f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"
    # Without it, the HTTP router drops WebSockets. The other sockets ignore it.
    defaults["http-websockets"] = True
    if reload:
        # An open WebSocket would delay a reload for 60 seconds, uWSGI's default.
        defaults.update({"python-autoreload": 1, "worker-reload-mercy": 3})
    else:
        # uWSGI ends with the traceback of an app that it cannot load, instead of answering every request with 500.
        defaults["need-app"] = True
    if _is_pyuwsgi(binary):
        # For a reload, uWSGI would otherwise run the Python behind the virtual environment, which has no pyuwsgi.
        defaults["binary-path"] = sys.executable
    if sys.prefix != sys.base_prefix and not _VIRTUALENV_OPTIONS & chosen.keys():
        defaults["virtualenv"] = check_literal(sys.prefix)

    arguments = {**defaults, **chosen}
    if not any(_is_on(chosen.get(name)) for name in KEEPALIVE_OPTIONS):
        arguments["add-header"] = [*_values(chosen.get("add-header")), CLOSE_HEADER]
    # uWSGI knows the options of a plugin only after it has loaded the plugin.
    plugins = {name: arguments.pop(name) for name in _PLUGIN_OPTIONS if name in arguments}
    # uWSGI puts each pythonpath before the previous one, so the user's comes before the application's own directory.
    location = {name: check_literal(value) for name, value in locate_app(app).items()}
    return [binary, *_spell(plugins), *_spell(location), *_spell(arguments)]


def check_literal(value: str) -> str:
    """Return *value*, the value of an option, if uWSGI takes it literally.

    :raises RuntimeError: when uWSGI would change the value. It expands ``$(``, ``%(`` and ``@(`` to environment
        variables, options and files, and they cannot be quoted.
    """
    if match := _find_special(value):
        raise RuntimeError(
            f"uWSGI would not take {value!r} literally: {match[0]!r} has a meaning in its options. Rename the file or "
            "directory, or bind the application to a variable of a module."
        )
    return value


def run_uwsgi(
    app: Flask | str,
    debug: bool = False,
    host: str = "localhost",
    port: int = 5000,
    uwsgi_binary: str | None = None,
    **options: object,
) -> None:
    """Replace this process with uWSGI, which serves an application.

    The call returns only when uWSGI or the ``flask`` command has loaded the application already and serves it. A
    sentence on stderr says so.

    :param app: the application, or where uWSGI finds it: ``"module:variable"`` or ``"module:factory()"``.
    :param debug: reload when a module changes, and run the application in debug mode. The environment variable
        ``FLASK_UWSGI_DEBUG`` does the same.
    :param host: the name or address to listen on.
    :param port: the TCP port to listen on.
    :param uwsgi_binary: as for :func:`find_uwsgi`.
    :param options: uWSGI options by their names, with ``_`` for ``-``. ``True`` is a flag, ``False`` and ``None`` leave
        the option out, a list or tuple repeats it. An address to listen on (``http="..."``, ``http_socket="..."``,
        ``socket="..."``) replaces ``host`` and ``port``.
    :raises UwsgiNotFound: when there is no uWSGI binary.
    :raises AsyncioNotAvailable: when the options ask for the asyncio loop engine, which this uWSGI lacks.
    :raises RuntimeError: when no importable name leads to the application.
    """
    if uwsgi is not None:
        server = "uWSGI"
    elif os.environ.get("FLASK_RUN_FROM_CLI") == "true":
        server = "the 'flask' command"
    else:
        debug = debug or debug_requested()
        if debug:
            # The autoreloader watches imported modules only. Once a script was saved with a mistake, it would not see
            # the script change again.
            options = {"touch_reload": getattr(sys.modules["__main__"], "__file__", None), **options}
        arguments = uwsgi_arguments(
            app, binary=find_uwsgi(uwsgi_binary), host=host, port=port, reload=debug, options=options
        )
        exec_uwsgi(arguments, None if isinstance(app, str) else app, debug)  # does not return
    click.echo(f" * Ignoring a call to app.run(): {server} has loaded the application and serves it.", err=True)


def exec_uwsgi(arguments: list[str], app: Flask | None, debug: bool) -> NoReturn:
    """Replace this process with uWSGI, and print the start-up block in a terminal, or else the command line.

    :param arguments: the result of :func:`uwsgi_arguments`.
    :param app: the application, if it is loaded already.
    :param debug: run the application in debug mode.
    :raises AsyncioNotAvailable: when the arguments ask for the asyncio loop engine, which this uWSGI lacks.
    :raises SystemExit: when a port is in use.
    """
    options = read_arguments(arguments)
    _check_engine(arguments[0], options)
    _check_ports(options)
    environ = dict(os.environ)
    if not sys.stdout.isatty():
        click.echo(f"Running: {shlex.join(arguments)}")
    elif app is not None and state_of(app).coroutines is not None:  # the worker prints the block once the app is loaded
        environ[BLOCK_VARIABLE] = describe(arguments, options, app, debug)
    else:
        click.echo(describe(arguments, options, app, debug))
    if debug:
        # Flask's own variable is for the code of a factory that runs before the extension is initialised.
        environ.update(FLASK_DEBUG="true", FLASK_UWSGI_DEBUG="true")
    if sys.version_info >= (3, 15) and "gevent" in options:
        environ.setdefault(GREENLET_TREE, "0")
    os.execvpe(arguments[0], arguments, environ)


def _check_ports(options: Mapping[str, list[Any]]) -> None:
    """Check that the ports to listen on are free. uWSGI itself would only report a failed ``bind()``.

    :raises SystemExit: when a port is in use or too high. The text is a sentence, as from Flask's own server.
    """
    for name in ("http", "http-socket", "https"):
        for address in map(str, options.get(name, ()) if "reuse-port" not in options else ()):
            host, _, port = address.partition(",")[0].rpartition(":")
            if port.isdecimal() and int(port) > 65535:
                raise SystemExit(f"There is no port {port}: choose one up to 65535.")
            if port.isdecimal() and _is_in_use(host.strip("[]"), int(port)):
                raise SystemExit(
                    f"Port {port} is in use by another program. Stop that program, or choose another port by port= of "
                    "app.run() or --port of flask uwsgi run."
                )


def _is_in_use(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uWSGI does
        try:
            sock.bind((host, port))
        except OSError as error:  # uWSGI reports any other error
            return error.errno == errno.EADDRINUSE
    return False


def _check_engine(binary: str, options: Mapping[str, object]) -> None:
    """Check that uWSGI has the asyncio loop engine if the options ask for it: uWSGI says only "unrecognized option"."""
    if "asyncio" not in options or options.keys() & set(_PLUGIN_OPTIONS):  # a plugin may bring it
        return
    known = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False).stdout.split()
    if not {"--asyncio", "--greenlet"} <= set(known):
        raise AsyncioNotAvailable(
            f"{binary} was compiled without the plugins asyncio and greenlet, which the asyncio mode needs: "
            "docs/modes.md has the commands that compile it with them. For development, 'flask run' is enough."
        )


def read_arguments(arguments: Iterable[str]) -> dict[str, list[Any]]:
    """Return the options among uWSGI's arguments by their long names, each with all its values; True for a flag."""
    options: dict[str, list[Any]] = {}
    values: list[Any] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            values = options.setdefault(name, [])
            values.append(value if equals else True)
        elif values and values[-1] is True and not argument.startswith("-"):
            values[-1] = argument
    return options


def locate_app(app: Flask | str) -> dict[str, str]:
    """Return the uWSGI options that make it load an application.

    For a Flask object, the options name a variable that holds it, in ``__main__`` or in the module of its import name.
    A variable that a script binds below ``if __name__ == "__main__":`` does not count, because uWSGI does not see it.
    If there is no such variable, the options name a factory ``create_app()`` or ``make_app()`` in these modules.

    :param app: the application, ``"module:variable"`` or ``"module:factory()"``.
    :raises RuntimeError: when no importable name leads to the application.
    """
    if isinstance(app, str):
        return {**_import_root(app.partition(":")[0]), "module": app}

    names = dict.fromkeys(["__main__", app.import_name])
    modules = [sys.modules[name] for name in names if name in sys.modules]
    for module in modules:
        for name, value in _importable_variables(module).items():
            if value is app:
                return _load_options(module, name)
    for module in modules:
        variables = _importable_variables(module)
        for name in ("create_app", "make_app"):
            if _needs_no_arguments(variables.get(name)):
                return _load_options(module, f"{name}()")
    raise RuntimeError(
        f"uWSGI imports the application by a name, and no name leads to {app!r}: no variable of {' or '.join(names)} "
        "holds it (variables of functions and below if __name__ == '__main__' do not count), and there is no "
        "create_app() or make_app() without required arguments. Bind it to a variable at the top level of a "
        'module, or pass app="module:variable" or app="module:factory()".'
    )


def _load_options(module: ModuleType, variable: str) -> dict[str, str]:
    """Return the uWSGI options that load a variable, or a ``factory()``, of a module."""
    name = module.__name__
    if name == "__main__":
        spec = module.__spec__
        # Only python -m package.module has a spec with the module's name: python file.py has none, and that of
        # python directory/ is named __main__.
        if spec is None or spec.name == "__main__":
            return _load_script_options(os.path.realpath(str(module.__file__)), variable)
        name = spec.name
    return {**_import_root(name), "module": f"{name}:{variable}"}


def _load_script_options(path: str, variable: str) -> dict[str, str]:
    """Return the uWSGI options that load a variable, or a ``factory()``, of a script."""
    directory, file = os.path.split(path)
    name, suffix = os.path.splitext(file)
    options = {"pythonpath": glob.escape(directory)}  # uWSGI reads it as a pattern
    # Inside uWSGI, the names __main__ and uwsgi belong to modules of uWSGI.
    if suffix == ".py" and name.isidentifier() and name not in {"__main__", "uwsgi"}:
        return {**options, "module": f"{name}:{variable}"}
    if variable.endswith("()"):
        raise RuntimeError(
            f"uWSGI calls factories of importable modules only, and {variable} is in the file {file!r}. Give the file "
            "the name of a module, such as app.py, or bind the application to a variable at its top level."
        )
    return {**options, "wsgi-file": path, "callable": variable}


def _import_root(name: str) -> dict[str, str]:
    """Return the uWSGI option for the directory that a module is imported from, if uWSGI needs one."""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except ValueError:  # a module made by hand has no spec
        return {}
    locations = [] if spec is None else list(spec.submodule_search_locations or [spec.origin or ""])
    root = os.path.dirname(locations[0]) if locations else ""
    # Python finds installed packages without it, and they should not come before the standard library.
    if not root or os.path.basename(root) in {"site-packages", "dist-packages"}:
        return {}
    return {"pythonpath": glob.escape(os.path.abspath(root))}


def _importable_variables(module: ModuleType) -> Mapping[str, object]:
    """Return the variables that a module also has when it is imported instead of run."""
    if module.__name__ != "__main__":
        return vars(module)
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):  # no file: an interactive session, python -c
        return {}
    bound = set(_bound_names(ast.parse(source).body))
    return {name: value for name, value in vars(module).items() if name in bound or "*" in bound}


def _bound_names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the names that importing a module binds; ``*`` if it imports an unknown number of them."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.If) and ast.unparse(node.test) in _MAIN_GUARDS:
            yield from _bound_names(node.orelse)
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.alias):
                yield node.asname or node.name.partition(".")[0]
            yield from _bound_names(ast.iter_child_nodes(node))


def _needs_no_arguments(factory: object) -> bool:
    """Return whether something can be called without arguments."""
    if not callable(factory):
        return False
    try:
        inspect.signature(factory).bind()
    except (TypeError, ValueError):  # an argument has no default; the factory has no signature
        return False
    return True


def _dashed(options: Mapping[str, object]) -> dict[str, object]:
    """Return options under uWSGI's own names, with ``-`` for ``_``."""
    return {name.replace("_", "-"): value for name, value in options.items()}


def _is_on(value: object) -> bool:
    """Return whether an option with this value goes on the command line. With 0 and the empty string it does."""
    return value is not None and value is not False


def _values(value: object) -> list[object]:
    """Return the values of an option that go on the command line, each with the option's name."""
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if _is_on(item)]


def _spell(options: Mapping[str, object]) -> Iterator[str]:
    """Yield options as arguments, with ``=``, because getopt accepts an optional value in no other form."""
    for name, value in options.items():
        for item in _values(value):
            yield f"--{name}" if item is True else f"--{name}={item}"
