"""The directory of a local broker: who may use it, who uses it, and how it goes away.

Every process that uses the directory holds a shared ``flock`` on the file ``users``, which the kernel drops when the
process ends. A process that makes or replaces the log holds an exclusive one on the file ``setup``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...exceptions import BrokerUnavailable

#: Seconds to wait for a lock that another process holds.
LOCK_TIMEOUT = 5.0

#: Seconds of the first pause between two attempts to get a lock, and of the longest one: each pause doubles the last.
FIRST_PAUSE = 0.0002
LONGEST_PAUSE = 0.005

#: The most bytes of the path: the addresses of the sockets in the directory may have 103, and the names in it need 31.
MAX_PATH = 72

#: The names of directories of logs: one in use, one in the making, one on its way out.
LOG, NEW, OLD = "log-", "new-", "old-"

_REMEDIES = {
    errno.EACCES: "Choose a directory that this user may write to.",
    errno.EPERM: "Choose a directory that this user may write to.",
    errno.EROFS: "Choose a directory on a file system that is not mounted read-only, such as /dev/shm.",
    errno.ENOTDIR: "Choose a path whose parts are directories.",
    errno.ENOENT: "Make its parent directory, or start the server again if someone has deleted the directory.",
    errno.ENOSPC: "Free some space on its file system.",
    errno.EDQUOT: "Free some space in the quota of this user.",
    errno.EMFILE: "Raise the limit of open files of this process (ulimit -n).",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into :exc:`BrokerUnavailable`, with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "Choose another directory, on a tmpfs such as /dev/shm.")
        raise BrokerUnavailable(f"The local broker cannot use {path}: {error.strerror or error}. {remedy}") from error


def pauses() -> Iterator[float]:
    """Sleep before each attempt but the first one, until :data:`LOCK_TIMEOUT` is over; yield the seconds that passed.

    ``time.sleep()`` lets other greenlets run.
    """
    start = time.monotonic()
    pause = FIRST_PAUSE
    passed = 0.0
    yield passed
    while passed < LOCK_TIMEOUT:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
        passed = time.monotonic() - start
        yield passed


class Directory:
    """A directory that this process uses. Made with mode 0700 if it is missing.

    :param path: the directory; on a tmpfs, because the broker writes every message to it.
    :raises BrokerUnavailable: when it cannot be used, or others may use it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        excess = len(os.fsencode(self.path)) - MAX_PATH
        if excess > 0:
            raise BrokerUnavailable(
                f"The path {self.path} is {excess} bytes too long for Unix sockets in it. Choose a shorter one."
            )
        self._users = self._enter()

    def _enter(self) -> int:
        with explained(self.path):
            for _ in pauses():
                with suppress(FileExistsError):
                    self.path.mkdir(0o700)
                with suppress(FileNotFoundError, BlockingIOError):  # another process is removing it
                    _check(self.path)
                    return _lock(self.path / "users", fcntl.LOCK_SH)
        raise BrokerUnavailable(
            f"Another process is removing {self.path}, and has not finished for {LOCK_TIMEOUT:g} seconds. "
            "Continue or end that process."
        )

    @contextmanager
    def setup(self) -> Iterator[None]:
        """Be the only process that makes or replaces the log.

        :raises BrokerUnavailable: when another process does it for too long.
        """
        with explained(self.path):
            for _ in pauses():
                with suppress(BlockingIOError):
                    descriptor = _lock(self.path / "setup", fcntl.LOCK_EX)
                    break
            else:
                raise BrokerUnavailable(
                    f"Another process is making the log in {self.path}, and has not finished for {LOCK_TIMEOUT:g} "
                    "seconds. Continue or end that process."
                )
            try:
                yield
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor, too
                os.close(descriptor)

    def close(self) -> None:
        """Use the directory no longer."""
        # Not LOCK_UN: after a fork, the parent and its child share the lock, and it ends with the last descriptor.
        descriptor, self._users = self._users, -1
        if descriptor != -1:
            os.close(descriptor)


def is_in_use(path: Path) -> bool:
    """Return whether a process, this one included, has a local broker in a directory.

    :raises BrokerUnavailable: when *path* is something that no local broker of this user would use.
    """
    with explained(path):
        try:
            _check(path)
            os.close(_lock(path / "users", fcntl.LOCK_EX, create=False))
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
    return False


def remove(path: Path) -> None:
    """Remove the directory of a local broker, unless a process uses it.

    Files that are not the broker's stay, and then the directory stays, too.

    :raises BrokerUnavailable: when *path* is something that no local broker of this user would use.
    """
    with explained(path):
        try:
            _check(path)
            descriptor = _lock(path / "users", fcntl.LOCK_EX, create=False)
        except (FileNotFoundError, BlockingIOError):
            return
        try:
            for name in os.listdir(path):
                if name.startswith((LOG, NEW, OLD)):
                    shutil.rmtree(path / name)
            (path / "setup").unlink(missing_ok=True)
            (path / "users").unlink()
            path.rmdir()
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
        finally:
            os.close(descriptor)


def _check(path: Path) -> None:
    """Check that nobody else can put files or links into a directory."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise BrokerUnavailable(f"{path} is not a directory. The local broker needs one; choose another path.")
    if status.st_uid != os.geteuid():
        raise BrokerUnavailable(
            f"{path} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}. Run all processes "
            "of the application as one user, or choose another directory."
        )
    if status.st_mode & 0o077:
        raise BrokerUnavailable(
            f"Other users may use {path} (mode {stat.S_IMODE(status.st_mode):04o}), and so could read and write "
            "messages. Run chmod 700 on it if its content can be trusted, or choose another directory."
        )


def _lock(path: Path, kind: int, *, create: bool = True) -> int:
    """Open and lock a file without waiting, and return its descriptor.

    :raises BlockingIOError: when another process has locked it.
    :raises FileNotFoundError: when it was removed meanwhile, too.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            raise FileNotFoundError(errno.ENOENT, "replaced meanwhile", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
