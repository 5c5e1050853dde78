"""pgbench's transactions: TPC-B, reads, commits, connections."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.caches import settle
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.results import percentile
from benchmarks.site import Pgbench, Site

_TPCB: tuple[str, ...] = ()
_SELECT_ONLY = ("-S",)
#: A row of about 100 bytes, as an application's log or queue would have.
_INSERT = "INSERT INTO commits (note) VALUES (repeat('x', 80));\n"
_COMMITS = "CREATE TABLE commits (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)"


def _tpcb(site: Site, clients: int) -> dict[str, float]:
    site.make_warm()
    done = site.pgbench(*_clients(site, clients), *_TPCB, "--log")
    return {"tps": done.tps, "p99": percentile(done.latencies_ms, 99), **_processor_time(done)}


def _select(site: Site) -> dict[str, float]:
    site.make_warm()
    done = site.pgbench(*_clients(site, 4), *_SELECT_ONLY)
    return {"tps": done.tps, **_processor_time(done)}


def _commit(site: Site) -> dict[str, float]:
    site.psql("CHECKPOINT")
    settle()
    done = site.pgbench("-n", *_clients(site, 1), "--log", "-f", _script(site, "insert", _INSERT))
    return {"p50": percentile(done.latencies_ms, 50), "p99": percentile(done.latencies_ms, 99)}


def _connect(site: Site) -> dict[str, float]:
    settle()
    return {"tps": site.pgbench("-n", "-C", *_clients(site, 1), "-f", _script(site, "one", "SELECT 1;\n")).tps}


def _clients(site: Site, clients: int) -> list[str]:
    threads = min(clients, 2)
    return ["-c", str(clients), "-j", str(threads), "-T", str(site.sizes.seconds)]


def _script(site: Site, name: str, text: str) -> Path:
    path = site.scratch / f"{name}.sql"
    path.write_text(text)
    path.chmod(0o644)
    return path


def _processor_time(done: Pgbench) -> dict[str, float]:
    """Microseconds for each transaction; without those of pgbench itself."""
    each = 1e6 / done.transactions
    server, daemon = done.usage.server, done.usage.daemon
    return {
        "cpu": (server.total + daemon.total) * each,
        "cpu_server_user": server.user * each,
        "cpu_server_system": server.system * each,
        "cpu_daemon_user": daemon.user * each,
        "cpu_daemon_system": daemon.system * each,
    }


def _processor_figures(metric: str, title: str) -> tuple[Figure, ...]:
    parts = [f"{who}, {mode}" for who in ("server", "daemon") for mode in ("user", "system")]
    return (
        Figure(f"{metric}.cpu", f"processor time, {title}", "µs", Ratio.COST),
        *(
            Figure(f"{metric}.cpu_{part.replace(', ', '_')}", f"  {part} ({title})", "µs", Ratio.NONE)
            for part in parts
        ),
    )


def _prepare_commits(site: Site) -> None:
    site.need_table("commits", _COMMITS)


def _tpcb_metric(clients: int) -> Metric:
    name = f"tpcb{clients}"
    title = f"TPC-B, {clients} client{'s' if clients > 1 else ''}"
    figures = (
        Figure(f"{name}.tps", title, "tps", Ratio.RATE),
        Figure(f"{name}.p99", f"{title}: p99 latency", "ms", Ratio.COST),
        *_processor_figures(name, title),
    )
    return Metric(name, figures, partial(_tpcb, clients=clients), Site.need_pgbench_database)


TPCB_4 = _tpcb_metric(4)
TPCB_1 = _tpcb_metric(1)
TPCB_16 = _tpcb_metric(16)
SELECT = Metric(
    "select4",
    (
        Figure("select4.tps", "select only, 4 clients", "tps", Ratio.RATE),
        *_processor_figures("select4", "select only"),
    ),
    _select,
    Site.need_pgbench_database,
)
COMMIT = Metric(
    "commit",
    (
        Figure("commit.p50", "commit latency, p50", "ms", Ratio.COST),
        Figure("commit.p99", "commit latency, p99", "ms", Ratio.COST),
    ),
    _commit,
    _prepare_commits,
)
CONNECT = Metric(
    "connect",
    (Figure("connect.tps", "connections", "per s", Ratio.RATE),),
    _connect,
    Site.need_pgbench_database,
)
