"""The daemon's processor time for one request whose data is in memory below it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from benchmarks import caches
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.page_cache import large_files
from benchmarks.processes import processor_time
from benchmarks.random_reads import PAGE, reads_per_second, shuffled_pages
from benchmarks.site import Site

_MB = 1 << 20
#: So many that there is always a request to serve: what a daemon does while it waits for the next is not counted.
_JOBS = 4
#: Seconds; each page is read once in less.
_LIMIT = 60
_LIBC = ctypes.CDLL(None, use_errno=True)
# linux/fs.h
_SYNC_FILE_RANGE_WRITE_AND_WAIT = 1 | 2 | 4


def _requests(site: Site) -> dict[str, float]:
    if not site.system.daemons or site.system.below is None:
        return {}
    path = site.system.storage / "requests.dat"
    size = site.sizes.requests_mb * _MB
    try:
        path.write_bytes(os.urandom(size))
        pages = shuffled_pages(size)
        caches.drop()
        _read_below(site.system.below, size)
        read = _daemon_seconds(site, lambda: reads_per_second(path, _JOBS, _LIMIT)) / len(pages)
        write = _daemon_seconds(site, lambda: _write(path, pages)) / len(pages)
    finally:
        path.unlink(missing_ok=True)
    return {"read": read * 1e6, "write": write * 1e6}


def _read_below(directory: Path, size: int) -> None:
    """Have the files below in the cache, and nothing of the mount: the daemon waits for no disk."""
    for path in large_files(directory, size * 3 // 4):
        with path.open("rb", buffering=0) as file:
            while file.read(_MB):
                pass


def _write(path: Path, pages: list[int]) -> None:
    """Write pages until the daemon has them all; what is below the mount is not synced."""
    data = os.urandom(PAGE)
    descriptor = os.open(path, os.O_RDWR)
    try:
        for page in pages:
            os.pwrite(descriptor, data, page * PAGE)
        # With write-back caching the kernel has the pages until now. It flushes them, and asks for no sync.
        if _LIBC.sync_file_range(
            descriptor, ctypes.c_int64(0), ctypes.c_int64(0), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE_AND_WAIT)
        ):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(descriptor)


def _daemon_seconds(site: Site, work: Callable[[], object]) -> float:
    before = processor_time(site.system.daemons)
    work()
    return (processor_time(site.system.daemons) - before).total


REQUESTS = Metric(
    "requests",
    (
        Figure("requests.read", "daemon's processor time, READ of 8 KB", "µs", Ratio.NONE),
        Figure("requests.write", "daemon's processor time, WRITE of 8 KB, not synced", "µs", Ratio.NONE),
    ),
    _requests,
)
