"""The stream of a telephone call: audio in JSON and base64, and a thread that works on it and answers."""

import base64
import json
import queue
import threading

from flask import Flask
from flask_sock import Sock
from simple_websocket import ConnectionClosed

app = Flask(__name__)
sock = Sock(app)


class Upstream(threading.Thread):
    """In place of a service that makes text of speech."""

    def __init__(self, ws):
        super().__init__()
        self.ws = ws
        self.chunks = queue.Queue()

    def run(self):
        size = 0
        while (chunk := self.chunks.get()) is not None:
            size += len(chunk)
            answer = base64.b64encode(chunk[::-1]).decode()
            self.ws.send(json.dumps({"event": "media", "media": {"payload": answer}, "size": size}))
        self.ws.send(json.dumps({"event": "mark", "size": size}))


@sock.route("/media")
def media(ws):
    upstream = Upstream(ws)
    upstream.start()
    try:
        while True:
            message = json.loads(ws.receive())
            if message["event"] == "media":
                upstream.chunks.put(base64.b64decode(message["media"]["payload"]))
            elif message["event"] == "stop":
                upstream.chunks.put(None)
                upstream.join()
                break
    except ConnectionClosed as end:
        print("RECORD hung up with", int(end.reason), flush=True)
        upstream.chunks.put(None)
