"""tdefs's mounts on this host: finding them, and unmounting."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from errno import EBUSY, ECONNABORTED, EINVAL, ENOTCONN
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.mounts.table import FUSE_TYPE, MountInfo, all_mounts, backing_of
from tdefs.mounts.users import mounted_elsewhere, refuse_mounts_inside, refuse_users
from tdefs.way import mount_number

# linux/mount.h
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOEXEC = 8
# how long, and how often, to try to unmount if a process that cannot be seen uses the mount, or if it is mounted
# elsewhere, too: on a busy machine a container takes seconds to get its own mounts
_BUSY_SECONDS = 1.0
_ELSEWHERE_SECONDS = 5.0
_BUSY_PAUSE_SECONDS = 0.05
#: The errors of requests to a mount whose daemon is gone.
DEAD = (ENOTCONN, ECONNABORTED)

# one request of the largest size ahead of the reader; as much dirty memory as any disk
_READ_AHEAD_KIB = 1024
_DIRTY_PERCENT = 100
_KERNEL_LIMITS = Path("/sys/class/bdi")
# fusectl: a directory for each connection (Documentation/filesystems/fuse/fuse.rst)
_CONNECTIONS = Path("/sys/fs/fuse/connections")

# asm/unistd_64.h; struct ustat has 32 bytes
_SYS_USTAT = 136
_USTAT_BYTES = 64

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mount:
    """A tdefs mount."""

    mountpoint: Path
    backing: Path
    device: str
    """``MAJOR:MINOR``."""
    user: int | None = None
    """The user who mounted it, as the kernel says; that user could choose everything else about the mount."""

    @property
    def may_be_asked(self) -> bool:
        """Return whether this process may wait for an answer: another user's daemon may never answer."""
        return self.user in (None, 0, os.geteuid())


def tdefs_mounts() -> list[Mount]:
    """Return all tdefs mounts that this process can see, the topmost last."""
    return [
        Mount(mount.mountpoint, backing_of(mount.source), mount.device, mount.user)
        for mount in all_mounts()
        if mount.kind == FUSE_TYPE
    ]


def mounts_of(users: Collection[int]) -> list[Mount]:
    """Return the tdefs mounts that one of these users has made.

    Every user can make a FUSE mount that claims to be tdefs's, of any volume. A command that looks for mounts by
    itself believes only those of its own user. It must not even look at others: the process that serves a mount
    can make a system call on it wait for ever.
    """
    return [mount for mount in tdefs_mounts() if mount.user in users]


def devices_at(mountpoint: Path) -> list[str]:
    """Return the devices of all file systems that are mounted at *mountpoint*, the topmost last."""
    return [mount.device for mount in all_mounts() if mount.mountpoint == mountpoint]


def is_listed(device: str, backing: Path) -> bool:
    """Return whether this process can see *device* mounted anywhere; its number may be another mount's by now."""
    return any(mount.device == device and mount.backing == backing for mount in tdefs_mounts())


def is_living(device: str) -> bool:
    """Return whether a file system still exists that is not listed, and whose connection has ended.

    It exists if it was detached while in use. If the kernel is taking it away now, wait for that, and return
    False. If this cannot be known, return True.
    """
    # ustat(2) is the one call that finds a file system by its device; other architectures lack it, and sandboxes
    # may forbid it
    if platform.machine() != "x86_64":
        return True
    if any(mount.device == device for mount in all_mounts()):
        return False  # a newer one has its number, and might keep this process waiting
    major, minor = map(int, device.split(":"))
    buffer = ctypes.create_string_buffer(_USTAT_BYTES)
    if _libc.syscall(_SYS_USTAT, os.makedev(major, minor), buffer) == 0:
        return False  # a newer one has its number, in another namespace
    return ctypes.get_errno() != EINVAL


