"""flask-sock, for gunicorn, or this package's drop-in. The environment variable SOCK names the module of the two."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from flask import Flask

app = Flask(__name__)
sock = import_module(os.environ["SOCK"]).Sock(app)


@sock.route("/echo")
def echo(ws: Any) -> None:
    while True:
        ws.send(ws.receive())
