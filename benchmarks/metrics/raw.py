"""The file system without PostgreSQL, with fio."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import caches
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.site import Site

_PAGE, _LARGE = "8k", "1M"


def _measure(site: Site) -> dict[str, float]:
    sizes = site.sizes
    timed = ("--time_based", f"--runtime={sizes.fio_seconds}")
    path = site.system.storage / "fio.dat"
    try:
        # What is written counts when it is on the disk.
        seqwrite = _fio(site, "write", _LARGE, "--end_fsync=1")
        caches.drop()
        seqread = _fio(site, "read", _LARGE)
        caches.drop()
        randread = _fio(site, "randread", _PAGE, *timed)
        caches.drop()
        randwrite = _fio(site, "randwrite", _PAGE, f"--io_size={sizes.fio_mb // 2}m", "--end_fsync=1")
        synced = _fio(site, "write", _PAGE, "--fdatasync=1", *timed)
    finally:
        path.unlink(missing_ok=True)
    return {
        "seqwrite": _megabytes(seqwrite["write"]),
        "seqread": _megabytes(seqread["read"]),
        "randread": randread["read"]["iops"],
        "randwrite": randwrite["write"]["iops"],
        "fdatasync": (synced["write"]["clat_ns"]["mean"] + synced["sync"]["lat_ns"]["mean"]) / 1000,
        "fdatasync_p99": _percentile_us(synced["sync"]["lat_ns"], "99.000000"),
    }


def _fio(site: Site, pattern: str, block: str, *arguments: str) -> Any:
    """Run fio on one file through the page cache, as PostgreSQL works; return the job's part of its JSON."""
    sizes = site.sizes
    output = site.system.run(
        *("fio", "--name=raw", f"--filename={site.system.storage / 'fio.dat'}", f"--size={sizes.fio_mb}m"),
        *("--ioengine=psync", "--fallocate=none", "--randrepeat=1", "--output-format=json"),
        *(f"--rw={pattern}", f"--bs={block}", *arguments),
    )
    return json.loads(output[output.index("{") :])["jobs"][0]


def _megabytes(direction: Any) -> float:
    return float(direction["bw_bytes"]) / 1e6


def _percentile_us(latency: Any, percent: str) -> float:
    return float(latency["percentile"][percent]) / 1000


RAW = Metric(
    "raw",
    (
        Figure("raw.randread", "fio: 8 KB random read, cold", "per s", Ratio.RATE),
        Figure("raw.randwrite", "fio: 8 KB random write", "per s", Ratio.RATE),
        Figure("raw.seqread", "fio: 1 MB sequential read, cold", "MB/s", Ratio.RATE),
        Figure("raw.seqwrite", "fio: 1 MB sequential write", "MB/s", Ratio.RATE),
        Figure("raw.fdatasync", "fio: 8 KB write + fdatasync, mean", "µs", Ratio.COST),
        Figure("raw.fdatasync_p99", "fio: fdatasync, p99", "µs", Ratio.COST),
    ),
    _measure,
)
