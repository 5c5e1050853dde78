"""Texts that the load puts into one kind of file each, and the files where a plain cluster has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.support.server import Server

DATABASE: Final = "canary_database_6d1e0c"


@dataclass(frozen=True)
class Canary:
    """A text, and the file or directory where it must be, relative to the data directory."""

    name: str
    text: str
    #: A path, or SQL that gives one.
    place: str

    def path(self, server: Server) -> str:
        """The place in this cluster; whatever begins so is at the place."""
        return server.psql(self.place, DATABASE) if self.place.startswith("SELECT") else self.place


def _relation(name: str) -> str:
    return f"SELECT pg_relation_filepath('{name}')"


_TABLE = "canary_table_name_52b8f1"

CANARIES: Final = (
    Canary("database_name", DATABASE, _relation("pg_database")),
    Canary("table_name", _TABLE, _relation("pg_class")),
    Canary("comment", "canary-comment-90c4aa", _relation("pg_description")),
    Canary("function", "SELECT 'canary-function-e2f711'", _relation("pg_proc")),
    Canary("row", "canary-row-3b7d02", _relation(_TABLE)),
    Canary("index", "canary-index-c81e55", _relation("by_expression")),
    Canary("statistics", "canary-statistics-17fa9e", _relation("pg_statistic")),
    Canary(
        "toast",
        "canary-toast-a6603d",
        "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE relname = 'documents'",
    ),
    Canary("large_object", "canary-large-object-44d9b8", _relation("pg_largeobject")),
    Canary("unlogged", "canary-unlogged-f03c6b", _relation("unlogged")),
    Canary("tablespace", "canary-tablespace-8e25d7", _relation("elsewhere")),
    Canary("two_phase", "canary-two-phase-2c9f40", "pg_twophase/"),
    Canary("wal", "canary-wal-b5170e", "pg_wal/"),
    Canary("configuration", "canary-configuration-d7a3c2", "postgresql.auto.conf"),
    Canary(
        "temporary",
        "canary-temporary-69eb1f",
        f"SELECT 'base/' || oid || '/t' FROM pg_database WHERE datname = '{DATABASE}'",
    ),
    Canary("spill", "canary-spill-0f84d6", "base/pgsql_tmp/"),
    Canary("held_cursor", "canary-held-cursor-5a12ce", "base/pgsql_tmp/"),
)

TEXT: Final = {canary.name: canary.text for canary in CANARIES}
