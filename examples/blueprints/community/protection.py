"""The key that signs sessions, and protection against other sites: a token in every form, and response headers.

WebSockets need no token, because the extension refuses a handshake whose Origin is another site.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from flask import Flask, Response, abort, request, session


def secret_key(directory: Path) -> str:
    """Return the key that signs sessions. It is made once and kept in a file, so that a restart logs nobody out.

    :param directory: the directory of the file, which only its owner may read.
    """
    path = directory / "secret_key"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=directory) as file:  # readable by its owner only
            file.write(secrets.token_hex())
            file.flush()
            with suppress(FileExistsError):  # another process was faster, and all processes use its key
                os.link(file.name, path)  # makes the key appear as a whole
    return path.read_text()


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
    """Refuse a form that does not come from one of our own pages."""
    if request.method in {"GET", "HEAD", "OPTIONS"}:
        return
    expected, given = session.get("csrf_token"), request.form.get("csrf_token", "")
    if expected is None or not secrets.compare_digest(given.encode(), expected.encode()):
        abort(400, "This form is too old. Go back, reload the page and try again; your browser must accept cookies.")


def add_headers(response: Response) -> Response:
    """Allow pages to load and run only our own files, and forbid other sites to show the pages in a frame."""
    response.headers["Content-Security-Policy"] = (
        "default-src 'self'; img-src data:; connect-src 'self' ws: wss:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    return response
