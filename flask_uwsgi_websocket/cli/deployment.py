"""Configuration for one app, made from the files in ``deploy``, which the tests install unchanged."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from .runner import check_literal, find_uwsgi

#: The kinds of configuration and the file of each. The file of uWSGI depends on the mode.
FILES = {"nginx": "nginx-uwsgi.conf", "ini": "{mode}.ini", "systemd": "chat.service"}


def configuration(kind: str, mode: str, options: Iterable[tuple[str, str]], directory: Path, host: str | None) -> str:
    """Return a configuration file: a file of ``deploy`` with an app of your own in place of its app.

    The directory gives the service, its user and its socket their names.

    :param kind: a key of :data:`FILES`.
    :param mode: ``threads``, ``gevent`` or ``asyncio``.
    :param options: uWSGI's options that load the app.
    :param directory: the directory where uWSGI loads the app, with the files ``uwsgi.ini`` and ``tls.pem``.
    :param host: the host name of the site; an example unless given.
    :raises UwsgiNotFound: when there is no uWSGI binary.
    :raises ValueError: when a path needs quoting, which differs between the kinds of files, or the host has characters
        that a host name cannot have.
    :raises RuntimeError: when uWSGI would expand the value of an option.
    """
    name = re.sub("^[^a-z]+|[^a-z0-9_-]+", "", directory.name.lower()) or "app"
    binary = os.path.abspath(find_uwsgi())
    for path in (str(directory), sys.prefix, binary):
        if not re.fullmatch(r"[\w./@+-]+", path):
            raise ValueError(f"{path!r} has characters with a meaning in configuration files: rename it")
    if host is not None and not re.fullmatch(r"[A-Za-z0-9.-]+", host):
        raise ValueError(f"SERVER_NAME begins with {host!r}, which is not a host name: correct it")
    values = {
        "/srv/chat/venv/bin/uwsgi": binary,
        "/srv/chat": str(directory),
        # In an ini file, uWSGI expands a percent sign and the character after it.
        "module = app:app": "\n".join(f"{key} = {check_literal(value).replace('%', '%%')}" for key, value in options),
        "virtualenv = /srv/chat/venv\n": f"virtualenv = {sys.prefix}\n" * (sys.prefix != sys.base_prefix),
        "chat.example.com": host or f"{name}.example.com",
        "chat": name,
        "Chat": name.capitalize(),
    }
    longest_first = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
    text = (files(__package__) / "deploy" / FILES[kind].format(mode=mode)).read_text()
    return re.sub(rf"(?<!\w)({longest_first})\b", lambda match: values[match[0]], text)
