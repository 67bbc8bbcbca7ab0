"""The opening handshake (RFC 6455 section 4): which requests are accepted, which are refused, and the responses."""

from __future__ import annotations

import html
from typing import Any

import pytest
from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_uwsgi_websocket import Compression, WebSocket
from flask_uwsgi_websocket.dispatch import MOST_LOGGED_ORIGINS
from support.inprocess import ACCEPT, REQUEST, Response, Site
from support.wire import TEXT


@pytest.fixture
def site(blocking: Site) -> Site:
    """A site with an echo at ``/``, a handler that takes options, and a page."""

    @blocking.route("/")
    async def echo(ws: Any) -> None:
        async for message in ws:
            await ws.send(message)

    @blocking.route("/chat", subprotocols=["v2.chat", "v1.chat"])
    async def chat(ws: Any) -> None:
        await ws.send(str(ws.subprotocol))

    @blocking.app.route("/page")
    def page() -> str:
        return "a page"

    return blocking


def handshake(site: Site, path: str = "/", **request: Any) -> Response:
    client = site.raw()
    client.request(path, **request)
    response = client.response()
    assert response.status == 101, response
    return response


# Accepted requests


def test_the_response_is_exact_to_the_byte(site: Site) -> None:
    client = site.raw()
    client.request()
    expected = (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"\r\n"
    )
    client.frame(TEXT, b"x")
    assert client._input.read(len(expected)) == expected
    assert client.read_frame() == (TEXT, b"x")


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "WEBSOCKET", "h2c, websocket", " websocket , foo"])
def test_upgrade_is_a_list_of_tokens_in_any_case(site: Site, upgrade: str) -> None:
    handshake(site, upgrade=upgrade)


@pytest.mark.parametrize("connection", ["Upgrade", "upgrade", "keep-alive, Upgrade", "UPGRADE,close", "x ,\tupgrade"])
def test_connection_is_a_list_of_tokens_in_any_case(site: Site, connection: str) -> None:
    handshake(site, connection=connection)


def test_an_empty_body_is_no_body(site: Site) -> None:
    handshake(site, content_length="0")


def test_spaces_around_key_and_version_do_not_count(site: Site) -> None:
    response = handshake(site, sec_websocket_key=f"  {REQUEST['Sec-WebSocket-Key']}\t", sec_websocket_version=" 13 ")
    assert response["Sec-WebSocket-Accept"] == ACCEPT


def test_a_query_and_cookies_are_allowed(site: Site) -> None:
    handshake(site, "/?a=b", cookie="a=b")


