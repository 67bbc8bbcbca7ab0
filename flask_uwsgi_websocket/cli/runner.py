"""Run a Flask application in uWSGI: find the binary, find the application, replace this process by uWSGI."""

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

#: uWSGI options that choose how one worker serves several requests at once: each replaces the defaults of
#: another. ``processes`` is not among them, since it multiplies whatever a worker does.
CONCURRENCY_OPTIONS = frozenset({"async", "asyncio", "gevent", "loop", "threads", "tornado", "ugreen"})

#: uWSGI options that name an address to listen on.
LISTEN_OPTIONS = frozenset({"http", "httprouter", "https", "https2", "socket"}).union(
    f"{protocol}-socket"
    for protocol in ("fastcgi", "http", "http11", "https", "puwsgi", "raw", "scgi", "ssl", "suwsgi", "uwsgi")
)

#: uWSGI closes a connection after each response. Without this header, clients of HTTP/1.1 would send their next request
#: to the closed connection.
CLOSE_HEADER = "Connection: close"

#: The options with which uWSGI does not close connections.
KEEPALIVE_OPTIONS = frozenset({"http-keepalive", "http11-socket"})

#: The variable that turns off gevent's notes of greenlets, which are for debugging. With them, uWSGI on Python 3.15
#: crashes at its start, whatever app it serves.
GREENLET_TREE = "GEVENT_TRACK_GREENLET_TREE"

#: In the order in which uWSGI needs them.
_PLUGIN_OPTIONS = ("plugin-dir", "plugins-dir", "plugin", "plugins", "need-plugin", "need-plugins")
_MAIN_GUARDS = frozenset({"__name__ == '__main__'", "'__main__' == __name__"})
#: What uWSGI expands in the value of any option, and what would end the option's line in a file.
_find_special = re.compile(r"[$%@]\(|[\r\n]").search
_VIRTUALENV_OPTIONS = frozenset({"home", "pyhome", "venv", "virtualenv"})


