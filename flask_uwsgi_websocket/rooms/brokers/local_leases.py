"""The leases of rosters in a log: locked files. The kernel drops the lock when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from ...loops.base import allocate_lock
from .local_directory import explained


class LeaseFile:
    """A lease of this process. A forked child does not have it, and does not keep it alive.

    :param path: the directory of the leases.
    :raises BrokerUnavailable: when it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        #: Its name, which is used once.
        self.owner = secrets.token_urlsafe(9)
        self.path = path / self.owner
        made = path.parent / self.owner
        with explained(path), _changing:
            self._descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # It appears among the leases only when it is locked: one that is not is taken for dead.
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                made.rename(self.path)
            except BaseException:
                os.close(self._descriptor)
                raise
            _leases.add(self)

    def is_held(self) -> bool:
        """Return whether other processes find it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), self.path.lstat())
        return False

    def close(self) -> None:
        """Give it up. The file stays, so that other processes notice. Does nothing in a forked child."""
        with _changing:
            if self in _leases:
                _leases.remove(self)
                os.close(self._descriptor)


def is_dead(path: Path) -> bool:
    """Return whether no process holds a lease."""
    with explained(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that several may look at once
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True


# The lock belongs to all descriptors of the file together, also those that a child inherits.
_leases: set[LeaseFile] = set()
_changing = allocate_lock()  # guards _leases: each open descriptor is there, at any fork


def _drop_all() -> None:
    while _leases:
        os.close(_leases.pop()._descriptor)
    _let_go()


def _let_go() -> None:
    if _changing.locked():  # not with --py-call-osafterfork of uWSGI, which announces only the end of a fork
        _changing.release()


os.register_at_fork(before=_changing.acquire, after_in_parent=_let_go, after_in_child=_drop_all)
