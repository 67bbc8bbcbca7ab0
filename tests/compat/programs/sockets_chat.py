"""A chat whose handlers only wait: a greenlet sends, and learns of the end by an exception."""

import gevent
import gevent.queue
from flask import Flask
from flask_sockets import Sockets
from geventwebsocket import WebSocketError

app = Flask(__name__)
sockets = Sockets(app)


class Chat:
    def __init__(self):
        self.clients = []
        self.messages = gevent.queue.Queue()

    def start(self):
        gevent.spawn(self.run)

    def send(self, client, message):
        try:
            client.send(message)
        except WebSocketError:
            self.clients.remove(client)

    def run(self):
        for message in self.messages:
            for client in self.clients:
                gevent.spawn(self.send, client, message)


chat = Chat()


@sockets.route("/submit")
def inbox(ws):
    while not ws.closed:
        gevent.sleep(0.01)
        message = ws.receive()
        if message:
            chat.messages.put(message)


@sockets.route("/receive")
def outbox(ws):
    chat.clients.append(ws)
    ws.send("welcome")
    while not ws.closed:
        gevent.sleep(0.05)


@sockets.route("/everybody")
def everybody(ws):
    ws.send("welcome")
    while not ws.closed:
        message = ws.receive()
        if message is None:
            print("RECORD one has left", flush=True)
            continue
        for client in ws.handler.server.clients.values():
            client.ws.send(message)


@sockets.route("/private")
def private(ws):
    if ws.receive() != "secret":
        ws.close()
        return
    ws.send(str(ws is ws.handler.active_client.ws))
    while (message := ws.receive()) is not None:
        ws.send(message)
    print("RECORD left", ws.closed, flush=True)


chat.start()
