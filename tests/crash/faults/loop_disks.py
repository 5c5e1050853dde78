"""Real file systems on loop devices, which become full, broken or read-only for real."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.processes import wait_until

# linux/ext4.h: EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
_SHUTDOWN = 0x8004587D
_WITHOUT_JOURNAL = 2


def run(*words: str | Path) -> str:
    """Runs a command that must succeed; returns what it said."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def _mounted(directory: Path, *words: str | Path) -> Iterator[None]:
    directory.mkdir(exist_ok=True)
    run("mount", *words, directory)
    try:
        yield
    finally:
        # a daemon that has ended closes its files a moment later; what a failed test has left stays
        if not wait_until(lambda: _runs("umount", directory), 10):
            _runs("umount", "-l", directory)
        source = words[-1]
        if isinstance(source, Path):
            # while another mount namespace has a copy of the mount, the next one would be of the same file system
            wait_until(lambda: not run("losetup", "-j", source), 60)


def _runs(*words: str | Path) -> bool:
    return subprocess.run([str(word) for word in words], capture_output=True, check=False).returncode == 0


def _image(path: Path, megabytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    return path


class Ext4:
    """An ext4 of its own."""

    def __init__(self, root: Path, megabytes: int, *, reserve_percent: int = 0) -> None:
        """:param reserve_percent: how much of it is kept for root."""
        self.root = root
        self.mountpoint = root / "disk"
        self.image = _image(root / "image", megabytes)
        run("mkfs.ext4", "-q", "-m", str(reserve_percent), self.image)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mounts it; an error makes it read-only."""
        with _mounted(self.mountpoint, "-o", "loop,errors=remount-ro", self.image):
            yield self.mountpoint

    def fail(self) -> None:
        """Has the kernel find an error in the file system, upon which it is read-only."""
        device = Path(run("findmnt", "-no", "SOURCE", self.mountpoint).strip()).name
        Path("/sys/fs/ext4", device, "trigger_fs_error").write_text("1")

    def break_down(self) -> None:
        """Has the kernel shut the file system down, as after errors that it cannot live with: all calls fail."""
        fd = os.open(self.mountpoint, os.O_RDONLY)
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_JOURNAL))
        os.close(fd)

    def repair(self) -> None:
        """Puts right what is wrong with the file system, which is not mounted."""
        # 1: errors were corrected
        done = subprocess.run(["e2fsck", "-fp", self.image], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stdout


class ThinDisk:
    """An ext4 on a device that promises more room than there is, as thinly provisioned storage does.

    When there is none left, a block that is written for the first time is an error, long after write(2) has
    succeeded.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.mountpoint = root / "disk"
        self._pool = root / "pool"

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        with _mounted(self._pool, "-t", "tmpfs", "-o", "size=64m", "tmpfs"):
            image = _image(self._pool / "image", 48)
            # without a journal, which would end with the first error, and with all of its own blocks in place
            run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", image)
            with _mounted(self.mountpoint, "-o", "loop,errors=continue", image):
                yield self.mountpoint

    @contextmanager
    def exhausted(self) -> Iterator[None]:
        """During the block there is no room."""
        run("sync", "-f", self.mountpoint)
        filler = self._pool / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            filler.unlink()


class Btrfs:
    """A btrfs, which has quotas and checksums of data, and snapshots."""

    def __init__(self, root: Path, megabytes: int = 200) -> None:
        self.root = root
        self.mountpoint = root / "disk"
        self.image = _image(root / "image", megabytes)
        run("mkfs.btrfs", "-q", "-m", "single", "-d", "single", self.image)

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mounts it; the directory ``volume`` can have a quota."""
        with _mounted(self.mountpoint, "-o", "loop", self.image):
            if not (self.mountpoint / "volume").exists():
                run("btrfs", "quota", "enable", self.mountpoint)
                run("btrfs", "subvolume", "create", self.mountpoint / "volume")
            yield self.mountpoint

    def limit(self, size: str) -> None:
        """Sets the quota of the volume: ``20M``, ``none``."""
        run("btrfs", "qgroup", "limit", size, self.mountpoint / "volume")

    def damage(self, data: bytes) -> None:
        """Changes a byte of some data on the disk, which is not mounted."""
        at = self.image.read_bytes().find(data)
        assert at > 0, "the data is not on the disk"
        with self.image.open("r+b") as file:
            file.seek(at)
            file.write(bytes([data[0] ^ 1]))
