"""Fuzzes the parsers: ``python -m tests.fuzz --help``. Without a number of inputs or seconds it has no end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import SystemRandom

from tests.fuzz.campaign import REGRESSIONS, fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run the targets one after the other; the exit code is 1 if an input broke a promise."""
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Feeds the parsers inputs that coverage guides, until one breaks a promise. Such an input is "
        "kept as a file, which the tests replay from then on.",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--runs", type=int, default=-1, help="inputs for each target")
    parser.add_argument("--seconds", type=int, default=0, help="seconds for each target")
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(1, 1 << 32), help="repeats a run")
    parser.add_argument("--keep", type=Path, default=REGRESSIONS, metavar="DIRECTORY", help="for what is found")
    args = parser.parse_args()
    if unknown := set(args.targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    print(f"to repeat: --seed {args.seed}", flush=True)
    print(f"{'target':<20}{'inputs':>10}{'branches':>10}{'features':>10}{'corpus':>8}", flush=True)
    total, broken = 0, False
    for name in args.targets or TARGETS:
        outcome = fuzz(TARGETS[name], runs=args.runs, seconds=args.seconds, seed=args.seed, keep=args.keep)
        total += outcome.runs
        print(
            f"{name:<20}{outcome.runs:>10}{outcome.coverage:>10}{outcome.features:>10}{outcome.corpus:>8}",
            flush=True,
        )
        if outcome.said:
            broken = True
            print(f"{outcome.said}\nkept as: {outcome.found}", flush=True)
    print(f"{'all':<20}{total:>10}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
