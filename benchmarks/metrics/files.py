"""A cluster with very many tables: listing its files, mounting, and the memory of the daemon afterwards."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from benchmarks import caches
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.processes import resident_mb
from benchmarks.site import Site

_PAGE = 8192
_FIRST_RELFILENODE = 16384


def _files(site: Site) -> dict[str, float]:
    site.server.stop()
    try:
        site.system.unmount()
        caches.drop()
        mounting = time.perf_counter()
        site.system.mount()
        mounted = time.perf_counter()
        caches.drop()
        listing = time.perf_counter()
        subprocess.run(["ls", "-lR", _directory(site)], stdout=subprocess.DEVNULL, check=True)
        values = {"list": time.perf_counter() - listing}
        if site.system.daemons:
            values |= {"mount": mounted - mounting, "memory": resident_mb(site.system.daemons)}
    finally:
        site.start()
    return values


def _directory(site: Site) -> Path:
    return site.system.storage / "listed"


def _prepare(site: Site) -> None:
    """Make the files. They stay until the end, as long as nothing is measured that they could disturb."""
    database = _directory(site) / "base" / "5"
    database.mkdir(parents=True)
    for number in range(site.sizes.listed_files):
        descriptor = os.open(database / str(_FIRST_RELFILENODE + number), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, b"x" * _PAGE, 0)
        finally:
            os.close(descriptor)


FILES = Metric(
    "files",
    (
        Figure("files.list", "many relation files: ls -lR, cold", "s", Ratio.SPEED),
        Figure("files.mount", "many relation files: mount", "s", Ratio.NONE),
        Figure("files.memory", "many relation files: daemon's memory after ls -lR", "MB", Ratio.NONE),
    ),
    _files,
    _prepare,
)
