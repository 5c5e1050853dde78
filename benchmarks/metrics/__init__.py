"""The metrics, in the order in which they are measured: most of those with a bar first, many files last."""

from __future__ import annotations

from benchmarks.metrics import (
    bulk,
    cold,
    ddl,
    files,
    lifecycle,
    limited,
    memory,
    raw,
    reads,
    requests,
    transactions,
    wal,
)
from benchmarks.metrics.base import Metric

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        transactions.TPCB_4,
        transactions.TPCB_1,
        transactions.SELECT,
        transactions.COMMIT,
        bulk.LOAD,
        bulk.CREATE_TABLE_AS,
        reads.RANDOM,
        cold.INDEX,
        cold.INDEX_4,
        reads.PAGE_CACHE,
        limited.LIMITED,
        transactions.TPCB_16,
        cold.SCAN,
        cold.SCAN_PARALLEL,
        bulk.CHECKPOINT,
        transactions.CONNECT,
        wal.REPLAY,
        lifecycle.INITDB,
        ddl.DDL,
        requests.REQUESTS,
        bulk.COPY,
        bulk.VACUUM_FULL,
        wal.WRITE,
        raw.RAW,
        memory.MEMORY,
        files.FILES,
    )
}
