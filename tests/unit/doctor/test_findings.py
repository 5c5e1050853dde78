"""The doctor finds each thing that weakens a mount, and nothing where nothing does."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tdefs.doctor import host
from tdefs.doctor.cluster import examine_cluster, find_clusters
from tdefs.doctor.findings import Level
from tests.support.daemon_status import daemon_status

CAPTURED = Path(__file__).parents[1] / "pg" / "data"
HEALTHY = daemon_status(pid=os.getpid(), log_file="/var/log/tdefs.log")


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    """A cluster that nothing is wrong with, on a mount."""
    pgdata = tmp_path / "mnt" / "pg"
    for directory in ("global", "pg_wal", "pg_tblspc"):
        (pgdata / directory).mkdir(parents=True)
    use_control_file(pgdata, "pg15_checksums")
    (pgdata / "postgresql.conf").write_text("fsync = on\nwal_sync_method = open_datasync\nwal_buffers = 64MB\n")
    return pgdata


def use_control_file(pgdata: Path, name: str) -> None:
    shutil.copyfile(CAPTURED / f"{name}.pg_control", pgdata / "global" / "pg_control")


def examine(pgdata: Path) -> list[tuple[Level, str]]:
    mountpoint = pgdata.parent
    return [(finding.level, finding.what) for finding in examine_cluster(pgdata, [mountpoint])]


def test_nothing_is_said_of_a_healthy_cluster(pgdata: Path) -> None:
    assert examine(pgdata) == []


@pytest.mark.parametrize(
    "line",
    [
        "fsync = off",
        "full_page_writes = off",
        "synchronous_commit = off",
        "data_sync_retry = on",
        "recovery_init_sync_method = syncfs",
        "ignore_checksum_failure = on",
        "zero_damaged_pages = on",
        "recovery_init_sync_method = syncfs",
    ],
)
def test_each_setting_that_weakens_is_a_risk(pgdata: Path, line: str) -> None:
    (pgdata / "postgresql.auto.conf").write_text(f"{line}\n")
    [(level, what)] = examine(pgdata)
    assert level is Level.RISK
    assert line in what
    assert "postgresql.auto.conf" in what


@pytest.mark.parametrize("value", ["on", "tru", "yes", "1"])
def test_a_switch_is_understood_however_it_is_written(pgdata: Path, value: str) -> None:
    (pgdata / "postgresql.auto.conf").write_text(f"data_sync_retry = {value}\n")
    assert [level for level, _ in examine(pgdata)] == [Level.RISK]
    (pgdata / "postgresql.auto.conf").write_text(f"fsync = {value}\n")
    assert examine(pgdata) == []


@pytest.mark.parametrize("line", ["synchronous_commit = local", "synchronous_commit = remote_write"])
def test_commits_that_no_standby_has_are_worth_a_word_where_there_is_one(pgdata: Path, line: str) -> None:
    (pgdata / "postgresql.auto.conf").write_text(f"{line}\n")
    assert examine(pgdata) == []
    (pgdata / "postgresql.auto.conf").write_text(f"{line}\nsynchronous_standby_names = '*'\n")
    [(level, what)] = examine(pgdata)
    assert level is Level.ADVICE
    assert line in what


@pytest.mark.parametrize("options", ['"-F"', '"-c" "fsync=off"', '"-cfsync=off"', '"--fsync=off"'])
def test_the_command_line_of_the_server_counts(pgdata: Path, options: str) -> None:
    (pgdata / "postmaster.opts").write_text(f'/usr/bin/postgres "-D" "{pgdata}" {options}\n')
    [(level, what)] = examine(pgdata)
    assert level is Level.RISK
    assert "fsync = off (the command line" in what


@pytest.mark.parametrize("below", ["", "main", "15/main"])
def test_a_cluster_is_found_below_the_mount_point(pgdata: Path, tmp_path: Path, below: str) -> None:
    """PGDATA, or a directory above it, may be the mount point."""
    mountpoint = tmp_path / "other"
    place = mountpoint / below
    place.parent.mkdir(parents=True, exist_ok=True)
    pgdata.rename(place)
    assert find_clusters(mountpoint) == [place]


@pytest.mark.parametrize("buffers", ["", "wal_buffers = 4MB", "wal_buffers = 512", "wal_buffers = -1"])
def test_synced_writes_with_small_buffers_are_slow(pgdata: Path, buffers: str) -> None:
    (pgdata / "postgresql.conf").write_text(f"wal_sync_method = open_datasync\n{buffers}\n")
    [(level, what)] = examine(pgdata)
    assert level is Level.ADVICE
    assert "small WAL buffers" in what


def test_missing_checksums_are_a_risk(pgdata: Path) -> None:
    use_control_file(pgdata, "pg15_no_checksums")
    [(level, what)] = examine(pgdata)
    assert level is Level.RISK
    assert "no data checksums" in what


def test_a_server_log_outside_is_in_the_clear(pgdata: Path) -> None:
    (pgdata / "postgresql.auto.conf").write_text("logging_collector = on\nlog_directory = '/var/log/postgresql'\n")
    [(level, what)] = examine(pgdata)
    assert level is Level.RISK
    assert "/var/log/postgresql" in what


@pytest.mark.parametrize(
    ("change", "level", "said"),
    [
        ({"failures": {"write": 3}}, Level.RISK, "requests failed since the mount: write 3"),
        ({"memory_locked": False}, Level.RISK, "the host swaps"),
        ({"reserve_spared": False}, Level.RISK, "the blocks that the disk keeps for root"),
        ({"page_cipher": "Python"}, Level.ADVICE, "slower path"),
    ],
)
def test_what_the_daemon_says_is_judged(
    change: dict[str, Any], level: Level, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_has_swap", lambda: True)
    monkeypatch.setattr(host, "_file_limit", lambda pid: 1 << 20)
    assert list(host._daemon(HEALTHY)) == []
    [finding] = host._daemon(replace(HEALTHY, **change))
    assert finding.level is level
    assert said in finding.what


def test_few_open_files_are_a_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_file_limit", lambda pid: 1024)
    [finding] = host._daemon(HEALTHY)
    assert "may open 1024 files" in finding.what
