"""The lock of a volume, which admits only one process, and who holds it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tdefs.errors import TdefsError, VolumeInUseError
from tdefs.volume.description import Volume, private_directory
from tdefs.volume.session_record import read_session

# a process that checks whether the volume is in use holds the lock for a moment
_TRIES = 5
_PAUSE_SECONDS = 0.03


class VolumeLock:
    """The lock of a volume: the process that has locked tdefs's own directory is the only writer.

    The directory itself is locked. So no second writer gets in, even if somebody removes or replaces files in it.
    The kernel takes the lock back when the process dies, for whatever reason, so no lock is ever stale.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        :raises TdefsError: VOLUME_IN_USE, which names the process that holds it; FILE_UNTRUSTED.
        """
        fd = _open_to_lock(self._volume)
        if not _lock(fd):
            os.close(fd)
            holder, hint = _who_uses(self._volume)
            raise VolumeInUseError(f'volume "{self._volume.backing}" is in use', detail=holder, hint=hint)
        self._fd = fd
        try:
            self.verify()
        except TdefsError:
            self.release()
            raise

    def verify(self) -> None:
        """Check that the lock is held: that the descriptor is the directory at its place, and has it locked.

        Call this after anything that could have closed the descriptor: a fork that closes files, a dup2.

        :raises TdefsError: VOLUME_IN_USE: nothing keeps other processes away.
        """
        try:
            held = os.fstat(self.descriptor)
            is_held = os.path.samestat(held, self._volume.private.lstat()) and _lock(self.descriptor)
        except OSError:
            is_held = False
        if not is_held:
            raise VolumeInUseError(
                f'the lock on volume "{self._volume.backing}" is lost',
                detail=f'"{self._volume.private}" was replaced or removed, or another process has it locked',
                hint="see that no other process uses the volume, then try again",
            )

    @property
    def descriptor(self) -> int:
        """The descriptor that holds the lock; a process that closes it gives the lock back."""
        if self._fd is None:
            raise ValueError("the lock is not held")
        return self._fd

    def release(self) -> None:
        """Give the lock back."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _open_to_lock(volume: Volume) -> int:
    """Open the directory that is locked. flock(2) needs no write access, so a read-only copy has a lock, too."""
    with private_directory(volume) as directory:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)


def _lock(fd: int) -> bool:
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return True
    return False


def _who_uses(volume: Volume) -> tuple[str, str]:
    """Return which process holds the volume's lock, and what to do about it."""
    session = read_session(volume)
    if session is not None and not session.clean and is_running(session.pid):
        return (
            f'process {session.pid} has it mounted at "{session.mountpoint}"',
            "unmount it with 'tdefs umount' first",
        )
    # the record of the last session does not name a command that is about to mount
    pid = _holder_of_lock(volume)
    who = f"process {pid}" if pid is not None and is_running(pid) else "another process"
    return f"{who} is about to mount it, or to unmount it", "try again when it has ended"


def _holder_of_lock(volume: Volume) -> int | None:
    """Return the process that took the lock, as the kernel shows it in /proc/locks (proc(5))."""
    with suppress(OSError, ValueError, IndexError):
        status = volume.private.lstat()
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1:4:2] == ["FLOCK", "WRITE"] and fields[5] == place:
                return int(fields[4])
    return None


def is_running(pid: int) -> bool:
    """Return whether a process of this number runs; a zombie does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    # proc(5): the state follows the name, which may hold anything
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def is_in_use(volume: Volume) -> bool:
    """Return whether some process holds the volume's lock."""
    try:
        fd = _open_to_lock(volume)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def exclusive(volume: Volume) -> Iterator[None]:
    """Hold the volume's lock during a ``with`` block."""
    lock = VolumeLock(volume)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
