"""The pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from support.paths import DOCS, ROOT

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

#: The package that the pages install until 0.7.0 is on PyPI, as installation.md says. For the release, write
#: "Flask-uWSGI-WebSocket" here, and run this command for the pages:
#: sed -i 's|\.\./flask-uwsgi-websocket|Flask-uWSGI-WebSocket|' README.md docs/*.md
PACKAGE = "../flask-uwsgi-websocket"


class Block(NamedTuple):
    """A block of code.

    :param page: the path of its page.
    :param line: the number of its first line.
    :param where: the line before it if the block is a file, such as ```app.py`:``.
    """

    page: str
    line: int
    where: str
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}: {self.text}"


def blocks_of(path: Path) -> list[Block]:
    page, text = str(path.relative_to(ROOT)), path.read_text()
    pattern = r"(?:(?<=\n\n)((?:At the end of )?`[^`\n]+`:)\n\n)?^```([^\n]*)\n(.*?)^```$"
    return [
        Block(page, text.count("\n", 0, match.start(3)) + 1, match[1] or "", match[2], match[3])
        for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL)
    ]


BLOCKS = {str(path.relative_to(ROOT)): blocks_of(path) for path in PAGES}


def block_not_run(start: str) -> str:
    """Return the text of the block that begins with *start*."""
    return next(block.text for blocks in BLOCKS.values() for block in blocks if block.name.startswith(start))
