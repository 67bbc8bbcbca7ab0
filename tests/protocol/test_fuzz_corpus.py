"""The inputs that fuzzing has found (`make fuzz`) break no rule, also without the fuzzer."""

from __future__ import annotations

import pytest

fuzz = pytest.importorskip("fuzz.targets")  # it needs the compiled functions


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_every_input_of_the_corpus_breaks_no_rule(target: str) -> None:
    inputs = fuzz.read_corpus(target)
    assert len(inputs) > 10
    for data in [b"", *inputs]:
        try:
            fuzz.TARGETS[target](data)
        except Exception as error:
            raise AssertionError(f"the input {data.hex()} of {target}") from error
