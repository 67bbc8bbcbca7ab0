"""The bells of a log: Unix datagram sockets, on which publishers ring for the processes that wait for messages.

A ring is a byte without meaning, and harmless if lost: a reader also looks into the log once a second.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import closing, suppress
from pathlib import Path

from ...exceptions import BrokerUnavailable
from ...loops.base import allocate_lock
from .local_directory import explained

#: Nanoseconds for which the time of a directory may be that of another change: the clock of file systems is coarse.
TICK = 100_000_000

_RING = b"\0"


class Bell:
    """A bell that this process waits for.

    :param path: the directory of the bells.
    """

    def __init__(self, path: Path) -> None:
        name = secrets.token_urlsafe(6)
        self._path = path / name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with explained(path):
                # It appears among the bells only when it can be rung: one that cannot is taken for dead.
                made = path.parent / name
                self._socket.bind(os.fspath(made))
                made.rename(self._path)
                self._ringer = _connect(self._path)
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self._descriptor = self._socket.fileno()

    def fileno(self) -> int:
        """Return the descriptor that is readable when it has rung."""
        return self._descriptor

    def take(self, *, all_rings: bool) -> None:
        """Take one ring, if there is one; or all, to silence it."""
        with suppress(BlockingIOError):
            os.read(self._descriptor, 1)
            while all_rings:
                os.read(self._descriptor, 1)

    def ring(self) -> None:
        """Ring it."""
        with suppress(OSError):  # it is rung already, or closed
            self._ringer.send(_RING)

    def check(self) -> None:
        """Check that publishers can find it.

        :raises BrokerUnavailable: when it was deleted.
        """
        if not os.path.exists(self._path):
            raise BrokerUnavailable(f"{self._path} was deleted. Subscribe again.")

    def close(self) -> None:
        """Remove the bell."""
        with suppress(OSError):
            self._path.unlink()
        self._ringer.close()
        self._socket.close()


class Bells:
    """All bells of a log, as a publisher sees them.

    Each has a socket of its own: the bytes that a process does not take count against the socket that they come from.

    :param path: the directory of the bells.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with explained(path):
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock = allocate_lock()
        self._sockets: dict[str, socket.socket] = {}
        self._changed = 0  # when the directory was changed, in nanoseconds; 0 if the sockets may not be all

    def check(self) -> int:
        """Check that this log is in use, and return when its bells have changed, in nanoseconds.

        :raises BrokerUnavailable: when another log replaces it.
        """
        status = os.fstat(self._directory)
        if status.st_nlink == 0:
            raise BrokerUnavailable(f"{self._path} was deleted or replaced. Open the broker again.")
        return status.st_mtime_ns

    def ring(self) -> int:
        """Ring all bells, and return how many there are.

        :raises BrokerUnavailable: when another log replaces this one.
        """
        with self._lock:
            changed = self.check()
            if changed != self._changed:
                with explained(self._path):
                    self._list(changed)
            for name, ringer in list(self._sockets.items()):
                try:
                    os.write(ringer.fileno(), _RING)  # cheaper than the send() of gevent
                except ConnectionError:
                    self._forget(name)
                except OSError:  # it is rung already, or there is no memory for a ring
                    pass
            return len(self._sockets)

    def _list(self, changed: int) -> None:
        """Connect to new bells, and forget those that are gone."""
        names = set(os.listdir(self._path))
        for name in self._sockets.keys() - names:
            self._sockets.pop(name).close()
        for name in names - self._sockets.keys():
            try:
                self._sockets[name] = _connect(self._path / name)
            except FileNotFoundError:
                pass
            except ConnectionRefusedError:
                self._forget(name)
        self._changed = changed if time.time_ns() - changed > TICK else 0

    def _forget(self, name: str) -> None:
        """Remove the bell of a process that has ended."""
        if ringer := self._sockets.pop(name, None):
            ringer.close()
        with suppress(OSError):
            (self._path / name).unlink()

    def close(self) -> None:
        """Close the sockets, when nobody uses them any more."""
        while self._sockets:
            self._sockets.popitem()[1].close()
        os.close(self._directory)


def ring_all(path: Path) -> None:
    """Ring all bells in a directory once."""
    with closing(Bells(path)) as bells:
        bells.ring()


def _connect(path: Path) -> socket.socket:
    ringer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        ringer.setblocking(False)
        ringer.connect(os.fspath(path))
    except BaseException:
        ringer.close()
        raise
    return ringer
