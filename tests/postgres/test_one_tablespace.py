"""A plain cluster with one tablespace on a volume of its own: what docs/OPERATING.md says of it is so."""

from __future__ import annotations

import shutil

import pytest

from tests.support.scan import files_with
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slow

ROW = "the-row-that-nobody-reads"


def mounted(space: Workspace, name: str) -> Volume:
    volume = space.volume(name)
    volume.init()
    volume.mount(owner=space.account)
    return volume


def in_the_clear(server: Server, volume: Volume) -> set[str]:
    """The parts of the cluster with the row in the clear: ``base``, ``pg_wal``; ``volume`` for the backing one."""
    plain = {path.partition("/")[0] for path in files_with(server.pgdata, [ROW])[ROW]}
    return plain | ({"volume"} if files_with(volume.backing, [ROW])[ROW] else set())


def use(server: Server, volume: Volume) -> None:
    """Moves a table with its index to the tablespace, and adds rows to it there."""
    server.psql(
        f"""
        CREATE TABLESPACE secret LOCATION '{volume.mountpoint}';
        CREATE TABLE t (i int PRIMARY KEY, text text) WITH (autovacuum_enabled = false);
        ALTER TABLE t SET TABLESPACE secret;
        ALTER INDEX t_pkey SET TABLESPACE secret;
        INSERT INTO t SELECT i, '{ROW}' FROM generate_series(1, 5000) i;
        CHECKPOINT
        """
    )


def test_the_tables_of_a_tablespace_on_a_volume_are_encrypted_and_wal_and_statistics_are_not(
    scratch: Workspace,
) -> None:
    volume = mounted(scratch, "space")
    server = scratch.server("15", scratch.data_directory("plain"))
    server.initdb()
    server.start()
    use(server, volume)
    assert in_the_clear(server, volume) == {"pg_wal"}
    server.psql("ANALYZE t; CHECKPOINT")
    assert in_the_clear(server, volume) == {"pg_wal", "base"}, "pg_statistic has the most common values"

    server.stop("immediate")
    volume.kill()
    volume.mount()
    server.start()
    assert server.psql(f"SELECT count(*) FROM t WHERE text = '{ROW}'") == "5000"
    server.psql("CREATE EXTENSION amcheck; SELECT bt_index_check('t_pkey', true)")
    server.stop()
    volume.umount()


def test_with_wal_on_a_volume_too_nothing_of_the_rows_is_in_the_clear(scratch: Workspace) -> None:
    """The column has no statistics; sorts spill into the tablespace."""
    volume, wal = mounted(scratch, "space"), mounted(scratch, "wal")
    server = scratch.server("15", scratch.data_directory("plain"))
    server.initdb()
    # as with 'initdb --waldir', for a cluster that is there already
    inside = server.pgdata / "pg_wal"
    target = wal.mountpoint / "main"
    shutil.copytree(inside, target)
    for path in (target, *target.rglob("*")):
        scratch.account.own(path)
    shutil.rmtree(inside)
    inside.symlink_to(target)
    server.configure({"temp_tablespaces": "'secret'", "work_mem": "'64kB'"})
    server.start()
    use(server, volume)
    server.psql("ALTER TABLE t ALTER text SET STATISTICS 0; ANALYZE t")
    with server.session() as session:
        session.sql("BEGIN; DECLARE c CURSOR FOR SELECT * FROM t ORDER BY text, i; FETCH 100 FROM c")
        assert any("pgsql_tmp" in str(path) for path in volume.mountpoint.rglob("*")), "nothing has spilled"
        assert in_the_clear(server, volume) == set()
    assert files_with(wal.backing, [ROW])[ROW] == set()
    assert files_with(wal.mountpoint, [ROW])[ROW] != set()
    server.stop()
