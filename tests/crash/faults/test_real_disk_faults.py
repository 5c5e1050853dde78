"""Disks that fail for real: full, over quota, read-only, with unreadable and unwritable blocks.

Not every kernel has a device mapper. So an unwritable block is one that thin storage has no room for, an
unreadable one has a wrong checksum, and a broken disk is a file system that was shut down.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.crash.conftest import Dice
from tests.crash.faults.loop_disks import Btrfs, Ext4, ThinDisk
from tests.crash.faults.places import verified
from tests.crash.scene import Scene
from tests.support.children import in_child, needs_root
from tests.support.processes import wait_until
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = [needs_root, pytest.mark.slow]


@pytest.fixture
def volume(scratch: Workspace) -> Volume:
    """A volume that is to be made on a disk of its own; see :func:`begin`."""
    return scratch.volume("real")


@pytest.fixture
def root(scratch: Workspace) -> Path:
    """An empty directory for a disk."""
    return scratch.directory("disk")


def begin(volume: Volume, backing: Path) -> Path:
    """Makes and mounts the volume; returns a relation file in it that is durable."""
    volume.backing = backing
    volume.init()
    volume.mount()
    path = volume.mountpoint / "base" / "5" / "16384_fsm"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"before" * 5000)
    assert sync(path) == 0
    return path


def end(volume: Volume) -> None:
    volume.umount()
    verified(volume)


def end_with_loss(volume: Volume, reason: str) -> None:
    """Unmounts a volume whose disk has failed: it goes, and tells why not everything is on the disk."""
    done = volume.tdefs("umount", volume.mountpoint, check=False)
    assert done.returncode == 50
    assert reason in done.stderr


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def fails(do: Callable[[], object]) -> int:
    """The errno of what fails, or 0."""
    try:
        do()
    except OSError as error:
        return error.errno or -1
    return 0


def sync(path: Path) -> int:
    """Opens, syncs and closes; the errno of the sync."""
    with opened(path) as fd:
        return fails(lambda: os.fsync(fd))


def keeps_failing(do: Callable[[], object], code: int) -> None:
    """Checks that it fails so twice: an error is not over when it has been told."""
    assert [fails(do), fails(do)] == [code, code]


def survives_on_repaired(disk: Ext4, volume: Volume, path: Path, new: Path) -> None:
    """Checks that the file is there but for its first bytes, and can be renamed to what was refused before."""
    disk.repair()
    with disk.mounted():
        volume.mount()
        assert path.read_bytes()[6:] == b"before" * 4999
        path.rename(new)
        assert sync(new) == 0
        end(volume)


def complaints(volume: Volume, code: int) -> list[str]:
    return [line for line in volume.log.read_text().splitlines() if f"({errno.errorcode[code]}; HINT: " in line]


def test_a_quota_reaches_the_client_as_edquot_and_all_goes_on_when_it_is_raised(
    volume: Volume, root: Path
) -> None:
    disk = Btrfs(root)
    with disk.mounted() as directory:
        path = begin(volume, directory / "volume")
        disk.limit("8M")
        with opened(path) as fd:
            os.pwrite(fd, os.urandom(16 << 20), 30_000)
            keeps_failing(lambda: os.fsync(fd), errno.EDQUOT)
        assert path.read_bytes()[:30_000] == b"before" * 5000
        assert any("base/5/16384_fsm" in line for line in complaints(volume, errno.EDQUOT))
        disk.limit("none")
        os.truncate(path, 30_000)
        with path.open("ab") as file:
            file.write(b"after" * 1000)
            file.flush()
            os.fsync(file.fileno())
        end(volume)
        volume.mount()
        assert path.read_bytes() == b"before" * 5000 + b"after" * 1000
        volume.umount()


def test_an_unreadable_block_is_an_error_for_who_reads_it_and_for_nobody_else(volume: Volume, root: Path) -> None:
    disk = Btrfs(root)
    with disk.mounted() as directory:
        path = begin(volume, directory / "volume")
        os.sync()
        volume.umount()
        stored = (volume.data / "base" / "5" / "16384_fsm").read_bytes()
    disk.damage(stored[8192 + 16384 : 8192 + 20480])
    with disk.mounted():
        volume.mount()
        with path.open("rb") as file:
            assert file.read(16384) == (b"before" * 5000)[:16384]
            keeps_failing(lambda: os.pread(file.fileno(), 4096, 16384), errno.EIO)
        # a part of a page cannot be written when the rest cannot be read; a whole one can
        with opened(path) as fd:
            os.pwrite(fd, b"x" * 4096, 20480)
            assert fails(lambda: os.fsync(fd)) == errno.EIO
        assert any("read of base/5/16384_fsm" in line for line in complaints(volume, errno.EIO))
        with opened(path) as fd:
            os.pwrite(fd, b"y" * 8192, 16384)
            os.fsync(fd)
        end(volume)
        volume.mount()
        assert path.read_bytes()[16384:24576] == b"y" * 8192
        volume.umount()


def test_a_disk_that_turns_read_only_is_told_and_serves_reads(volume: Volume, root: Path) -> None:
    disk = Ext4(root, 32)
    with disk.mounted() as directory:
        path = begin(volume, directory / "backing")
        new = path.with_name("16385_fsm")
        # an administrator cannot do that below a mount, since it has files open for writing
        asked = subprocess.run(["mount", "-o", "remount,ro", directory], capture_output=True, check=False)
        assert asked.returncode != 0
        with opened(path) as fd:
            os.pwrite(fd, b"lost", 0)
            disk.fail()
            keeps_failing(lambda: os.fsync(fd), errno.EROFS)
            assert fails(new.touch) == errno.EROFS
            assert fails(lambda: path.rename(new)) == errno.EROFS
            assert fails(path.unlink) == errno.EROFS
            assert in_child(lambda: sync(path)) == errno.EROFS
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, 30_000, 6) == b"before" * 4999
        assert {"fsync", "create", "rename", "unlink"} <= set(volume.status()["failures"])
        assert len(complaints(volume, errno.EROFS)) >= 4
        end_with_loss(volume, "not everything is known to be on the disk")
    survives_on_repaired(disk, volume, path, new)


def test_a_disk_that_breaks_down_is_told_and_what_was_durable_is_there_afterwards(
    volume: Volume, root: Path
) -> None:
    disk = Ext4(root, 32)
    with disk.mounted() as directory:
        path = begin(volume, directory / "backing")
        new = path.with_name("16385_fsm")
        with opened(path) as fd:
            os.pwrite(fd, b"lost", 0)
            disk.break_down()
            keeps_failing(lambda: os.fsync(fd), errno.EIO)
            assert fails(new.touch) == errno.EIO
            assert fails(lambda: path.rename(new)) == errno.EIO
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert fails(lambda: os.pread(fd, 30_000, 6)) == errno.EIO
        said = "\n".join(complaints(volume, errno.EIO))
        for operation in ("write of base/5/16384_fsm", "create of", "rename of", "read of"):
            assert operation in said
        end_with_loss(volume, "Input/output error")
        assert wait_until(lambda: not volume.daemons, 30)
    survives_on_repaired(disk, volume, path, new)


def test_a_loss_on_the_disk_below_is_told_though_all_had_closed_the_file(volume: Volume, root: Path) -> None:
    """The daemon had accepted the data; the disk refuses it later, while nobody has the file open."""
    with (disk := ThinDisk(root)).mounted() as directory:
        path = begin(volume, directory / "backing")
        with disk.exhausted():
            in_child(lambda: path.write_bytes(b"x" * (1 << 20)))
            assert subprocess.run(["sync", "-f", directory], capture_output=True, check=False).returncode != 0
            fd = os.open(path, os.O_RDWR)
            keeps_failing(lambda: os.fsync(fd), errno.ENOSPC)
            assert in_child(lambda: sync(path)) == errno.ENOSPC
        assert in_child(lambda: sync(path)) == errno.ENOSPC
        os.close(fd)
        assert any("fsync of base/5/16384_fsm" in line for line in complaints(volume, errno.ENOSPC))
        path.write_bytes(b"y" * (1 << 20))
        assert sync(path) == 0
        # the file system has seen an error since the mount, so its last sync tells of one
        volume.tdefs("umount", volume.mountpoint, check=False)
        volume.mount()
        assert path.read_bytes() == b"y" * (1 << 20)
        end(volume)


def test_a_loss_on_the_disk_below_is_told_by_a_durable_write(volume: Volume, root: Path) -> None:
    with (disk := ThinDisk(root)).mounted() as directory:
        begin(volume, directory / "backing")
        (volume.mountpoint / "pg_wal").mkdir()
        path = volume.mountpoint / "pg_wal" / "000000010000000000000001"
        with opened(path, os.O_RDWR | os.O_CREAT | os.O_DSYNC) as fd:
            os.pwrite(fd, b"w" * 8192, 0)
            with disk.exhausted():
                assert fails(lambda: os.pwrite(fd, b"w" * (1 << 20), 8192)) == errno.ENOSPC
            assert fails(lambda: os.fsync(fd)) == errno.ENOSPC
        with opened(path, os.O_RDWR | os.O_DSYNC) as fd:
            os.pwrite(fd, b"v" * 16384, 0)
        volume.tdefs("umount", volume.mountpoint, check=False)
        volume.mount()
        assert path.read_bytes()[:16384] == b"v" * 16384
        end(volume)


class FullScene(Scene):
    """A cluster on a disk that somebody else fills."""

    def survive_full_disk(self, filler: Path, disturbance: str, dice: Random) -> None:
        self.start()
        with self.ledger.clients(self.server, disturbance, dice):
            self.sleep(dice)
            self.ledger.expect_death()
            told = self.server.log.stat().st_size
            with filler.open("wb", buffering=0) as file:
                met = wait_until(lambda: self._fill(file.fileno()) and self._was_told(told), 60)
            self.server.discard()
        assert met, self.server.log_tail()
        filler.unlink()
        self.volume.umount()
        self.start()
        self.check()

    def _fill(self, fd: int) -> bool:
        """Takes every block that is left, again and again, since the server gives some back."""
        for size in (1 << 20, 4096):
            try:
                while True:
                    os.write(fd, bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        return True

    def _was_told(self, position: int) -> bool:
        with self.server.log.open(errors="replace") as log:
            log.seek(position)
            return "No space left on device" in log.read()


def test_a_full_disk_reaches_postgres_as_enospc_and_loses_no_commit(
    scratch: Workspace, root: Path, dice: Dice
) -> None:
    disk = Ext4(root, 160)
    volumes, servers = len(scratch.volumes), len(scratch.servers)
    with disk.mounted() as directory:
        scene = FullScene(scratch)
        scene.volume.backing = directory / "backing"
        scene.create()
        disturbances = ("definitions", "rewrites", "segment_switches", "checkpoints", "new_databases")
        for number in range(dice.rounds(1)):
            random = dice.random(number)
            scene.survive_full_disk(directory / "filler", random.choice(disturbances), random)
        assert scene.ledger.commits > 0
        scratch.release(volumes, servers)
