"""The example of Flask-Sockets' README with blueprints."""

from flask import Blueprint, Flask
from flask_sockets import Sockets

html = Blueprint("html", __name__)
ws = Blueprint("ws", __name__)


@html.route("/")
def hello():
    return "Hello World!"


@ws.route("/echo")
@ws.route("/echo/<name>")
def echo_socket(socket, name="nobody"):
    while not socket.closed:
        message = socket.receive()
        socket.send(message)


app = Flask(__name__)
sockets = Sockets(app)

app.register_blueprint(html, url_prefix="/")
sockets.register_blueprint(ws, url_prefix="/")
