"""Each peer at its best: what tdefs recommends is applied to the others too, where it helps them."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.caches import settle
from benchmarks.progress import say
from benchmarks.site import RECOMMENDED_WAL_SYNC_METHOD, WAL_SYNC_METHODS, Site
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
            say(f"calibration: {name} {variant.name}: {scores[variant]:.0f}")
        except Unavailable as error:
            errors.append(str(error))
        finally:
            work.discard(site)
    if not scores:
        raise Unavailable("; ".join(errors))
    best = max(scores, key=lambda variant: scores[variant])
    said = ", ".join(f"{variant.name} {score:.0f}" for variant, score in scores.items())
    return best, f"root of TPC-B tps times loads per hour: {said}"


def choose_wal_sync_method(site: Site) -> str:
    """Set the faster ``wal_sync_method`` in a running server; return why.

    tdefs gets what it recommends. The others are tried with short runs of TPC-B in the order A B B A.
    """
    if site.name == "tdefs":
        site.use_wal_sync_method(RECOMMENDED_WAL_SYNC_METHOD)
        return "recommended"
    site.need_pgbench_database()
    site.make_warm()
    rates = dict.fromkeys(WAL_SYNC_METHODS, 0.0)
    order: Sequence[str] = WAL_SYNC_METHODS
    if site.sizes.limit is None:
        order = [*WAL_SYNC_METHODS, *reversed(WAL_SYNC_METHODS)]
    for method in order:
        site.use_wal_sync_method(method)
        rates[method] += _tpcb(site, max(1, site.sizes.seconds // 2)) / order.count(method)
    site.use_wal_sync_method(max(rates, key=lambda method: rates[method]))
    return "TPC-B tps: " + ", ".join(f"{method} {rate:.0f}" for method, rate in rates.items())


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
