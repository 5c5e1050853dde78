"""Fuzzes one target with libFuzzer by way of atheris; ``python -m tests.fuzz`` starts it for each."""

from __future__ import annotations

import sys

import atheris

# Only what is imported in this block tells which of its branches an input took. It takes time, yaml above all.
_INCLUDED = ["tdefs", "tests.fuzz.targets.broken", *(["yaml"] if sys.argv[1] in ("policy", "config") else [])]
with atheris.instrument_imports(include=_INCLUDED):
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.targets.broken import BROKEN


def main() -> None:
    """Run until libFuzzer ends the process; the arguments are a target and libFuzzer's own."""
    target = {**TARGETS, BROKEN.name: BROKEN}[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
