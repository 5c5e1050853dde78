"""The backing directory holds not one byte of the database in the clear, unless the policy says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.postgres.canaries import CANARIES, DATABASE, TEXT
from tests.postgres.cluster import Cluster, Pair
from tests.support.scan import files_with
from tests.support.server import Server
from tests.support.volume import Volume, relative_files
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slow

HEADER_BYTES = 8192
#: The end of a file that does not end with a whole cipher block is padded to less than this.
PADDING_BYTES = 32


def test_no_canary_is_in_the_backing_directory(pair: Pair) -> None:
    """A plain cluster with the same load has each canary in its place: the search would find them."""
    texts = TEXT.values()
    for cluster in (pair.plain, pair.encrypted):
        with spilling(cluster.server):
            cluster.server.psql("CHECKPOINT")
            # Only in the WAL, and so late that its segment is not reused before the search; more than once, as a
            # page header may lie within the text.
            for _ in range(3):
                cluster.server.psql(f"SELECT pg_logical_emit_message(true, 'tdefs', '{TEXT['wal']}')")
            seen = files_with(cluster.server.pgdata, texts, into_tablespaces=True)
            for canary in CANARIES:
                place = canary.path(cluster.server)
                assert any(path.startswith(place) for path in seen[canary.text]), (
                    f"the canary {canary.name} is not in {place}, but in {seen[canary.text]}"
                )
            for volume in cluster.volumes:
                write_back(volume)
                assert files_with(volume.backing, texts) == {text: set() for text in texts}
            if cluster.volumes:
                # The files that were searched are those that hold the canaries, not empty ones of the same name.
                for path in set[str]().union(*seen.values()):
                    stored = backing_size(cluster, path)
                    size = (cluster.server.pgdata / path).stat().st_size
                    assert HEADER_BYTES <= stored - size < HEADER_BYTES + PADDING_BYTES, path


def test_a_selective_policy_leaves_exactly_its_files_in_the_clear(scratch: Workspace, version: str) -> None:
    """Of database 5, ``postgres``, the first relfilenodes after initdb; and two kinds of files."""
    volume = scratch.volume("selective")
    volume.init(
        policy="version: 1\n"
        "default: dk_1\n"
        "relations:\n"
        "  - database: 5\n"
        "    relfilenodes: [16384-16389]\n"
        "    key: plain\n"
        "kinds:\n"
        "  configuration: plain\n"
        "  version: plain\n"
    )
    volume.mount(owner=scratch.account)
    server = scratch.server(version, volume.mountpoint)
    server.initdb()
    server.start()
    server.psql("CREATE TABLE open_table AS SELECT i, 'open-' || i AS text FROM generate_series(1, 20000) i")
    server.psql("VACUUM open_table")  # makes the other forks
    server.psql("CREATE TABLE filler (a text)")  # with its TOAST table and index, to use up the numbers
    server.psql("CREATE TABLE closed_table AS SELECT i, 'closed-' || i AS text FROM generate_series(1, 20000) i")
    server.psql("CREATE TABLE rewritten AS SELECT 1 AS i")
    first, closed = (
        int(server.psql(f"SELECT pg_relation_filenode('{name}_table')")) for name in ("open", "closed")
    )
    assert first == 16384
    assert closed > 16389
    server.stop()

    content = {path: (volume.mountpoint / path).read_bytes() for path in relative_files(volume.mountpoint)}
    volume.umount()
    plain = {path for path in content if (volume.data / path).read_bytes() == content[path]}
    expected = {path for path in content if is_plain_by_policy(path)}
    assert f"base/5/{first}_vm" in expected
    assert plain == expected
    assert files_with(volume.backing, ["open-19999"])["open-19999"] == {f"data/base/5/{first}"}
    assert files_with(volume.backing, ["closed-19999"])["closed-19999"] == set()

    # A rewrite gives a new number, which no rule names: from then on it is encrypted.
    volume.mount(owner=scratch.account)
    server.start()
    server.psql("VACUUM FULL open_table; CHECKPOINT")
    moved = int(server.psql("SELECT pg_relation_filenode('open_table')"))
    assert server.psql("SELECT count(*) FROM open_table WHERE text LIKE 'open-%'") == "20000"
    server.stop()
    volume.umount()
    assert moved > 16389
    assert files_with(volume.backing, ["open-19999"])["open-19999"] == set()


def is_plain_by_policy(path: str) -> bool:
    """The policy of the test above, written a second time and in another way."""
    directory, _, name = path.rpartition("/")
    if directory == "base/5" and name[:5].isdecimal():
        return 16384 <= int(name[:5]) <= 16389
    return name in ("PG_VERSION", "postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf")


@contextmanager
def spilling(server: Server) -> Iterator[None]:
    """Holds a temporary table, a sort on disk and a held cursor open."""
    with server.session(DATABASE) as session:
        session.sql("SET temp_buffers = '800kB'; SET work_mem = '64kB'")
        session.sql(
            f"CREATE TEMP TABLE t AS SELECT '{TEXT['temporary']}-' || i AS text FROM generate_series(1, 100000) i"
        )
        session.sql(
            "BEGIN; DECLARE held CURSOR WITH HOLD FOR "
            f"SELECT '{TEXT['held_cursor']}-' || i FROM generate_series(1, 100000) i; COMMIT"
        )
        session.sql(
            "BEGIN; DECLARE sorted CURSOR FOR "
            f"SELECT '{TEXT['spill']}-' || i AS text FROM generate_series(1, 100000) i ORDER BY md5(i::text)"
        )
        assert session.sql("FETCH 1 FROM sorted").startswith(TEXT["spill"])
        yield


def write_back(volume: Volume) -> None:
    """Makes the kernel write what it still holds of files that nobody has synced: it must be searched too."""
    for path in relative_files(volume.mountpoint):
        descriptor = os.open(volume.mountpoint / path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def backing_size(cluster: Cluster, path: str) -> int:
    """The size in bytes of the backing file of a path in the data directory, in whichever volume it lies."""
    file = (cluster.server.pgdata / path).resolve()
    for volume in cluster.volumes:
        if file.is_relative_to(volume.mountpoint):
            return (volume.data / file.relative_to(volume.mountpoint)).stat().st_size
    raise AssertionError(f"{file} is in no volume")
