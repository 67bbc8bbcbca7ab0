"""The application of the test of signals within the start: a worker has its server reload; the next one, stop."""

import os
import signal
import time

from flask import Flask

import flask_uwsgi_websocket
from flask_uwsgi_websocket import uwsgi


def signal_the_master():
    signum = signal.SIGHUP if os.environ["UWSGI_RELOADS"] == "0" else signal.SIGINT
    while True:  # the master itself hears of it only when it has forked all its workers
        os.kill(uwsgi.masterpid(), signum)
        time.sleep(0.05)


uwsgi.post_fork_hook = signal_the_master

app = Flask(__name__)
getattr(flask_uwsgi_websocket, os.environ["LIVE_CLASS"])(app)
