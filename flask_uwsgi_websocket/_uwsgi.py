"""uWSGI's own Python module, and functions that read its options."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

#: uWSGI's own module, or None outside of uWSGI. uWSGI adds it to ``sys.modules`` before it loads an application. An
#: import could find a project's own ``uwsgi.py``.
uwsgi: Any = sys.modules.get("uwsgi")
if not hasattr(uwsgi, "connection_fd"):
    uwsgi = None


def option_values(options: Mapping[str, Any], name: str) -> list[Any]:
    """Return all values of a uWSGI option, in their order."""
    value = options.get(name, [])
    return [
        each.decode() if isinstance(each, bytes) else each for each in (value if isinstance(value, list) else [value])
    ]


def option(options: Mapping[str, Any], name: str) -> Any:
    """Return the last value of a uWSGI option, or None if it was not given."""
    return next(reversed(option_values(options, name)), None)


def number_option(options: Mapping[str, Any], name: str, default: int) -> int:
    """Return the value of a uWSGI option as a number, as C's ``atoi()`` reads it; *default* if it was not given."""
    match = re.match(r"\s*(\d+)", str(option(options, name)))
    return int(match[1]) if match else default
