"""A chat that loops over its clients."""

from flask import Flask
from flask_sock import Sock
from simple_websocket import ConnectionClosed

app = Flask(__name__)
sock = Sock(app)
clients = []


def leave(client):
    try:
        clients.remove(client)
    except ValueError:  # another view was faster
        pass


@sock.route("/chat")
def chat(ws):
    clients.append(ws)
    ws.send("welcome")
    try:
        while True:
            message = ws.receive()
            for client in clients[:]:
                try:
                    client.send(message)
                except ConnectionClosed:
                    leave(client)
    finally:
        leave(ws)
        print("RECORD", len(clients), "are left", flush=True)


@sock.route("/careless")
def careless(ws):
    """Send to others without catching that they have left: that ends this view, and quietly."""
    clients.append(ws)
    ws.send("welcome")
    while True:
        message = ws.receive()
        for client in clients:
            client.send(message)
