"""Parsers give a result or their own error for any input: a short run, and all that was ever found."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import SystemRandom

import pytest

from tests.fuzz.campaign import REGRESSIONS, fuzz
from tests.fuzz.contract import SECONDS
from tests.fuzz.targets import TARGETS
from tests.fuzz.targets.broken import BROKEN

#: Inputs for each target; those that YAML is parsed for take longer.
RUNS = 1500
FEWER_RUNS = 400


def kept() -> list[Path]:
    return sorted(path for path in REGRESSIONS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_keeps_the_promise(name: str) -> None:
    outcomes = {TARGETS[name].run(seed) for seed in TARGETS[name].seeds()}
    assert len(outcomes) > 1, f"all seeds come to the same: {outcomes}"


@pytest.mark.parametrize("path", kept(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_once_found_is_mended(path: Path) -> None:
    began = time.monotonic()
    TARGETS[path.parent.name].run(path.read_bytes())
    assert time.monotonic() - began < SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_finds_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="there is no atheris for this platform: see pyproject.toml")
    seed = int(os.environ.get("TDEFS_CRASH_SEED") or SystemRandom().randrange(1, 1 << 31))
    runs = FEWER_RUNS if name in ("policy", "config") else RUNS
    print(f"to repeat: scripts/fuzz {name} --seed {seed} --runs {runs}")
    outcome = fuzz(TARGETS[name], runs=runs, seconds=60, seed=seed, keep=tmp_path)
    assert not outcome.said, outcome.said
    assert outcome.runs >= runs
    assert outcome.coverage > 0


@pytest.mark.slow
def test_fuzzer_finds_a_parser_that_breaks_its_promise(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="there is no atheris for this platform: see pyproject.toml")
    outcome = fuzz(BROKEN, runs=200_000, seconds=60, seed=1, keep=tmp_path)
    assert "OverflowError" in outcome.said
    assert outcome.found is not None
    with pytest.raises(OverflowError):
        BROKEN.run(outcome.found.read_bytes())
