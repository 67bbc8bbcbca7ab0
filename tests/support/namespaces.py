"""Commands with a file system of their own, and machines in a network that can be cut off."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


def mounting(options: str, directory: Path) -> list[str]:
    """Return the beginning of a command for which a directory is a tmpfs of its own."""
    script = 'mount -t tmpfs -o "$1,mode=700" tmpfs "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", options, str(directory)]


def entering(pid: int) -> list[str]:
    """Return the beginning of a command that sees the file systems of a process."""
    return ["nsenter", "--mount", "--target", str(pid)]


class Place(NamedTuple):
    """A machine: a network namespace.

    :param namespace: its name.
    :param address: where the tests reach it.
    :param cable: the end of its cable to the others, outside of the machine.
    :param switch: what connects the machines.
    """

    namespace: str
    address: str
    cable: str
    switch: str

    def command(self) -> list[str]:
        """Return the beginning of a command that runs on the machine."""
        return ["ip", "netns", "exec", self.namespace]

    def cut(self) -> None:
        """Cut it off from the others. No side is notified: packets are just lost. The tests still reach it."""
        _run("ip", "link", "set", self.cable, "nomaster")

    def mend(self) -> None:
        """Undo :meth:`cut`."""
        _run("ip", "link", "set", self.cable, "master", self.switch)


@contextmanager
def places(count: int) -> Iterator[tuple[str, Sequence[Place]]]:
    """Make machines, and yield this system's address in their network, and the machines."""
    pid = os.getpid()
    # Part of 198.18.0.0/15, which is for tests (RFC 2544): a network for the tests, and one between the machines.
    block = list(ipaddress.IPv4Network("198.19.0.0/16").subnets(new_prefix=26))[pid % 2**10]
    outside, inside = (list(subnet.hosts()) for subnet in block.subnets(new_prefix=27))
    switches = (f"r{pid}o", f"r{pid}i")
    machines = []
    try:
        for switch, (address, *_) in zip(switches, (outside, inside), strict=True):
            # With an Ethernet address of its own: otherwise it is that of a cable, and changes with the cables, so that
            # all machines lose it for some seconds when one is cut off.
            ethernet = "02:00:" + ":".join(f"{byte:02x}" for byte in address.packed)
            _run("ip", "link", "add", switch, "address", ethernet, "type", "bridge")
            _run("ip", "address", "add", f"{address}/27", "dev", switch)
            _run("ip", "link", "set", switch, "up")
        for number in range(1, count + 1):
            machine = Place(f"r{pid}m{number}", str(outside[number]), f"r{pid}i{number}", switches[1])
            _run("ip", "netns", "add", machine.namespace)
            machines.append(machine)
            _connect(machine.namespace, f"r{pid}o{number}", switches[0], f"{outside[number]}/27", "outside")
            _connect(machine.namespace, machine.cable, switches[1], f"{inside[number]}/27", "inside")
        yield str(inside[0]), machines
    finally:
        for machine in machines:
            subprocess.run(["ip", "netns", "delete", machine.namespace], check=False)
        for switch in switches:
            subprocess.run(["ip", "link", "delete", switch], check=False)


def _connect(namespace: str, cable: str, switch: str, address: str, name: str) -> None:
    """Put a cable between a switch and a machine, which then has an interface with this name and address."""
    _run("ip", "link", "add", cable, "type", "veth", "peer", "name", name, "netns", namespace)
    _run("ip", "link", "set", cable, "master", switch, "up")
    _run("ip", "-netns", namespace, "address", "add", address, "dev", name)
    _run("ip", "-netns", namespace, "link", "set", name, "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
