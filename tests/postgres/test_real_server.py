"""An unmodified PostgreSQL on tdefs mounts: what it stores it finds again, and its own tools find no fault."""

from __future__ import annotations

import filecmp
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.postgres.canaries import DATABASE, TEXT
from tests.postgres.cluster import DATABASES, PGBENCH_SECONDS, Cluster, Pair
from tests.support.mounts import is_mounted
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slow

#: What the server says when the file system has done something that a disk does not do.
COMPLAINTS = re.compile(r"PANIC|could not (?!receive)|invalid page|checksum|corrupt|unexpected|Transport endpoint")


def test_initdb_makes_a_cluster_with_checksums_on_the_mount(encrypted: Cluster) -> None:
    server = encrypted.server
    assert server.psql("SHOW data_checksums") == "on"
    assert server.psql("SHOW data_directory") == str(encrypted.volumes[0].mountpoint)
    assert re.search(r"checksum version: +1", server.run("pg_controldata", "-D", server.pgdata).stdout)


def test_pgbench_with_four_clients_keeps_the_books_balanced(encrypted: Cluster) -> None:
    server = encrypted.server
    server.psql("CREATE DATABASE bench")
    server.run("pgbench", "-i", "-q", "-s", "10", "bench")
    done = server.run("pgbench", "-n", "-c", "4", "-j", "2", "-T", str(PGBENCH_SECONDS), "bench")
    processed = re.search(r"actually processed: (\d+)", done.stdout)
    assert processed
    assert server.psql("SELECT count(*) FROM pgbench_history", "bench") == processed[1]
    assert_balanced(encrypted, "bench")


def test_every_rewrite_moved_to_a_new_file_and_kept_the_rows(pair: Pair) -> None:
    server = pair.encrypted.server
    assert server.psql("SELECT how FROM rewritten WHERE before = after", DATABASE) == ""
    for table, count in {"vacuumed": 15000, "clustered": 30000, "altered": 30000, "truncated": 1000}.items():
        assert server.psql(f"SELECT count(*) FROM {table}", DATABASE) == str(count)
    for table in ("vacuumed", "altered"):
        largest = f"SELECT count(*), max(i) FROM {table} WHERE text >= '8'"
        by_index = server.psql(f"SET enable_seqscan = off; {largest}", DATABASE)
        assert by_index == server.psql(
            f"SET enable_indexscan = off; SET enable_bitmapscan = off; {largest}", DATABASE
        )


@pytest.mark.parametrize("copy", ["copied_by_wal", "copied_by_file"])
def test_create_database_copies_the_template(encrypted: Cluster, copy: str) -> None:
    digest = "SELECT count(*), sum(abalance), md5(string_agg(a::text, ',' ORDER BY aid)) FROM pgbench_accounts a"
    assert encrypted.server.psql(digest, copy) == encrypted.server.psql(digest, "accounts")


def test_a_tablespace_lies_in_a_second_mount(encrypted: Cluster) -> None:
    server, space = encrypted.server, encrypted.volumes[1]
    assert is_mounted(space.mountpoint)
    path = server.psql("SELECT pg_relation_filepath('elsewhere')", DATABASE)
    assert (server.pgdata / path).resolve().is_relative_to(space.mountpoint)
    assert server.psql("SELECT count(*), min(note) FROM elsewhere", DATABASE) == f"10000|{TEXT['tablespace']}1"
    assert server.psql("SELECT sum(i) FROM moved", DATABASE) == server.psql(
        "SELECT sum(i) FROM moved_back", DATABASE
    )
    home = server.psql("SELECT pg_relation_filepath('moved_back')", DATABASE)
    assert home.startswith("base/")


def test_temporary_tables_and_a_sort_that_spills(encrypted: Cluster) -> None:
    with encrypted.server.session(DATABASE) as session:
        session.sql("SET temp_buffers = '800kB'; SET work_mem = '64kB'; SET enable_indexscan = off")
        session.sql("CREATE TEMP TABLE t AS SELECT i, md5(i::text) AS text FROM generate_series(1, 100000) i")
        session.sql("CREATE INDEX ON t (text); UPDATE t SET text = text || '!' WHERE i % 2 = 0")
        assert session.sql("SELECT count(*), count(DISTINCT text), sum(i) FROM t") == "100000|100000|5000050000"
        plan = session.sql("EXPLAIN (ANALYZE, COSTS off, TIMING off) SELECT * FROM t ORDER BY text")
        assert "external merge" in plan
        ascending = "SELECT text >= lag(text) OVER (ORDER BY text) AS so FROM t"
        assert session.sql(f"SELECT bool_and(so) FROM ({ascending}) s") == "t"


def test_unlogged_tables_survive_a_clean_restart(encrypted: Cluster) -> None:
    encrypted.server.stop()
    encrypted.server.start()
    assert encrypted.server.psql("SELECT count(*) FROM unlogged", DATABASE) == "5000"


