"""The file systems under test, by the names of ``--systems``, and the baseline of ``--baseline``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import BASELINE
from benchmarks.systems import encfs, fscrypt, gocryptfs, plain, tdefs
from benchmarks.systems.base import System, Variant

SYSTEMS: dict[str, type[System]] = {
    "plain": plain.Plain,
    "tdefs": tdefs.Tdefs,
    "gocryptfs": gocryptfs.Gocryptfs,
    "encfs": encfs.Encfs,
    "fscrypt": fscrypt.Fscrypt,
}
#: The ways to set up each; the first is taken where there is no time to find out which is the fastest.
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "plain": plain.VARIANTS,
    "tdefs": tdefs.VARIANTS,
    BASELINE: tdefs.VARIANTS,
    "gocryptfs": gocryptfs.VARIANTS,
    "encfs": encfs.VARIANTS,
    "fscrypt": fscrypt.VARIANTS,
}


def systems_with(baseline: Path | None) -> dict[str, type[System]]:
    """Return the systems that a run can measure.

    :param baseline: a checkout of another state of tdefs, or none
    """
    if baseline is None:
        return SYSTEMS
    return SYSTEMS | {BASELINE: tdefs.of_checkout(baseline)}
