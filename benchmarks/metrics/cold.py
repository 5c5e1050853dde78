"""Reading what no cache holds: shared_buffers, the mount's pages and the backing files' are empty."""

from __future__ import annotations

from functools import partial

from benchmarks import caches
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.site import Site


def _scan(site: Site, workers: int) -> dict[str, float]:
    site.restart(max_parallel_workers_per_gather=str(workers))
    try:
        caches.drop()
        # connecting and reading another table warms the catalogs, which are not what is measured
        seconds = site.seconds(
            "SELECT sum(abalance) FROM pgbench_accounts", warm_up="SELECT sum(bbalance) FROM pgbench_branches"
        )
        return {"seconds": seconds}
    finally:
        site.restart()


def _index(site: Site, clients: int) -> dict[str, float]:
    site.restart()
    caches.drop()
    reads = str(site.sizes.index_reads)
    jobs = str(min(clients, 2))
    # the same rows for every system
    return {"tps": site.pgbench("-n", "-S", "-c", str(clients), "-j", jobs, "-t", reads, "--random-seed=1").tps}


def _scan_metric(name: str, title: str, workers: int) -> Metric:
    figures = (Figure(f"{name}.seconds", title, "s", Ratio.SPEED),)
    return Metric(name, figures, partial(_scan, workers=workers), Site.need_pgbench_database)


def _index_metric(name: str, title: str, clients: int) -> Metric:
    figures = (Figure(f"{name}.tps", title, "per s", Ratio.RATE),)
    return Metric(name, figures, partial(_index, clients=clients), Site.need_pgbench_database)


SCAN = _scan_metric("cold_scan", "cold sequential scan", 0)
SCAN_PARALLEL = _scan_metric("cold_scan2", "cold sequential scan, 2 parallel workers", 2)
INDEX = _index_metric("cold_index", "cold index reads, 1 client", 1)
INDEX_4 = _index_metric("cold_index4", "cold index reads, 4 clients", 4)
