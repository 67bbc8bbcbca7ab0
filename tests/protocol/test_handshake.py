"""The parts of the opening handshake (RFC 6455 section 4) that need no request: keys, extensions, origins."""

from __future__ import annotations

import pytest
from werkzeug.exceptions import BadRequest, Forbidden

from flask_uwsgi_websocket.protocol.handshake import accept_key, check_origin, parse_extensions, parse_origin
from support.inprocess import ACCEPT, REQUEST


def test_the_accept_key_is_the_one_of_section_1_3() -> None:
    assert accept_key(REQUEST["Sec-WebSocket-Key"]) == ACCEPT


def test_parse_extensions_reads_names_parameters_and_quoted_values() -> None:
    assert parse_extensions('a; b; c=1; d = "2" , e') == [("a", [("b", None), ("c", "1"), ("d", "2")]), ("e", [])]
    with pytest.raises(BadRequest):
        parse_extensions("a; b=c d")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "example.com"),
        ("http://example.com", "example.com"),
        ("https://example.com", "example.com"),
        ("HTTP://EXAMPLE.com", "Example.COM"),
        ("http://example.com:80", "example.com"),
        ("http://example.com", "example.com:80"),
        ("https://example.com:443", "example.com"),
        ("https://example.com", "example.com:443"),
        ("http://example.com:8080", "example.com:8080"),
        ("https://example.com:8443", "example.com:8443"),
        ("http://127.0.0.1:5000", "127.0.0.1:5000"),
        ("http://[::1]", "[::1]"),
        ("http://[::1]:5000", "[::1]:5000"),
        ("http://[2001:DB8::1]:5000", "[2001:db8::1]:5000"),
    ],
)
def test_the_same_origin_may_connect(origin: str | None, host: str) -> None:
    check_origin(origin, host, "same-origin")


@pytest.mark.parametrize("origin", ["https://example.com", "https://example.com:443"])
def test_over_tls_the_scheme_of_the_origin_must_match(origin: str) -> None:
    check_origin(origin, "example.com", "same-origin", secure=True)
    for other in (origin.replace("s", "", 1), "http://example.com", "ftp://example.com:443"):
        with pytest.raises(Forbidden):
            check_origin(other, "example.com", "same-origin", secure=True)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://elsewhere.com", "example.com"),
        ("http://example.com.elsewhere.com", "example.com"),
        ("http://sub.example.com", "example.com"),
        ("http://example.com", "sub.example.com"),
        ("http://example.com:8080", "example.com"),
        ("http://example.com", "example.com:8080"),
        ("https://example.com", "example.com:80"),
        ("http://[::1]:5000", "[::2]:5000"),
        ("http://[::1]", "[::1]:5000"),
        ("http://example.com@elsewhere.com", "example.com"),
        ("http://elsewhere.com/@example.com", "example.com"),
        ("http://elsewhere.com#@example.com", "example.com"),
        ("http://elsewhere.com\\@example.com", "example.com"),
        ("null", "example.com"),
        ("", "example.com"),
        ("", ""),
        ("null", "null"),
        ("example.com", "example.com"),
        ("//example.com", "example.com"),
        ("http://", ""),
        ("http://example.com/", "example.com"),
        ("http://example.com?", "elsewhere.com"),
        ("http://example.com:port", "example.com"),
        ("http://example.com:99999", "example.com"),
        ("http://[::1", "[::1"),
        ("http://example.com, http://elsewhere.com", "example.com"),
        ("http://example.com http://elsewhere.com", "elsewhere.com"),
        ("file://", "example.com"),
        ("garbage\xff", "example.com"),
    ],
)
def test_another_origin_may_not_connect(origin: str, host: str) -> None:
    with pytest.raises(Forbidden, match="WEBSOCKET_ALLOWED_ORIGINS"):
        check_origin(origin, host, "same-origin")


@pytest.mark.parametrize("origin", [None, "https://example.com", "https://EXAMPLE.com:443", "http://app.example:8080"])
def test_a_listed_origin_may_connect(origin: str | None) -> None:
    check_origin(origin, "elsewhere.com", ["https://example.com", "http://app.example:8080"])


@pytest.mark.parametrize("origin", ["http://example.com", "https://app.example:8080", "https://elsewhere.com", "null"])
def test_an_origin_that_is_not_listed_may_not_connect(origin: str) -> None:
    with pytest.raises(Forbidden):
        check_origin(origin, "elsewhere.com", ["https://example.com", "http://app.example:8080"])


@pytest.mark.parametrize(
    ("origin", "is_covered"),
    [
        ("https://a.example.com", True),
        ("https://a.b.EXAMPLE.com:443", True),
        ("https://example.com", False),
        ("https://aexample.com", False),
        ("https://a.example.com.evil.example", False),
        ("https://a.example.com:8443", False),
        ("http://a.example.com", False),
        ("http://a.dev.example:8080", True),
        ("http://a.dev.example", False),
        ("null", False),
    ],
)
def test_an_asterisk_stands_for_subdomains(origin: str, is_covered: bool) -> None:
    allowed = ["https://*.example.com", "http://*.dev.example:8080"]
    if is_covered:
        check_origin(origin, "elsewhere.com", allowed)
    else:
        with pytest.raises(Forbidden):
            check_origin(origin, "elsewhere.com", allowed)


@pytest.mark.parametrize("origin", [None, "null", "http://anywhere.example", "garbage"])
def test_a_star_allows_every_origin(origin: str | None) -> None:
    check_origin(origin, "example.com", "*")


@pytest.mark.parametrize("origin", ["null", "example.com", "https://example.com/path", "https://", ""])
def test_parse_origin_refuses_text_that_is_no_origin(origin: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        parse_origin(origin)
