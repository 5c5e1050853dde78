"""Making a cluster, starting and stopping its server."""

from __future__ import annotations

import time

from benchmarks.caches import settle
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.site import Site, log_times, remove_tree


def _initdb(site: Site) -> dict[str, float]:
    server = site.new_server("fresh")
    server.log.write_text("")
    settle()
    try:
        began = time.time()
        server.initdb()
        made = time.time()
        server.configure(site.settings)
        settle()
        # The log has milliseconds; pg_ctl looks ten times a second.
        starting = time.time()
        server.start()
        [(started, _)] = log_times(server, 0, "ready to accept connections")
        stopping = time.time()
        server.stop()
        [(stopped, _)] = log_times(server, 0, "database system is shut down")
    finally:
        server.discard()
        remove_tree(site, server.pgdata)
    return {"seconds": made - began, "start": started - starting, "stop": stopped - stopping}


INITDB = Metric(
    "initdb",
    (
        Figure("initdb.seconds", "initdb", "s", Ratio.COST),
        Figure("initdb.start", "start", "s", Ratio.COST),
        Figure("initdb.stop", "stop", "s", Ratio.COST),
    ),
    _initdb,
)
