"""The application of docs/resume.md, which a test has saved as app.py, with what the tests ask it for."""

import os

from app import app, websocket
from live_app import save_coverage  # this also notes that the worker has started

app.add_url_rule("/save-coverage", view_func=save_coverage, methods=["POST"])
app.add_url_rule("/stats", "stats", lambda: {"pid": os.getpid(), **websocket.stats()["rooms"]})