def find_uwsgi(uwsgi_binary: str | None = None) -> str:
    """Return the path of the uWSGI binary.

    Looked for, in this order: the argument, the environment variable ``FLASK_UWSGI_BINARY``, ``uwsgi`` beside
    the running Python (where ``pip install`` puts it), ``uwsgi`` on ``PATH``.

    :param uwsgi_binary: a path, or the name of a command on ``PATH``.
    :raises UwsgiNotFound: there is none, or what was asked for is not an executable file.
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
            f"There is no uWSGI: no 'uwsgi' in {directory} and none on PATH. 'pip install uwsgi' needs a C "
            "compiler and the Python headers (python3-dev), since it compiles it; 'pip install pyuwsgi' is "
            "precompiled. Or name a binary with uwsgi_binary= or the environment variable FLASK_UWSGI_BINARY."
        )
    return found


def _is_pyuwsgi(binary: str) -> bool:
    """Return whether a uWSGI binary is the script of pyuwsgi, which is uWSGI as a Python extension."""
    try:
        with open(binary, "rb") as file:
            return b"from pyuwsgi import" in file.read(8192)
    except OSError:
        return False


def debug_requested() -> bool:
    """Return whether ``FLASK_UWSGI_DEBUG`` asks for debugging: it is set, and not ``0``, ``false`` or ``no``."""
    return os.environ.get("FLASK_UWSGI_DEBUG", "").lower() not in {"", "0", "false", "no"}


def with_defaults(options: Mapping[str, object], defaults: Mapping[str, object]) -> dict[str, object]:
    """Return uWSGI options completed by the defaults of a mode, unless they choose another mode.

    ``gevent=500`` replaces a default ``gevent=100`` and keeps the rest, while ``threads=4`` drops them all.

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

    :param binary: path of the uWSGI binary.
    :param reload: reload when a module changes.
    :param options: uWSGI options; they win over the defaults.
    """
    chosen = _dashed(options or {})
    # The keepalive housekeeper of the threaded mode is a Python thread. SIGTERM would only reload uWSGI.
    defaults: dict[str, object] = {"master": True, "enable-threads": True, "die-on-term": True}
    if not LISTEN_OPTIONS & chosen.keys():
        defaults["http"] = f"[{host.strip('[]')}]:{port}" if ":" in host else f"{host}:{port}"
    # The HTTP router drops WebSockets without it; to the other sockets it means nothing.
    defaults["http-websockets"] = True
    if reload:
        # An open WebSocket would hold a reload for uWSGI's usual 60 seconds.
        defaults.update({"python-autoreload": 1, "worker-reload-mercy": 3})
    else:
        # Better to end with the traceback than to answer every request with 500.
        defaults["need-app"] = True
    if _is_pyuwsgi(binary):
        # To reload, uWSGI would run the Python behind the virtual environment, which has no pyuwsgi.
        defaults["binary-path"] = sys.executable
    if sys.prefix != sys.base_prefix and not _VIRTUALENV_OPTIONS & chosen.keys():
        defaults["virtualenv"] = check_literal(sys.prefix)

    arguments = {**defaults, **chosen}
    if not any(_is_on(chosen.get(name)) for name in KEEPALIVE_OPTIONS):
        arguments["add-header"] = [*_values(chosen.get("add-header")), CLOSE_HEADER]
    # uWSGI knows the options of a plugin only after it has loaded it.
    plugins = {name: arguments.pop(name) for name in _PLUGIN_OPTIONS if name in arguments}
    # uWSGI puts each pythonpath before the last: the user's wins over the application's own directory.
    location = {name: check_literal(value) for name, value in locate_app(app).items()}
    return [binary, *_spell(plugins), *_spell(location), *_spell(arguments)]


def check_literal(value: str) -> str:
    """Return *value*, the value of an option, if uWSGI takes it literally.

    :raises RuntimeError: uWSGI would change it. It expands ``$(``, ``%(`` and ``@(`` to variables of the environment,
        options and files, and nothing quotes them.
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
    """Replace this process by uWSGI serving an application.

    It returns only when there is nothing to run, because uWSGI or the ``flask`` command has imported the
    application already and serves it; one sentence on stderr says so.

    :param app: the application, or where uWSGI finds it: ``"module:variable"`` or ``"module:factory()"``.
    :param debug: reload when a module changes, and run the application in debug mode; so does the environment
        variable ``FLASK_UWSGI_DEBUG``.
    :param host: name or address to listen on.
    :param port: TCP port to listen on.
    :param uwsgi_binary: as for :func:`find_uwsgi`.
    :param options: uWSGI options by their names, ``_`` for ``-``: ``True`` is a flag, ``False`` and ``None``
        leave the option out, a list or tuple repeats it. An address to listen on (``http="..."``,
        ``http_socket="..."``, ``socket="..."``) replaces ``host`` and ``port``.
    :raises UwsgiNotFound: there is no uWSGI.
    :raises AsyncioNotAvailable: the asyncio engine is asked for, and this uWSGI has none.
    :raises RuntimeError: no importable name leads to the application.
    """
    if uwsgi is not None:
        server = "uWSGI"
    elif os.environ.get("FLASK_RUN_FROM_CLI") == "true":
        server = "the 'flask' command"
    else:
        debug = debug or debug_requested()
        if debug:
            # The autoreloader watches only what was imported: it would never see a script again that was saved with
            # a mistake.
            options = {"touch_reload": getattr(sys.modules["__main__"], "__file__", None), **options}
        arguments = uwsgi_arguments(
            app, binary=find_uwsgi(uwsgi_binary), host=host, port=port, reload=debug, options=options
        )
        exec_uwsgi(arguments, None if isinstance(app, str) else app, debug)  # does not return
    click.echo(f" * Ignoring a call to app.run(): {server} has loaded the application and serves it.", err=True)


def exec_uwsgi(arguments: list[str], app: Flask | None, debug: bool) -> NoReturn:
    """Replace this process by uWSGI, and say so: in a terminal by a block of lines, otherwise by one.

    :param arguments: those of :func:`uwsgi_arguments`.
    :param app: the application, if it is here already.
    :param debug: run the application in debug mode.
    :raises AsyncioNotAvailable: the asyncio engine is asked for, and this uWSGI has none.
    :raises SystemExit: a port is in use.
    """
    options = read_arguments(arguments)
    _check_engine(arguments[0], options)
    _check_ports(options)
    environ = dict(os.environ)
    if not sys.stdout.isatty():
        click.echo(f"Running: {shlex.join(arguments)}")
    elif app is not None and state_of(app).coroutines is not None:  # its worker shows the block, when the app is loaded
        environ[BLOCK_VARIABLE] = describe(arguments, options, app, debug)
    else:
        click.echo(describe(arguments, options, app, debug))
    if debug:
        # Flask's own variable is for what a factory does before there is an extension.
        environ.update(FLASK_DEBUG="true", FLASK_UWSGI_DEBUG="true")
    if sys.version_info >= (3, 15) and "gevent" in options:
        environ.setdefault(GREENLET_TREE, "0")
    os.execvpe(arguments[0], arguments, environ)


def _check_ports(options: Mapping[str, list[Any]]) -> None:
    """Check that the ports to listen on are free: uWSGI itself would end in a line about ``bind()``.

    :raises SystemExit: a port is in use, or is no port. The text is a sentence, as that of Flask's own server.
    """
    for name in ("http", "http-socket", "https"):
        for address in map(str, options.get(name, ()) if "reuse-port" not in options else ()):
            host, _, port = address.partition(",")[0].rpartition(":")
            if port.isdecimal() and int(port) > 65535:
                raise SystemExit(f"There is no port {port}: the last one is 65535.")
            if port.isdecimal() and _is_in_use(host.strip("[]"), int(port)):
                raise SystemExit(
                    f"Port {port} is in use by another program. Stop that one, or choose another port: port= of "
                    "app.run(), --port of flask uwsgi run."
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
    """Check that uWSGI has an asyncio engine where one is needed: itself, it would say "unrecognized option"."""
    if "asyncio" not in options or options.keys() & set(_PLUGIN_OPTIONS):  # a plugin may bring it
        return
    known = subprocess.run([binary, "--help"], capture_output=True, text=True, check=False).stdout.split()
    if not {"--asyncio", "--greenlet"} <= set(known):
        raise AsyncioNotAvailable(
            f"{binary} was compiled without the plugins asyncio and greenlet, which the asyncio mode needs: "
            "docs/modes.md has the commands that compile it with them. To develop, 'flask run' will do."
        )


def read_arguments(arguments: Iterable[str]) -> dict[str, list[Any]]:
    """Return the options among uWSGI's arguments by their long names: all values of each, True for a flag."""
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

    A Flask object is looked for by identity in ``__main__`` and in the module of its import name, among the
    variables that an import binds: what a script binds below ``if __name__ == "__main__":``, uWSGI will not
    see. Failing that, a factory ``create_app()`` or ``make_app()`` there is called.

    :param app: the application, ``"module:variable"`` or ``"module:factory()"``.
    :raises RuntimeError: no importable name leads to the application.
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
        f"uWSGI imports the application, and no name leads it to {app!r}: no variable of {' or '.join(names)} "
        "holds it, not counting those of functions and those below if __name__ == '__main__', and there is no "
        "create_app() or make_app() without required arguments. Bind it to a variable at the top level of a "
        'module, or pass app="module:variable" or app="module:factory()".'
    )


def _load_options(module: ModuleType, variable: str) -> dict[str, str]:
    """Return the uWSGI options that load a variable, or a ``factory()``, of a module."""
    name = module.__name__
    if name == "__main__":
        spec = module.__spec__
        # A spec tells python -m package.module from python file.py, and from python directory/ by its name.
        if spec is None or spec.name == "__main__":
            return _load_script_options(os.path.realpath(str(module.__file__)), variable)
        name = spec.name
    return {**_import_root(name), "module": f"{name}:{variable}"}


def _load_script_options(path: str, variable: str) -> dict[str, str]:
    """Return the uWSGI options that load a variable, or a ``factory()``, of a script."""
    directory, file = os.path.split(path)
    name, suffix = os.path.splitext(file)
    options = {"pythonpath": glob.escape(directory)}  # uWSGI takes a pattern
    # Inside uWSGI the modules __main__ and uwsgi are its own.
    if suffix == ".py" and name.isidentifier() and name not in {"__main__", "uwsgi"}:
        return {**options, "module": f"{name}:{variable}"}
    if variable.endswith("()"):
        raise RuntimeError(
            f"uWSGI calls factories of importable modules only, and {variable} is in the file {file!r}. Give "
            "the file a module's name, or bind the application to a variable at its top level."
        )
    return {**options, "wsgi-file": path, "callable": variable}


def _import_root(name: str) -> dict[str, str]:
    """Return the uWSGI option for the directory that a module is imported from, if it takes one."""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except ValueError:  # a module made by hand has no spec
        return {}
    locations = [] if spec is None else list(spec.submodule_search_locations or [spec.origin or ""])
    root = os.path.dirname(locations[0]) if locations else ""
    # Installed packages are found without, and should not come before the standard library.
    if not root or os.path.basename(root) in {"site-packages", "dist-packages"}:
        return {}
    return {"pythonpath": glob.escape(os.path.abspath(root))}


def _importable_variables(module: ModuleType) -> Mapping[str, object]:
    """Return the variables of a module that it also has when it is imported rather than run."""
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
    except (TypeError, ValueError):  # there is one without a default; it has no signature
        return False
    return True


def _dashed(options: Mapping[str, object]) -> dict[str, object]:
    """Return options under the names that uWSGI gives them."""
    return {name.replace("_", "-"): value for name, value in options.items()}


def _is_on(value: object) -> bool:
    """Return whether an option's value puts it on the command line. 0 and the empty string do."""
    return value is not None and value is not False


def _values(value: object) -> list[object]:
    """Return the values that an option puts on the command line, each with the option's name."""
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if _is_on(item)]


def _spell(options: Mapping[str, object]) -> Iterator[str]:
    """Yield options as arguments, with ``=``: getopt takes an optional value in no other form."""
    for name, value in options.items():
        for item in _values(value):
            yield f"--{name}" if item is True else f"--{name}={item}"
