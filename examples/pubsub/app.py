"""News on a page, published by another process. Start it with ``python app.py``, then publish with ``publish.py``."""

import os

from flask import Flask, render_template

from flask_uwsgi_websocket import GeventWebSocket

app = Flask(__name__, template_folder="../templates")
# "auto" serves the workers of one server. Redis also serves other machines: "redis://localhost:6379/0".
app.config["WEBSOCKET_BROKER"] = os.environ.get("WEBSOCKET_BROKER", "auto")
websocket = GeventWebSocket(app)


@app.route("/")
def index():
    return render_template("pubsub.html")


@websocket.route("/topics/<string(maxlength=40):topic>")
def subscribe(ws, topic):
    websocket.room(topic).join(ws)
    ws.send(f"Subscribed to {topic}")
    for _ in ws:  # until it closes: the page sends nothing
        pass


if __name__ == "__main__":
    host, port = os.environ.get("HOST", "localhost"), int(os.environ.get("PORT", "5000"))
    app.run(host=host, port=port, processes=2, gevent=100)
