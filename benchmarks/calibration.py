"""Each peer at its best: what tdefs recommends is applied to the others too, where it helps them."""

from __future__ import annotations

import time

from benchmarks.caches import settle
from benchmarks.progress import say
from benchmarks.site import Site
from benchmarks.sizes import Sizes
from benchmarks.systems import VARIANTS
from benchmarks.systems.base import Unavailable, Variant
from benchmarks.workdir import WorkDirectory

_SCALE = "5"


def fastest_variant(work: WorkDirectory, name: str, sizes: Sizes) -> tuple[Variant, str]:
    """Return how to set up a system, and why: the fastest in TPC-B and load together.

    :raises Unavailable: no variant works on this machine.
    """
    variants = VARIANTS[name]
    if len(variants) == 1:
        return variants[0], "the only one"
    if sizes.limit is not None:
        return variants[0], "not compared in a run with a time limit"
    scores: dict[Variant, float] = {}
    errors = []
    for number, variant in enumerate(variants):
        site = work.site(name, variant, suffix=f"-{number}")
        try:
            scores[variant] = _score(site)
            say(f"calibration: {name}, {variant}: {scores[variant]:.0f}")
        except Unavailable as error:
            errors.append(str(error))
        finally:
            work.discard(site)
    if not scores:
        raise Unavailable("; ".join(errors))
    best = max(scores, key=lambda variant: scores[variant])
    said = ", ".join(
        f"{variant.name} with {variant.wal_sync_method} {score:.0f}" for variant, score in scores.items()
    )
    return best, f"root of TPC-B tps times loads per hour: {said}"


def _score(site: Site) -> float:
    site.open()
    site.psql("CREATE DATABASE bench")
    settle()
    began = time.perf_counter()
    site.server.run("pgbench", "-i", "-q", "-s", _SCALE, "bench")
    loads_per_hour = 3600 / (time.perf_counter() - began)
    settle()
    return float((_tpcb(site, site.sizes.seconds) * loads_per_hour) ** 0.5)


def _tpcb(site: Site, seconds: int) -> float:
    return site.pgbench("-c", "4", "-j", "2", "-T", str(seconds)).tps
