"""Messages are compressed when both sides agree to it."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed as ClientSawClose

from flask_uwsgi_websocket import Compression
from support.inprocess import DEADLINE, Site


@pytest.mark.parametrize("compression", [True, Compression(threshold=0), Compression(context_takeover=False)])
def test_messages_are_compressed_when_both_sides_want_it(site: Site, echo: Any, compression: Any) -> None:
    site.app.config["WEBSOCKET_COMPRESSION"] = compression

    with site.connect(compression="deflate") as client:
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        for message in ["", "short", "long " * 1000, b"binary" * 1000]:
            client.send(message)
            assert client.recv(DEADLINE) == message
    with site.connect(compression=None) as client:
        client.send("plain")
        assert client.recv(DEADLINE) == "plain"


def test_compression_is_off_by_default(site: Site, echo: Any) -> None:
    with site.connect(compression="deflate") as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
        client.send("x" * 10_000)
        assert client.recv(DEADLINE) == "x" * 10_000


def test_a_bomb_is_refused_with_1009(site: Site, echo: Any) -> None:
    site.app.config.update(WEBSOCKET_COMPRESSION=True, WEBSOCKET_MAX_MESSAGE_SIZE=10_000)

    with site.connect(compression="deflate") as client:
        client.send(b"\0" * 10_000_000)
        with pytest.raises(ClientSawClose, match="1009"):
            client.recv(DEADLINE)
