"""What differs from ext4 is what docs/FILE-SYSTEM.md says."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from errno import EFBIG, ESTALE
from pathlib import Path

import pytest

from tdefs.format.links import MAX_TARGET_BYTES
from tests.fs.libc import file_handle, open_by_handle, renameat2
from tests.fs.twins import Failure, Twins, outcome
from tests.suites.differences import KNOWN
from tests.support.caches import drop_caches
from tests.support.children import in_child, needs_root

DOCUMENT = Path(__file__).parents[2] / "docs" / "FILE-SYSTEM.md"
# linux/fs.h
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_FIEMAP = 0xC020660B
FICLONE = 0x40049409
FIFREEZE = 0xC0045877
RENAME_WHITEOUT = 4
BEYOND_EXT4 = 1 << 50


def _open(directory: Path, flags: int = os.O_RDWR) -> int:
    path = directory / "file"
    path.write_bytes(b"x" * 10_000)
    return os.open(path, flags)


def _flags(directory: Path) -> object:
    return len(fcntl.ioctl(_open(directory), FS_IOC_GETFLAGS, bytes(8)))


def _extents(directory: Path) -> object:
    # struct fiemap for the whole file, with room for no extent: only how many there are
    request = struct.pack("QQIIII", 0, 1 << 40, 0, 0, 0, 0)
    return len(fcntl.ioctl(_open(directory), FS_IOC_FIEMAP, request))


def _nameless(directory: Path) -> object:
    return os.fstat(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)).st_nlink


def _write_far_away(directory: Path) -> object:
    with mmap.mmap(-1, 4096) as aligned:
        return os.pwrite(_open(directory, os.O_RDWR | os.O_DIRECT), aligned, BEYOND_EXT4)


def _whiteout(directory: Path) -> object:
    os.close(_open(directory))
    renameat2(directory / "file", directory / "moved", RENAME_WHITEOUT)
    return os.listdir(directory)


def _impatient(directory: Path) -> object:
    return os.preadv(_open(directory), [bytearray(10)], 0, os.RWF_NOWAIT)


def _long_link(directory: Path) -> object:
    (directory / "link").symlink_to("t" * (MAX_TARGET_BYTES + 1))
    return None


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (_flags, "ENOTTY"),
        (_extents, "ENOTSUP"),
        (_nameless, "ENOTSUP"),
        (_whiteout, "EINVAL"),
        (_impatient, "ENOTSUP"),
        (_long_link, "ENAMETOOLONG"),
    ],
)
def test_what_is_missing_fails_with_the_documented_error(
    twins: Twins, action: Callable[[Path], object], error: str
) -> None:
    """In a child, which takes its descriptors along when it ends."""
    assert not isinstance(in_child(lambda: outcome(action, twins.plain)), Failure)
    assert in_child(lambda: outcome(action, twins.mount)) == Failure(error)


def test_a_file_too_large_is_told_by_the_next_sync(twins: Twins) -> None:
    fd = _open(twins.mount)
    try:
        assert os.pwrite(fd, b"x", BEYOND_EXT4) == 1
        for _ in range(2):
            with pytest.raises(OSError) as caught:
                os.fsync(fd)
            assert caught.value.errno == EFBIG
    finally:
        os.close(fd)


def test_a_direct_write_of_a_file_too_large_is_told_at_once(twins: Twins) -> None:
    assert in_child(lambda: outcome(_write_far_away, twins.plain)) == Failure("EFBIG")
    assert in_child(lambda: outcome(_write_far_away, twins.mount)) == Failure("EFBIG")


def _clone(directory: Path) -> object:
    with (directory / "clone").open("wb") as clone:
        return fcntl.ioctl(clone, FICLONE, _open(directory))


def _freeze(directory: Path) -> object:
    return fcntl.ioctl(os.open(directory, os.O_RDONLY), FIFREEZE, 0)


@pytest.mark.parametrize(
    "action", [_clone, pytest.param(_freeze, marks=needs_root)], ids=["share blocks", "freeze"]
)
def test_what_a_fuse_mount_cannot_do_fails_with_the_documented_error(
    mounted: Path, action: Callable[[Path], object]
) -> None:
    """The ext4 of a test can share no blocks either, and shall not be frozen."""
    assert in_child(lambda: outcome(action, mounted)) == Failure("ENOTSUP")


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "link"])
def test_a_chown_that_changes_nothing_updates_the_ctime_of_files_alone(twins: Twins, kind: str) -> None:
    def change(directory: Path) -> bool:
        path = directory / f"kind-{kind}"
        match kind:
            case "file":
                path.touch()
            case "directory":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "link":
                path.symlink_to("nowhere")
        before = path.lstat().st_ctime_ns
        time.sleep(0.05)
        os.chown(path, -1, -1, follow_symlinks=False)
        return path.lstat().st_ctime_ns != before

    assert change(twins.plain)
    assert change(twins.mount) == (kind == "file")


@needs_root
def test_a_handle_as_of_an_nfs_server_is_stale_once_the_kernel_has_forgotten_the_file(mounted: Path) -> None:
    os.close(_open(mounted))
    root = os.open(mounted, os.O_RDONLY)
    try:
        handle = file_handle(root, "file")
        os.close(open_by_handle(root, handle))
        drop_caches(2)
        with pytest.raises(OSError) as caught:
            os.close(open_by_handle(root, handle))
        assert caught.value.errno == ESTALE
    finally:
        os.close(root)


def test_every_known_difference_is_in_the_document() -> None:
    text = DOCUMENT.read_text()
    assert [known.reason for known in KNOWN if known.reason not in text] == []
