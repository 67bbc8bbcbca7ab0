"""Routes on blueprints: one that the application registers itself, and one of a Sock that gets its app later."""

from flask import Blueprint, Flask, url_for
from flask_sock import Sock

sock = Sock()
ws = Blueprint("ws", __name__, url_prefix="/ws")


@sock.route("/late")
def late(ws):
    ws.send(f"late {url_for('ws.echo', name='x', _external=False)}")


@sock.route("/<name>", bp=ws)
def echo(ws, name):
    while (data := ws.receive()) != "close":
        ws.send(f"{name}: {data}")


def create_app():
    app = Flask(__name__)
    sock.init_app(app)
    app.register_blueprint(ws)

    @sock.route("/direct")
    def direct(ws):
        ws.send("direct")

    return app


app = create_app()
