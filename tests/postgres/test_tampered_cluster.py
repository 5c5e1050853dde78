"""What somebody takes away, or brings back, while a cluster is at rest, does not make its server act on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pristine import Pristine, cluster_at_rest
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace


@pytest.fixture(scope="module")
def made(workspace: Workspace) -> Iterator[tuple[Volume, Server, Pristine]]:
    settings = {"logging_collector": "on", "log_filename": "'one.log'"}
    with cluster_at_rest(
        workspace, "15", "", settings, lambda server: server.psql("CREATE TABLE t AS SELECT 1 AS a")
    ) as made:
        yield made


@pytest.fixture
def server(made: tuple[Volume, Server, Pristine]) -> Iterator[Server]:
    """A cluster at rest that logs to files of its own."""
    yield made[1]
    made[2].restore()


@pytest.fixture
def volume(made: tuple[Volume, Server, Pristine]) -> Volume:
    return made[0]


def fails_to_start(server: Server) -> bool:
    try:
        server.start()
    except AssertionError:
        return True
    server.stop()
    return False


def test_a_standby_whose_signal_was_removed_does_not_become_a_second_primary(
    server: Server, volume: Volume
) -> None:
    volume.mount()
    (volume.mountpoint / "standby.signal").touch()
    server.account.own(volume.mountpoint / "standby.signal")
    volume.umount()
    (volume.data / "standby.signal").unlink()
    volume.mount()
    with pytest.raises(OSError, match="Input/output error"):
        (volume.mountpoint / "standby.signal").stat()
    volume.umount()


def test_older_login_rules_of_the_same_length_are_not_believed(
    server: Server, volume: Volume, tmp_path: Path
) -> None:
    rules = volume.mountpoint / "pg_hba.conf"
    volume.mount()
    text = "local all all trust     \nhost all all 127.0.0.1/32 trust     \n"
    rules.write_text(text)
    volume.umount()
    shutil.copy(volume.data / "pg_hba.conf", tmp_path / "older")
    volume.mount()
    new = volume.mountpoint / "new"
    new.write_text(text.replace("trust     ", "scram-sha-256"[:10]))
    server.account.own(new)
    new.rename(rules)
    volume.umount()
    shutil.copyfile(tmp_path / "older", volume.data / "pg_hba.conf")
    volume.mount()
    assert fails_to_start(server)
    assert "pg_hba.conf: refused: not as the last unmount left it: exchanged" in volume.log.read_text()
    volume.umount()


def test_an_emptied_pg_xact_is_no_empty_one(server: Server, volume: Volume) -> None:
    (volume.data / "pg_xact/0000").write_bytes(b"")
    volume.mount()
    assert fails_to_start(server) or "could not" in server.log_tail()
    volume.umount()


def test_a_planted_recovery_signal_starts_no_recovery(server: Server, volume: Volume) -> None:
    (volume.data / "recovery.signal").touch()
    volume.mount()
    server.start()
    assert server.psql("SELECT pg_is_in_recovery()") == "f"
    assert "starting archive recovery" not in server.log_tail()
    server.stop()
    volume.umount()


def test_one_lost_log_file_does_not_keep_a_database_down(server: Server, volume: Volume) -> None:
    shutil.rmtree(volume.data / "log")
    (volume.data / "pg_stat/pgstat.stat").unlink()
    volume.mount()
    server.start()
    assert server.psql("SELECT a FROM t") == "1"
    server.stop()
    volume.umount()


def test_a_thousand_tables_are_dropped_without_a_thousand_syncs(server: Server, volume: Volume) -> None:
    volume.mount()
    server.start("-c max_locks_per_transaction=4096")
    server.psql("CREATE DATABASE many")
    server.psql(
        "DO $$ BEGIN FOR n IN 1..1000 LOOP EXECUTE format('CREATE TABLE t%s (a int)', n); END LOOP; END $$", "many"
    )
    server.stop()
    volume.umount()
    volume.mount()
    server.start("-c max_locks_per_transaction=4096")
    server.psql("DROP DATABASE many")
    server.stop()
    size = journal_records(volume)
    assert size < 100, f"{size} syncs"
    volume.umount()


def journal_records(volume: Volume) -> int:
    """How many times something was noted, each of which was a sync."""
    data = (volume.backing / ".tdefs/changed").read_bytes()
    at, count = 4096, 0
    while size := int.from_bytes(data[at : at + 4], "little"):
        at += 4 + size + 32
        count += 1
    return count
