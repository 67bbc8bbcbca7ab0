"""Handlers of the three extensions. mypy checks these files, and a missing error is an error, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from flask import Flask, Response, abort, redirect
from flask.typing import ResponseReturnValue

from flask_uwsgi_websocket import (
    AsyncioWebSocket,
    AsyncioWebSocketClient,
    AsyncioWebSocketMiddleware,
    GeventWebSocket,
    GeventWebSocketClient,
    GeventWebSocketMiddleware,
    WebSocket,
    WebSocketClient,
)

P = ParamSpec("P")
R = TypeVar("R")

app = Flask(__name__)
websocket = WebSocket(app)
gevent = GeventWebSocket()
aio = AsyncioWebSocket(app, ping_interval=None)


# Plain functions keep their signature.


@websocket.route("/")
def echo(ws: WebSocketClient) -> None:
    for message in ws:
        ws.send(message)


@gevent.route("/<room>", endpoint="talk", subprotocols=["v1"], defaults={"room": "lobby"})
def talk(ws: GeventWebSocketClient, room: str, limit: int = 10) -> None:
    for _ in range(limit):
        ws.send(room)


def call_plain(ws: GeventWebSocketClient) -> None:
    echo(ws)
    talk(ws, "lobby", limit=3)
    talk(ws, room=3)  # type: ignore[arg-type]
    talk(ws)  # type: ignore[call-arg]


@websocket.route("/answer")
def answer_instead(ws: WebSocketClient) -> ResponseReturnValue | None:
    return None if ws.connected else ("not now", 503)


@websocket.route("/redirect")
def redirect_to_login(ws: WebSocketClient) -> Response:
    response = redirect("/login")
    assert isinstance(response, Response)
    return response


@websocket.route("/refuse")
def refuse(ws: WebSocketClient) -> NoReturn:
    abort(403)


@websocket.route("/anything")
def take_anything(ws: Any, /, **variables: Any) -> Any: ...  # a variable may be called ws, too


@websocket.route("/receive")
@websocket.route("/also")
def receive(ws: WebSocketClient) -> None: ...


# Coroutine functions keep it, too.


@aio.route("/<room>")
async def listen(ws: AsyncioWebSocketClient, room: str) -> None:
    async for message in ws:
        await ws.send(f"{room}: {message!r}")


@aio.route("/answer")
async def answer_later(ws: AsyncioWebSocketClient) -> ResponseReturnValue | None:
    return {"error": "not now"}, 503


async def call_coroutine(ws: AsyncioWebSocketClient) -> None:
    await listen(ws, "lobby")
    await listen(ws, room=3)  # type: ignore[arg-type]
    (await answer_later(ws)).upper()  # type: ignore[union-attr]


# Every callable can be a handler.


class Echo:
    def __call__(self, ws: WebSocketClient, room: str) -> None: ...


class AsyncioEcho:
    async def __call__(self, ws: AsyncioWebSocketClient) -> None: ...

    async def method(self, ws: AsyncioWebSocketClient) -> None: ...


def logged(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return wrapper


@websocket.route("/logged")
@logged
def logged_echo(ws: WebSocketClient) -> None: ...


@aio.route("/logged")
@logged
async def logged_listen(ws: AsyncioWebSocketClient) -> None: ...


websocket.route("/echo/<room>", endpoint="echo")(Echo())
websocket.route("/lobby", endpoint="lobby")(partial(talk, room="lobby"))
websocket.route("/lambda", endpoint="lambda")(lambda ws: ws.send("hello"))
websocket.add_url_rule("/add", "add", echo)
websocket.add_url_rule("/add/echo/<room>", "add-echo", Echo())
websocket.add_url_rule("/add/lambda", "add-lambda", lambda ws: ws.send("hello"))
websocket.add_url_rule("/add/partial", "add-partial", view_func=partial(talk, room="lobby"))
aio.route("/echo", endpoint="echo")(AsyncioEcho())
aio.route("/method", endpoint="method")(AsyncioEcho().method)
aio.route("/lobby", endpoint="lobby")(partial(listen, room="lobby"))
aio.add_url_rule("/add/<room>", view_func=listen)
aio.add_url_rule("/add/partial", "add-partial", partial(listen, room="lobby"))


# A custom class of clients.


class User(GeventWebSocketClient):
    name = "anonymous"


class AsyncioUser(AsyncioWebSocketClient):
    name = "anonymous"


class UserMiddleware(GeventWebSocketMiddleware):
    client = User


class UserWebSocket(GeventWebSocket):
    middleware = UserMiddleware


class AsyncioUserMiddleware(AsyncioWebSocketMiddleware):
    client = AsyncioUser


class AsyncioUserWebSocket(AsyncioWebSocket):
    middleware = AsyncioUserMiddleware


@UserWebSocket(app).route("/user")
def greet(ws: User) -> None:
    ws.send(ws.name)


@AsyncioUserWebSocket(app).route("/user")
async def greet_later(ws: AsyncioUser, greeting: str) -> None:
    await ws.send(greeting + ws.name)


# Objects that are no handlers.


@websocket.route("/no-client")  # type: ignore[arg-type]
def no_client() -> None: ...


@websocket.route("/no-client/<room>")  # type: ignore[type-var]
def no_client_but_room(room: str) -> None: ...


@websocket.route("/number")  # type: ignore[type-var]
def number(ws: WebSocketClient) -> int:
    return 1


@websocket.route("/coroutine")  # type: ignore[type-var]
async def coroutine(ws: WebSocketClient) -> None: ...


@gevent.route("/other-client")  # type: ignore[type-var]
def other_client(ws: AsyncioWebSocketClient) -> None: ...


@aio.route("/plain")  # type: ignore[type-var]
def plain(ws: AsyncioWebSocketClient) -> None: ...


@aio.route("/other-client")  # type: ignore[type-var]
async def other_asyncio_client(ws: WebSocketClient) -> None: ...


websocket.add_url_rule("/coroutine", "coroutine", listen)  # type: ignore[type-var]
aio.add_url_rule("/plain", "plain", echo)  # type: ignore[type-var]
websocket.route(echo)  # type: ignore[arg-type]
WebSocket("app")  # type: ignore[arg-type]
