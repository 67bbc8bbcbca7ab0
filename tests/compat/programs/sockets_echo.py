"""The example of Flask-Sockets' README, with what a handler may see of its connection."""

from flask import Flask, g, request
from flask_sockets import Sockets
from geventwebsocket.exceptions import WebSocketError

app = Flask(__name__)
sockets = Sockets(app)


@sockets.route("/echo")
def echo_socket(ws):
    while not ws.closed:
        message = ws.receive()
        ws.send(message)


@app.route("/echo")
def page():
    return "a page of the same URL"


@sockets.route("/state/<int:number>")
def state(ws, number):
    g.number = number
    ws.send(f"{ws.closed} {ws.path} {ws.origin} {ws.protocol} {g.number} {request.args['name']}")
    message = ws.receive()
    ws.send(type(message).__name__)
    ws.send(message)
    ws.send(b"text"[::-1].decode())
    ws.send(bytearray(b"array"))
    ws.send(12, False)
    ws.send(None, binary=False)
    ws.send(b"yes", binary=True)
    ws.send_frame("a frame", ws.OPCODE_TEXT)
    ws.send_frame(b"bytes", ws.OPCODE_BINARY)
    print("RECORD", ws.receive(), ws.closed, flush=True)
    for call in (ws.receive, lambda: ws.send("late"), lambda: ws.send(None)):
        try:
            call()
        except WebSocketError as error:
            print("RECORD", type(error).__name__, error, isinstance(error, OSError), flush=True)
    ws.close()


@sockets.route("/close")
def close(ws):
    ws.receive()
    ws.close()
    print("RECORD", ws.closed, flush=True)
    try:
        ws.receive()
    except WebSocketError as error:
        print("RECORD", error, flush=True)


if __name__ == "__main__":
    import os

    from gevent import pywsgi
    from geventwebsocket.handler import WebSocketHandler

    server = pywsgi.WSGIServer(("127.0.0.1", int(os.environ["PORT"])), app, handler_class=WebSocketHandler)
    server.serve_forever()
