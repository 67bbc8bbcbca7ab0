"""HTTP views that push to the sockets that are registered."""

import json
import threading

from flask import Flask, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed

app = Flask(__name__)
sock = Sock(app)
sockets = {}
lock = threading.Lock()


@sock.route("/subscribe/<name>")
def subscribe(ws, name):
    with lock:
        sockets[name] = ws
    ws.send("subscribed")
    try:
        while True:
            ws.receive()  # only to notice the end
    except ConnectionClosed:
        print("RECORD", name, "has left", flush=True)
        with lock:
            del sockets[name]


@app.post("/push")
def push():
    sent = []
    with lock:
        listeners = list(sockets.items())
    for name, ws in listeners:
        try:
            ws.send(json.dumps(request.get_json()))
        except ConnectionClosed:
            continue
        sent.append(name)
    return sorted(sent)
