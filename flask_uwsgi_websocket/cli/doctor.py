"""Check uWSGI's options for settings that harm WebSockets.

The extension does this when uWSGI loads the app, and ``flask websocket doctor`` does it for an ini file. Only the
command tries the broker of the rooms, because that takes time.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flask import Flask

from .._uwsgi import number_option, option, option_values, uwsgi
from ..dispatch import route_parks
from ..exceptions import BrokerUnavailable
from ..loops.parking import IS_AVAILABLE
from ..rooms.brokers.choice import REDIS_SCHEMES, local_directory, make_broker, scheme_of
from ..rooms.envelope import encode_command
from ..rooms.feed import ALL_PROCESSES
from ..rooms.outbox import Direct
from ..settings import Settings
from ..worker.admission import Capacity, descriptors_for, most_by_cores, most_by_descriptors
from .runner import CLOSE_HEADER, GREENLET_TREE, KEEPALIVE_OPTIONS

#: uWSGI's options by their names: a value, or a list when an option is given several times; True for a flag.
Options = Mapping[str, Any]

#: uWSGI's defaults in seconds.
_HTTP_TIMEOUT = 60
_MERCY = 60

#: What to add when the option of a loop engine is missing.
_REMEDIES = {
    "gevent": "gevent = 100 and gevent-early-monkey-patch = true",
    "asyncio": "asyncio = 100",
    "greenlet": "greenlet = true",
}


def diagnose(
    options: Options,
    settings: Settings,
    engines: Collection[str],
    descriptors: int | None = None,
    *,
    all_park: bool = False,
) -> Iterator[str]:
    """Yield a sentence for each option that harms WebSockets, and for each missing option that they need.

    :param options: the options of uWSGI.
    :param settings: the settings of the app.
    :param engines: the options for loop engines that the extension needs, such as ``gevent``.
    :param descriptors: how many files each worker may open, or None if unknown.
    :param all_park: whether all WebSocket routes are parked views, as far as that is known.
    """
    all_park = all_park and _can_park(options)
    if missing := set(engines) - options.keys():
        remedy = " and ".join(_REMEDIES[engine] for engine in sorted(missing))
        extension = "GeventWebSocket" if "gevent" in engines else "AsyncioWebSocket"
        verb = "is" if len(missing) == 1 else "are"
        yield f"{' and '.join(sorted(missing))} {verb} missing, which {extension} needs: add {remedy}."
    if "https-socket" in options:
        yield (
            "https-socket keeps TLS to itself and cannot serve WebSockets: use https, or a proxy that terminates TLS."
        )
    yield from _diagnose_http(options)
    yield from _diagnose_router(options, settings)
    if "harakiri" in options:
        yield (
            f"harakiri = {option(options, 'harakiri')} kills a worker with all its connections as soon as one request "
            "has lasted so long, which may be that of a WebSocket: leave it out."
        )
    if "max-requests" in options:
        yield (
            f"max-requests = {option(options, 'max-requests')} ends a worker and closes all its connections, also "
            "parked ones, after that many requests. Each WebSocket counts as one request."
        )
    mercy = number_option(options, "worker-reload-mercy", _MERCY)
    # In development, a fast reload matters more.
    if mercy < settings.shutdown_timeout + 2 and "python-autoreload" not in options:
        yield (
            f"worker-reload-mercy = {mercy} leaves handlers less time to end than WEBSOCKET_SHUTDOWN_TIMEOUT "
            f"({settings.shutdown_timeout:g} s): make it two seconds longer than that."
        )
    if "master" not in options:
        yield "master is missing: uWSGI cannot reload, and does not replace a worker that dies."
    yield from _diagnose_concurrency(options, all_park)
    yield from _diagnose_rooms(options, settings)
    if descriptors is not None:
        yield from _diagnose_descriptors(options, settings, descriptors, all_park)


def all_routes_park(app: Flask) -> bool:
    """Return whether the app has WebSocket routes so far, and all of them are parked views."""
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules() if rule.websocket}
    return bool(endpoints) and all(route_parks(app, endpoint) for endpoint in endpoints)


def _can_park(options: Options) -> bool:
    """Return whether uWSGI's workers park views. Without a loop engine, this needs Python's threads."""
    has_threads = number_option(options, "threads", 1) > 1 or "enable-threads" in options
    has_loop = bool(options.keys() & {"gevent", "asyncio"})
    return IS_AVAILABLE and (has_loop or (has_threads and "async" not in options))


def _diagnose_http(options: Options) -> Iterator[str]:
    if "http11-socket" in options and options.keys() & {"gevent", "asyncio"}:
        yield (
            "http11-socket answers only the first request of each connection in gevent and asyncio: use http-socket."
        )
    headers = [value.lower().replace(" ", "") for value in map(str, option_values(options, "add-header"))]
    is_http = options.keys() & {"http", "https", "http-socket", "https-socket"}
    if is_http and "connection:close" not in headers and not options.keys() & KEEPALIVE_OPTIONS:
        yield (
            "uWSGI closes a connection after each response without saying so, and clients that reuse their connections "
            f"lose requests: add add-header = {CLOSE_HEADER}."
        )
    for address in map(str, option_values(options, "http-socket")):
        if address.rpartition(":")[0] in {"", "0.0.0.0", "[::]"}:
            yield (
                f"http-socket = {address} lets any client occupy a core for hours by sending its headers slowly: "
                "listen on 127.0.0.1 behind a proxy such as nginx, or on an address that only the proxy can reach."
            )


def _diagnose_router(options: Options, settings: Settings) -> Iterator[str]:
    if not options.keys() & {"http", "https"}:
        return
    if not options.keys() & {"http-websockets", "http-raw-body"}:
        yield "http-websockets is missing: uWSGI's router drops the messages of WebSocket clients."
    timeout = number_option(options, "http-timeout", _HTTP_TIMEOUT)
    if settings.ping_interval is None:
        yield f"uWSGI's router ends connections that are silent for {timeout} s, and WEBSOCKET_PING_INTERVAL is None."
    elif timeout <= settings.ping_interval:
        yield (
            f"http-timeout = {timeout} ends silent connections before their next ping, as WEBSOCKET_PING_INTERVAL is "
            f"{settings.ping_interval:g} s: make it longer than the interval."
        )


def _diagnose_concurrency(options: Options, all_park: bool) -> Iterator[str]:
    if "gevent" in options:
        environ = {**os.environ, **dict(value.partition("=")[::2] for value in map(str, option_values(options, "env")))}
        if sys.version_info >= (3, 15) and environ.get(GREENLET_TREE) != "0":
            yield f"on Python 3.15, uWSGI with gevent crashes at its start: add env = {GREENLET_TREE}=0."
        if not options.keys() & {"gevent-early-monkey-patch", "gevent-monkey-patch"} and not _is_patched():
            yield (
                "gevent-early-monkey-patch is missing: a call that waits in the standard library, such as a query of a "
                "database, blocks all connections."
            )
    elif "asyncio" not in options and "async" in options:
        yield "async without gevent or asyncio: a WebSocket blocks all other requests of its worker. Use gevent."
    elif "asyncio" not in options and not options.keys() & {"threads", "enable-threads"}:
        yield (
            "enable-threads is missing: the housekeeper needs a thread. Without it, there are no pings and deadlines, "
            "and no views are parked."
        )
    if _cores(options) < 2 and not all_park:
        yield (
            "each worker has one core: one WebSocket that is not parked takes it and blocks all other requests. Use "
            "threads or gevent."
        )


def _diagnose_descriptors(options: Options, settings: Settings, descriptors: int, all_park: bool) -> Iterator[str]:
    cores = _cores(options)
    own = Capacity(cores, descriptors_per_core=0 if options.keys() & {"gevent", "asyncio"} else 1).own_descriptors
    room = most_by_descriptors(descriptors, own, takes_core=not all_park)
    wanted = settings.max_connections or most_by_cores(cores)
    if room < wanted:
        which = "WebSockets" if all_park else "WebSockets that are not parked"
        needed = descriptors_for(wanted, own, takes_core=not all_park)
        yield (
            f"this process may open {descriptors} files, which is enough for {room} {which}, and each worker should "
            f"take {wanted}: allow {needed} by ulimit -n, or LimitNOFILE in systemd's unit."
        )


def _diagnose_rooms(options: Options, settings: Settings) -> Iterator[str]:
    workers = max(number_option(options, name, 1) for name in ("processes", "workers"))
    if scheme_of(settings.broker) == "memory" and workers > 1:
        yield (
            f'WEBSOCKET_BROKER = "memory://" carries no messages between the {workers} workers, so members miss those '
            'that another worker publishes: use "auto".'
        )
    if _lacks_redis(settings):
        yield 'WEBSOCKET_BROKER needs redis-py: pip install "Flask-uWSGI-WebSocket[redis]".'


def _lacks_redis(settings: Settings) -> bool:
    return scheme_of(settings.broker) in REDIS_SCHEMES and find_spec("redis") is None


def diagnose_broker(options: Options, settings: Settings, app: Flask) -> Iterator[str]:
    """Yield a sentence for each reason why the workers cannot use the broker of the rooms.

    It subscribes and publishes as a worker does. It does not try "auto", whose directory the server makes.

    :param options: the options of uWSGI.
    :param settings: the settings of the app.
    """
    if settings.broker == "auto" or _lacks_redis(settings):
        return
    if scheme_of(settings.broker) == "local":
        directory, user = local_directory(settings.broker), _user(options)
        if user != os.geteuid() or not os.path.lexists(directory):
            yield from _diagnose_directory(directory, user)
            return  # the broker would make the directory, as this user
    try:
        with closing(make_broker(settings.broker, app, is_serving=False)) as broker:
            broker.subscribe(()).close()
            # No worker knows this command.
            Direct(lambda: broker).put(ALL_PROCESSES, encode_command("nothing"))
    except (BrokerUnavailable, ValueError) as error:
        yield f"the broker of the rooms cannot be used: {error}"


def _user(options: Options) -> int:
    """Return the id of the user as whom the workers run: that of this process, unless uWSGI changes it."""
    name = str(option(options, "uid") or os.geteuid())
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return int(name) if name.isdecimal() else os.geteuid()


def _diagnose_directory(directory: Path, user: int) -> Iterator[str]:
    """Check the directory of a local broker without making it, for the user with this id."""
    if not os.path.lexists(directory):
        if not os.path.isdir(directory.parent):
            yield f"WEBSOCKET_BROKER: the directory {directory.parent} does not exist. Make it, or choose another."
        elif user == os.geteuid() and not os.access(directory.parent, os.W_OK | os.X_OK, effective_ids=True):
            yield (
                f"WEBSOCKET_BROKER: user {user} may not make {directory}. Make it with mode 0700 for this user, or "
                "choose another directory."
            )
        return
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o077:
        yield (
            f"WEBSOCKET_BROKER: {directory} must be a directory of user {user}, as whom the workers run, with mode "
            f"0700. It belongs to user {status.st_uid} and has mode {stat.S_IMODE(status.st_mode):04o}."
        )


def _cores(options: Options) -> int:
    return max(number_option(options, name, 1) for name in ("gevent", "asyncio", "async", "threads"))


def _is_patched() -> bool:
    try:
        from gevent.monkey import is_module_patched
    except ImportError:
        return False
    return uwsgi is not None and bool(is_module_patched("socket"))


def read_ini(path: Path) -> Options:
    """Read the section ``[uwsgi]`` of a configuration file of uWSGI.

    :raises ValueError: when a line does not belong in an ini file.
    """
    options: dict[str, Any] = {}
    section = ""
    for number, line in enumerate(map(str.strip, path.read_text().splitlines()), 1):
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "uwsgi" and line and not line.startswith((";", "#")):
            name, equals, value = map(str.strip, line.partition("="))
            if not equals:
                raise ValueError(f"{path}, line {number}: an option is written name = value, not {line!r}")
            if value.lower() not in {"false", "0"}:
                options.setdefault(name, []).append(True if value.lower() == "true" else value)
    return options
