"""The methods that handlers call, of the connection and of the extension, and the settings."""

from __future__ import annotations

from collections.abc import Callable

from flask import Flask

from flask_uwsgi_websocket import (
    AsyncioWebSocket,
    AsyncioWebSocketClient,
    Compression,
    ConnectionClosed,
    GeventWebSocket,
    RateLimit,
    WebSocket,
    WebSocketClient,
    WebSocketError,
    find_uwsgi,
    run_uwsgi,
)
from flask_uwsgi_websocket.settings import Settings


def talk(ws: WebSocketClient) -> None:
    ws.accept(subprotocol="v1", headers=[("X-Room", "lobby")])
    message = ws.receive(timeout=1.5)
    message.upper()  # type: ignore[union-attr]
    if isinstance(message, str):
        message.upper()
    ws.recv()
    ws.recv_nb()
    for message in ws:
        ws.send(message)
    for message in ws.messages():
        ws.send(bytearray(message.encode() if isinstance(message, str) else message), binary=False, timeout=3)
    with ws.message_context():
        ws.send_binary("text")
    ws.send_json({"text": ws.receive_json()["text"]})
    ws.send_from_sharedarea(0, 0)
    ws.send_binary_from_sharedarea(0, 0)
    ws.ping()
    ws.close(1000, "bye", wait=False)
    ws.send(3)  # type: ignore[arg-type]
    ws.send(None)  # type: ignore[arg-type]
    ws.send(ws.receive())  # type: ignore[arg-type]
    ws.send("text", 3)  # type: ignore[arg-type]
    ws.close("bye")  # type: ignore[arg-type]


def describe(ws: WebSocketClient | AsyncioWebSocketClient) -> dict[str, str | int | float | bool | None]:
    return {
        "id": ws.id,
        "path": ws.environ["PATH_INFO"],
        "fd": ws.fd,
        "timeout": ws.timeout,
        "connected": ws.connected,
        "subprotocol": ws.subprotocol,
        "close_code": ws.close_code,
        "close_reason": ws.close_reason,
        "latency": ws.latency,
    }


async def listen(ws: AsyncioWebSocketClient) -> None:
    await ws.accept()
    message = await ws.receive(timeout=1.5)
    message.upper()  # type: ignore[union-attr]
    await ws.recv()
    await ws.a_recv()
    ws.recv_nb()
    async for message in ws:
        await ws.send(message)
    async for message in ws.messages():
        await ws.a_send(message, binary=True)
    await ws.send_binary(b"binary")
    await ws.send_json({"text": (await ws.receive_json())["text"]})
    await ws.ping()
    await ws.close(1000, "bye")
    await ws.send(3)  # type: ignore[arg-type]
    await ws.send(ws.receive())  # type: ignore[arg-type]
    list(ws)  # type: ignore[call-overload]
    ws.receive().upper()  # type: ignore[attr-defined]


def tell(websocket: WebSocket, connections: set[WebSocketClient]) -> None:
    for slow in websocket.broadcast("hello", connections):
        slow.close(1013, wait=False)
    websocket.broadcast(b"hello", connections)
    websocket.broadcast(3, connections)  # type: ignore[arg-type]
    websocket.broadcast("hello", ["lobby"])  # type: ignore[type-var]


async def tell_asyncio(websocket: AsyncioWebSocket, connections: set[AsyncioWebSocketClient]) -> None:
    for slow in websocket.broadcast("hello", connections):
        await slow.close(1013, wait=False)


def catch(receive: Callable[[], str]) -> int:
    try:
        receive()
    except ConnectionClosed as closed:
        return closed.code + len(closed.reason)
    except WebSocketError:
        raise
    return 1000


def configure(app: Flask) -> None:
    Settings(
        origins=["https://example.com"],
        compression=Compression(),
        rate_limit=RateLimit(messages=50, bytes=100_000),
        ping_interval=None,
    )
    Settings(ping_interval="25")  # type: ignore[arg-type]
    Settings(origin="*")  # type: ignore[call-arg]
    RateLimit(messages="50")  # type: ignore[arg-type]
    websocket = GeventWebSocket(app, timeout=5, max_message_size=2**16, origins="*")
    assert websocket.stats()["open"] >= 0
    websocket.run(app, debug=True, host="localhost", port=8080, gevent=100)
    app.run("localhost", 5000, gevent=100)
    run_uwsgi("app:app", uwsgi_binary=find_uwsgi(), processes=4)
    run_uwsgi(3)  # type: ignore[arg-type]
