"""Directories and files of the checkout."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).parent

#: The applications of the live tests. Servers import them by their names.
APPS = SUPPORT / "apps"

ROOT = SUPPORT.parents[1]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
