"""Echo every message: one thread for each connection. Start it with ``python app.py``."""

import os

from flask import Flask, render_template

from flask_uwsgi_websocket import WebSocket

app = Flask(__name__, template_folder="../templates")
websocket = WebSocket(app)


@app.route("/")
def index():
    return render_template("echo.html")


@websocket.route("/echo")
def echo(ws):
    for message in ws:  # str for text, bytes for binary
        ws.send(message)


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    app.run(host=host, port=port, threads=16)
