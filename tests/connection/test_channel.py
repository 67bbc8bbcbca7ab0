"""The contract of the channel's two twins, and the part of the transport."""

from __future__ import annotations

import re

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
