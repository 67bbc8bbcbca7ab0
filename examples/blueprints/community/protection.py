"""Protection against what other sites make a browser do: a token in every form, and headers.

WebSockets need no token: the extension refuses a handshake whose Origin is another site.
"""

import secrets

from flask import Flask, Response, abort, request, session


def init_app(app: Flask) -> None:
    app.before_request(check_token)
    app.after_request(add_headers)
    app.jinja_env.globals["csrf_token"] = csrf_token


def csrf_token() -> str:
    """Return the token of this session, for the hidden field ``csrf_token`` of a form."""
    if "csrf_token" not in session:
        session["csrf_token"] = secrets.token_urlsafe()
    token: str = session["csrf_token"]
    return token


def check_token() -> None:
    """Refuse a form that none of our own pages has sent."""
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    expected, given = session.get("csrf_token"), request.form.get("csrf_token", "")
    if expected is None or not secrets.compare_digest(given.encode(), expected.encode()):
        abort(400, "This form is too old. Go back, reload the page and try again; your browser must accept cookies.")


def add_headers(response: Response) -> Response:
    """Let pages load and run nothing but files of ours, and nobody show them in a frame."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'self'; img-src data:; connect-src 'self' ws: wss:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    return response
