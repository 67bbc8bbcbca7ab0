"""The contract of the channel's two twins, and the part of the transport."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib import import_module
from itertools import product
from math import inf
from typing import Any

import pytest

from flask_uwsgi_websocket.connection import channel as pure
from flask_uwsgi_websocket.connection import transport
from flask_uwsgi_websocket.connection.channel import Channel
from support.paths import ROOT

PATH = ROOT / "flask_uwsgi_websocket/connection/_channel.pyx"
SOURCE = PATH.read_text().partition("cdef class Channel:")[2]
DECLARATIONS = PATH.with_suffix(".pxd").read_text().partition("cdef class Channel:")[2]

#: The attributes that the compiled twin shares with the transport.
ATTRIBUTES = {
    name
    for line in re.findall(r"^    cdef (?:public|readonly) (.*)", DECLARATIONS, re.MULTILINE)
    for name in re.sub(r"^(?:long long|\w+) ", "", line).replace(" ", "").split(",")
}

#: The methods of the compiled twin, all of its functions, and the functions that it calls.
METHODS = set(re.findall(r"^    def ([a-z]\w*)\(", SOURCE, re.MULTILINE))
OWN = METHODS | set(re.findall(r"^    cdef [\w ]+ (\w+)\(", SOURCE, re.MULTILINE))
CALLED = set(re.findall(r"\bself\.(\w+)\(", SOURCE))


TWINS: list[Any] = [pure]
with suppress(ImportError):  # no compiler
    TWINS.append(import_module("flask_uwsgi_websocket.connection._channel"))
both_twins = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__.rpartition(".")[2])


def left_to_the_transport() -> set[str]:
    """Return the methods that the pure-Python twin only declares."""
    names = (name for name, member in vars(Channel).items() if callable(member))
    return {name for name in names if "NotImplementedError" in getattr(Channel, name).__code__.co_names}


def test_both_twins_share_the_same_attributes_with_the_transport() -> None:
    assert set(Channel.__annotations__) == ATTRIBUTES


def test_both_twins_have_the_same_methods() -> None:
    declared = {name for name, member in vars(Channel).items() if callable(member) and not name.startswith("_")}
    assert declared - left_to_the_transport() == METHODS


def test_the_contract_declares_each_method_of_the_transport_that_the_compiled_twin_calls() -> None:
    assert left_to_the_transport() == CALLED - OWN


def test_the_transport_implements_every_method_that_the_twins_leave_to_it() -> None:
    assert left_to_the_transport() <= vars(transport.Transport).keys()


def channel_of(twin: Any, accepted: bool, is_receiving: bool, is_over: bool, outbox: bytes, due: float) -> Any:
    channel = twin.Channel()
    channel.accepted, channel.is_receiving, channel.is_over = accepted, is_receiving, is_over
    channel.outbox, channel.due = bytearray(outbox), due
    return channel


@both_twins
def test_a_connection_needs_no_tick_only_while_it_receives_with_no_output_and_nothing_due(twin: Any) -> None:
    flags = False, True
    cases = product(flags, flags, flags, (b"", b"x"), (-inf, 99.9, 100.0, 100.1, inf))
    connections = {channel_of(twin, *case): case for case in cases}
    idle = {(True, True, False, b"", due) for due in (100.1, inf)}
    assert twin.find_due(connections, 100.0) == [case for case in connections.values() if case not in idle]


@both_twins
def test_what_is_looked_at_is_a_dictionary_of_channels(twin: Any) -> None:
    assert twin.find_due({}, 0.0) == []
    for wrong in [None, [twin.Channel()], {object(): 1}]:
        with pytest.raises((TypeError, AttributeError)):
            twin.find_due(wrong, 0.0)
