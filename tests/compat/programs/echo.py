"""An echo, as in flask-sock's documentation, with what a view may see of its connection."""

from flask import Flask, g, request
from flask_sock import ConnectionClosed, Sock

app = Flask(__name__)
sock = Sock(app)
app.config["SOCK_SERVER_OPTIONS"] = {"subprotocols": ["v2", "v1"], "ping_interval": 25, "max_message_size": 1000}


@app.before_request
def note_name():
    g.name = request.args.get("name", "nobody")


@sock.route("/echo")
def echo(ws):
    while True:
        data = ws.receive()
        ws.send(data)


@sock.route("/sends/<int:number>", endpoint="sends")
def sends(ws, number):
    for data in ("text", b"bytes", "", b"", number, 1.5, None, {"a": 1}, bytearray(b"array"), ("a", b"b")):
        ws.send(data)


@sock.route("/state")
def state(ws):
    ws.send([ws.connected, ws.subprotocol, int(ws.close_reason), ws.close_message, ws.environ["PATH_INFO"], g.name])
    while True:
        try:
            data = ws.receive(timeout=0) or ws.receive(timeout=0.05)
        except ConnectionClosed as end:
            print("RECORD", int(end.reason), end.message, end, flush=True)
            print("RECORD", ws.connected, int(ws.close_reason), ws.close_message, flush=True)
            for call in (ws.receive, ws.close, lambda: ws.send("late")):
                try:
                    call()
                except ConnectionClosed as end:
                    print("RECORD", end, flush=True)
            raise
        if data is not None:
            ws.send(data)


@sock.route("/close")
def close(ws):
    reason, message = ws.receive(), ws.receive()
    ws.close(reason=int(reason) or None, message=message or None)
    print("RECORD", ws.connected, flush=True)
    ws.close()
    print("RECORD not reached", flush=True)


@sock.route("/returns")
def returns(ws):
    ws.send("bye")
    return "this is no response", 404
