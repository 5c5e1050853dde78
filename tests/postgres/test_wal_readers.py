"""Whoever reads WAL while it is written sees every flushed byte: pg_receivewal, archiver, pg_waldump, a standby.

Under ``open_datasync`` the server writes WAL past the kernel's cache, and all of them read it in other ways.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import wait_until
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace

SECONDS = 8
#: How often at least pg_waldump is run beside the load, which lasts longer for it on a busy machine.
DUMPS = 5
MARK = "tdefs-mark"
SYNC_METHODS = ("fdatasync", "open_datasync", "fsync", "open_sync")


@dataclass(frozen=True)
class Writing:
    """A server on a mount whose WAL is archived, and where its archive is."""

    server: Server
    volume: Volume
    archive: Path
    received: Path

    @property
    def wal(self) -> Path:
        return self.server.pgdata / "pg_wal"


@pytest.fixture(scope="module")
def writing(workspace: Workspace) -> Iterator[Writing]:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    try:
        volume = workspace.volume("wal")
        volume.init()
        volume.mount(owner=workspace.account)
        archive, received = workspace.data_directory("archive"), workspace.data_directory("received")
        server = workspace.server("15", volume.mountpoint)
        server.initdb()
        server.configure(
            {
                "archive_mode": "on",
                "archive_command": f"'test ! -f {archive}/%f && cp %p {archive}/%f'",
                "wal_keep_size": "1GB",
                "min_wal_size": "32MB",
                "max_wal_size": "64MB",
                "wal_recycle": "on",
                "shared_buffers": "32MB",
            }
        )
        server.start()
        server.run("pgbench", "-i", "-q", "-s", "3", "postgres")
        yield Writing(server, volume, archive, received)
        server.stop()
        volume.umount()
    finally:
        workspace.release(volumes, servers)


@pytest.mark.slow
@pytest.mark.parametrize("method", SYNC_METHODS)
def test_every_reader_of_wal_sees_what_was_flushed(writing: Writing, method: str) -> None:
    server = writing.server
    server.psql(f"ALTER SYSTEM SET wal_sync_method = {method}")
    server.stop()
    server.start()
    assert server.psql("SHOW wal_sync_method") == method
    first = server.psql("SELECT pg_walfile_name(pg_switch_wal())")
    receiver = server.popen("pg_receivewal", "-D", writing.received, "--synchronous", "--no-loop")
    try:
        assert wait_until(lambda: server.psql("SELECT count(*) FROM pg_stat_replication") == "1", 30)
        dumps = 0
        while dumps < DUMPS:
            load = server.popen("pgbench", "-n", "-c", "4", "-j", "2", "-T", str(SECONDS), "postgres")
            while load.poll() is None:
                dump_up_to_now(server, writing.wal)
                dumps += 1
            output = load.communicate()[0]
            assert load.returncode == 0, output
        # a busy machine commits little in that time: this goes beyond the end of a segment in any case
        server.psql(
            "SELECT pg_logical_emit_message(true, 'filler', repeat('x', 1 << 20)) FROM generate_series(1, 17)"
        )
        last = server.psql("SELECT pg_walfile_name(pg_switch_wal())")
        server.psql("CHECKPOINT")
        assert wait_until(lambda: server.psql("SELECT last_archived_wal FROM pg_stat_archiver") >= last, 60)
        assert wait_until(lambda: (writing.received / last).exists(), 60), "pg_receivewal has not the last"
    finally:
        receiver.send_signal(signal.SIGINT)
        receiver.communicate(timeout=30)
    compare(writing, first, last)


def dump_up_to_now(server: Server, wal: Path) -> None:
    """Read with pg_waldump what was flushed in the last moment: it fails on a byte that is not there."""
    start = flushed_record(server)
    time.sleep(0.05)
    end = flushed_record(server)
    # named, since pg_waldump takes the segment size from any file that it finds, one of zeros made for later too
    segments = server.psql(f"SELECT pg_walfile_name('{start}'), pg_walfile_name('{end}')").split("|")
    done = server.run("pg_waldump", "-p", wal, "-s", start, "-e", end, *segments, check=False)
    assert done.returncode == 0, f"from {start} to {end}: {done.stderr}"
    assert MARK in done.stdout, f"from {start} to {end} the last record is missing"


def flushed_record(server: Server) -> str:
    """Write a record, have it flushed by its commit, and return where it ends."""
    return server.psql(f"SELECT pg_logical_emit_message(true, '{MARK}', '')")


def compare(writing: Writing, first: str, last: str) -> None:
    """Archived and received segments are those that the server has."""
    segments = [name for name in sorted(path.name for path in writing.archive.iterdir()) if first < name <= last]
    assert len(segments) >= 2, "the load filled too little WAL"
    for name in segments:
        archived = (writing.archive / name).read_bytes()
        assert len(archived) == 16 << 20
        assert archived == (writing.received / name).read_bytes(), f"pg_receivewal got another {name}"
        with suppress(FileNotFoundError):  # recycled meanwhile
            assert archived == (writing.wal / name).read_bytes(), f"the archiver got another {name}"


@pytest.mark.slow
def test_a_standby_made_by_pg_basebackup_follows_and_is_equal(writing: Writing, workspace: Workspace) -> None:
    volumes, servers = len(workspace.volumes), len(workspace.servers)
    server = writing.server
    server.psql("ALTER SYSTEM SET wal_sync_method = open_datasync")
    server.stop()
    server.start()
    try:
        volume = workspace.volume("standby")
        volume.init()
        volume.mount(owner=workspace.account)
        standby = workspace.server("15", volume.mountpoint)
        load = server.popen("pgbench", "-n", "-c", "2", "-T", str(SECONDS), "postgres")
        # -R writes where the primary is; the standby's own port and socket come after the copied settings
        server.run("pg_basebackup", "-D", standby.pgdata, "-X", "stream", "-c", "fast", "-R")
        standby.configure(
            {
                "port": str(standby.port),
                "unix_socket_directories": f"'{standby.socket_directory}'",
                "archive_mode": "off",
            }
        )
        standby.start()
        output = load.communicate()[0]
        assert load.returncode == 0, output
        position = server.psql("SELECT pg_current_wal_flush_lsn()")
        reached = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
        assert wait_until(lambda: standby.psql(reached) == "t", 60), standby.log_tail()
        assert dump(standby) == dump(server)
        standby.stop()
        standby.run("pg_checksums", "--check", "-D", standby.pgdata)
        volume.umount()
        assert volume.tdefs("verify", volume.backing, *volume.unlock).returncode == 0
    finally:
        workspace.release(volumes, servers)


def dump(server: Server) -> str:
    """All rows as SQL; without the version line and the random token of newer releases."""
    text = server.run("pg_dump", "postgres").stdout
    return "\n".join(line for line in text.splitlines() if not line.startswith(("--", "\\")))
