"""Which of PostgreSQL's renames write a header, and wait for the disk: none that it does often.

Each pair is a rename in PostgreSQL's source. Covers identity_at() of tdefs/data/forms.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from errno import EIO
from functools import partial
from pathlib import Path

import pytest

from tdefs.data.identity import identity_at
from tests.support.served_volume import Crash, ServedVolume

SEGMENT = "000000010000000000000001"

#: Done all the time, or for each segment, checkpoint, connection or slot.
OFTEN = {
    # InstallXLogFileSegment() of xlog.c, xlogarchive.c, timeline.c
    "WAL is recycled": (f"pg_wal/{SEGMENT}", "pg_wal/000000010000000000000007"),
    "a WAL segment is made": ("pg_wal/xlogtemp.1234", f"pg_wal/{SEGMENT}"),
    "a WAL segment is restored": ("pg_wal/RECOVERYXLOG", f"pg_wal/{SEGMENT}"),
    "a timeline begins": ("pg_wal/xlogtemp.1234", "pg_wal/00000002.history"),
    "a WAL segment is archived": (
        f"pg_wal/archive_status/{SEGMENT}.ready",
        f"pg_wal/archive_status/{SEGMENT}.done",
    ),
    "WAL is received": (f"pg_wal/{SEGMENT}.partial", f"pg_wal/{SEGMENT}"),
    "WAL is summarized": ("pg_wal/summaries/temp.summary", f"pg_wal/summaries/{'0' * 40}.summary"),
    "WAL is recycled in a volume of its own": (SEGMENT, "000000010000000000000007"),
    "a WAL segment is made in a volume of its own": ("xlogtemp.1234", SEGMENT),
    "a WAL segment is archived from a volume of its own": (
        f"archive_status/{SEGMENT}.ready",
        f"archive_status/{SEGMENT}.done",
    ),
    # pgstat.c, pg_stat_statements.c
    "statistics are written": ("pg_stat/pgstat.tmp", "pg_stat/pgstat.stat"),
    "statistics of 14 and older are written": ("pg_stat_tmp/db_5.tmp", "pg_stat_tmp/db_5.stat"),
    "pg_stat_statements is saved": ("pg_stat/pg_stat_statements.stat.tmp", "pg_stat/pg_stat_statements.stat"),
    # write_relcache_init_file() of relcache.c
    "a database's relation cache is written": ("base/5/pg_internal.init.77", "base/5/pg_internal.init"),
    "the shared relation cache is written": ("global/pg_internal.init.77", "global/pg_internal.init"),
    # slot.c, origin.c, snapbuild.c, snapmgr.c
    "a slot is saved": ("pg_replslot/standby/state.tmp", "pg_replslot/standby/state"),
    "origins are saved": ("pg_logical/replorigin_checkpoint.tmp", "pg_logical/replorigin_checkpoint"),
    "decoding is saved": ("pg_logical/snapshots/0-17.snap.99.tmp", "pg_logical/snapshots/0-17.snap"),
    "a snapshot is exported": ("pg_snapshots/00000003-1.tmp", "pg_snapshots/00000003-1"),
    # xlogrecovery.c, basebackup and pg_basebackup, syslogger.c
    "a backup was recovered": ("backup_label", "backup_label.old"),
    "a backup with tablespaces was recovered": ("tablespace_map", "tablespace_map.old"),
    "a backup is complete": ("backup_manifest.tmp", "backup_manifest"),
    "the log's name is written": ("current_logfiles.tmp", "current_logfiles"),
    "a log is rotated by logrotate": ("log/postgresql.log", "log/postgresql.log.1"),
}
#: Done by a person's command, or once for each rewrite of a mapped catalog.
SELDOM = {
    "ALTER SYSTEM": ("postgresql.auto.conf.tmp", "postgresql.auto.conf"),
    "VACUUM FULL of a mapped catalog": ("base/5/pg_filenode.map.tmp", "base/5/pg_filenode.map"),
    "VACUUM FULL of a shared catalog": ("global/pg_filenode.map.tmp", "global/pg_filenode.map"),
    "pg_upgrade": ("global/pg_control", "global/pg_control.old"),
    "recovery has ended (11 and older)": ("recovery.conf", "recovery.done"),
    "an editor keeps the old version": ("pg_hba.conf", "pg_hba.conf~"),
    "rsync": (".postgresql.conf.Ab1Xyz", "postgresql.conf"),
    "rsync of a relation": ("base/5/.16385.Ab1Xyz", "base/5/16385"),
}

#: One of each kind that a cluster has.
CLUSTER = (
    "PG_VERSION",
    "postgresql.conf",
    "global/pg_control",
    "global/1262",
    "base/5/PG_VERSION",
    "base/5/pg_filenode.map",
    "base/5/16385",
    "pg_xact/0000",
    "pg_multixact/offsets/0000",
    f"pg_wal/{SEGMENT}",
    "log/postgresql.log",
    "notes.txt",
)


def made(served: ServedVolume, *paths: str) -> None:
    for path in paths:
        served.mkdirs(str(Path(path).parent))
        served.create(path, path.encode())


@pytest.mark.parametrize("event", OFTEN)
def test_what_is_renamed_often_keeps_its_header(served: ServedVolume, event: str) -> None:
    old, new = OFTEN[event]
    assert identity_at(old) == identity_at(new)
    made(served, old)
    served.mkdirs(str(Path(new).parent))
    served.calls.made.clear()
    served.rename(old, new)
    assert not {"bind:header", "bind:sync", "rename:sync"} & set(served.calls.made)
    served.remount()
    assert served.read(new) == old.encode()


def test_a_new_slot_gets_its_name_without_a_header(served: ServedVolume) -> None:
    """CreateSlotOnDisk() of slot.c renames the directory."""
    made(served, "pg_replslot/standby.tmp/state")
    served.calls.made.clear()
    served.rename("pg_replslot/standby.tmp", "pg_replslot/standby")
    assert "bind:header" not in served.calls.made
    assert served.read("pg_replslot/standby/state") == b"pg_replslot/standby.tmp/state"


@pytest.mark.parametrize("event", SELDOM)
def test_what_is_renamed_seldom_is_bound_to_its_new_name(served: ServedVolume, event: str) -> None:
    old, new = SELDOM[event]
    made(served, old)
    served.rename(old, new)
    assert served.bound(new) == (identity_at(new),)
    served.remount()
    assert served.read(new) == old.encode()


@pytest.mark.parametrize("event", SELDOM)
@pytest.mark.parametrize("replaces", [True, False])
def test_a_crash_before_any_system_call_of_a_rename_leaves_old_or_new(
    tmp_path: Path, event: str, replaces: bool
) -> None:
    old, new = SELDOM[event]
    for crashes in range(100):
        served = ServedVolume(_directory(tmp_path))
        made(served, old)
        if replaces:
            made(served, new)
        served.calls.crash_before = len(served.calls.made) + crashes
        ended = _dies_or_ends(partial(served.rename, old, new))
        served.remount(after_crash=True)
        found = {path: served.read(path) for path in (old, new) if (served.data / path).exists()}
        before = {old: old.encode(), **({new: new.encode()} if replaces else {})}
        assert found in (before, {new: old.encode()}), crashes
        served.close()
        if ended:
            assert crashes > 5
            return
    raise AssertionError("it never ends")


def test_a_cluster_s_directory_is_renamed_with_all_that_is_bound_to_its_name(served: ServedVolume) -> None:
    made(served, *(f"15/main/{path}" for path in CLUSTER))
    served.rename("15", "old")
    for _ in range(2):
        assert [served.read(f"old/main/{path}") for path in CLUSTER] == [f"15/main/{p}".encode() for p in CLUSTER]
        assert all(served.bound(f"old/main/{path}") == (identity_at(f"old/main/{path}"),) for path in CLUSTER)
        served.remount()


def test_a_crash_while_a_cluster_s_directory_is_renamed_shuts_no_file_out(tmp_path: Path) -> None:
    paths = ("main/PG_VERSION", "main/base/5/16385", "main/pg_xact/0000", "main/notes.txt")
    for crashes in range(200):
        served = ServedVolume(_directory(tmp_path))
        made(served, *paths)
        served.calls.crash_before = len(served.calls.made) + crashes
        ended = _dies_or_ends(partial(served.rename, "main", "old"))
        served.remount(after_crash=True)
        place = "old" if (served.data / "old").exists() else "main"
        assert [served.read(path.replace("main", place)) for path in paths] == [path.encode() for path in paths]
        served.close()
        if ended:
            assert crashes > 20
            return
    raise AssertionError("it never ends")


def test_a_directory_that_was_renamed_below_shuts_out_what_is_bound_to_its_name(served: ServedVolume) -> None:
    made(served, *(f"15/{path}" for path in CLUSTER))
    (served.data / "15").rename(served.data / "old")
    served.remount()
    for path in CLUSTER:
        if identity_at(f"15/{path}") == identity_at(f"old/{path}"):
            assert served.read(f"old/{path}") == f"15/{path}".encode()
        else:
            with pytest.raises(OSError, match="Input/output") as caught:
                served.read(f"old/{path}")
            assert caught.value.errno == EIO


def _directory(root: Path) -> Path:
    directory = root / "volume"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def _dies_or_ends(action: Callable[[], None]) -> bool:
    try:
        action()
    except Crash:
        return False
    return True
