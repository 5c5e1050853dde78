"""The users of a mount: processes, mounts inside it, and other places where the same file system is mounted.

Nothing here sends a request to the file system: its daemon may be dead or suspended, or be this process.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.mounts.table import (
    FUSE_TYPE,
    OWN,
    MountInfo,
    Namespace,
    all_mounts,
    backing_of,
    name_of,
    namespaces,
    processes,
)

_libc = ctypes.CDLL(None, use_errno=True)

# linux/stat.h and linux/fcntl.h: struct statx is 256 bytes, with the device's numbers at byte 136
_STATX_BYTES = 256
_STATX_DEVICE = struct.Struct("=II")
_STATX_DEVICE_OFFSET = 136
_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000


def mounts_inside(mountpoint: Path) -> list[MountInfo]:
    """Return the mounts inside the topmost mount at *mountpoint*, the innermost first."""
    mounts = list(all_mounts())
    tops = [mount.number for mount in mounts if mount.mountpoint == mountpoint]
    return _inside(tops[-1], mounts) if tops else []


def _inside(number: int, mounts: Sequence[MountInfo]) -> list[MountInfo]:
    """Return the mounts below the mount *number*, in an order in which they can be unmounted."""
    return [
        each
        for mount in reversed(mounts)
        if mount.parent == number and mount.number != number
        for each in (*_inside(mount.number, mounts), mount)
    ]


def refuse_mounts_inside(mountpoint: Path) -> None:
    """Check that nothing is mounted inside the mount at *mountpoint*.

    :raises TdefsError: MOUNT_BUSY, which names the mounts inside, in an order in which they can be unmounted.
    """
    inside = mounts_inside(mountpoint)
    if inside:
        raise TdefsError(
            Exit.MOUNT_BUSY,
            f'other file systems are mounted inside "{mountpoint}"',
            detail="; ".join(map(_what_it_is, inside)),
            hint="unmount these first, in this order: " + ", ".join(map(_how_to_unmount, inside)),
        )


def _what_it_is(mount: MountInfo) -> str:
    source = backing_of(mount.source) if mount.kind == FUSE_TYPE else mount.source
    return f'"{mount.mountpoint}" ({mount.kind}, of {source})'


def _how_to_unmount(mount: MountInfo) -> str:
    command = "tdefs umount" if mount.kind == FUSE_TYPE else "umount"
    return f"{command} {shlex.quote(str(mount.mountpoint))}"


def mounted_elsewhere(mountpoint: Path) -> TdefsError | None:
    """Return the error MOUNT_BUSY, which names the other places where the file system stays mounted, if any."""
    seen = list(namespaces())
    target = next((mount for mount in reversed(seen[0].mounts) if mount.mountpoint == mountpoint), None)
    staying = list(_staying(target, seen)) if target else []
    if not staying:
        return None
    return TdefsError(
        Exit.MOUNT_BUSY,
        f'what is mounted at "{mountpoint}" is mounted elsewhere, too',
        detail="; ".join(_place(*each) for each in staying),
        hint="stop what uses it there, then unmount it there: "
        + ", ".join(_how_to_leave(*each) for each in staying),
    )


def refuse_users(mountpoint: Path) -> None:
    """Check that no process uses the mount at *mountpoint*.

    :raises TdefsError: MOUNT_BUSY, which names the processes.
    """
    target = next((mount for mount in reversed(list(all_mounts())) if mount.mountpoint == mountpoint), None)
    users = users_of(target.device) if target else []
    if users:
        raise TdefsError(
            Exit.MOUNT_BUSY,
            f'"{mountpoint}" is in use',
            detail="in use by " + "; ".join(users),
            hint="stop PostgreSQL with 'pg_ctl stop', leave the directory, then try again",
        )


def places_of(backing: Path) -> list[str]:
    """Return where the volume in *backing* is mounted, in any namespace."""
    return [
        _place(namespace, mount)
        for namespace in namespaces()
        for mount in namespace.mounts
        if mount.kind == FUSE_TYPE and backing_of(mount.source) == backing
    ]


def who_keeps(device: str) -> list[str]:
    """Return where the file system *device* is mounted, and which processes use it, in any namespace."""
    places = [
        _place(namespace, mount)
        for namespace in namespaces()
        for mount in namespace.mounts
        if mount.device == device
    ]
    return places + users_of(device)


def _staying(target: MountInfo, seen: Iterable[Namespace]) -> Iterator[tuple[Namespace, MountInfo]]:
    """Yield the other mounts of *target*'s file system that stay when *target* is unmounted.

    A copy that came by propagation goes with it, in any namespace: umount(2) also unmounts the same place in every
    peer and slave of the mount that *target* lies in, unless something is mounted inside the copy. If one of these
    is in use, umount(2) refuses (fs/pnode.c, propagate_mount_busy and propagate_umount).
    """
    where: dict[int, tuple[Namespace, MountInfo]] = {}
    # a process with a root directory of its own sees fewer mounts, under other paths
    for namespace in sorted(seen, key=lambda each: (each.process != OWN, -len(each.mounts))):
        for mount in namespace.mounts:
            where.setdefault(mount.number, (namespace, mount))
    mounts = [mount for _, mount in where.values()]
    _, above = where.get(target.parent, (None, None))
    receiving = _receivers(above, mounts) if above else set()
    for mount in mounts:
        if mount.device != target.device or mount.number == target.number:
            continue
        _, parent = where.get(mount.parent, (None, None))
        goes = (
            above is not None
            and parent is not None
            and parent.number in receiving
            and (parent.device, _path_in(parent, mount)) == (above.device, _path_in(above, target))
            and all(inner.mountpoint == mount.mountpoint for inner in _inside(mount.number, mounts))
        )
        if not goes:
            yield where[mount.number]


def _receivers(above: MountInfo, mounts: Iterable[MountInfo]) -> set[int]:
    """Return the numbers of the mounts that an unmount in *above* is passed on to: peers, and slaves of any."""
    found: set[int] = set()
    groups = {above.peers} - {""}
    growing = True
    while growing:
        reached = {mount.number for mount in mounts if mount.peers in groups or mount.master in groups}
        groups |= {mount.peers for mount in mounts if mount.number in reached} - {""}
        growing = reached != found
        found = reached
    return found


def _path_in(parent: MountInfo, mount: MountInfo) -> str:
    """Return the mount point of *mount* as a path in the file system of *parent*."""
    return os.path.normpath(Path(parent.root, os.path.relpath(mount.mountpoint, parent.mountpoint)))


def _place(namespace: Namespace, mount: MountInfo) -> str:
    what = "" if mount.root == "/" else f' (its "{mount.root}")'
    if namespace.is_own:
        return f'at "{mount.mountpoint}"{what}'
    return f'at "{mount.mountpoint}"{what} in the mount namespace of {name_of(namespace.process)}'


def _how_to_leave(namespace: Namespace, mount: MountInfo) -> str:
    command = f"umount {shlex.quote(str(mount.mountpoint))}"
    return command if namespace.is_own else f"nsenter -t {namespace.process.name} -m {command}"


def users_of(device: str) -> list[str]:
    """Return the processes that use the file system *device*, in any namespace, as far as this user can see them.

    :param device: ``MAJOR:MINOR``.
    """
    found = []
    for process in processes():
        used = _used_on(process, device)
        if used:
            found.append(f"{name_of(process)}: {used}")
    return found


def _used_on(process: Path, device: str) -> str:
    """Return the first path on *device* that a process has open, works in, or maps; else nothing."""
    links = [process / "cwd", process / "root", process / "exe"]
    with suppress(OSError):
        links += list((process / "fd").iterdir())
    for link in links:
        with suppress(OSError):
            if device_behind(link) == device:
                return os.readlink(link)  # noqa: PTH115 - the path may be one of another namespace
    with suppress(OSError):
        for line in os.fsdecode((process / "maps").read_bytes()).splitlines():
            _, _, _, mapped, *rest = line.split(maxsplit=5)
            major, _, minor = mapped.partition(":")
            if f"{int(major, 16)}:{int(minor, 16)}" == device:
                return rest[-1]
    return ""


def device_behind(path: Path) -> str:
    """Return the device of *path*, ``MAJOR:MINOR``, without asking a daemon, also of a dead mount.

    :raises OSError: there is nothing at *path*.
    """
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    # a stat() would ask the daemon, and would fail if the mount is another user's
    if _libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, 0, answer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(path))
    major, minor = _STATX_DEVICE.unpack_from(answer, _STATX_DEVICE_OFFSET)
    return f"{major}:{minor}"
