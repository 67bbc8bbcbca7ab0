"""Version 0.6.1 itself does what ``support/records_0_6_1.json`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support import legacy as programs

pytestmark = pytest.mark.original


@pytest.fixture(scope="module")
def original() -> Iterator[Callable[[str], programs.Server]]:
    if not programs.ORIGINAL.exists():
        pytest.skip("needs 0.6.1: make .venvs/original/ready")
    with programs.servers(original=True) as servers:
        yield servers


#: How often a program runs: what 0.6.1 does is not the same each time.
ATTEMPTS = 3


@pytest.mark.parametrize(("mode", "name"), programs.CASES)
def test_the_record_is_right(mode: str, name: str, original: Callable[[str], programs.Server]) -> None:
    assert any(programs.is_recorded(original(mode), name) for _ in range(ATTEMPTS))
