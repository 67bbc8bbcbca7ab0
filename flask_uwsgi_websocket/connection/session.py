"""How Flask's session is saved: by the handshake, if the session has changed, and by nothing else."""

from __future__ import annotations

from functools import cache

from flask import Flask, Response, request
from flask.globals import request_ctx
from flask.sessions import SessionMixin
from werkzeug.local import LocalProxy


def save_session(app: Flask, response: Response) -> None:
    """Add the session's cookie to *response* if the session has changed.

    Flask also refreshes the cookie of a permanent session that has not changed. The handshake may be sent long after
    the request has arrived, when a logout may have deleted the cookie. A refresh would undo the logout.
    """
    forget_mere_refresh(app)
    current = current_session()
    if current.modified and not app.session_interface.is_null_session(current):
        app.session_interface.save_session(app, current, response)
        current.modified = False  # later changes are lost


def forget_mere_refresh(app: Flask) -> None:
    """Mark the session as unchanged if it equals the session of the request's cookie.

    ``session.permanent = True`` in a ``before_request`` function marks the session as modified in each request.
    """
    current = current_session()
    if current.modified and not app.session_interface.is_null_session(current):
        original = app.session_interface.open_session(app, request)
        if original is not None and dict(original) == dict(current):
            current.modified = False


def forget_changes() -> None:
    """Mark the session as unchanged."""
    current_session().modified = False


def is_changed() -> bool:
    """Return whether the session is marked as modified."""
    return current_session().modified


def current_session() -> SessionMixin:
    """Return the session without marking it as accessed, which would add ``Vary: Cookie`` to the response."""
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    current: SessionMixin = getattr(context, _session_attribute(context))
    return current


def forget_session(app: Flask) -> None:
    """Keep Flask from saving the session at the end. ``after_request`` and teardown functions still see the session.

    The handshake has saved the session, or the session has not changed. Since then another request may have changed
    the session, or a logout may have ended it. To save the old session would undo that.
    """
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    current = current_session()
    proxy_class = _proxy_class(type(app.session_interface.make_null_session(app)))
    setattr(context, _session_attribute(context), proxy_class(lambda: current))


def remember_session() -> None:
    """Undo :func:`forget_session`, once Flask can save the session no more."""
    context = request_ctx._get_current_object()  # type: ignore[attr-defined]
    forgotten = getattr(context, _session_attribute(context))
    if isinstance(forgotten, LocalProxy):
        setattr(context, _session_attribute(context), forgotten._get_current_object())


@cache
def _proxy_class(null_class: type) -> type[LocalProxy[SessionMixin]]:
    """Return a class of proxies that Flask takes for null sessions, and does not save.

    A real null session refuses changes, and Flask-Login changes the session after each request with
    ``REMEMBER_COOKIE_REFRESH_EACH_REQUEST``.
    """
    return type("ForgottenSession", (LocalProxy,), {"__class__": null_class})


def _session_attribute(context: object) -> str:
    return "_session" if "_session" in vars(context) else "session"  # depends on the version of Flask
