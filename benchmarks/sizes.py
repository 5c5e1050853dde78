"""How much of everything a run does: enough for figures that hold, or little for a quick look.       (pure)"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """The amounts that the metrics work with."""

    rounds: int
    scale: int
    """pgbench's, of the database that is worked on: 15 MB each, with shared_buffers of 128 MB."""
    load_scale: int
    """pgbench's, of what is loaded, copied and rewritten."""
    seconds: int
    """Of each pgbench run."""
    index_reads: int
    scan_mb: int
    """Of the file that is scanned, and read at random."""
    dirty_mb: int
    wal_mb: int
    tables: int
    """That are created and dropped."""
    requests_mb: int
    """Of the file whose pages are read and written one by one."""
    relation_files: int
    listed_files: int
    fio_mb: int
    fio_seconds: int
    free_gb: int
    """What a run with all systems needs on the disk."""
    limit: float | None
    """Seconds after which nothing more is measured."""


FULL = Sizes(
    rounds=5,
    scale=50,
    load_scale=20,
    seconds=8,
    index_reads=2000,
    scan_mb=1024,
    dirty_mb=500,
    wal_mb=1024,
    tables=1000,
    requests_mb=256,
    relation_files=20_000,
    listed_files=100_000,
    fio_mb=512,
    fio_seconds=3,
    free_gb=60,
    limit=None,
)
QUICK = Sizes(
    rounds=1,
    scale=10,
    load_scale=3,
    seconds=2,
    index_reads=300,
    scan_mb=64,
    dirty_mb=32,
    wal_mb=64,
    tables=100,
    requests_mb=128,
    relation_files=500,
    listed_files=2000,
    fio_mb=32,
    fio_seconds=1,
    free_gb=12,
    limit=270,
)
