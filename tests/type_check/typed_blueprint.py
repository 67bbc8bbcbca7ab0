"""Blueprints: routes of both kinds, hooks, listeners; classes as handlers; signals."""

from __future__ import annotations

from functools import partial
from typing import Any

from flask import Blueprint, Flask, Response, abort
from flask.typing import ResponseReturnValue

from flask_uwsgi_websocket import (
    AsyncioWebSocketClient,
    GeventWebSocket,
    WebSocket,
    WebSocketBlueprint,
    WebSocketClient,
    WebSocketView,
    websocket_closed,
    websocket_connected,
)

app = Flask(__name__)
websocket = GeventWebSocket()
chat = WebSocketBlueprint("chat", __name__, url_prefix="/chat", template_folder="templates")
WebSocketBlueprint("chat", __name__, url_prefix=3)  # type: ignore[arg-type]


@chat.route("/")
def index() -> str:
    return "the page"


# The two kinds of handlers


@chat.websocket("/<room>", endpoint="talk", max_message_size=4096)
def talk(ws: WebSocketClient, room: str) -> None:
    for message in ws.messages():
        ws.send(f"{room}: {message!r}")


@chat.websocket("/aio/<room>")
async def listen(ws: AsyncioWebSocketClient, room: str) -> ResponseReturnValue | None:
    async for message in ws.messages():
        await ws.send(message)
    return None


@chat.websocket("/anything")
def take_anything(ws: Any, /, **variables: Any) -> None: ...


def call(ws: WebSocketClient) -> None:
    talk(ws, room="lobby")
    talk(ws, room=3)  # type: ignore[arg-type]
    take_anything(ws, room=3)


async def await_call(ws: AsyncioWebSocketClient) -> None:
    await listen(ws, room="lobby")
    await listen(ws, room=3)  # type: ignore[arg-type]


chat.websocket("/lobby", endpoint="lobby")(partial(talk, room="lobby"))
chat.websocket("/aio/lobby", endpoint="aio-lobby")(partial(listen, room="lobby"))
chat.websocket("/lambda", endpoint="lambda")(lambda ws: ws.send("hello"))
chat.add_websocket_rule("/add/<room>", "add", talk)
chat.add_websocket_rule("/add/<room>", handler=listen, subprotocols=["v1"])
chat.add_websocket_rule("/add/lambda", "add-lambda", lambda ws: ws.send("hello"))
chat.add_websocket_rule("/add/partial", "add-partial", partial(listen, room="lobby"))


@chat.websocket("/no-client")  # type: ignore[arg-type]
def no_client() -> None: ...


@chat.websocket("/plain")  # type: ignore[type-var]
def plain_function_of_asyncio(ws: AsyncioWebSocketClient) -> None: ...


@chat.websocket("/coroutine")  # type: ignore[type-var]
async def coroutine_function_of_threads(ws: WebSocketClient) -> None: ...


chat.add_websocket_rule("/plain", handler=plain_function_of_asyncio)  # type: ignore[type-var]


# Classes as handlers


class Talk(WebSocketView):
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    def on_connect(self, ws: WebSocketClient, room: str) -> None:
        if room == "closed":
            abort(403)

    def on_message(self, ws: WebSocketClient, message: str | bytes) -> None:
        ws.send(message)

    def on_close(self, ws: WebSocketClient, code: int, reason: str) -> None: ...


class Listen(WebSocketView):
    async def on_connect(self, ws: AsyncioWebSocketClient) -> ResponseReturnValue | None:
        return "not now", 503

    async def on_message(self, ws: AsyncioWebSocketClient, message: str | bytes) -> None:
        await ws.send(message)


class InsideItsRequest(Talk):
    parked = False


class ParkedByNumber(Talk):
    parked = 1  # type: ignore[assignment]


class Count(WebSocketView):
    def on_message(self, ws: WebSocketClient, message: int) -> None: ...  # type: ignore[override]


chat.websocket("/view/<room>")(Talk.as_view("view", greeting="hello"))
chat.add_websocket_rule("/add/view/<room>", handler=Talk.as_view("add-view", "hello"))
chat.add_websocket_rule("/add/aio-view", handler=Listen.as_view("add-aio-view"))
chat.add_websocket_rule("/add/inside", handler=InsideItsRequest.as_view("add-inside", "hello"))
websocket.route("/view/<room>")(Talk.as_view("view", "hello"))
websocket.add_url_rule("/view", view_func=Listen.as_view("aio-view"))


# Hooks, of blueprints and extensions


@chat.before_websocket
def refuse_strangers() -> ResponseReturnValue | None:
    return "who are you?", 401


@websocket.before_websocket
@chat.before_app_websocket
async def refuse_later() -> None: ...


@chat.after_websocket
@chat.after_app_websocket
def add_header(response: Response) -> Response:
    response.headers["X-Chat"] = "yes"
    return response


@websocket.teardown_websocket
@chat.teardown_app_websocket
def clean_up(error: BaseException | None) -> None: ...


def call_hooks(response: Response) -> None:
    refuse_strangers()
    add_header(response).status_code += 1
    clean_up(None)
    add_header()  # type: ignore[call-arg]


@chat.before_websocket  # type: ignore[type-var]
def before_with_client(ws: WebSocketClient) -> None: ...


@websocket.after_websocket  # type: ignore[type-var]
def after_without_response() -> None: ...


@chat.teardown_websocket  # type: ignore[type-var]
def teardown_without_error() -> None: ...


# Listeners and signals


@chat.on_connect
@websocket.on_connect
def joined(app: Flask, ws: WebSocketClient, **extra: Any) -> None: ...


@chat.on_message
async def received(app: Flask, ws: AsyncioWebSocketClient, message: str | bytes, **extra: Any) -> None: ...


@chat.on_close
def left(app: Flask, ws: WebSocketClient, code: int, reason: str, **extra: Any) -> None: ...


@chat.on_error
def failed(app: Flask, ws: WebSocketClient, exception: BaseException, **extra: Any) -> None: ...


@websocket_connected.connect
def connected(app: Flask, ws: WebSocketClient, **extra: Any) -> None: ...


websocket_closed.connect(left, app)


def call_listeners(ws: WebSocketClient) -> None:
    joined(app, ws)
    left(app, ws, code=1000, reason="")
    left(app, ws, code="1000", reason="")  # type: ignore[arg-type]


# Registration


def create_app(extension: WebSocket) -> Flask:
    app = Flask(__name__)
    extension.init_app(app)
    app.register_blueprint(chat, url_prefix="/talk")
    extension.register_blueprint(Blueprint("plain", __name__), url_prefix="/plain")
    chat.register_blueprint(WebSocketBlueprint("inner", __name__))
    extension.init_app(chat)  # type: ignore[arg-type]
    return app
