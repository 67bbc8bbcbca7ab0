"""The application of the test of a stop within the start: each worker that is forked has its server stopped."""

import os
import signal
import time

from flask import Flask

import flask_uwsgi_websocket
from flask_uwsgi_websocket import uwsgi


def have_the_server_stopped():
    while True:  # the master itself hears of it only when it has forked all its workers
        os.kill(uwsgi.masterpid(), signal.SIGINT)
        time.sleep(0.05)


uwsgi.post_fork_hook = have_the_server_stopped

app = Flask(__name__)
getattr(flask_uwsgi_websocket, os.environ["LIVE_CLASS"])(app)
