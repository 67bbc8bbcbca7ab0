"""What becomes of Flask's session: the handshake saves it, if it has changed, and nothing else does."""

from __future__ import annotations

from functools import cache

from flask import Flask, Response, request
from flask.globals import request_ctx
from flask.sessions import SessionMixin
from werkzeug.local import LocalProxy


def save_session(app: Flask, response: Response) -> None:
    """Let the session add its cookie, if it has changed.

    Flask also refreshes the cookie of a permanent session that has not. The handshake may be sent long after the
    request has come, when a logout has deleted that cookie: to refresh it would undo the logout.
    """
    forget_mere_refresh(app)
    current = current_session()
    if current.modified and not app.session_interface.is_null_session(current):
        app.session_interface.save_session(app, current, response)
        current.modified = False  # what is changed from now on, is lost


def forget_mere_refresh(app: Flask) -> None:
    """Mark the session as unchanged if it equals the one that the request's cookie leads to.

    ``session.permanent = True`` in a ``before_request`` function marks it as modified in each request.
    """
    current = current_session()
    if current.modified and not app.session_interface.is_null_session(current):
        original = app.session_interface.open_session(app, request)
        if original is not None and dict(original) == dict(current):
            current.modified = False


def forget_changes(app: Flask, response: Response) -> None:
    current_session().modified = False


def current_session() -> SessionMixin:
    """Return the session, without taking it for accessed: Flask would then add ``Vary: Cookie`` to the response."""
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    current: SessionMixin = getattr(context, _session_attribute(context))
    return current


def forget_session(app: Flask) -> None:
    """Keep Flask from saving the session at the end. It stays as it is for ``after_request`` and teardown functions.

    It was saved with the handshake, or has not changed. By now it is old, and a session may have changed since, or
    been ended by a logout, which must not be undone.
    """
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    current = current_session()
    proxy_class = _proxy_class(type(app.session_interface.make_null_session(app)))
    setattr(context, _session_attribute(context), proxy_class(lambda: current))


@cache
def _proxy_class(null_class: type) -> type[LocalProxy[SessionMixin]]:
    """Return a class of proxies that Flask takes for null sessions, which it does not save.

    A real null session could not be written to, which Flask-Login does after each request with
    ``REMEMBER_COOKIE_REFRESH_EACH_REQUEST``.
    """
    return type("ForgottenSession", (LocalProxy,), {"__class__": null_class})


def _session_attribute(context: object) -> str:
    return "_session" if "_session" in vars(context) else "session"  # in newer and older versions of Flask
