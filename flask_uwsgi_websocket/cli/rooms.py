"""The commands of ``flask websocket`` for rooms: publish, list rooms and members, close connections."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, NoReturn

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from ..exceptions import BrokerUnavailable
from ..loops.current import wait_for
from ..rooms.brokers.memory import MemoryBroker
from ..rooms.exchange import exchange_of
from ..rooms.rooms import Room, Rooms, room_named, user_room

#: The commands. The group ``flask websocket`` takes them.
rooms_cli = AppGroup()


@rooms_cli.command("publish")
@click.argument("room", required=False)
@click.argument("message", required=False)
@click.option("--user", metavar="ID", help="Publish to all connections of a user, in place of ROOM.")
@click.option("--binary", is_flag=True, help="Publish standard input as a binary message.")
@click.option("--json", "is_json", is_flag=True, help="Publish the message only if it is JSON.")
def publish(room: str | None, message: str | None, user: str | None, binary: bool, is_json: bool) -> None:
    """Publish MESSAGE to all members of ROOM. Without MESSAGE, or with "-", the message is standard input.

    ROOM is "chat:lobby" for the room "lobby" of the blueprint "chat", otherwise the name of a room of the app.
    """
    if user is not None:
        if message is not None:
            raise click.UsageError("--user takes the place of ROOM: name one of them.")
        room, message = None, room
    if message == "-":
        message = None
    if binary and message is not None:
        raise click.UsageError("--binary publishes standard input: leave MESSAGE out.")
    with _explained():
        target = _room(room, user)
        payload = _read_input(binary) if message is None else message
        if is_json:
            _check_json(payload)
        target.publish(payload)


@rooms_cli.command("rooms")
def list_rooms() -> None:
    """List the rooms that have members, with the numbers of members and of workers. The largest room comes first."""
    with _explained():
        answers = _ask(None)
    rooms = [room for answer in answers for room in answer["rooms"]]
    names = {room["key"]: room["name"] for room in rooms}
    members: Counter[str] = Counter()
    for room in rooms:
        members[room["key"]] += room["count"]
    workers = Counter(room["key"] for room in rooms)
    keys = sorted(names, key=lambda key: (-members[key], names[key]))
    _show_table(
        ["ROOM", "MEMBERS", "WORKERS"], [[names[key], f"{members[key]:,}", f"{workers[key]:,}"] for key in keys]
    )
    if not rooms:
        click.echo("No room has members.")
    _note_rest(answers, len(rooms))


@rooms_cli.command("members")
@click.argument("room", required=False)
@click.option("--user", metavar="ID", help="List all connections of a user, in place of ROOM.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def list_members(room: str | None, user: str | None, is_json: bool) -> None:
    """List the members of ROOM: of a room with presence, who is there, since when, and what each says of itself.
    Otherwise the connections, with the process ids of their workers.

    ROOM is "chat:lobby" for the room "lobby" of the blueprint "chat", otherwise the name of a room of the app.
    """
    if room is not None and user is not None:
        raise click.UsageError("--user takes the place of ROOM: name one of them.")
    with _explained():
        target = _room(room, user)
        if target.has_presence:
            _list_present(target, is_json)
            return
        answers = _ask(target.key)
    members = [{**member, "pid": answer["pid"]} for answer in answers for member in answer["members"]]
    if is_json:
        click.echo(json.dumps(members, indent=2))
    elif members:
        rows = [[each["id"], each["user"] or "-", each["address"] or "-", str(each["pid"])] for each in members]
        _show_table(["ID", "USER", "ADDRESS", "WORKER"], rows)
    else:
        click.echo("The room has no members.")
    _note_rest(answers, len(members))


def _list_present(room: Room, is_json: bool) -> None:
    """Print the members of a room with presence."""
    members = room.members()
    if is_json:
        click.echo(json.dumps([asdict(member) for member in members], indent=2))
    elif members:
        times = (datetime.fromtimestamp(member.since, timezone.utc) for member in members)
        rows = [
            [
                each.id,
                time.strftime("%Y-%m-%d %H:%M:%S UTC"),
                "-" if each.info is None else this_app().json.dumps(each.info),
            ]
            for each, time in zip(members, times, strict=True)
        ]
        _show_table(["MEMBER", "SINCE", "INFO"], rows)
    else:
        click.echo("The room has no members.")


@rooms_cli.command("close")
@click.argument("room", required=False)
@click.option("--user", metavar="ID", help="Close only the connections of a user: those in ROOM, or all without ROOM.")
@click.option("--code", default=1000, show_default=True, help="The close code.")
@click.option("--reason", default="", help="The reason, at most 123 bytes.")
def close(room: str | None, user: str | None, code: int, reason: str) -> None:
    """Close the connections of all members of ROOM.

    ROOM is "chat:lobby" for the room "lobby" of the blueprint "chat", otherwise the name of a room of the app.
    """
    with _explained():
        if room is None:
            _room(None, user).close(code, reason)
        else:
            _room(room, None).close(code, reason, user=user)


def this_app() -> Flask:
    """Return the app for which the command runs."""
    return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]


def _room(name: str | None, user: str | None) -> Room:
    """Return the room with a name, or without a name the room of a user."""
    if name is not None:
        return room_named(this_app(), name)
    if user is None:
        raise click.UsageError("Name a room, or a user by --user.")
    return user_room(user, Rooms("", apps=[this_app()]))


@contextmanager
def _explained() -> Iterator[None]:
    """Exit with a sentence on an error. Also exit when no message of this process can reach another one."""
    try:
        if isinstance(exchange_of(this_app()).broker(), MemoryBroker):
            raise click.ClickException(
                'WEBSOCKET_BROKER = "memory://" carries messages within one process, so no command reaches the server: '
                'set another broker for both, such as WEBSOCKET_BROKER = "local:///run/chat/rooms".'
            )
        yield
    except (BrokerUnavailable, RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _ask(key: str | None) -> list[dict[str, Any]]:
    exchange = exchange_of(this_app())
    # This explains at once what is wrong. The question itself would wait for a broker that comes back.
    exchange.broker().subscribe(()).close()
    return wait_for(lambda loop: exchange.ask(key, loop))


def _read_input(binary: bool) -> str | bytes:
    """Return standard input as one message."""
    data = sys.stdin.buffer.read()
    if binary:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise click.ClickException(f"standard input is not UTF-8: {error}. Publish bytes by --binary.") from None


def _check_json(payload: str | bytes) -> None:
    """Check that a message is JSON, by RFC 8259: Python would also take NaN and Infinity."""
    try:
        json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"the message is not JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


def _show_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns below their titles. Print nothing when there are no rows."""
    if not rows:
        return
    table = [[_escape(cell) for cell in row] for row in (titles, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _escape(text: str) -> str:
    """Escape what a terminal would not print: clients may choose the names of rooms."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _note_rest(answers: Sequence[dict[str, Any]], listed: int) -> None:
    """Report on standard error what the answers count and do not list."""
    if rest := sum(answer["count"] for answer in answers) - listed:
        click.echo(f"{rest:,} more are not listed.", err=True)
