"""Index reads where memory has room for half of the data: what is cached twice costs a half of that."""

from __future__ import annotations

from benchmarks import caches
from benchmarks.cgroup import MemoryGroup, NoControlGroups, hierarchy
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import CannotMeasure, Metric
from benchmarks.processes import with_descendants
from benchmarks.site import DATABASE, Site

_RELATIONS = ("pgbench_accounts", "pgbench_accounts_pkey")
#: Of the limit: so small that the kernel's cache is what is limited.
_SHARED_BUFFERS = 1 / 8
_MB = 1 << 20


def _limited(site: Site) -> dict[str, float]:
    try:
        root = hierarchy()
    except NoControlGroups as error:
        raise CannotMeasure(str(error)) from error
    limit = sum(int(site.psql(f"SELECT pg_relation_size('{name}')", DATABASE)) for name in _RELATIONS) // 2
    site.restart(shared_buffers=f"{max(1, int(limit * _SHARED_BUFFERS) // _MB)}MB")
    try:
        with MemoryGroup(root, limit) as group:
            group.add(with_descendants([site.postmaster, *site.system.daemons]))
            # What is cached from now on is the group's.
            caches.drop()
            for name in _RELATIONS:
                site.psql(f"SELECT pg_prewarm('{name}', 'read')", DATABASE)
            seconds = str(site.sizes.seconds)
            values = {"tps": site.pgbench("-n", "-S", "-c", "4", "-j", "2", "-T", seconds, "--random-seed=1").tps}
            # before the group ends: what runs in it must have ended, or have been moved
            site.server.stop()
    finally:
        if site.server.is_running:
            site.server.stop()
        site.start()
    return values


LIMITED = Metric(
    "limited_index",
    (Figure("limited_index.tps", "index reads, memory for half of the data", "per s", Ratio.RATE),),
    _limited,
    Site.need_pgbench_database,
)
