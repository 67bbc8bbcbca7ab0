"""What uWSGI loads for ``flask uwsgi run``: the application that Flask's command would."""

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

    uWSGI's own names of applications, ``module:factory()``, have no arguments.
    """
    try:
        return ScriptInfo(os.environ.get("FLASK_APP")).load_app()
    except BaseException as error:
        _keep_watching(error)
        raise


def _keep_watching(error: BaseException | None) -> None:
    """Have uWSGI's autoreloader see the modules that could not be imported, for one of them is to be mended.

    It watches the files of ``sys.modules``, which Python has removed them from.
    """
    seen: set[BaseException] = set()  # one may be its own cause
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
