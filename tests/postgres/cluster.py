"""A cluster with a tablespace, on two tdefs mounts or on plain directories, and the load that both kinds get."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.postgres.canaries import DATABASE, TEXT
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.whole import WHOLE
from tests.support.workspace import Workspace

LOAD: Final = Path(__file__).parent / "load"
#: The databases that are equal in an encrypted and a plain cluster.
DATABASES: Final = (DATABASE, "accounts", "copied_by_wal", "copied_by_file")
#: How long pgbench runs on the encrypted cluster.
PGBENCH_SECONDS: Final = int(os.environ.get("TDEFS_PGBENCH_SECONDS") or (30 if WHOLE else 10))


@dataclass(frozen=True)
class Cluster:
    """A server, the directory of its tablespace, and its volumes: none for a plain cluster."""

    server: Server
    tablespace: Path
    volumes: tuple[Volume, ...] = ()

    @classmethod
    def plain(cls, workspace: Workspace, version: str) -> Cluster:
        directory = workspace.data_directory(f"plain{version}")
        return cls(workspace.server(version, directory), workspace.data_directory(f"plain{version}-space"))

    @classmethod
    def encrypted(cls, workspace: Workspace, version: str) -> Cluster:
        """Mount two volumes, the second for the tablespace."""
        volumes = (workspace.volume(f"pg{version}"), workspace.volume(f"pg{version}-space"))
        for volume in volumes:
            volume.init()
            volume.mount(owner=workspace.account)
        return cls(workspace.server(version, volumes[0].mountpoint), volumes[1].mountpoint, volumes)

    def initdb(self) -> None:
        """Make the cluster and start its server."""
        self.server.initdb()
        # No automatic vacuum: where it puts rows depends on when it runs, and the dumps shall be equal.
        self.server.configure(
            {
                "max_prepared_transactions": "2",
                "autovacuum": "off",
                "max_wal_size": "256MB",
                "shared_buffers": "64MB",
            }
        )
        self.server.start()

    def load(self) -> None:
        """Everything that :data:`DATABASES` hold; the same bytes of SQL in every cluster."""
        server = self.server
        server.psql("CREATE EXTENSION amcheck", "template1")
        server.psql(f"ALTER SYSTEM SET primary_conninfo = 'application_name={TEXT['configuration']}'")
        server.psql(f"CREATE TABLESPACE elsewhere LOCATION '{self.tablespace}'")
        server.psql(f"CREATE DATABASE {DATABASE}")
        variables = {f"canary_{name}": text for name, text in TEXT.items()}
        server.psql_file(LOAD / "shop.sql", DATABASE, **variables)

        server.psql("CREATE DATABASE accounts")
        server.run("pgbench", "-i", "-q", "-s", "2", "accounts")
        server.run("pgbench", "-n", "-c", "4", "-j", "2", "-t", "250", "--random-seed=2", "accounts")
        server.psql_file(LOAD / "accounts_settled.sql", "accounts")

        server.psql("CREATE DATABASE copied_by_wal TEMPLATE accounts STRATEGY wal_log")
        server.psql("CREATE DATABASE copied_by_file TEMPLATE accounts STRATEGY file_copy")


@dataclass(frozen=True)
class Pair:
    """The same load on tdefs and on a plain directory."""

    encrypted: Cluster
    plain: Cluster
