"""A page of Flask without this package."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.route("/page")
def page() -> str:
    return "Hello"
