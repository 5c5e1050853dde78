"""A daemon of root does not let those whom it serves fill what the file system below keeps for root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENOSPC
from functools import partial
from pathlib import Path

import pytest

from tdefs.control import ask
from tdefs.reserve import with_own_rights, without_reserve
from tdefs.volume.description import read_volume
from tests.crash.faults.loop_disks import Ext4, run
from tests.support.children import NOBODY, in_child, needs_root
from tests.support.volume import Volume
from tests.support.workspace import Workspace

pytestmark = needs_root

_CAP_SYS_RESOURCE = 1 << 24
#: What a daemon of root needs for files: CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, MKNOD.
_OF_FILES = 0b11111 | 1 << 27


@pytest.fixture(params=["the cluster's user", "root"])
def reserved(request: pytest.FixtureRequest, scratch: Workspace) -> Iterator[Volume]:
    """A mounted volume, its root of that user, on an ext4 that keeps a quarter for root."""
    volume = scratch.volume("reserve")
    disk = Ext4(volume.root, 64, reserve_percent=25)
    with disk.mounted() as directory:
        volume.backing = directory / "backing"
        volume.backing.mkdir()
        try:
            volume.init()
            volume.mount()
            (volume.mountpoint / "pgdata").mkdir()
            os.chown(volume.mountpoint / "pgdata", NOBODY, NOBODY)
            if request.param != "root":
                os.chown(volume.mountpoint, NOBODY, NOBODY)
                volume.umount()
                volume.mount()
            yield volume
        finally:
            volume.discard()


def room(directory: Path) -> tuple[int, int]:
    """How many bytes are free for root alone, and for all."""
    found = os.statvfs(directory)
    return (found.f_bfree - found.f_bavail) * found.f_bsize, found.f_bavail * found.f_bsize


def until_full(work: Callable[[int], object]) -> int:
    """Does something again and again until the disk is full; returns how often."""
    for number in range(100_000):
        try:
            work(number)
        except OSError as error:
            if error.errno == ENOSPC:
                return number
            raise
    raise AssertionError("the disk does not become full")


def _write_block(fd: int, block: bytes, offset: int, number: int) -> None:
    os.pwrite(fd, block, offset + number * len(block))


def fill(directory: Path) -> dict[str, int]:
    """Takes all that there is to be had, in each way in which a name or a byte may take some."""
    counts = {}
    fd = os.open(directory / "filler", os.O_RDWR | os.O_CREAT | os.O_DSYNC)
    for size in (1 << 20, 65536, 8192, 4096):
        with suppress(OSError):
            os.fsync(fd)  # tells of what has failed
        block = os.urandom(size)
        counts[f"write {size}"] = until_full(partial(_write_block, fd, block, os.fstat(fd).st_size))
    os.close(fd)

    def file(number: int) -> None:
        with (directory / f"file{number}").open("wb", buffering=0) as made:
            made.write(b"x" * 8192)
            os.fsync(made.fileno())

    counts["files"] = until_full(file)
    counts["directories"] = until_full(lambda number: (directory / f"d{number}").mkdir())
    counts["links"] = until_full(lambda number: (directory / f"s{number}").symlink_to("x" * 500))
    return counts


def test_the_reserve_for_root_is_not_taken_and_a_full_disk_is_told(reserved: Volume) -> None:
    pgdata = reserved.mountpoint / "pgdata"
    kept, free = room(reserved.backing)
    assert kept > 8 << 20 < free
    counts = in_child(lambda: fill(pgdata), uid=NOBODY)
    assert counts["write 1048576"] > free >> 21, "there was no room from the beginning"
    left, free = room(reserved.backing)
    assert left > kept - (1 << 20), f"{kept - left} bytes of the reserve were taken: {counts}"
    assert free < 1 << 20

    def write_back() -> None:
        fd = os.open(pgdata / "late", os.O_RDWR | os.O_CREAT)
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(fd, bytes(range(256)) * 16384, 0)
            os.fsync(fd)
        os.close(fd)

    with suppress(FileNotFoundError):
        in_child(lambda: (pgdata / "file0").unlink(), uid=NOBODY)
    in_child(write_back, uid=NOBODY)
    assert room(reserved.backing)[0] > kept - (1 << 20)
    status = ask(read_volume(reserved.backing), "status")
    assert status is not None
    assert status["reserve_spared"] is True
    in_child(lambda: (pgdata / "filler").unlink(), uid=NOBODY)
    in_child(lambda: (pgdata / "again").write_bytes(b"x" * 100_000), uid=NOBODY)
    reserved.umount()
    reserved.mount()
    assert (pgdata / "again").read_bytes() == b"x" * 100_000
    assert (pgdata / "again").stat().st_uid == NOBODY


def test_files_of_the_daemon_s_own_are_root_s_also_while_it_serves(reserved: Volume) -> None:
    directory = reserved.backing.parent / "probe"
    directory.mkdir(0o700)

    def probe() -> list[int]:
        fd = os.open(reserved.backing, os.O_RDONLY)
        with without_reserve(fd) as spared:
            assert spared
            (directory / "served").touch()
            with with_own_rights():
                (directory / "log").touch()
            (directory / "served again").touch()
        (directory / "afterwards").touch()
        names = ("served", "log", "served again", "afterwards")
        return [(directory / name).stat().st_uid for name in names]

    assert in_child(probe) == [NOBODY, 0, NOBODY, 0]


def test_an_overlay_does_not_keep_the_reserve_and_doctor_says_so(scratch: Workspace) -> None:
    volume = scratch.volume("overlay")
    for name in ("lower", "upper", "work"):
        (volume.root / name).mkdir()
    layers = f"lowerdir={volume.root}/lower,upperdir={volume.root}/upper,workdir={volume.root}/work"
    run("mount", "-t", "overlay", "-o", layers, "overlay", volume.backing)
    try:
        volume.init()
        volume.mount()
        done = volume.tdefs("doctor", volume.mountpoint, check=False)
        assert done.returncode == 43
        assert "the blocks that the disk keeps for root" in done.stdout
        volume.umount()
    finally:
        volume.discard()
        run("umount", volume.backing)


def test_a_daemon_of_root_serves_without_root_s_right_to_the_reserve_and_with_those_to_files(
    reserved: Volume,
) -> None:
    [daemon] = reserved.daemons
    for thread in Path(f"/proc/{daemon}/task").iterdir():
        status = dict(
            line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line
        )
        assert status["Uid"].split() == ["0", "0", "0", str(NOBODY)]
        effective = int(status["CapEff"], 16)
        assert not effective & _CAP_SYS_RESOURCE
        assert effective & _OF_FILES == _OF_FILES
    # files of root, of others, closed to all, with set-id bits: all is as with all rights
    place = reserved.mountpoint / "pgdata"
    for uid in (0, NOBODY, 12345):
        path = place / f"of-{uid}"
        path.touch(0o4755)
        os.chown(path, uid, 12345)
        path.chmod(0o4000)
        path.write_bytes(b"closed")
        assert (path.stat().st_uid, path.stat().st_gid) == (uid, 12345)
        assert path.read_bytes() == b"closed"
        path.rename(place / "renamed")
        (place / "renamed").unlink()
    (place / "of root").touch()
    (place / "directory of root").mkdir()
    for path in (place / "of root", place / "directory of root"):
        assert (path.stat().st_uid, path.stat().st_gid) == (0, 0)
    control = reserved.backing / ".tdefs/control"
    assert (control.stat().st_uid, control.stat().st_mode & 0o777) == (0, 0o600)
