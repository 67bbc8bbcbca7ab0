"""A peer that breaks the protocol gets a Close frame."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed as ClientSawClose

from support.inprocess import DEADLINE, Site, tick
from support.wire import BINARY, CLOSE, KEY, PING, TEXT, close_body, frame


@pytest.mark.parametrize("handler_is", ["receiving", "busy"])
@pytest.mark.parametrize(
    ("code", "opcode", "payload", "how"),
    [
        (1002, 3, b"", {}),
        (1002, TEXT, b"", {"rsv": 4}),
        (1002, PING, b"", {"fin": False}),
        (1007, TEXT, b"\xff", {}),
        (1009, BINARY, b"x" * 1001, {}),
    ],
    ids=["opcode", "rsv1", "fragmented ping", "utf-8", "too big"],
)
def test_a_failure_sends_the_close_frame_even_when_the_peer_has_more_to_send(
    site: Site, handler_is: str, code: int, opcode: int, payload: bytes, how: dict[str, Any]
) -> None:
    site.app.config.update(WEBSOCKET_MAX_MESSAGE_SIZE=1000, WEBSOCKET_CLOSE_TIMEOUT=DEADLINE)

    @site.route()
    async def handler(ws: Any) -> None:
        await ws.accept()
        while ws.connected:
            await (ws.receive() if handler_is == "receiving" else tick(site))
        site.note(ws.close_code)

    client = site.upgrade()
    more = frame(BINARY, b"more" * 50_000, key=KEY)
    client.frame(opcode, payload, **how)
    for _ in range(20):
        client.send(more)
    answer = client.read_frame()
    assert answer is not None
    assert (answer[0], answer[1][:2]) == (CLOSE, code.to_bytes(2, "big"))
    assert client.read_frame() is None
    assert site.noted() == code


def test_an_unmasked_frame_is_refused(site: Site, echo: Any) -> None:
    client = site.upgrade()
    client.send(b"\x81\x01x")
    answer = client.read_frame()
    assert answer is not None
    assert (answer[0], answer[1][:2]) == (CLOSE, close_body(1002))


def test_the_largest_message_may_have_any_size(site: Site, echo: Any) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 2**64
    client = site.connect()
    client.send("x" * 100_000)
    assert client.recv(DEADLINE) == "x" * 100_000


def test_the_largest_message_passes_and_a_larger_one_is_1009(site: Site, echo: Any) -> None:
    site.app.config["WEBSOCKET_MAX_MESSAGE_SIZE"] = 100_000

    with site.connect() as client:
        client.send("x" * 100_000)
        assert client.recv(DEADLINE) == "x" * 100_000
        with suppress(ClientSawClose):  # it may arrive before all is sent
            client.send(["x" * 50_000, "y" * 50_001])
        with pytest.raises(ClientSawClose, match="1009"):
            client.recv(DEADLINE)
