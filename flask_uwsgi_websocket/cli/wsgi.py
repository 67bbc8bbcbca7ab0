"""The module that uWSGI loads for ``flask uwsgi run``: it finds the application as the ``flask`` command does."""

from __future__ import annotations

import os
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING

from flask.cli import ScriptInfo

if TYPE_CHECKING:
    from flask import Flask


def load_app() -> Flask:
    """Return the application that ``FLASK_APP`` names, or the one in ``wsgi.py`` or ``app.py``.

    uWSGI's own way to name an application, ``module:factory()``, takes no arguments.
    """
    try:
        return ScriptInfo(os.environ.get("FLASK_APP")).load_app()
    except BaseException as error:
        _keep_watching(error)
        raise


def _keep_watching(error: BaseException | None) -> None:
    """Keep the modules that failed to import in ``sys.modules``, so that fixing one of them triggers a reload.

    uWSGI's autoreloader watches the files of ``sys.modules``, from which Python has removed these modules.
    """
    seen: set[BaseException] = set()  # an exception may be its own cause
    while error is not None and error not in seen:
        seen.add(error)
        files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, SyntaxError) and error.filename:
            files.append(error.filename)
        for file in files:
            stand_in = ModuleType(file)
            stand_in.__file__ = file
            sys.modules.setdefault(file, stand_in)
        error = error.__cause__ or error.__context__
