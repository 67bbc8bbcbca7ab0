"""Every name of 0.6.1 still exists, or docs/migrating.md names a replacement."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

import flask_uwsgi_websocket
from flask_uwsgi_websocket import ConnectionClosed
from flask_uwsgi_websocket.state import State
from support.inprocess import Site, serving
from support.paths import DOCS
from support.wire import TEXT

MIGRATING = DOCS / "migrating.md"

#: The names that ``from flask_uwsgi_websocket import *`` defined, without those of other modules, such as ``os``.
NAMES = [
    "AsyncWebSocket",
    "AsyncWebSocketClient",
    "AsyncWebSocketMiddleware",
    "AsyncioNotAvailable",
    "AsyncioWebSocket",
    "AsyncioWebSocketClient",
    "AsyncioWebSocketMiddleware",
    "GeventNotInstalled",
    "GeventWebSocket",
    "GeventWebSocketClient",
    "GeventWebSocketMiddleware",
    "WebSocket",
    "WebSocketClient",
    "WebSocketMiddleware",
    "run_uwsgi",
    "uwsgi",
]

_CLIENT = "environ fd timeout id connected close receive recv send send_binary"
_PLAIN_CLIENT = f"{_CLIENT} recv_nb send_from_sharedarea send_binary_from_sharedarea"
_MIDDLEWARE = "client wsgi_app websocket"
_EXTENSION = "add_url_rule init_app middleware register_blueprint route run view_functions"
_GONE = "app blueprints debug routes timeout url_map"

#: The methods and attributes of each class: those that still exist, and those that were removed.
MEMBERS = {
    "AsyncWebSocket": (_EXTENSION, _GONE),
    "AsyncWebSocketClient": (_PLAIN_CLIENT, ""),
    "AsyncWebSocketMiddleware": (_MIDDLEWARE, ""),
    "AsyncioWebSocket": (_EXTENSION, _GONE),
    "AsyncioWebSocketClient": (f"{_PLAIN_CLIENT} a_recv a_send send_nb", "concurrent send_queue recv_queue has_msg"),
    "AsyncioWebSocketMiddleware": (_MIDDLEWARE, ""),
    "GeventWebSocket": (_EXTENSION, _GONE),
    "GeventWebSocketClient": (_CLIENT, "send_event send_queue recv_event recv_queue"),
    "GeventWebSocketMiddleware": (_MIDDLEWARE, ""),
    "WebSocket": (_EXTENSION, _GONE),
    "WebSocketClient": (_PLAIN_CLIENT, ""),
    "WebSocketMiddleware": (_MIDDLEWARE, ""),
}

#: The calls that 0.6.1 allowed.
CALLS = """
    WebSocket(app, timeout)
    GeventWebSocket(app=app, timeout=timeout)
    AsyncioWebSocket(app, timeout=timeout)
    WebSocket.init_app(websocket, app)
    WebSocket.route(websocket, rule, endpoint=endpoint, defaults=defaults)
    WebSocket.add_url_rule(websocket, rule, endpoint, handler)
    WebSocket.add_url_rule(websocket, rule, endpoint=endpoint, view_func=handler, subdomain=subdomain)
    WebSocket.register_blueprint(websocket, blueprint, url_prefix=url_prefix)
    WebSocket.run(websocket, app, debug, host, port, uwsgi_binary, processes=processes)
    WebSocket.run(websocket, app=app, debug=debug, host=host, port=port, uwsgi_binary=uwsgi_binary, gevent=gevent)
    WebSocketMiddleware(wsgi_app, websocket)
    WebSocketMiddleware(wsgi_app=wsgi_app, websocket=websocket)
    run_uwsgi(app, debug, host, port, uwsgi_binary, processes=processes)
    run_uwsgi(app, debug=debug, host=host, port=port, uwsgi_binary=uwsgi_binary)
    find_uwsgi()
    WebSocketClient.receive(ws)
    WebSocketClient.recv(ws)
    WebSocketClient.recv_nb(ws)
    WebSocketClient.send(ws, message)
    WebSocketClient.send(ws, message, binary)
    GeventWebSocketClient.send(ws, message, binary=binary)
    WebSocketClient.send_binary(ws, message)
    WebSocketClient.send_from_sharedarea(ws, id=id, pos=pos)
    WebSocketClient.send_binary_from_sharedarea(ws, id, pos)
    WebSocketClient.close(ws)
    AsyncioWebSocketClient.a_recv(ws)
    AsyncioWebSocketClient.a_send(ws, message)
    AsyncioWebSocketClient.send_nb(ws, message)
    AsyncioWebSocketClient.close(ws)
"""


def make(name: str) -> Any:
    """Return an instance of a class."""
    made: Any = getattr(flask_uwsgi_websocket, name)
    if name.endswith("Client"):
        app = Flask(__name__)
        with app.test_request_context():
            return made.refused({}, app, State().route("endpoint", [], {}))
    return made(None, None) if name.endswith("Middleware") else made()


def test_a_star_import_defines_every_name_of_0_6_1() -> None:
    namespace: dict[str, Any] = {}
    exec("from flask_uwsgi_websocket import *", namespace)
    assert set(NAMES) <= namespace.keys()


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_of_0_6_1_exists_or_is_in_the_migration_guide(name: str) -> None:
    there, gone = map(str.split, MEMBERS[name])
    instance = make(name)
    assert [member for member in (*there, *gone) if not hasattr(instance, member)] == gone
    guide = MIGRATING.read_text()
    assert [member for member in gone if f"`{member}`" not in guide] == []


@pytest.mark.parametrize("call", [line.strip() for line in CALLS.strip().splitlines()])
def test_the_signatures_accept_the_calls_of_0_6_1(call: str) -> None:
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    function = operator.attrgetter(ast.unparse(node.func))(flask_uwsgi_websocket)
    inspect.signature(function).bind(*node.args, **{str(keyword.arg): None for keyword in node.keywords})


@pytest.fixture
def asyncio() -> Iterator[Site]:
    yield from serving("asyncio", send_buffer=1000)


def test_send_nb_never_waits(asyncio: Site) -> None:
    @asyncio.route("/")
    async def handler(ws: Any) -> None:
        ws.send_nb("text")
        ws.send_nb(bytearray(b"binary"))
        asyncio.note(await ws.receive())
        for _ in range(1000):
            try:
                ws.send_nb(b"x" * 100_000)
            except BlockingIOError:
                asyncio.note("full")
                break
        assert await ws.receive() is None
        with pytest.raises(ConnectionClosed):
            ws.send_nb("late")
        asyncio.note("closed")

    client = asyncio.upgrade("/")
    client.frame(TEXT, b"go")
    assert [asyncio.noted(), asyncio.noted()] == ["go", "full"]
    client.reset()
    assert asyncio.noted() == "closed"
