"""Echo every message: one task for each connection. Start it with ``python app.py``."""

import os

from flask import Flask, render_template

from flask_uwsgi_websocket import AsyncioWebSocket

app = Flask(__name__, template_folder="../templates")
websocket = AsyncioWebSocket(app)


@app.route("/")
def index():
    return render_template("echo.html")


@websocket.route("/echo")
async def echo(ws):
    async for message in ws:  # str for text, bytes for binary
        await ws.send(message)


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    app.run(host=host, port=port, asyncio=100, greenlet=True)