def find_mount(mountpoint: Path) -> Mount:
    """Return the tdefs mount at *mountpoint*.

    :raises TdefsError: NOT_MOUNTED.
    """
    mounts = {mount.mountpoint: mount for mount in tdefs_mounts()}  # the topmost of each place
    above = mountpoint.absolute()
    # the kernel's list comes first, since the daemon of a mount may not answer
    for path in (above, Path(os.path.realpath(above.parent)) / above.name):
        if path in mounts:
            return mounts[path]
    path = Path(os.path.realpath(mountpoint))
    if path in mounts:
        return mounts[path]
    raise TdefsError(
        Exit.NOT_MOUNTED,
        f'no tdefs file system is mounted at "{mountpoint}"',
        hint="'findmnt -t fuse.tdefs' lists those that are",
    )


def raise_kernel_limits(device: str) -> bool:
    """Let the kernel read ahead and collect dirty pages as for a disk; return whether that was permitted.

    A FUSE mount starts with 128 KiB of read-ahead and 1 % of the dirty memory that a disk may have.

    :param device: the mount's, ``MAJOR:MINOR``.
    """
    limits = _KERNEL_LIMITS / device
    try:
        (limits / "read_ahead_kb").write_text(f"{_READ_AHEAD_KIB}\n", encoding="ascii")
        (limits / "max_ratio").write_text(f"{_DIRTY_PERCENT}\n", encoding="ascii")
    except OSError:
        return False
    return True


