"""uWSGI's own Python module, and how its options are read."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

#: uWSGI's own module, or None outside uWSGI. It is there before any application is loaded; to import it could find
#: a project's own ``uwsgi.py`` elsewhere.
uwsgi: Any = sys.modules.get("uwsgi")
if not hasattr(uwsgi, "connection_fd"):
    uwsgi = None


def option_values(options: Mapping[str, Any], name: str) -> list[Any]:
    """Return all values of one of uWSGI's options, in their order."""
    value = options.get(name, [])
    return [
        each.decode() if isinstance(each, bytes) else each for each in (value if isinstance(value, list) else [value])
    ]


def option(options: Mapping[str, Any], name: str) -> Any:
    """Return the value of one of uWSGI's options, the last one if it was given several times; None if it was not."""
    return next(reversed(option_values(options, name)), None)


def number_option(options: Mapping[str, Any], name: str, default: int) -> int:
    """Return the number to which one of uWSGI's options is set, read as C's ``atoi()`` does."""
    match = re.match(r"\s*(\d+)", str(option(options, name)))
    return int(match[1]) if match else default
