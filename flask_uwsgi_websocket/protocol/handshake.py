"""The opening handshake (RFC 6455 section 4): accept or refuse an upgrade request.

A refusal is an :class:`~werkzeug.exceptions.HTTPException`, so that the application's error handlers see it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from werkzeug.exceptions import BadRequest, Forbidden, HTTPException

from .deflate import Compression, DeflateParameters, Extension, negotiate

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_is_token = re.compile(_TOKEN).fullmatch
_breaks_line = re.compile(r"[\r\n\0]").search
#: 16 bytes in base64.
_is_key = re.compile(r"[A-Za-z0-9+/]{22}==").fullmatch
#: One ``;`` part of an extension: a name or parameter, with a value that may be quoted (section 9.1).
_is_parameter = re.compile(rf'({_TOKEN})(?:\s*=\s*(?:({_TOKEN})|"({_TOKEN})"))?').fullmatch

#: The headers that report the result of the negotiation. None of them may occur twice.
_OWN_HEADERS = {"sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-extensions"}

_ORIGIN = "write scheme://host or scheme://host:port"

_DEFAULT_PORTS = {"http": 80, "https": 443}


class UpgradeRequired(HTTPException):
    """426: the URL accepts WebSockets of version 13 only (RFC 9110 section 15.5.22, RFC 6455 section 4.4)."""

    code = 426
    description = "This URL accepts WebSocket connections of version 13 only."

    def get_headers(self, environ: WSGIEnvironment | None = None, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
        """Add the headers that RFC 9110 and RFC 6455 require of a 426."""
        # Some clients read only the first Connection header, and uWSGI adds its own as the last.
        is_closed = environ is not None and "uwsgi.version" in environ
        return [
            *super().get_headers(environ, *args, **kwargs),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade, close" if is_closed else "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
        ]


@dataclass(frozen=True)
class Handshake:
    """A valid upgrade request and the server's answer to it."""

    key: str
    offered_subprotocols: Sequence[str]
    subprotocol: str | None
    deflate: DeflateParameters | None

    def response(self, subprotocol: str | None, headers: Iterable[tuple[str, str]]) -> bytes:
        """Return the 101 response (section 4.2.2).

        :param subprotocol: the subprotocol to answer with, or None.
        :param headers: more headers, such as ``Set-Cookie``.
        :raises ValueError: when *subprotocol* is not the name of one; or when a header has an invalid name or a line
            break, or repeats a header of the handshake, as section 11.3 forbids.
        """
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept_key(self.key)}",
        ]
        if subprotocol is not None:
            check_token(subprotocol)
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        if self.deflate is not None:
            lines.append(f"Sec-WebSocket-Extensions: {self.deflate.header()}")
        for name, value in headers:
            if name.lower() in _OWN_HEADERS:
                raise ValueError(f"the handshake itself sets {name}: to choose a subprotocol, use subprotocol=")
            if not _is_token(name) or _breaks_line(value):
                raise ValueError(f"the header {name!r} cannot be sent: its name is invalid, or {value!r} breaks a line")
            lines.append(f"{name}: {value}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def accept_key(key: str) -> str:
    """Return the ``Sec-WebSocket-Accept`` value that proves that the server has read *key* (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()


def is_upgrade(environ: WSGIEnvironment) -> bool:
    """Return whether a request asks for a WebSocket, in the tokens of its headers ``Upgrade`` and ``Connection``."""
    return _has_token(environ, "HTTP_UPGRADE", "websocket") and _has_token(environ, "HTTP_CONNECTION", "upgrade")


def negotiate_handshake(
    environ: WSGIEnvironment,
    *,
    host: str,
    secure: bool = False,
    origins: str | Sequence[str],
    subprotocols: Sequence[str],
    compression: bool | Compression,
) -> Handshake:
    """Check an upgrade request (section 4.2.1) and choose the answer.

    :param host: the host that the client asked for, as the application sees it behind its proxies.
    :param secure: whether the request came over TLS, as far as the application can see.
    :param origins: ``"same-origin"``, ``"*"``, or a list of origins, whose hosts may begin with ``*.``.
    :param subprotocols: the subprotocols of the route. The answer has the client's first choice among them.
    :param compression: whether to accept permessage-deflate, or how.
    :raises BadRequest: when the request breaks the RFC.
    :raises UpgradeRequired: when the request is for another version of the protocol.
    :raises Forbidden: when the ``Origin`` is not allowed.
    """
    if environ["REQUEST_METHOD"] != "GET":
        raise BadRequest("A WebSocket handshake is a GET request.")
    if environ.get("SERVER_PROTOCOL", "HTTP/1.1") in {"HTTP/0.9", "HTTP/1.0"}:
        raise BadRequest("A WebSocket handshake needs HTTP/1.1.")
    if "HTTP_HOST" not in environ:
        raise BadRequest("The header Host is needed.")
    if not is_upgrade(environ):
        raise BadRequest("The headers Upgrade: websocket and Connection: Upgrade are needed.")
    if environ.get("CONTENT_LENGTH", "") not in {"", "0"} or "HTTP_TRANSFER_ENCODING" in environ:
        raise BadRequest("A WebSocket handshake has no body.")
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip() != "13":
        raise UpgradeRequired
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()
    if not _is_key(key):
        raise BadRequest("Sec-WebSocket-Key must be 16 bytes in base64.")
    check_origin(environ.get("HTTP_ORIGIN"), host, origins, secure=secure)
    offered = _offered_subprotocols(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""))
    parameters = None
    if compression:
        config = compression if isinstance(compression, Compression) else Compression()
        parameters = negotiate(parse_extensions(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", "")), config)
    return Handshake(
        key=key,
        offered_subprotocols=offered,
        subprotocol=next((name for name in offered if name in subprotocols), None),
        deflate=parameters,
    )


def check_origin(origin: str | None, host: str, allowed: str | Sequence[str], *, secure: bool = False) -> None:
    """Check that a browser's page may connect (section 10.2).

    "Same origin" compares host and port, and over TLS also the scheme. Without TLS, a page with ``https`` passes, too,
    because a proxy may terminate TLS.

    :raises Forbidden: when the origin is not allowed, or is ``null``.
    """
    if origin is None or allowed == "*":
        return
    try:
        theirs = parse_origin(origin)
        if allowed == "same-origin":
            ours = urlsplit(f"//{host}")
            is_scheme = theirs[0] == "https" or (theirs[0] == "http" and not secure)
            if is_scheme and theirs[1:] == (ours.hostname, ours.port or _DEFAULT_PORTS[theirs[0]]):
                return
        elif any(_covers(parse_origin(each), theirs) for each in allowed):
            return
    except ValueError:
        pass
    raise Forbidden(
        f"Pages of {origin!r} may not connect to {host!r}: add the origin to WEBSOCKET_ALLOWED_ORIGINS to allow it. "
        "Behind a proxy, install ProxyFix, so that the application knows its own origin."
    )


def _covers(allowed: tuple[str, str, int | None], theirs: tuple[str, str, int | None]) -> bool:
    if not allowed[1].startswith("*."):
        return allowed == theirs
    return theirs[1].endswith(allowed[1][1:]) and allowed[::2] == theirs[::2]


def check_token(name: str) -> None:
    """Check that *name* can stand in a header's list (RFC 9110 section 5.6.2).

    :raises ValueError: when it cannot.
    """
    if not _is_token(name):
        raise ValueError(f"{name!r} cannot name a subprotocol: use only letters, digits and !#$%&'*+-.^_`|~")


def parse_origin(origin: str) -> tuple[str, str, int | None]:
    """Split an origin (RFC 6454) into scheme, host and port. The host may be ``*.example.com``, for all subdomains.

    :raises ValueError: when *origin* is not an origin, such as "null" or a URL with a path.
    """
    try:
        split = urlsplit(origin)
        port = split.port or _DEFAULT_PORTS.get(split.scheme)
    except ValueError as error:
        raise ValueError(f"{origin!r} is not an origin: {_ORIGIN}") from error
    # urlsplit() repairs malformed input. An origin that needs repair is invalid.
    is_plain = origin.lower() == f"{split.scheme}://{split.netloc}".lower()
    if not is_plain or not split.hostname or re.search(r"[@\\\s]", origin):
        raise ValueError(f"{origin!r} is not an origin: {_ORIGIN}")
    domain = split.hostname.removeprefix("*.")
    if "*" in domain or not domain:
        raise ValueError(f"{origin!r} is not an origin: a * stands for subdomains, as in https://*.example.com")
    return split.scheme, split.hostname, port


def parse_extensions(header: str) -> list[Extension]:
    """Parse a ``Sec-WebSocket-Extensions`` header (section 9.1).

    :raises BadRequest: when the header does not follow the grammar.
    """
    extensions: list[Extension] = []
    for item in filter(None, map(str.strip, header.split(","))):
        parts = []
        for part in item.split(";"):
            match = _is_parameter(part.strip())
            if match is None:
                raise BadRequest("Sec-WebSocket-Extensions is malformed.")
            parts.append((match[1], match[2] or match[3]))
        extensions.append((parts[0][0], parts[1:]))
    return extensions


def _has_token(environ: WSGIEnvironment, key: str, token: str) -> bool:
    """Return whether a header is a list with *token*, which is in lower case."""
    value = environ.get(key, "").lower()
    return value == token or token in map(str.strip, value.split(","))


def _offered_subprotocols(header: str) -> list[str]:
    if not header:
        return []
    offered = [name.strip() for name in header.split(",")]
    if len(set(offered)) != len(offered) or not all(map(_is_token, offered)):
        raise BadRequest("Sec-WebSocket-Protocol is malformed.")
    return offered
