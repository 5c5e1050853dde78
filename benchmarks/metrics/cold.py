"""Reading what no cache holds: shared_buffers, the mount's pages and the backing files' are empty."""

from __future__ import annotations

from benchmarks import caches
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.site import Site


def _scan(site: Site) -> dict[str, float]:
    _make_cold(site)
    # connecting and reading another table warms the catalogs, which are not what is measured
    seconds = site.seconds(
        "SELECT sum(abalance) FROM pgbench_accounts", warm_up="SELECT sum(bbalance) FROM pgbench_branches"
    )
    return {"seconds": seconds}


def _index(site: Site) -> dict[str, float]:
    _make_cold(site)
    reads = str(site.sizes.index_reads)
    # the same rows for every system
    return {"tps": site.pgbench("-n", "-S", "-c", "1", "-t", reads, "--random-seed=1").tps}


def _make_cold(site: Site) -> None:
    site.restart()
    caches.drop()


SCAN = Metric(
    "cold_scan",
    (Figure("cold_scan.seconds", "cold sequential scan", "s", Ratio.SPEED),),
    _scan,
    Site.need_pgbench_database,
)
INDEX = Metric(
    "cold_index",
    (Figure("cold_index.tps", "cold index reads", "per s", Ratio.RATE),),
    _index,
    Site.need_pgbench_database,
)
