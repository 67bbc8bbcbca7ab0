"""The broker of an app, by its setting ``WEBSOCKET_BROKER``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flask import Flask

from ..._uwsgi import uwsgi
from ...exceptions import BrokerUnavailable
from ...servers.gunicorn import gunicorn_worker
from .base import Broker
from .memory import MemoryBroker

#: Where directories of local brokers are made: in memory, if the system has such a place. Their paths must be short.
_PLACES = (Path("/dev/shm"), Path("/tmp"))

#: How addresses begin that :class:`.RedisBroker` takes.
REDIS_SCHEMES = frozenset({"redis", "rediss", "unix"})


def scheme_of(setting: object) -> str:
    """Return how the address of a broker begins; "auto" for itself, and nothing for a function."""
    return setting.partition("://")[0] if isinstance(setting, str) else ""


def check_address(setting: Any) -> None:
    """Check the address of a broker before workers are forked, and import what it needs.

    :raises RuntimeError: when the broker needs a package that is not installed.
    :raises ValueError: when the address is wrong.
    """
    if scheme_of(setting) in REDIS_SCHEMES:
        from .redis import RedisBroker

        RedisBroker(setting).close()


def make_broker(setting: str | Callable[[], Broker], app: Flask, *, is_serving: bool) -> Broker:
    """Return the broker of *app* in this process. It opens nothing yet.

    :param setting: the value of ``WEBSOCKET_BROKER``.
    :param is_serving: whether this process serves requests of the app; otherwise it only publishes.
    :raises BrokerUnavailable: when the setting is "auto", and this process cannot find the one that serves the app.
    :raises RuntimeError: when the broker needs a package that is not installed.
    """
    if not isinstance(setting, str):
        return setting()
    if setting == "auto":
        return _automatic(app, is_serving)
    scheme = scheme_of(setting)
    if scheme == "memory":
        return MemoryBroker()
    if scheme == "local":
        from .local import LocalBroker

        return LocalBroker(local_directory(setting))
    from .redis import RedisBroker

    return RedisBroker(setting)


def local_directory(setting: str) -> Path:
    """Return the directory of a local broker, by its address such as ``local:///run/chat/rooms``."""
    address = urlsplit(setting)
    return Path(unquote(address.netloc + address.path))


def _automatic(app: Flask, is_serving: bool) -> Broker:
    """Return the broker for "auto": memory for a single process, else local."""
    server = _server_process()
    if server is None and (is_serving or app.testing):
        return MemoryBroker()

    from .local import LocalBroker
    from .local_directory import remove

    common = _common_path(app)
    if server is not None:
        directory = common.with_name(f"{common.name}-{server}")
        for each in common.parent.glob(f"{_prefix()}*"):
            if each != directory and not _is_running(each.name.rpartition("-")[2]):
                with suppress(BrokerUnavailable):  # it is another user's
                    remove(each)
        return LocalBroker(directory)
    found = [each for each in common.parent.glob(f"{common.name}-*") if _is_in_use(each)]
    if len(found) == 1:
        return LocalBroker(found[0])
    problem = "several servers serve the app" if found else "no server with several workers serves the app"
    raise BrokerUnavailable(
        f'{problem}, so WEBSOCKET_BROKER = "auto" cannot find the one to publish to: set the same address in both, '
        'such as WEBSOCKET_BROKER = "local:///run/chat/rooms"'
    )


def _is_running(server: str) -> bool:
    """Return whether a server runs. While it reloads, it may have no worker that uses its directory.

    :param server: what :func:`_server_process` has returned in its workers.
    """
    for exists in (os.kill, os.killpg):  # without a master, it is a group of processes
        with suppress(ProcessLookupError, ValueError, OverflowError):
            with suppress(PermissionError):  # then it exists, too
                exists(int(server), 0)
            return True
    return False


def _is_in_use(directory: Path) -> bool:
    """Return whether the directory is the one of a running server of this user."""
    from .local_directory import is_in_use

    try:
        return is_in_use(directory)
    except BrokerUnavailable:  # it is another user's
        return False


def _server_process() -> int | None:
    """Return the id of the process whose workers share a broker; None when this process is no worker of several."""
    if uwsgi is not None and uwsgi.worker_id() > 0:
        return (uwsgi.masterpid() or os.getpgrp()) if uwsgi.numproc > 1 else None
    return None if gunicorn_worker() is None else os.getppid()


def _common_path(app: Flask) -> Path:
    """Return how the directories of local brokers of an app begin; the id of the server's process follows."""
    identity = f"{app.name} {os.path.realpath(app.root_path)}"
    place = next((path for path in _PLACES if os.access(path, os.W_OK | os.X_OK)), _PLACES[-1])
    return place / f"{_prefix()}{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def _prefix() -> str:
    return f"flask-uwsgi-websocket-{os.getuid()}-"