# Refused requests


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        pytest.param(405, {"method": "POST"}, id="POST"),
        pytest.param(405, {"method": "PUT"}, id="PUT"),
        pytest.param(400, {"method": "HEAD"}, id="HEAD"),
        pytest.param(400, {"protocol": "HTTP/1.0"}, id="HTTP/1.0"),
        pytest.param(400, {"host": None}, id="no Host"),
        pytest.param(400, {"sec_websocket_key": None}, id="no key"),
        pytest.param(400, {"sec_websocket_key": ""}, id="empty key"),
        pytest.param(400, {"sec_websocket_key": "c2hvcnQ="}, id="short key"),
        pytest.param(400, {"sec_websocket_key": "A" * 24}, id="long key"),
        pytest.param(400, {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ=!"}, id="no base64"),
        pytest.param(400, {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZ\xe9=="}, id="no ASCII"),
        pytest.param(400, {"content_length": "1"}, id="body"),
        pytest.param(400, {"transfer_encoding": "chunked"}, id="chunked body"),
        pytest.param(400, {"upgrade": "websocket", "connection": None}, id="no Connection"),
        pytest.param(400, {"upgrade": "websocket", "connection": "close"}, id="another Connection"),
        pytest.param(400, {"upgrade": "websockets"}, id="almost the right Upgrade"),
        pytest.param(426, {"upgrade": None, "connection": None}, id="plain HTTP"),
        pytest.param(426, {"upgrade": "h2c", "connection": "Upgrade, HTTP2-Settings"}, id="another Upgrade"),
        pytest.param(426, {"sec_websocket_version": None}, id="no version"),
        pytest.param(426, {"sec_websocket_version": "8"}, id="old version"),
        pytest.param(426, {"sec_websocket_version": "13, 8"}, id="two versions"),
        pytest.param(400, {"sec_websocket_protocol": ""} | {"sec_websocket_protocol": "a b"}, id="subprotocol"),
        pytest.param(400, {"sec_websocket_protocol": "a,,b"}, id="empty subprotocol"),
        pytest.param(400, {"sec_websocket_protocol": "a, a"}, id="the same subprotocol twice"),
        pytest.param(403, {"origin": "http://elsewhere.example"}, id="origin"),
        pytest.param(404, {"path": "/nowhere"}, id="unknown URL"),
        pytest.param(400, {"path": "/page"}, id="URL of a page"),
    ],
)
def test_a_refusal_has_its_status(site: Site, status: int, request_: dict[str, Any]) -> None:
    assert site.refusal(**request_).status == status


def test_a_key_must_be_base64_of_16_bytes_with_no_bits_to_spare(site: Site) -> None:
    for key in ["dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ==dGhl", "=GhlIHNhbXBsZSBub25jZQ=="]:
        assert site.refusal(sec_websocket_key=key).status == 400


@pytest.mark.parametrize("request_", [{"sec_websocket_version": "8"}, {"upgrade": None, "connection": None}])
def test_426_names_the_supported_version(site: Site, request_: dict[str, Any]) -> None:
    response = site.refusal(**request_)
    assert response.status == 426
    assert response["Sec-WebSocket-Version"] == "13"
    assert response["Upgrade"] == "websocket"
    assert "Upgrade" in response.all("Connection")


def test_a_plain_request_for_a_page_is_answered(site: Site) -> None:
    response = site.refusal("/page", upgrade=None, connection=None)
    assert (response.status, response.body) == (200, b"a page")


@pytest.mark.parametrize("debug", [False, True])
def test_an_upgrade_to_a_page_is_explained_in_the_log_once_and_in_debug_mode_in_the_body(
    site: Site, debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site.app.debug = debug
    site.app.add_url_rule("/post/<name>", "post", lambda name: name, methods=["POST"])
    for _ in range(2):
        response = site.refusal("/page")
        assert response.status == 400
        assert ("/page is a page: did you mean @websocket.route?" in response.body.decode()) == debug
    assert site.refusal("/post/x").status in {400, 405}
    (record,) = caplog.records
    said = "An upgrade request for a WebSocket got 400: /page is a page: did you mean @websocket.route?"
    assert (record.levelname, record.getMessage()) == ("WARNING", said)


def test_an_upgrade_to_an_unknown_url_gets_the_applications_404(site: Site) -> None:
    site.app.register_error_handler(404, lambda error: ("nothing here", 404))
    response = site.refusal("/nowhere")
    assert (response.status, response.body) == (404, b"nothing here")


@pytest.mark.parametrize("status", [400, 403, 404, 426])
def test_the_applications_error_handlers_format_refusals(site: Site, status: int) -> None:
    from werkzeug.exceptions import HTTPException

    @site.app.errorhandler(HTTPException)
    def as_json(error: HTTPException) -> Any:
        return {"status": error.code}, error.code or 500

    requests: dict[int, dict[str, Any]] = {
        400: {"sec_websocket_key": None},
        403: {"origin": "null"},
        404: {"path": "/nowhere"},
        426: {"upgrade": None, "connection": None},
    }
    response = site.refusal(**requests[status])
    assert (response.status, response.body.strip()) == (status, b'{"status":%d}' % status)


def test_the_host_of_the_request_is_not_guessed(site: Site) -> None:
    site.environ["HTTP_HOST"] = ""
    assert site.refusal(origin="http://").status == 403


# Subprotocols


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("v1.chat, v2.chat", "v1.chat"),
        ("v2.chat, v1.chat", "v2.chat"),
        ("mqtt, v2.chat", "v2.chat"),
        ("mqtt", None),
        (None, None),
        ("V1.CHAT", None),
    ],
)
def test_the_clients_first_choice_among_the_routes_subprotocols_is_taken(
    site: Site, offered: str | None, chosen: str | None
) -> None:
    client = site.raw()
    client.request("/chat", sec_websocket_protocol=offered)
    response = client.response()
    assert response.all("Sec-WebSocket-Protocol") == ([] if chosen is None else [chosen])
    assert client.read_frame() == (TEXT, str(chosen).encode())


def test_a_route_without_subprotocols_chooses_none(site: Site) -> None:
    assert handshake(site, sec_websocket_protocol="chat").all("Sec-WebSocket-Protocol") == []


def test_accept_may_choose_another_offered_subprotocol(site: Site) -> None:
    @site.route("/override", subprotocols=["a"])
    async def override(ws: Any) -> None:
        with pytest.raises(ValueError, match="has not offered the subprotocol 'c'"):
            await ws.accept(subprotocol="c")
        assert ws.subprotocol == "a"
        await ws.accept(subprotocol="b")
        site.note(ws.subprotocol)
        for late in ({"subprotocol": "a"}, {"headers": [("X", "y")]}):
            with pytest.raises(RuntimeError, match="the handshake has been sent"):
                await ws.accept(**late)
        await ws.accept()
        await ws.accept(subprotocol="b")
        site.note(ws.subprotocol)

    assert handshake(site, "/override", sec_websocket_protocol="a, b")["Sec-WebSocket-Protocol"] == "b"
    assert site.noted() == "b"
    assert site.noted() == "b"


# Additional headers


def test_accept_may_add_headers(site: Site) -> None:
    @site.route("/headers")
    async def headers(ws: Any) -> None:
        await ws.accept(headers=[("Set-Cookie", "a=b"), ("Set-Cookie", "c=\xe9"), ("X-Empty", "")])

    response = handshake(site, "/headers")
    assert response.all("Set-Cookie") == ["a=b", "c=\xe9"]


@pytest.mark.parametrize(
    "header",
    [("X", "a\r\nSet-Cookie: b"), ("X", "a\nb"), ("X", "a\rb"), ("X", "\0"), ("X: y\r\nZ", "a"), ("", "a"), ("X", "€")],
)
def test_a_header_that_would_end_its_line_is_refused_and_changes_nothing(site: Site, header: tuple[str, str]) -> None:
    @site.route("/headers", subprotocols=["a"])
    async def headers(ws: Any) -> None:
        with pytest.raises(ValueError, match=r"cannot be sent|latin-1"):
            await ws.accept(subprotocol="b", headers=[header])
        assert ws.subprotocol == "a"
        await ws.send("fine")

    client = site.raw()
    client.request("/headers", sec_websocket_protocol="a, b")
    assert client.response()["Sec-WebSocket-Protocol"] == "a"
    assert client.read_frame() == (TEXT, b"fine")


@pytest.mark.parametrize("name", ["Sec-WebSocket-Accept", "sec-websocket-protocol", "Sec-WebSocket-Extensions"])
def test_a_header_of_the_handshake_itself_is_not_sent_twice(site: Site, name: str) -> None:
    @site.route("/headers")
    async def headers(ws: Any) -> None:
        with pytest.raises(ValueError, match="subprotocol="):
            await ws.accept(headers=[(name, "a")])
        await ws.send("fine")

    assert site.upgrade("/headers").read_frame() == (TEXT, b"fine")


# Extensions


@pytest.mark.parametrize(
    "header",
    [
        "permessage-deflate; server_max_window_bits=0",
        "permessage-deflate; unknown",
        "x-webkit-deflate-frame",
        "",
        None,
    ],
)
def test_an_unsupported_extension_is_declined(site: Site, header: str | None) -> None:
    site.app.config["WEBSOCKET_COMPRESSION"] = True
    assert handshake(site, sec_websocket_extensions=header).all("Sec-WebSocket-Extensions") == []


@pytest.mark.parametrize(
    "header",
    [
        "permessage-deflate; server_max_window_bits=1 0",
        "permessage-deflate;",
        "; client_max_window_bits",
        "permessage deflate",
        'permessage-deflate; client_max_window_bits="10',
        'permessage-deflate; client_max_window_bits=""',
        "permessage-deflate; client_max_window_bits=",
        "foo; =1",
    ],
)
def test_extensions_that_break_the_grammar_are_refused(site: Site, header: str) -> None:
    site.app.config["WEBSOCKET_COMPRESSION"] = True
    assert site.refusal(sec_websocket_extensions=header).status == 400


@pytest.mark.parametrize("header", ["permessage-deflate", 'foo; a="b", permessage-deflate', ", permessage-deflate ,"])
def test_compression_is_agreed_when_both_sides_want_it(site: Site, header: str) -> None:
    site.app.config["WEBSOCKET_COMPRESSION"] = Compression(window_bits=15)
    assert handshake(site, sec_websocket_extensions=header)["Sec-WebSocket-Extensions"] == "permessage-deflate"


# Origins


def test_the_origin_is_checked_against_the_requests_host(site: Site) -> None:
    handshake(site, origin="http://localhost")
    handshake(site, origin="http://app.example:8080", host="app.example:8080")
    assert site.refusal(origin="http://localhost", host="app.example").status == 403


@pytest.mark.parametrize("before", [True, False], ids=["before init_app", "after init_app"])
def test_behind_a_proxy_the_origin_is_checked_against_the_public_host(blocking: Site, before: bool) -> None:
    app = Flask("behind")
    if before:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_proto=1)  # type: ignore[method-assign]
    websocket = WebSocket(app)
    if not before:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1, x_proto=1)  # type: ignore[method-assign]

    @websocket.route("/")
    def url(ws: Any) -> None:
        from flask import request

        ws.send(request.url)

    blocking.app = app
    forwarded = {"x_forwarded_host": "public.example", "x_forwarded_proto": "https", "host": "10.0.0.1:8000"}
    client = blocking.upgrade(origin="https://public.example", **forwarded)
    assert client.read_frame() == (TEXT, b"https://public.example/")
    assert blocking.refusal(origin="http://10.0.0.1:8000", **forwarded).status == 403


