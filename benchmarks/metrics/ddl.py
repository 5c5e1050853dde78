"""Making and dropping what has files of its own: tables, one statement after the other, and a database."""

from __future__ import annotations

from benchmarks.caches import settle
from benchmarks.figures import Figure, Ratio
from benchmarks.metrics.base import Metric
from benchmarks.site import Site

_DATABASE = "made_by_ddl"


def _ddl(site: Site) -> dict[str, float]:
    tables = site.sizes.tables
    _quiet(site)
    database = site.seconds(f"CREATE DATABASE {_DATABASE}", "postgres")
    try:
        _quiet(site)
        create = site.seconds(_each_table(tables, "CREATE TABLE t%s (id int PRIMARY KEY, note text)"), _DATABASE)
        _quiet(site)
        drop = site.seconds(_each_table(tables, "DROP TABLE t%s"), _DATABASE)
    finally:
        site.psql(f"DROP DATABASE {_DATABASE}")
    return {"create": tables / create, "drop": tables / drop, "database": database}


def _each_table(tables: int, statement: str) -> str:
    """Return a block that runs a statement for each table, each in a transaction of its own."""
    return f"DO $$ BEGIN FOR n IN 1..{tables} LOOP EXECUTE format('{statement}', n); COMMIT; END LOOP; END $$"


def _quiet(site: Site) -> None:
    site.psql("CHECKPOINT")
    settle()


DDL = Metric(
    "ddl",
    (
        Figure("ddl.create", "CREATE TABLE, one session", "per s", Ratio.RATE),
        Figure("ddl.drop", "DROP TABLE, one session", "per s", Ratio.RATE),
        Figure("ddl.database", "CREATE DATABASE", "s", Ratio.SPEED),
    ),
    _ddl,
)
