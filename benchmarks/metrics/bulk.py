"""Writing much at once: load, COPY, CREATE TABLE AS, VACUUM FULL, and a checkpoint."""

# ruff: noqa: S608 - the statements are made from numbers of this program

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.caches import settle
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.site import DATABASE, Site

_FILLER = "x" * 84
#: Six rows fill a page to its fill factor, so that updating every sixth makes every page dirty.
_ROWS_OF_PAGE = 6
_PAGES_OF_MB = 128


def _load(site: Site) -> dict[str, float]:
    site.psql("DROP DATABASE IF EXISTS load")
    site.psql("CREATE DATABASE load")
    _quiet(site)
    began = time.perf_counter()
    site.server.run("pgbench", "-i", "-q", "-s", str(site.sizes.load_scale), "load")
    seconds = time.perf_counter() - began
    site.psql("DROP DATABASE load")
    return {"seconds": seconds}


def _copy(site: Site) -> dict[str, float]:
    site.psql("DROP TABLE IF EXISTS copied; CREATE TABLE copied (LIKE pgbench_accounts)", DATABASE)
    _quiet(site)
    seconds = site.seconds(f"COPY copied FROM '{_rows_file(site)}'")
    site.psql("DROP TABLE copied", DATABASE)
    return {"seconds": seconds}


def _create_table_as(site: Site) -> dict[str, float]:
    site.psql("DROP TABLE IF EXISTS made", DATABASE)
    # the source is read from the kernel's cache
    site.make_warm()
    seconds = site.seconds(f"CREATE TABLE made AS SELECT * FROM pgbench_accounts WHERE aid <= {site.load_rows}")
    site.psql("DROP TABLE made", DATABASE)
    return {"seconds": seconds}


def _vacuum_full(site: Site) -> dict[str, float]:
    _quiet(site)
    return {"seconds": site.seconds("VACUUM FULL rewritten")}


def _checkpoint(site: Site) -> dict[str, float]:
    site.restart(shared_buffers=f"{site.sizes.dirty_mb * 3 // 2 + 64}MB")
    try:
        _quiet(site)
        site.psql(f"UPDATE dirtied SET n = n + 1 WHERE id % {_ROWS_OF_PAGE} = 0", DATABASE)
        settle()  # the WAL and what was evicted; the dirty pages are in shared_buffers
        return {"seconds": site.seconds("CHECKPOINT")}
    finally:
        site.restart()


def _quiet(site: Site) -> None:
    site.psql("CHECKPOINT")
    settle()


def _rows_file(site: Site) -> Path:
    """The rows of pgbench_accounts as text, on plain disk and in the cache, the same for all systems."""
    path = site.system.root.parent / f"accounts-{site.load_rows}.txt"
    if not path.exists():
        with path.open("w") as file:
            file.writelines(f"{row}\t{row // 100_000 + 1}\t0\t{_FILLER}\n" for row in range(1, site.load_rows + 1))
        path.chmod(0o644)
    path.read_bytes()
    return path


def _prepare_vacuum_full(site: Site) -> None:
    site.need_table(
        "rewritten",
        f"CREATE TABLE rewritten AS SELECT * FROM pgbench_accounts WHERE aid <= {site.load_rows}",
        "CREATE INDEX ON rewritten (aid)",
    )


def _prepare_checkpoint(site: Site) -> None:
    rows = site.sizes.dirty_mb * _PAGES_OF_MB * _ROWS_OF_PAGE
    site.need_table(
        "dirtied",
        "CREATE TABLE dirtied (id int, n int, filler text) WITH (fillfactor = 80)",
        f"INSERT INTO dirtied SELECT g, 0, repeat('x', 1000) FROM generate_series(1, {rows}) g",
        "VACUUM dirtied",
    )


def _seconds(metric: str, title: str) -> tuple[Figure, ...]:
    return (Figure(f"{metric}.seconds", title, "s", Ratio.SPEED),)


LOAD = Metric("load", _seconds("load", "bulk load (pgbench -i)"), _load)
COPY = Metric("copy", _seconds("copy", "COPY"), _copy, Site.need_pgbench_database)
CREATE_TABLE_AS = Metric("ctas", _seconds("ctas", "CREATE TABLE AS"), _create_table_as, Site.need_pgbench_database)
VACUUM_FULL = Metric("vacuum_full", _seconds("vacuum_full", "VACUUM FULL"), _vacuum_full, _prepare_vacuum_full)
CHECKPOINT = Metric("checkpoint", _seconds("checkpoint", "checkpoint"), _checkpoint, _prepare_checkpoint)