def test_a_setting_lists_the_allowed_origins(site: Site) -> None:
    site.app.config["WEBSOCKET_ALLOWED_ORIGINS"] = ["https://app.example"]

    handshake(site, origin="https://app.example")
    assert site.refusal(origin="http://localhost").status == 403


if "TRUSTED_HOSTS" in Flask.default_config:  # since Flask 3.1

    def test_a_page_whose_host_name_leads_here_may_connect_unless_the_trusted_hosts_are_listed(site: Site) -> None:
        rebound = {"host": "evil.example:5000", "origin": "http://evil.example:5000"}
        handshake(site, **rebound)
        site.app.config["TRUSTED_HOSTS"] = ["localhost", ".example.org"]
        assert site.refusal(**rebound).status == 400
        handshake(site, host="chat.example.org", origin="http://chat.example.org")


def test_the_log_reports_each_refused_origin_once_and_the_setting_that_allows_it(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for origin in ["http://localhost:3000", "http://localhost:3001", "http://localhost:3000"]:
        response = site.refusal("/?token=x", origin=origin, host="localhost:5000")
        assert response.status == 403
        assert f"Pages of {origin!r} may not connect" in html.unescape(response.body.decode())
    handshake(site, origin="http://localhost")
    first, second = caplog.records
    assert first.levelname == "WARNING"
    assert first.getMessage().startswith(
        "The WebSocket '/' refuses a page of another origin with 403: page 'http://localhost:3000', app "
        "'http://localhost:5000'. If the page is yours, set WEBSOCKET_ALLOWED_ORIGINS = ['http://localhost:3000']."
    )
    assert "'http://localhost:3001'" in second.getMessage()


def test_a_client_with_invented_origins_cannot_fill_the_log_or_forge_a_line(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    assert site.refusal(origin="http://" + "x" * 3000).status == 403
    assert site.refusal(origin="forged\x85line").status == 403
    for port in range(2 * MOST_LOGGED_ORIGINS):
        assert site.refusal(origin=f"http://localhost:{port + 1}").status == 403
    assert len(caplog.records) == MOST_LOGGED_ORIGINS
    assert "page 'forged\\x85line', app" in caplog.records[0].getMessage()


# Servers and middleware in the way


def test_a_server_that_does_not_lend_its_sockets_is_an_error_that_says_so(site: Site) -> None:
    headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in REQUEST.items()}
    response = site.app.test_client().get("/", environ_overrides=headers)
    assert response.status_code == 500
    assert "does not lend its sockets" in str(site.logged().exc_info)


def test_a_route_that_is_reached_without_the_middleware_is_an_error_that_says_so(site: Site) -> None:
    site.app.wsgi_app = site.app.wsgi_app.wsgi_app  # type: ignore[attr-defined, method-assign]
    assert site.refusal().status == 500
    assert "leave the middleware in app.wsgi_app" in str(site.logged().exc_info)
