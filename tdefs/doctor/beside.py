"""Copies of a cluster in the clear: beside its mount point and backing directory, and hidden below the mount."""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from tdefs.doctor.findings import Finding, advice, risk
from tdefs.mounts.table import all_mounts
from tdefs.pg.control import (
    CONTROL_FILE,
    MOST_CONTROL_BYTES,
    BadControlFile,
    UnknownControlVersion,
    system_identifier,
)
from tdefs.private import read_regular
from tdefs.volume.description import PRIVATE_DIRECTORY

#: Where distributions keep clusters.
_USUAL_PLACES = (Path("/var/lib/postgresql"), Path("/var/lib/pgsql"))
#: File systems that are searched; others may be slow, or not answer.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs", "overlay"})
#: So many directories are searched, and so many entries of each.
_MOST_DIRECTORIES = 3000
_MOST_ENTRIES = 2000
_NAMED = 10
_REMOVE = "remove it when you no longer need it; from an SSD or a snapshot it may not be gone then"

# linux/mount.h, and the system call's number on all architectures
_OPEN_TREE = 428
_OPEN_TREE_CLONE = 1

_libc = ctypes.CDLL(None, use_errno=True)


def examine_surroundings(mountpoint: Path, backing: Path, clusters: list[Path]) -> Iterator[Finding]:
    """Yield where the data of a mount's *clusters* seem to lie in the clear, too.

    The search covers the directories around *mountpoint* and *backing*, the home of their owner, and the places
    where distributions keep clusters. The system identifier in pg_control distinguishes a copy from another
    cluster.
    """
    yield from _hidden(mountpoint)
    own = {_identifier(pgdata) for pgdata in clusters} - {None}
    beside = {mountpoint.parent, backing.parent}
    for place in _clear_clusters(mountpoint, backing):
        if _identifier(place) in own:
            yield risk(f"{place} holds a copy of the cluster in the clear", _REMOVE)
        elif place.parent in beside:
            yield advice(f"{place}, beside the mount, holds another cluster in the clear", "see whether it should")


def _identifier(pgdata: Path) -> int | None:
    """Return the system identifier of the cluster in a directory; ``None`` if it cannot be read."""
    # pg_upgrade leaves the second name
    for name in (CONTROL_FILE, f"{CONTROL_FILE}.old"):
        with suppress(OSError, BadControlFile, UnknownControlVersion):
            return system_identifier(read_regular(pgdata / name, MOST_CONTROL_BYTES))
    return None


def _clear_clusters(mountpoint: Path, backing: Path) -> Iterator[Path]:
    """Yield every data directory that is found in the usual places, outside of tdefs's mounts and volumes."""
    places = [(mountpoint.parent, 3), (backing.parent, 3), *((place, 3) for place in _USUAL_PLACES)]
    places += [(mountpoint.parent.parent, 2), (backing.parent.parent, 2)]
    with suppress(OSError, KeyError):
        places.append((Path(pwd.getpwuid(mountpoint.stat().st_uid).pw_dir), 2))
    avoid = {mount.mountpoint for mount in all_mounts() if mount.kind not in _LOCAL}
    seen: set[Path] = set()
    pending = places
    while pending and len(seen) < _MOST_DIRECTORIES:
        # those nearer to the volume first
        directory, depth = pending.pop(0)
        if directory in seen or directory in avoid:
            continue
        seen.add(directory)
        names = _names(directory)
        if PRIVATE_DIRECTORY in names:
            continue
        if {"PG_VERSION", "global"} <= names:
            if _identifier(directory) is not None:
                yield directory
            continue
        if depth > 0:
            pending += [(below, depth - 1) for below in _directories(directory)]


def _names(directory: Path) -> set[str]:
    """Return the entries of a directory; nothing if this user may not read it."""
    with suppress(OSError), os.scandir(directory) as entries:
        return {entry.name for entry in islice(entries, _MOST_ENTRIES)}
    return set()


def _directories(directory: Path) -> list[Path]:
    found = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in islice(entries, _MOST_ENTRIES):
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    found.append(Path(entry.path))
    return sorted(found)


def _hidden(mountpoint: Path) -> Iterator[Finding]:
    """Yield what lies in the directory below the mount: somebody may have copied it there without a mount."""
    names = _names_below(mountpoint)
    if "PG_VERSION" in names:
        yield risk(
            f"a cluster lies in the clear in the directory that the mount hides, {mountpoint}",
            "stop the server, unmount, and move away what is there before you mount again",
        )
    elif names:
        more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield risk(
            f"files lie in the clear in the directory that the mount hides, {mountpoint}: "
            f"{', '.join(sorted(names)[:_NAMED])}{more}",
            "unmount, and move away what is there before you mount again",
        )


def _names_below(mountpoint: Path) -> list[str]:
    """Return the entries of a mount point's directory below the mount; nothing if the kernel does not show them.

    A copy of the mount above it, without the mounts in that, shows the directory (open_tree(2)).
    """
    path = os.fsencode(mountpoint.parent)
    above: int = _libc.syscall(_OPEN_TREE, -100, path, _OPEN_TREE_CLONE | os.O_CLOEXEC)
    if above < 0:
        return []
    with suppress(OSError):
        try:
            fd = os.open(mountpoint.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
            try:
                return os.listdir(fd)
            finally:
                os.close(fd)
        finally:
            os.close(above)
    return []
