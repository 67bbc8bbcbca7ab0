"""The commands ``flask uwsgi`` and ``flask websocket``, and a ``flask routes`` that marks WebSocket routes."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import click
from flask import Flask, current_app
from flask.cli import AppGroup, ScriptInfo, pass_script_info, with_appcontext
from flask.cli import routes_command as flasks_routes_command
from flask.helpers import get_debug_flag
from werkzeug.routing import Map

from .._uwsgi import number_option
from ..dispatch import route_parks
from ..exceptions import AsyncioNotAvailable, UwsgiNotFound
from ..protocol.speedups import FALLBACK
from ..state import state_of
from .deployment import FILES, configuration
from .doctor import all_routes_park, diagnose, diagnose_broker, read_ini
from .rooms import rooms_cli, this_app
from .runner import (
    check_literal,
    debug_requested,
    exec_uwsgi,
    find_uwsgi,
    locate_app,
    read_arguments,
    uwsgi_arguments,
    with_defaults,
)

#: The uWSGI option that a mode needs besides its own.
_COMPANIONS = {"gevent": "gevent-early-monkey-patch", "asyncio": "greenlet"}

#: The callable with which uWSGI loads the app that the ``flask`` command has found.
LOADER = f"{__package__}.wsgi:load_app()"

uwsgi_cli = AppGroup("uwsgi", help="Serve the app with uWSGI.")


@uwsgi_cli.command("run")
@click.option("--host", "-h", default="localhost", help="The name or address to listen on.", show_default=True)
@click.option("--port", "-p", default=5000, help="The port to listen on.", show_default=True)
@click.option("--threads", type=int, help="The number of requests that a worker serves at once, in threads.")
@click.option("--gevent", type=int, help="The number of requests that a worker serves at once, in greenlets.")
@click.option("--asyncio", type=int, help="The number of requests that a worker serves at once, in tasks.")
@click.option("--processes", type=int, help="The number of workers.")
@click.option("--reload/--no-reload", default=None, help="Reload when a module changes; the default in debug mode.")
@click.option("--debug/--no-debug", default=None, help="Set debug mode.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- UWSGI'S OPTIONS]")
@pass_script_info
def run(
    info: ScriptInfo,
    /,
    host: str,
    port: int,
    processes: int | None,
    reload: bool | None,
    debug: bool | None,
    arguments: tuple[str, ...],
    **modes: int | None,
) -> None:
    """Serve the app with uWSGI, which replaces this process.

    The app's extension sets the mode, unless an option sets another. Arguments after -- go to uWSGI unchanged and
    override all others: flask uwsgi run -- --http-socket 127.0.0.1:8000
    """
    if len(chosen := {mode: cores for mode, cores in modes.items() if cores is not None}) > 1:
        raise click.UsageError(f"A worker has one mode: choose one of {', '.join(f'--{mode}' for mode in chosen)}.")
    if debug is not None:
        os.environ["FLASK_DEBUG"] = "1" if debug else "0"  # as 'flask --debug' does
    debug = get_debug_flag() or debug_requested()
    if reload is None:
        reload = debug
    # These options count as chosen, and *arguments* spells them already.
    options: dict[str, Any] = dict.fromkeys(read_arguments(arguments), ())
    options.update(chosen, processes=processes)
    options.update((_COMPANIONS[mode], True) for mode in chosen if mode in _COMPANIONS)
    try:
        app, environment = _locate(info)
        options = {**with_defaults(options, state_of(current_app).run_options), "env": environment}
        command = uwsgi_arguments(app, binary=find_uwsgi(), host=host, port=port, reload=reload, options=options)
        exec_uwsgi([*command, *arguments], this_app(), debug)
    except (AsyncioNotAvailable, UwsgiNotFound, RuntimeError) as error:
        raise click.ClickException(str(error)) from None


@uwsgi_cli.command("config")
@click.argument("kind", type=click.Choice(list(FILES)))
@pass_script_info
def show_config(info: ScriptInfo, /, kind: str) -> None:
    """Print the configuration of nginx, uWSGI or systemd that serves the app from this directory."""
    mode = next((mode for mode in _COMPANIONS if mode in state_of(current_app).run_options), "threads")
    try:
        app, environment = _locate(info)
        if path := os.environ.get("PYTHONPATH"):
            environment.append("PYTHONPATH=" + os.pathsep.join(map(os.path.abspath, path.split(os.pathsep))))
        options = [*(("env", variable) for variable in environment), *locate_app(app).items()]
        host = (current_app.config["SERVER_NAME"] or "").partition(":")[0]
        click.echo(configuration(kind, mode, options, Path.cwd(), host or None), nl=False)
    except (UwsgiNotFound, RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _locate(info: ScriptInfo) -> tuple[Flask | str, list[str]]:
    """Return what uWSGI loads for the app of a ``flask`` command, and the environment variables that this needs."""
    if info.create_app is not None:  # the command is a project's own, and no variable names its app
        return this_app(), []
    path = info.app_import_path
    return LOADER, [check_literal(f"FLASK_APP={path}")] if path else []


@contextmanager
def _marked(url_map: Map) -> Iterator[None]:
    """Give the WebSocket rules the method ``WEBSOCKET`` for a while."""
    methods = [(rule, rule.methods) for rule in url_map.iter_rules() if rule.websocket]
    for rule, _ in methods:
        rule.methods = {"WEBSOCKET"}
    try:
        yield
    finally:
        for rule, before in methods:
            rule.methods = before


@with_appcontext
def _show_routes(**options: Any) -> None:
    with _marked(current_app.url_map):
        click.get_current_context().invoke(flasks_routes_command, **options)


#: Flask's ``flask routes``, with WebSocket routes marked. It is an entry point in ``flask.commands``.
routes_command = copy(flasks_routes_command)
routes_command.callback = _show_routes


websocket_cli = AppGroup(
    "websocket", help="Show WebSocket routes, rooms and counters, publish to rooms, and check uWSGI's options."
)
websocket_cli.commands.update(rooms_cli.commands)


@websocket_cli.command("routes")
def list_routes() -> None:
    """List the WebSocket routes, and mark those whose connections are parked."""
    rules = sorted((rule for rule in current_app.url_map.iter_rules() if rule.websocket), key=lambda rule: rule.rule)
    width = max((len(rule.rule) for rule in rules), default=0)
    for rule in rules:
        click.echo(f"{rule.rule:<{width}}  {rule.endpoint}" + "  (parked)" * route_parks(this_app(), rule.endpoint))
    if not rules:
        click.echo("The app has no WebSocket routes.")


@websocket_cli.command("doctor")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def doctor(config: Path) -> None:
    """Check CONFIG, an ini file of uWSGI, for options that harm WebSockets. Exit with 1 if there are any.

    The command also tries WEBSOCKET_BROKER, from this machine and as this user.
    """
    state = state_of(current_app)
    try:
        options = read_ini(config)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if FALLBACK:
        click.echo(f"The C extension is {FALLBACK}.")
    descriptors = number_option(options, "max-fd", 0) or None  # without max-fd, the service sets it, not this shell
    settings = state.settings(current_app.config)
    complaints = [
        *diagnose(options, settings, state.engines, descriptors, all_park=all_routes_park(this_app())),
        *diagnose_broker(options, settings, this_app()),
    ]
    for complaint in complaints:
        click.echo(f"- {complaint}")
    if complaints:
        raise SystemExit(1)
    click.echo(f"Nothing in {config} harms WebSockets.")


@websocket_cli.command("stats")
@click.argument("address")
def show_stats(address: str) -> None:
    """Show the counters of all workers, from uWSGI's stats server at ADDRESS (host:port, or a socket's path).

    uWSGI needs --stats ADDRESS, and metrics named websocket.open and so on.
    """
    try:
        metrics = json.loads(_read_all(address)).get("metrics", {})
    except (OSError, ValueError) as error:
        raise click.ClickException(f"uWSGI's stats server does not answer at {address}: {error}") from None
    counters = {name: metric["value"] for name, metric in metrics.items() if name.startswith("websocket.")}
    if not counters:
        raise click.ClickException("this uWSGI has no metrics of WebSockets: add the metrics in docs/observability.md")
    width = max(map(len, counters))
    for name, value in counters.items():
        click.echo(f"{name:<{width}}  {value:,}")


def _read_all(address: str) -> bytes:
    host, colon, port = address.rpartition(":")
    with socket.socket(socket.AF_INET if colon else socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect((host or "127.0.0.1", int(port)) if colon else address)
        with sock.makefile("rb") as file:
            return file.read()
