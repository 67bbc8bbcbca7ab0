"""The start-up block in a terminal: how uWSGI serves the application, its WebSocket routes, its address."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .._uwsgi import number_option, option
from ..protocol.speedups import FALLBACK

if TYPE_CHECKING:
    from flask import Flask

#: The most routes to show. Further routes are only counted.
ROUTES_SHOWN = 10

#: uWSGI's options for HTTP addresses, with the scheme of each. The address that clients should use comes first.
_HTTP_OPTIONS = {"https": "https", "http": "http", "http-socket": "http"}

#: Hosts that stand for all addresses of this machine.
_ALL_ADDRESSES = {"", "0.0.0.0", "[::]"}


class Address(NamedTuple):
    """The address of a server.

    :param scheme: ``http`` or ``https``.
    :param host: a name or an IP address, with the port.
    :param is_everywhere: whether the server listens on all addresses of this machine.
    """

    scheme: str
    host: str
    is_everywhere: bool


def describe(arguments: Sequence[str], options: Mapping[str, Any], app: Flask | None, debug: bool) -> str:
    """Return the start-up block.

    :param arguments: uWSGI's command line.
    :param options: the options on the command line.
    :param app: the application, if it is known.
    :param debug: whether the application runs in debug mode.
    """
    address = find_address(options)
    lines = [f" * Serving {'the application' if app is None else repr(app.name)} in uWSGI"]
    for title, texts in {
        "Mode": [_describe_mode(options)],
        "Workers": [str(_workers(options))],
        "C extension": [FALLBACK] if FALLBACK else [],
        "WebSockets": _describe_routes(app, address),
        "Debug": [_describe_debug(options, debug)],
        "Command": [shlex.join(arguments)],
        "Address": _describe_address(address),
    }.items():
        for text in texts:
            lines.append(f"   {title:<12}{text}")
            title = ""
    return "\n".join(lines)


def find_address(options: Mapping[str, Any]) -> Address | None:
    """Return the address under which browsers reach a server with these options, or None."""
    for name, scheme in _HTTP_OPTIONS.items():
        host, colon, port = (option(options, name) or "").partition(",")[0].rpartition(":")
        if colon:
            is_everywhere = host in _ALL_ADDRESSES
            return Address(scheme, f"{'localhost' if is_everywhere else host}:{port}", is_everywhere)
    return None


def _describe_address(address: Address | None) -> list[str]:
    if address is None:
        return ["no HTTP: put a proxy in front of uWSGI"]
    return [f"{address.scheme}://{address.host}" + " (and all other addresses)" * address.is_everywhere]


def _describe_mode(options: Mapping[str, Any]) -> str:
    for mode, what in {"gevent": "greenlets", "asyncio": "tasks", "threads": "threads"}.items():
        if mode in options:
            return f"{mode}, {number_option(options, mode, 1)} {what} per worker"
    return "one request at a time per worker"


def _workers(options: Mapping[str, Any]) -> int:
    return number_option(options, "processes", number_option(options, "workers", 1))


def _describe_debug(options: Mapping[str, Any], debug: bool) -> str:
    reload = ", reloads when a module changes" if "python-autoreload" in options else ""
    return f"{'on' if debug else 'off'}{reload}"


def _describe_routes(app: Flask | None, address: Address | None) -> Iterator[str]:
    """Yield the addresses of the WebSocket routes, at most :data:`ROUTES_SHOWN` of them."""
    rules = sorted({_url(rule, address) for rule in app.url_map.iter_rules() if rule.websocket}) if app else []
    yield from rules[:ROUTES_SHOWN]
    if len(rules) > ROUTES_SHOWN:
        yield f"and {len(rules) - ROUTES_SHOWN} more, which 'flask websocket routes' lists"


def _url(rule: Any, address: Address | None) -> str:
    """Return the address of a rule, or its path if the server has no address."""
    if address is None:
        return str(rule.rule)
    host = rule.host or (f"{rule.subdomain}.{address.host}" if rule.subdomain else address.host)
    return f"{address.scheme.replace('http', 'ws')}://{host}{rule.rule}"