def test_committed_rows_survive_a_crash_and_unlogged_ones_do_not(scratch: Workspace, version: str) -> None:
    cluster = Cluster.encrypted(scratch, version)
    cluster.initdb()
    server = cluster.server
    server.psql("CREATE TABLE acknowledged (i int PRIMARY KEY)")
    server.psql("CREATE UNLOGGED TABLE lost AS SELECT generate_series(1, 1000) i")
    server.psql("CREATE TABLE prepared (i int); BEGIN; INSERT INTO prepared VALUES (1); PREPARE TRANSACTION 'p'")
    server.run("pgbench", "-i", "-q", "-s", "1", "postgres")
    for crash in (1, 2):
        load = server.popen("pgbench", "-n", "-c", "4", "-j", "2", "-T", "60", "postgres")
        last = 0
        with server.session() as session:
            until = time.monotonic() + 5
            while time.monotonic() < until:
                last += 1
                session.sql(f"INSERT INTO acknowledged VALUES ({crash * 1_000_000 + last})")
        server.stop("immediate")
        load.communicate(timeout=60)
        server.start()
        assert server.psql(f"SELECT count(*) FROM acknowledged WHERE i > {crash * 1_000_000}") == str(last)
        assert_balanced(cluster, "postgres")
        assert server.psql("SELECT count(*) FROM lost") == "0"
    server.psql("COMMIT PREPARED 'p'")
    assert server.psql("SELECT count(*) FROM prepared") == "1"
    server.run("pg_amcheck", "--install-missing", "--heapallindexed", "postgres")
    server.stop()
    assert "Bad checksums:  0" in server.run("pg_checksums", "--check", "-D", server.pgdata).stdout
    for volume in cluster.volumes:
        volume.umount()


def test_a_cluster_is_whole_after_unmounting_and_mounting_again(encrypted: Cluster, workspace: Workspace) -> None:
    digest = "SELECT count(*), md5(string_agg(d::text, ',' ORDER BY id)) FROM documents d"
    before = encrypted.server.psql(digest, DATABASE)
    encrypted.server.stop()
    for volume in encrypted.volumes:
        volume.umount()
        volume.mount(owner=workspace.account)
    encrypted.server.start()
    assert encrypted.server.psql(digest, DATABASE) == before


def test_syncfs_of_a_mount_where_files_were_dropped_succeeds(encrypted: Cluster) -> None:
    """An error would keep PostgreSQL from starting; that success says little is told by the doctor."""
    encrypted.server.psql("CREATE TABLE short AS SELECT 1; DROP TABLE short; CHECKPOINT", DATABASE)
    for volume in encrypted.volumes:
        done = subprocess.run(["sync", "-f", volume.mountpoint], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_amcheck_finds_every_heap_row_in_every_index(encrypted: Cluster) -> None:
    done = encrypted.server.run("pg_amcheck", "--all", "--heapallindexed", "--rootdescend")
    assert done.stdout.strip() == ""


def test_dump_equals_that_of_a_plain_cluster(pair: Pair, workspace: Workspace) -> None:
    directory = workspace.directory("dumps")
    for database in DATABASES:
        encrypted = dump(pair.encrypted, database, directory / f"{database}.encrypted.sql")
        plain = dump(pair.plain, database, directory / f"{database}.plain.sql")
        assert plain.stat().st_size > 100_000
        assert filecmp.cmp(encrypted, plain, shallow=False), f"the dumps of {database} differ"


def test_checksums_of_all_pages_hold(encrypted: Cluster) -> None:
    server = encrypted.server
    server.stop()
    checked = server.run("pg_checksums", "--check", "-D", server.pgdata).stdout
    server.start()
    assert "Bad checksums:  0" in checked
    blocks = re.search(r"Blocks scanned: +(\d+)", checked)
    assert blocks and int(blocks[1]) > 10_000


def test_neither_server_nor_daemon_complained(encrypted: Cluster) -> None:
    """Last in this file: looks back on everything that the tests before it have done."""
    assert [line for line in encrypted.server.log.read_text().splitlines() if COMPLAINTS.search(line)] == []
    for volume in encrypted.volumes:
        assert "Traceback" not in volume.log.read_text()


def assert_balanced(cluster: Cluster, database: str) -> None:
    """The sums of TPC-B: what went into the history is what went into accounts, tellers and branches."""
    sums = cluster.server.psql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), "
        "(SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history)",
        database,
    ).split("|")
    assert len(set(sums)) == 1, sums


def dump(cluster: Cluster, database: str, path: Path) -> Path:
    """Writes the dump of a database, without the random key that pg_dump puts around it."""
    text = cluster.server.run("pg_dump", database).stdout
    path.write_text("".join(line for line in text.splitlines(True) if not re.match(r"\\(un)?restrict ", line)))
    return path
