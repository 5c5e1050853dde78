"""What was written is there after the mount has ended, whichever way it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.fs.twins import content, identity
from tests.support.children import needs_root
from tests.support.mounts import mounts_below
from tests.support.processes import is_alive, send, wait_until
from tests.support.volume import Volume
from tests.support.workspace import Workspace

LENGTHS = [0, 1, 15, 16, 17, 8191, 8192, 8193, 100_001]


def fill(directory: Path) -> None:
    """Files of every kind, in a few directories, none of them synced."""
    for place in ("base/5", "global", "pg_wal", "other"):
        (directory / place).mkdir(parents=True)
        for number, length in enumerate(LENGTHS):
            (directory / place / f"{16385 + number}").write_bytes((b"%d" % length * 100_001)[:length])
    (directory / "other" / "hard").hardlink_to(directory / "base" / "5" / "16386")
    (directory / "other" / "symbolic").symlink_to("../base/5/16385")
    os.mkfifo(directory / "other" / "fifo")
    with (directory / "other" / "sparse").open("wb") as file:
        file.truncate(1 << 24)
        file.seek(1 << 23)
        file.write(b"in the middle")
        file.truncate((1 << 23) + 20_000)
    (directory / "base" / "5" / "16387").rename(directory / "base" / "5" / "16999")
    (directory / "base" / "5" / "16388").chmod(0o640)
    # Times that were set are kept to the nanosecond. Those of mere writes are not compared: where creation and
    # write fall into one tick of the kernel's clock, it shows that tick, and the disk has the time of write-back.
    for path in (directory / "base" / "5").iterdir():
        os.utime(path, ns=(10**18 + 1, 10**18 + int(path.name)))


def attributes(directory: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        mtime = status.st_mtime_ns if path.parent.name == "5" else 0
        found[str(path.relative_to(directory))] = (*identity(status), mtime)
    return found


def end_by_signal(volume: Volume, number: signal.Signals) -> None:
    daemons = volume.daemons
    assert len(daemons) == 1
    send(daemons[0], number)
    assert wait_until(lambda: not is_alive(daemons[0]), 20), volume.log_tail()


def test_everything_is_there_after_umount_and_mount(scratch: Workspace, volume: Volume) -> None:
    plain = scratch.directory("plain")
    fill(plain)
    volume.mount()
    fill(volume.mountpoint)
    before = attributes(volume.mountpoint)
    volume.umount()
    assert list(volume.mountpoint.iterdir()) == []
    volume.mount()
    assert content(volume.mountpoint) == content(plain)
    assert attributes(volume.mountpoint) == before


def test_everything_is_there_after_sigterm(scratch: Workspace, volume: Volume) -> None:
    plain = scratch.directory("plain")
    fill(plain)
    volume.mount()
    fill(volume.mountpoint)
    before = attributes(volume.mountpoint)
    end_by_signal(volume, signal.SIGTERM)
    assert not volume.is_mounted
    volume.mount()
    assert content(volume.mountpoint) == content(plain)
    assert attributes(volume.mountpoint) == before


def test_what_was_synced_is_there_after_sigkill_and_the_dead_mount_is_cleaned_up(volume: Volume) -> None:
    volume.mount()
    root = volume.mountpoint
    (root / "base" / "5").mkdir(parents=True)
    expected = {}
    for number, length in enumerate(LENGTHS):
        path = root / "base" / "5" / f"{16385 + number}"
        with path.open("wb") as file:
            file.write(b"x" * length)
            os.fsync(file.fileno())
        expected[path.name] = b"x" * length
    fd = os.open(root / "dsync", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
    os.write(fd, b"y" * 10_000)
    os.close(fd)
    fd = os.open(root / "unsynced", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"never synced")
    volume.kill()
    with suppress(OSError):
        os.close(fd)
    assert volume.is_mounted
    try:
        root.stat()
    except OSError as error:
        assert os.strerror(error.errno or 0) == "Transport endpoint is not connected"
    volume.mount()
    assert mounts_below(root) == [root], "the dead mount is still there, below the new one"
    assert {name: (root / "base" / "5" / name).read_bytes() for name in expected} == expected
    assert (root / "dsync").read_bytes() == b"y" * 10_000
    # what was not synced may be gone, but can be read and written again
    (root / "unsynced").read_bytes()
    (root / "unsynced").write_bytes(b"again")
    volume.umount()
    volume.mount()
    assert (root / "unsynced").read_bytes() == b"again"


def test_a_dead_mount_is_cleaned_up_by_umount_too(volume: Volume) -> None:
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"1")
    volume.kill()
    volume.tdefs("umount", volume.mountpoint)
    assert not volume.is_mounted
    volume.mount()


def test_a_dead_mount_is_cleaned_up_through_a_symbolic_link(volume: Volume) -> None:
    """PGDATA is often one."""
    link = volume.root / "link"
    link.symlink_to(volume.mountpoint)
    volume.tdefs("mount", volume.backing, link, *volume.unlock, "--log-file", volume.log)
    volume.kill()
    volume.tdefs("mount", volume.backing, link, *volume.unlock, "--log-file", volume.log)
    assert mounts_below(volume.mountpoint) == [volume.mountpoint]
    assert link.stat().st_ino == volume.mountpoint.stat().st_ino
    volume.tdefs("umount", link)
    assert not volume.is_mounted


def test_a_process_that_holds_a_dead_mount_open_does_not_keep_the_next_one_from_serving(volume: Volume) -> None:
    volume.mount()
    (volume.mountpoint / "file").write_bytes(b"1")
    with subprocess.Popen(["sleep", "60"], cwd=volume.mountpoint) as holder:
        try:
            volume.kill()
            volume.mount()
            assert (volume.mountpoint / "file").exists()
            volume.umount()
        finally:
            holder.kill()


def test_a_kill_under_load_leaves_every_file_readable(volume: Volume) -> None:
    """Crashes between any two writes are tested in tests/crash; this is the real kill, some moments of it."""
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    with open(f'new.{number % 50}', 'wb') as file:\n"
        "        file.write(b'%010d' % number * (number % 3000))\n"
        "        if number % 3 == 0: os.fsync(file.fileno())\n"
        "    os.rename(f'new.{number % 50}', f'kept.{number % 37}')\n"
        "    if number % 11 == 0: os.truncate(f'kept.{number % 37}', number % 9000)\n"
    )
    for turn in range(3):
        volume.mount()
        with subprocess.Popen(
            [sys.executable, "-c", script, volume.mountpoint], stderr=subprocess.DEVNULL
        ) as writer:
            wait_until(lambda: len(os.listdir(volume.mountpoint)) > 30, 20)
            wait_until(lambda: False, 0.05 * turn)
            volume.kill()
            assert writer.wait(20) != 0
        volume.mount()
        for path in volume.mountpoint.iterdir():
            path.read_bytes()
        volume.umount()


@needs_root
def test_a_policy_change_makes_no_file_unreadable(volume: Volume) -> None:
    volume.mount()
    fill(volume.mountpoint)
    expected = content(volume.mountpoint)
    volume.umount()
    for text in (
        "version: 1\ndefault: plain\n",
        "version: 1\n",
        "version: 1\ndefault: plain\nkinds: {wal: dk_1}\n",
    ):
        volume.accept(policy=text)
        volume.mount()
        assert content(volume.mountpoint) == expected
        with (volume.mountpoint / "other" / "16390").open("ab") as file:
            file.write(text.encode())
        (volume.mountpoint / f"made under {len(text)}").write_text(text)
        expected = content(volume.mountpoint)
        volume.umount()
    volume.mount()
    assert content(volume.mountpoint) == expected
