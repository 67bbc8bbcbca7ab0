"""The application of the live tests of views. The journal has each call of a method, and each signal.

Each view exists in both forms: below ``/parked``, and below ``/in-request``.
"""

from flask import abort, request, session, url_for
from live_app import Deliberate, for_mode, journal, sleep
from live_reloads_app import app, websocket

from flask_uwsgi_websocket import WebSocketView, websocket_error, websocket_message, websocket_sent

__all__ = ["app"]


def note(event, **fields):
    journal(event, token=request.args["token"], **fields)


may_go_on = []


@app.route("/go-on")
def go_on():
    """Let the methods go on that wait."""
    may_go_on.append(True)
    return "go on"


class Talk(WebSocketView):
    """A view that answers each message, and does what some messages ask for."""

    @for_mode
    async def on_connect(self, ws, **view_args):
        note("on_connect")
        session["visited"] = self.name = request.args.get("name", "nobody")
        if self.name == "refused":
            abort(403)
        if self.name == "gone":
            return "gone", 410
        return None

    @for_mode
    async def on_message(self, ws, message):
        note("on_message")
        if message == "crash":
            raise Deliberate
        if message == "abort":
            abort(404)
        if message == "close":
            await ws.close(4001, "bye")
            return
        if message == "wait":
            note("waits")
            while not may_go_on:
                await sleep(0.01)
        await ws.send(f"{self.name}: {message}")

    @for_mode
    async def on_close(self, ws, code, reason):
        note("on_close", code=code, reason=reason)


class Identity(Talk):
    """A view that answers what it knows of its request."""

    @for_mode
    async def on_message(self, ws, message):
        known = request.args["name"], request.cookies.get("name"), session["visited"], self.name
        await ws.send_json([*known, url_for(request.endpoint), request.headers["Host"]])


for cls in (Talk, Identity):
    name = cls.__name__.lower()
    in_request = type(cls.__name__, (cls,), {"parked": False})
    websocket.add_url_rule(f"/parked/{name}", view_func=cls.as_view(f"parked_{name}"))
    websocket.add_url_rule(f"/in-request/{name}", view_func=in_request.as_view(f"in_request_{name}"))


@websocket_message.connect
@for_mode
async def note_message(app, ws, message, **extra):
    note("message")


@websocket_sent.connect
@for_mode
async def note_sent(app, ws, message, **extra):
    note("sent")


@websocket_error.connect
@for_mode
async def note_error(app, ws, exception, **extra):
    note("error", exception=type(exception).__name__)
