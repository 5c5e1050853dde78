"""Reading one large file without PostgreSQL: random pages by several jobs, and the cache that a scan fills."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks import caches
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.page_cache import cached_bytes, cached_bytes_below
from benchmarks.random_reads import reads_per_second
from benchmarks.site import Site

#: The jobs that read at once; 1, 4 and 16 have a bar, the others are for the plot.
JOBS = (1, 2, 4, 8, 16)
_MB = 1 << 20


def _random(site: Site) -> dict[str, float]:
    path, seconds = _file(site), site.sizes.fio_seconds
    values = {}
    for jobs in JOBS:
        caches.drop()
        values[f"cold{jobs}"] = reads_per_second(path, jobs, seconds)
    for jobs in JOBS:
        _scan(path)
        values[f"cached{jobs}"] = reads_per_second(path, jobs, seconds, again=True)
    return values


def _page_cache(site: Site) -> dict[str, float]:
    path = _file(site)
    caches.drop()
    size = path.stat().st_size
    before = _cached(site, path)
    _scan(path)
    return {"for_byte": (_cached(site, path) - before) / size}


def _cached(site: Site, path: Path) -> int:
    """What the cache holds of the file, and of the files below that have its ciphertext."""
    below = site.system.below
    # only what is as large can be it: names may be encrypted, and sizes differ by headers and padding
    return cached_bytes(path) + (cached_bytes_below(below, path.stat().st_size * 3 // 4) if below else 0)


def _scan(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_MB):
            pass


def _file(site: Site) -> Path:
    return site.system.storage / "scanned.dat"


def _prepare(site: Site) -> None:
    """Write the file; it stays for the metrics that come later."""
    path = _file(site)
    if not path.exists():
        with path.open("wb") as file:
            for _ in range(site.sizes.scan_mb):
                file.write(os.urandom(_MB))


def _jobs(number: int) -> str:
    return f"{number} job{'s' if number > 1 else ''}"


RANDOM = Metric(
    "random",
    (
        *(Figure(f"random.cold{n}", f"8 KB random reads, cold, {_jobs(n)}", "per s", Ratio.RATE) for n in JOBS),
        *(
            Figure(f"random.cached{n}", f"8 KB random reads, cached, {_jobs(n)}", "per s", Ratio.RATE)
            for n in JOBS
        ),
    ),
    _random,
    _prepare,
)
PAGE_CACHE = Metric(
    "page_cache",
    (Figure("page_cache.for_byte", "page cache for each byte read", "bytes", Ratio.COST),),
    _page_cache,
    _prepare,
)
