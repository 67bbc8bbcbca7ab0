"""Authentication by the first message, and errors."""

from flask import Flask, abort
from flask_sock import Sock
from simple_websocket import ConnectionClosed

app = Flask(__name__)
sock = Sock(app)


class Denied(Exception):
    pass


@app.errorhandler(Denied)
def on_denied(error):
    print("RECORD denied:", error, flush=True)
    return "denied", 403


@app.teardown_request
def on_end(error):
    print("RECORD torn down", flush=True)


@sock.route("/private")
def private(ws):
    token = ws.receive(timeout=0.3)
    if token is None:
        ws.close(4408, "no token")
        return
    if token != "secret":
        ws.close(4401, "wrong token")
        return
    ws.send("hello")
    try:
        ws.receive()
    except ConnectionClosed as end:
        print("RECORD", int(end.reason), end.message, flush=True)


@sock.route("/raises/<what>")
def raises(ws, what):
    ws.receive()
    if what == "denied":
        raise Denied("you")
    if what == "abort":
        abort(404)
    raise ZeroDivisionError
