"""The memory of the daemon."""

from __future__ import annotations

import os

from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.processes import forget_peak, peak_resident_mb, resident_mb
from benchmarks.site import Site

_PAGE = 8192
_FIRST_RELFILENODE = 16384


def _memory(site: Site) -> dict[str, float]:
    if not site.system.daemons:
        return {}
    site.server.stop()
    site.system.unmount()
    site.system.mount()
    rest = resident_mb(site.system.daemons)
    site.start()
    site.make_warm()
    forget_peak(site.system.daemons)
    site.pgbench("-c", "4", "-j", "2", "-T", str(site.sizes.seconds))
    load = peak_resident_mb(site.system.daemons)
    _touch_relation_files(site)
    return {"rest": rest, "load": load, "files": resident_mb(site.system.daemons)}


def _touch_relation_files(site: Site) -> None:
    """Make, write and read many relation files, as a server with many tables would.

    They stay: only listing files comes later, and they go with the system's directory.
    """
    directory = site.system.storage / "many" / "base" / "5"
    directory.mkdir(parents=True)
    for number in range(site.sizes.relation_files):
        descriptor = os.open(directory / str(_FIRST_RELFILENODE + number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, b"x" * _PAGE, 0)
            os.pread(descriptor, _PAGE, 0)
        finally:
            os.close(descriptor)
    for entry in os.scandir(directory):
        entry.stat()


MEMORY = Metric(
    "memory",
    (
        Figure("memory.rest", "daemon's memory, at rest", "MB", Ratio.NONE),
        Figure("memory.load", "daemon's memory, peak under TPC-B", "MB", Ratio.NONE),
        Figure("memory.files", "daemon's memory, many relation files touched", "MB", Ratio.NONE),
    ),
    _memory,
    Site.need_pgbench_database,
    once=True,
)
