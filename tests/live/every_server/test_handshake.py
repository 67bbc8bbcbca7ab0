"""The opening handshake on real servers: accepted requests, refused requests, and the access log."""

from __future__ import annotations

from contextlib import closing

import pytest
from websockets.exceptions import InvalidStatus

from support.live import DEADLINE, Raw, Server
from support.wire import CLOSE, KEY, TEXT, close_body, frame


def test_the_handshake_is_answered_as_the_rfc_demands(server: Server) -> None:
    with server.connect("/echo") as client:
        assert client.response.status_code == 101
        assert client.response.reason_phrase == "Switching Protocols"
        assert "Content-Length" not in client.response.headers
    # The example of RFC 6455 section 1.3.
    response = server.handshake("/echo")
    assert response.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_subprotocol_of_the_route_is_agreed(server: Server) -> None:
    with server.connect("/echo-subprotocol", subprotocols=["x", "a", "b"]) as client:
        assert client.subprotocol == "a"
        assert client.recv(DEADLINE) == "a"


def test_without_a_common_subprotocol_there_is_none(server: Server) -> None:
    with server.connect("/echo-subprotocol", subprotocols=["x"]) as client:
        assert client.subprotocol is None
        assert client.recv(DEADLINE) == "None"


def test_the_access_log_has_status_101_after_the_connection_has_closed(server: Server) -> None:
    with server.connect("/echo") as client:
        client.send("hello")
        client.recv(DEADLINE)
    assert server.wait_for_access_log(client) == 101


def test_a_handler_that_does_nothing_gets_the_handshake_and_a_normal_close(server: Server) -> None:
    with server.raw("/silent") as client:
        assert client.receive_close() == (1000, "")
        client.send_frame(CLOSE, b"\x03\xe8")
        assert client.file.read() == b""
    assert server.wait_for_access_log(client) == 101


@pytest.mark.parametrize("status", [401, 403, 503])
def test_a_handler_refuses_before_the_handshake_with_an_http_status(server: Server, status: int) -> None:
    path = server.path(f"/refuse/{status}")
    with pytest.raises(InvalidStatus) as caught, server.connect(path):
        pass
    assert caught.value.response.status_code == status
    assert server.wait_for_access_log(path) == status


def test_a_handler_may_answer_with_an_http_response_instead(server: Server) -> None:
    response = server.handshake("/answer")
    assert (response.status, response.body) == (200, b"no WebSocket today")


def test_an_exception_before_the_handshake_gets_500(server: Server) -> None:
    assert server.handshake("/raise-before").status == 500


def test_an_unknown_url_gets_404(server: Server) -> None:
    assert server.handshake("/unknown").status == 404


def test_a_plain_request_for_a_websocket_url_gets_426(server: Server) -> None:
    response = server.get("/echo")
    assert response.status == 426
    assert response.headers["Upgrade"] == "websocket"


def test_a_websocket_request_for_a_plain_url_is_refused(server: Server) -> None:
    assert server.handshake("/").status == 400


MALFORMED = {
    "no key": {"Sec-WebSocket-Key": None},
    "a short key": {"Sec-WebSocket-Key": "c2hvcnQ="},
    "a key that is not base64": {"Sec-WebSocket-Key": "!" * 24},
    "a subprotocol that is no token": {"Sec-WebSocket-Protocol": "a b"},
    "a body": {"Content-Length": "5"},
    "a chunked body": {"Transfer-Encoding": "chunked"},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_handshake_is_refused_with_400(server: Server, name: str) -> None:
    rest = {"a body": b"hello", "a chunked body": b"5\r\nhello\r\n0\r\n\r\n"}.get(name, b"")
    assert server.handshake("/echo", MALFORMED[name], rest=rest).status == 400


def test_another_version_of_the_protocol_gets_the_supported_version(server: Server) -> None:
    response = server.handshake("/echo", {"Sec-WebSocket-Version": "8"})
    assert response.status == 426
    assert response.headers["Sec-WebSocket-Version"] == "13"


def test_other_methods_than_get_are_refused(server: Server) -> None:
    assert server.handshake("/echo", method="POST").status in {400, 405}


def test_pages_of_another_origin_are_refused_and_pages_of_the_same_origin_accepted(server: Server) -> None:
    assert server.handshake("/echo", {"Origin": "http://evil.example"}).status == 403
    assert server.handshake("/echo", {"Origin": "null"}).status == 403
    assert server.handshake("/echo", {"Origin": f"http://{server.host}:{server.port}"}).status == 101


@pytest.mark.parametrize("size", [1, 125, 3000])
def test_data_sent_with_the_handshake_is_refused_with_a_reason_or_dropped_by_the_router(
    server: Server, size: int
) -> None:
    early = frame(TEXT, b"e" * size, key=KEY)
    with closing(Raw(server, server.path("/echo"))) as client:
        response = client.handshake({}, rest=early)
        if server.front != "http":
            assert response.status == 400
            assert b"must wait for the response" in response.body
        else:
            # The router reads it together with the request, takes it for a body and never passes it on, so no worker
            # sees it. The connection must be usable like that of a client that has waited (RFC 6455 section 4.1).
            client.send_frame(TEXT, b"after")
            assert client.receive() in {(TEXT, b"after"), (TEXT, b"e" * size)}


def test_much_data_sent_with_the_handshake_is_never_lost_silently(server: Server) -> None:
    message = b"e" * 200_000
    with closing(Raw(server, server.path("/echo"))) as client:
        try:
            response = client.handshake({}, rest=frame(TEXT, message, key=KEY))
        except ConnectionError:  # uWSGI closes with unread input, so TCP may discard the response
            return
        if response.status == 101:
            opcode, payload = client.receive()
            assert (opcode, payload) == (TEXT, message) or (opcode, payload[:2]) == (CLOSE, b"\x03\xea")  # 1002
        else:
            assert response.status == 400


def test_a_handshake_in_many_pieces_and_in_any_case_is_accepted(server: Server) -> None:
    path = server.path("/echo")
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\n"
        "Upgrade: WebSocket\r\nConnection: keep-alive, UPGRADE\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    with closing(Raw(server, path)) as client:
        for start in range(0, len(request), 7):
            client.send(request[start : start + 7])
        assert client.file.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
        while client.file.readline() != b"\r\n":
            pass
        client.send_frame(TEXT, b"hello")
        assert client.receive() == (TEXT, b"hello")


def test_a_client_that_leaves_before_the_handshake_is_detected(server: Server) -> None:
    client = Raw(server, server.path("/wait"))
    client.send_handshake({})
    server.wait_for("start", client)
    client.close()
    server.wait_for("end", client)
    assert server.wait_for_access_log(client) == 499


def test_a_handshake_that_is_not_sent_in_time_is_answered_with_503(server: Server) -> None:
    client = Raw(server, server.path("/wait-briefly"))
    assert client.handshake({}).status == 503
    client.close()
    server.wait_for("end", client)
    assert server.wait_for_access_log(client) == 503


def test_with_accept_early_the_handshake_comes_before_the_handler(server: Server) -> None:
    with server.raw("/wait-early") as client:
        server.wait_for("start", client)
        client.send_frame(CLOSE, close_body(4000))
        assert client.receive() == (CLOSE, close_body(4000))
        assert server.wait_for("end", client)["code"] == 4000
