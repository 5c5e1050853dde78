"""Volumes that are only read: from a read-only file system, or with ``-o ro``. Nothing there is changed."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tdefs.cli.common import daemon_log
from tdefs.errors import Exit
from tests.crash.faults.loop_disks import Ext4, run
from tests.fs.test_start_stop import fingerprint
from tests.support.children import needs_root
from tests.support.processes import is_alive, wait_until
from tests.support.server import Server
from tests.support.volume import Volume
from tests.support.workspace import Workspace


def fails(action: Callable[[], object]) -> int | None:
    try:
        action()
    except OSError as error:
        return error.errno
    return 0


def mount(volume: Volume, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Without a log file of the caller's."""
    return volume.tdefs("mount", volume.backing, volume.mountpoint, *volume.unlock, *arguments, check=check)


def check_only_read(volume: Volume) -> None:
    """Checks that what changes anything is refused with EROFS, and that status and umount work."""
    point = volume.mountpoint
    (name,) = (path for path in point.iterdir() if path.name.startswith("file"))
    for action in (
        (point / "new").touch,
        (point / "new").mkdir,
        name.unlink,
        lambda: name.chmod(0o600),
        lambda: name.rename(point / "new"),
        lambda: (point / "new").hardlink_to(name),
        lambda: (point / "new").symlink_to(name),
        lambda: os.open(name, os.O_RDWR),
        lambda: os.truncate(name, 0),
        lambda: os.utime(name, (1, 1)),
    ):
        assert fails(action) == errno.EROFS
    found = volume.status()
    assert (found["read_only"], found["daemon_answers"], found["pid"]) == (True, True, volume.daemons[0])


@pytest.fixture
def used(volume: Volume) -> Volume:
    """A volume that was in use."""
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"content" * 5000)
    volume.umount()
    return volume


# --- a read-only file system


@needs_root
def test_a_cluster_on_a_read_only_file_system_is_read_by_stock_tools(scratch: Workspace) -> None:
    disk = Ext4(scratch.directory("disk"), 200)
    volume = scratch.volume("snapshot")
    volume.backing = disk.mountpoint / "backing"
    with disk.mounted():
        volume.init()
        volume.mount(owner=scratch.account)
        server = scratch.server("15", volume.mountpoint / "pgdata")
        server.initdb("--wal-segsize=1")
        server.start()
        server.psql("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 20000) AS n")
        server.psql("CHECKPOINT")
        server.stop()
        (volume.mountpoint / "file").write_bytes(b"content")
        volume.umount()
    disk.mountpoint.mkdir(exist_ok=True)
    run("mount", "-o", "ro,loop", disk.image, disk.mountpoint)
    try:
        said = mount(volume).stderr
        assert f'"{volume.backing}" is mounted read-only' in said
        assert "did not end cleanly" not in said
        check_only_read(volume)
        check_stock_tools(server)
        (daemon,) = volume.daemons
        volume.umount()
        assert not is_alive(daemon)
        # of a daemon that has died, too
        mount(volume)
        volume.kill()
        assert volume.tdefs("status", volume.mountpoint, check=False).returncode == Exit.NOT_MOUNTED
        mount(volume)
        volume.umount()
    finally:
        volume.discard()
        assert wait_until(lambda: subprocess.run(["umount", disk.mountpoint], check=False).returncode == 0, 10)
    with disk.mounted():
        volume.mount()
        server.start()
        assert server.psql("SELECT count(*) FROM t") == "20000"
        server.stop()
        volume.umount()


def check_stock_tools(server: Server) -> None:
    assert "shut down" in server.run("pg_controldata", "-D", server.pgdata).stdout
    assert "Bad checksums:  0" in server.run("pg_checksums", "--check", "-D", server.pgdata).stdout
    segment = min(path for path in (server.pgdata / "pg_wal").iterdir() if path.is_file())
    # it ends with an error where the segment does
    assert "rmgr: Heap" in server.run("pg_waldump", segment, check=False).stdout


# --- asked for


def test_a_mount_that_is_asked_to_be_read_only_changes_nothing_in_the_backing_directory(used: Volume) -> None:
    before = fingerprint(used.backing)
    assert f'"{used.backing}" is mounted read-only' in mount(used, "-o", "noatime,ro").stderr
    check_only_read(used)
    assert (used.mountpoint / "file").read_bytes() == b"content" * 5000
    os.sync()
    assert fingerprint(used.backing) == before
    used.umount()
    assert fingerprint(used.backing) == before


@needs_root
def test_a_read_only_mount_that_root_remounts_for_writing_stays_read_only(used: Volume) -> None:
    before = fingerprint(used.backing)
    mount(used, "-o", "ro")
    subprocess.run(["mount", "-o", "remount,rw", used.mountpoint], check=False)
    check_only_read(used)
    used.umount()
    assert fingerprint(used.backing) == before


@pytest.fixture
def crashed(used: Volume) -> Volume:
    """A volume whose last session ended with a power cut, before the header of one file was durable."""
    used.mount()
    used.kill()
    (used.data / "lost").write_bytes(bytes(8192) + os.urandom(8192))
    used.tdefs("umount", used.mountpoint)
    return used


def test_what_recovery_would_empty_looks_empty_and_stays_as_it_is(crashed: Volume) -> None:
    before = fingerprint(crashed.backing)
    assert "its last session did not end cleanly" in mount(crashed, "-o", "ro").stderr
    lost = crashed.mountpoint / "lost"
    assert lost.stat().st_size == 0
    assert lost.read_bytes() == b""
    with lost.open("rb") as file:
        assert os.fstat(file.fileno()).st_size == 0
    assert (crashed.mountpoint / "file").read_bytes() == b"content" * 5000
    crashed.umount()
    assert fingerprint(crashed.backing) == before
    crashed.mount()
    assert (crashed.data / "lost").stat().st_size == 0


# --- one at a time


def test_a_volume_that_is_only_read_is_in_use_and_says_where(used: Volume) -> None:
    mount(used, "-o", "ro")
    done = mount(used, "-o", "ro", check=False)
    assert done.returncode == Exit.VOLUME_IN_USE
    assert f'at "{used.mountpoint}"' in done.stderr
    assert used.status()["read_only"] is True
    used.umount()


def test_a_volume_that_is_being_written_is_not_mounted_for_reading(used: Volume) -> None:
    used.mount()
    other = used.root / "other"
    other.mkdir()
    done = used.tdefs("mount", used.backing, other, *used.unlock, "-o", "ro", check=False)
    assert done.returncode == Exit.VOLUME_IN_USE
    assert str(used.mountpoint) in done.stderr


def test_its_log_goes_where_it_is_told(used: Volume) -> None:
    mount(used, "-o", "ro", "--log-file", used.log)
    assert "mounted" in used.log_tail()
    used.umount()


def test_a_host_without_a_system_log_gets_no_tracebacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
    monkeypatch.setattr(daemon_log, "SYSTEM_LOG", Path("log"))
    handler = daemon_log.log_handler(None, foreground=False)
    try:
        handler.handle(logging.makeLogRecord({"msg": "mounted"}))
        assert capsys.readouterr().err == ""
        # one that is there later is used
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system_log:
            system_log.bind("log")
            handler.handle(logging.makeLogRecord({"msg": "mounted"}))
            assert b"tdefs: mounted" in system_log.recv(4096, socket.MSG_DONTWAIT)
    finally:
        handler.close()
