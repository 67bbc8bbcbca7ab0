"""Fuzz the protocol, guided by coverage, and keep the inputs that reach something new.

    python -m fuzz --seconds 600 [TARGET ...]

Each target runs in its own process, with Atheris (libFuzzer for Python). Atheris counts the branches of the package's
Python code, and the targets compare the compiled functions with it. An input that breaks a rule stays in build/fuzz.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "build" / "fuzz"
PACKAGE = "flask_uwsgi_websocket"

LONGEST = 2000  # bytes of an input: longer inputs are slow, and reach nothing new


def fuzz(target: str, arguments: list[str]) -> None:
    """Fuzz a target. libFuzzer takes the *arguments*, and ends the process."""
    import atheris

    with atheris.instrument_imports(include=[PACKAGE]):
        from .targets import TARGETS

    atheris.Setup([target, *arguments], TARGETS[target])
    atheris.Fuzz()


def run(target: str, seconds: int) -> bool:
    """Fuzz a target for some time, starting with its corpus, and return whether it held."""
    from .targets import CORPUS, read_corpus

    directory = FOUND / target
    directory.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus(target)
    for number, data in enumerate(corpus):
        (directory / f"kept-{number}").write_bytes(data)
    arguments = [
        *(str(directory), f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=2048"),
        *(f"-artifact_prefix={FOUND / target}-", "-use_value_profile=1", "-print_final_stats=1", "-verbosity=0"),
    ]
    done = subprocess.run([sys.executable, "-m", __package__, "--libfuzzer", target, *arguments])
    new = extend(target, corpus, [path.read_bytes() for path in directory.iterdir()])
    (CORPUS / f"{target}.txt").write_text("".join(f"{data.hex()}\n" for data in corpus + new))
    verdict = "BROKEN" if done.returncode else "held"
    print(f"{target}: {verdict}; {len(corpus)} inputs were in the corpus, {len(new)} are new", flush=True)  # noqa: T201
    return not done.returncode


def extend(target: str, corpus: list[bytes], found: list[bytes]) -> list[bytes]:
    """Return the shortest inputs of *found* that take a new branch, or a branch more often than inputs before them."""
    reached: set[Any] = set()
    new = []
    for data in [*corpus, *sorted(set(found), key=lambda data: (len(data), data))]:
        branches = {(branch, min(count.bit_length(), 4)) for branch, count in count_branches(target, data).items()}
        if not branches <= reached and data not in corpus:
            new.append(data)
        reached |= branches
    return new


def count_branches(target: str, data: bytes) -> Counter[Any]:
    """Return how often each line of the package came directly after each other line."""
    from .targets import TARGETS

    branches: Counter[Any] = Counter()
    lines: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if PACKAGE not in frame.f_code.co_filename:
            return None
        branches[frame.f_code, lines.get(frame), frame.f_lineno] += 1
        lines[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        TARGETS[target](data)
    except Exception as error:  # the fuzzer has already reported it
        branches[type(error)] += 1
    finally:
        sys.settrace(None)
    return branches


def main() -> None:
    if sys.argv[1:2] == ["--libfuzzer"]:
        fuzz(sys.argv[2], sys.argv[3:])
    from .targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="default: all")
    parser.add_argument("--seconds", type=int, default=600, help="seconds for each target (600)")
    options = parser.parse_args()
    held = [run(target, options.seconds) for target in options.targets or TARGETS]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
