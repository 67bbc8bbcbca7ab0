"""The application of the test of signals during the start. A worker reloads the server, the next one stops it."""

import os
import signal
import time

from flask import Flask

import flask_uwsgi_websocket
from flask_uwsgi_websocket import uwsgi


def signal_the_master():
    signum = signal.SIGHUP if os.environ["UWSGI_RELOADS"] == "0" else signal.SIGINT
    while True:  # the master handles the signal only after it has forked all its workers
        os.kill(uwsgi.masterpid(), signum)
        time.sleep(0.05)


uwsgi.post_fork_hook = signal_the_master

app = Flask(__name__)
getattr(flask_uwsgi_websocket, os.environ["LIVE_CLASS"])(app)
