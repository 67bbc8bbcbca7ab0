"""``flask websocket``: for operators."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import click
from flask import current_app
from flask.cli import AppGroup

from .doctor import diagnose, read_ini
from .state import state_of

websocket_cli = AppGroup("websocket", help="Look after WebSockets: routes, counters, uWSGI's options.")


@websocket_cli.command("routes")
def list_routes() -> None:
    """List the WebSocket routes."""
    rules = sorted((rule for rule in current_app.url_map.iter_rules() if rule.websocket), key=lambda rule: rule.rule)
    width = max((len(rule.rule) for rule in rules), default=0)
    for rule in rules:
        click.echo(f"{rule.rule:<{width}}  {rule.endpoint}")
    if not rules:
        click.echo("The app has no WebSocket routes.")


@websocket_cli.command("doctor")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def doctor(config: Path) -> None:
    """Say what in uWSGI's CONFIG, an ini file, will hurt WebSockets; exit with 1 if anything does."""
    state = state_of(current_app)
    try:
        options = read_ini(config)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    complaints = list(diagnose(options, state.settings(current_app.config), state.engines))
    for complaint in complaints:
        click.echo(f"- {complaint}")
    if complaints:
        raise SystemExit(1)
    click.echo(f"Nothing in {config} hurts.")


@websocket_cli.command("stats")
@click.argument("address")
def show_stats(address: str) -> None:
    """Show the counters of all workers, from uWSGI's stats server at ADDRESS (host:port, or a socket's path).

    uWSGI needs --stats ADDRESS, and metrics of the names websocket.open and so on.
    """
    try:
        metrics = json.loads(_read_all(address)).get("metrics", {})
    except (OSError, ValueError) as error:
        raise click.ClickException(f"uWSGI's stats server does not answer at {address}: {error}") from None
    counters = {name: metric["value"] for name, metric in metrics.items() if name.startswith("websocket.")}
    if not counters:
        raise click.ClickException("this uWSGI has no metrics of WebSockets: docs/observability.md has the options")
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
