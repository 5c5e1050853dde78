"""A full disk is an error to who writes, never a damaged file, and over when there is room again."""

from __future__ import annotations

import os

import pytest

from tests.support.children import needs_root
from tests.support.volume import Volume

pytestmark = needs_root


def fill(volume: Volume) -> int:
    """Fills the disk to the last block; returns how many bytes that took."""
    written = 0
    for size in (1 << 20, 65536, 8192, 4096):
        # after a failure no sync of the file succeeds until it was closed
        fd = os.open(volume.mountpoint / "filler", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
        try:
            while True:
                written += os.pwrite(fd, os.urandom(size), written)
        except OSError:
            continue
        finally:
            os.close(fd)
    return written


def test_a_full_disk_is_told_at_fsync_and_earlier_bytes_stay(small: Volume) -> None:
    path = small.mountpoint / "base" / "5" / "16385"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"before" * 5000)
    with path.open("r+b") as file:
        os.fsync(file.fileno())
    fill(small)
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(OSError, match="No space left"):
        for place in range(0, 1 << 20, 65536):
            os.pwrite(fd, b"x" * 65536, 100_000 + place)
        os.fsync(fd)
    os.close(fd)
    assert path.read_bytes()[:30_000] == b"before" * 5000
    (small.mountpoint / "filler").unlink()
    with path.open("r+b") as file:
        file.seek(50_001)
        file.write(b"after")
        file.flush()
        os.fsync(file.fileno())
    small.umount()
    small.mount()
    data = path.read_bytes()
    assert data[:30_000] == b"before" * 5000
    assert data[50_001:50_006] == b"after"
    assert all("failed: No space left on device (ENOSPC; HINT: make room" in line for line in small.complaints())


def test_files_made_on_a_full_disk_leave_nothing_that_stands_in_the_way_later(small: Volume) -> None:
    """A failed creation frees its inode number, which the next file gets."""
    directory = small.mountpoint / "base" / "5"
    directory.mkdir(parents=True)
    fill(small)
    failed = []
    for number in range(16385, 16395):
        try:
            (directory / f"{number}").write_bytes(b"1" * 100)
            with (directory / f"{number}").open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            failed.append(error)
    assert failed
    (small.mountpoint / "filler").unlink()
    for number in range(16500, 16520):
        (directory / f"{number}").write_bytes(b"%d" % number)
    for number in range(16500, 16520):
        assert (directory / f"{number}").read_bytes() == b"%d" % number
    for number in range(16385, 16395):
        (directory / f"{number}").write_bytes(b"%d" % number)
        assert (directory / f"{number}").read_bytes() == b"%d" % number
    small.umount()
    small.mount()
    for path in directory.iterdir():
        assert path.read_bytes() == path.name.encode()
    assert all("failed: No space left on device (ENOSPC; HINT: make room" in line for line in small.complaints())


def test_the_space_of_a_removed_or_replaced_file_can_be_used_at_once(small: Volume) -> None:
    """The daemon closes what the kernel has forgotten before the disk is full for the next request."""
    one, other = small.mountpoint / "one", small.mountpoint / "other"
    for number in range(12):
        for path in (one, other, small.mountpoint / "filler"):
            path.unlink(missing_ok=True)
        other.touch()
        fd = os.open(one, os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
        os.pwrite(fd, os.urandom(1 << 20), 0)
        os.close(fd)
        fill(small)
        before = os.statvfs(small.mountpoint).f_bfree
        if number % 2:
            one.unlink()
        else:
            other.rename(one)
        if number % 4 < 2:
            assert os.statvfs(small.mountpoint).f_bfree > before + 200
        fd = os.open(small.mountpoint / "next", os.O_WRONLY | os.O_CREAT | os.O_DSYNC)
        try:
            assert os.pwrite(fd, os.urandom(1_000_000), 0) == 1_000_000
        finally:
            os.close(fd)
            (small.mountpoint / "next").unlink()
