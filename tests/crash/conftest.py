"""What every random run shares: a seed that is printed and repeats the run, and how many rounds it takes.

``TDEFS_CRASH_SEED`` repeats a run. ``TDEFS_CRASH_ROUNDS`` multiplies how much each test does, for a campaign.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from random import Random, SystemRandom

import pytest

pytest.register_assert_rewrite("tests.support.children", "tests.crash.faults.places", "tests.crash.faults.scripts")


@dataclass(frozen=True)
class Dice:
    """The randomness of one test."""

    seed: int
    factor: float
    name: str

    def rounds(self, usual: int) -> int:
        """How often to do what a usual run does so many times."""
        return max(1, round(usual * self.factor))

    def random(self, number: int = 0) -> Random:
        """The generator of one round, the same for the same seed, test and round."""
        return Random(zlib.crc32(f"{self.seed} {self.name} {number}".encode()))


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> Dice:
    """Randomness that can be repeated; the seed is printed, so the report of a failed test has it."""
    seed = int(os.environ.get("TDEFS_CRASH_SEED") or SystemRandom().randrange(1 << 32))
    print(f"to repeat: TDEFS_CRASH_SEED={seed}")
    return Dice(seed, float(os.environ.get("TDEFS_CRASH_ROUNDS") or 1), request.node.name)