def kernel_limits_raised(mountpoint: Path) -> bool:
    """Return whether the kernel's limits of the mount are as :func:`raise_kernel_limits` sets them, or higher."""
    limits = _KERNEL_LIMITS / device_of(mountpoint)
    try:
        read_ahead = int((limits / "read_ahead_kb").read_text(encoding="ascii"))
        dirty = int((limits / "max_ratio").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    return read_ahead >= _READ_AHEAD_KIB and dirty >= _DIRTY_PERCENT


def device_of(path: Path) -> str:
    """Return the device that *path* lies on, as the kernel's lists name it: ``MAJOR:MINOR``."""
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def abort_file(device: str) -> Path:
    """Return the file that aborts the connection of a FUSE mount when something is written to it.

    :param device: the mount's, ``MAJOR:MINOR``; the file belongs to the user who mounted.
    """
    return _CONNECTIONS / device.partition(":")[2] / "abort"


def provide_connections() -> str:
    """Mount fusectl, if needed, so that there is an :func:`abort_file`; return why there is none, else ""."""
    if any(mount.kind == "fusectl" and mount.mountpoint == _CONNECTIONS for mount in all_mounts()):
        return ""
    if os.geteuid() != 0:
        return f'the fusectl file system is not mounted at "{_CONNECTIONS}", and this user may not mount it'
    if _libc.mount(b"fusectl", os.fsencode(_CONNECTIONS), b"fusectl", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None):
        reason = os.strerror(ctypes.get_errno())
        return f'the fusectl file system could not be mounted at "{_CONNECTIONS}": {reason}'
    return ""


def is_dead(mountpoint: Path) -> bool:
    """Return whether *mountpoint* is a mount whose daemon is gone; if there is a daemon, wait for its answer."""
    try:
        # the kernel never caches the answer to this one, unlike that to stat(2)
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in DEAD
    return False


def detach_dead(mountpoint: Path) -> None:
    """Detach a dead mount at once, even while it is used. If a live one is there by now, it stays.

    :raises TdefsError: MOUNT_BUSY if others are mounted inside, which would vanish with it; MOUNT_FAILED.
    """
    refuse_mounts_inside(mountpoint)
    fd = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        number = mount_number(fd)
        if all(mount.number != number or mount.kind != FUSE_TYPE for mount in all_mounts()):
            return  # the path leads elsewhere by now
        try:
            os.statvfs(fd)
        except OSError as error:
            if error.errno not in DEAD:
                raise
        else:
            return
        reason = _detach(fd, mountpoint)
        if reason and is_dead(mountpoint):
            raise TdefsError(
                Exit.MOUNT_FAILED, f'could not clean up the dead mount at "{mountpoint}"', detail=reason
            )
    finally:
        os.close(fd)


def detach(mount: MountInfo) -> None:
    """Detach a mount at once, even while it is used, if it is at its place in the kernel's list."""
    fd = os.open(mount.mountpoint, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if mount_number(fd) == mount.number:
            _detach(fd, mount.mountpoint)
    finally:
        os.close(fd)


def _detach(fd: int, mountpoint: Path) -> str:
    """Detach the mount whose root *fd* is; return why that failed, or an empty text."""
    if os.geteuid() != 0:
        # by its path, which is all that fusermount3 takes
        return _fusermount("-u", "-z", "-q", "--", os.fspath(mountpoint)).stderr.strip()
    # the path may be that of another mount by now
    failed = _libc.umount2(b"/proc/self/fd/%d" % fd, _MNT_DETACH) != 0
    return os.strerror(ctypes.get_errno()) if failed else ""


def unmount(mountpoint: Path) -> None:
    """Unmount; when this returns the kernel has passed on everything that was written.

    It is no error if another process was faster.

    :raises TdefsError: MOUNT_BUSY, which names the processes that use it, or its other places; MOUNT_FAILED.
    """
    numbers = _numbers_at(mountpoint)
    in_use = TdefsError(
        Exit.MOUNT_BUSY,
        f'"{mountpoint}" is in use',
        detail="by a process that this user cannot see",
        hint="stop PostgreSQL with 'pg_ctl stop', leave the directory, then try again",
    )
    began = time.monotonic()
    while True:
        refuse_mounts_inside(mountpoint)
        elsewhere = mounted_elsewhere(mountpoint)
        if elsewhere is None:
            refuse_users(mountpoint)
            reason, busy = _unmount_once(mountpoint, numbers)
            now = _numbers_at(mountpoint)
            if not reason or not now or now != numbers:
                return
            if not busy:
                # fusermount3 lets only the user unmount who mounted, and its message speaks of /etc/mtab
                foreign = "not found in" in reason or "permitted" in reason
                raise TdefsError(
                    Exit.MOUNT_FAILED,
                    f'could not unmount "{mountpoint}"',
                    detail=reason,
                    hint="unmount as root, or as the user who mounted it" if foreign else "",
                )
        # another umount holds the mount for a moment, and so does a service or a container that is being started,
        # until it has its own mounts
        if time.monotonic() - began > (_ELSEWHERE_SECONDS if elsewhere else _BUSY_SECONDS):
            raise elsewhere or in_use
        time.sleep(_BUSY_PAUSE_SECONDS)


def _numbers_at(mountpoint: Path) -> list[int]:
    """Return the numbers of all mounts at *mountpoint*, the topmost last."""
    return [mount.number for mount in all_mounts() if mount.mountpoint == mountpoint]


def _unmount_once(mountpoint: Path, numbers: list[int]) -> tuple[str, bool]:
    """Try to unmount; return why it failed, "" if it did not, and whether the reason is that it is in use.

    :param numbers: the numbers of the mounts at *mountpoint*; the last one is unmounted.
    """
    if os.geteuid() == 0:
        return _unmount_itself(mountpoint, numbers)
    result = _fusermount("-u", "--", os.fspath(mountpoint))
    if result.returncode == 0:
        return "", False
    reason = result.stderr.strip() or f"fusermount3 ended with {result.returncode}"
    return reason, "busy" in reason


def _unmount_itself(mountpoint: Path, numbers: list[int]) -> tuple[str, bool]:
    """Do what :func:`_unmount_once` does, as root.

    The directory above the mount point is opened once, and used for every step. A mount point cannot be renamed,
    and no link can take its place. But the owner of a directory above could have led the path elsewhere.
    """
    above = os.open(mountpoint.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = os.open(mountpoint.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            is_meant = mount_number(place) in numbers[-1:]
        finally:
            os.close(place)  # it would keep the mount in use
        if not is_meant:
            return f'another file system is at "{mountpoint}" than was meant', False
        name = os.fsencode(f"/proc/self/fd/{above}/{mountpoint.name}")
        if _libc.umount2(name, _UMOUNT_NOFOLLOW) == 0:
            return "", False
        error = ctypes.get_errno()
        return os.strerror(error), error == EBUSY
    finally:
        os.close(above)


def _fusermount(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("fusermount3") or "fusermount"
    return subprocess.run([command, *arguments], capture_output=True, text=True, errors="replace", check=False)
