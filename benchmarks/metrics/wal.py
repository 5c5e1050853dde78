"""The write-ahead log: writing much of it, and replaying it after a crash."""

# ruff: noqa: S608 - the statements are made from numbers of this program

from __future__ import annotations

import re

from benchmarks.caches import settle
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.site import DATABASE, Site, log_times

_MESSAGE_BYTES = 64 << 10
_MESSAGES_OF_MB = (1 << 20) // _MESSAGE_BYTES
#: Rows that make about 1 MB of WAL: an insertion into table and index, and a third of them updated.
_ROWS_OF_MB = 3600
_GB = 1 << 30


def _write(site: Site) -> dict[str, float]:
    site.psql("CHECKPOINT")
    settle()
    before = _position(site)
    messages = site.sizes.wal_mb * _MESSAGES_OF_MB
    # One transaction that changes no table: its WAL is all that is written.
    seconds = site.seconds(
        f"SELECT count(pg_logical_emit_message(true, 'bench', repeat('x', {_MESSAGE_BYTES})))"
        f" FROM generate_series(1, {messages})"
    )
    return {"seconds": seconds / (_position(site) - before) * _GB}


def _replay(site: Site) -> dict[str, float]:
    site.psql("DROP TABLE IF EXISTS replayed; CREATE TABLE replayed (id int PRIMARY KEY, note text)", DATABASE)
    site.psql("CHECKPOINT")
    before = _position(site)
    rows = site.sizes.wal_mb * _ROWS_OF_MB
    site.psql(f"INSERT INTO replayed SELECT g, repeat('x', 84) FROM generate_series(1, {rows}) g", DATABASE)
    site.psql("UPDATE replayed SET note = repeat('y', 84) WHERE id % 3 = 0", DATABASE)
    written = _position(site) - before
    site.server.stop("immediate")
    settle()
    since = len(site.server.log.read_text(errors="replace"))
    site.start()
    lines = [line for _, line in log_times(site.server, since, "redo done at")]
    elapsed = re.search(r"elapsed: ([\d.]+) s", lines[-1] if lines else "")
    if not elapsed:
        raise LookupError(f"the server's log tells nothing of a recovery:\n{site.server.log_tail()}")
    intact = site.psql("SELECT count(*), count(*) FILTER (WHERE note ~ 'y') FROM replayed", DATABASE)
    if intact != f"{rows}|{rows // 3}":
        raise AssertionError(f"after the recovery the table has {intact} rows instead of {rows}|{rows // 3}")
    site.psql("DROP TABLE replayed", DATABASE)
    return {"seconds": float(elapsed[1]) / written * _GB}


def _position(site: Site) -> int:
    return int(site.psql("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"))


WRITE = Metric(
    "wal_write",
    (Figure("wal_write.seconds", "WAL: write 1 GB", "s", Ratio.SPEED),),
    _write,
    Site.need_pgbench_database,
)
REPLAY = Metric(
    "wal_replay",
    (Figure("wal_replay.seconds", "WAL: replay 1 GB after a crash", "s", Ratio.SPEED),),
    _replay,
    Site.need_pgbench_database,
)
