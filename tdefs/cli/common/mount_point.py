"""Before a mount begins: taking the volume's lock, and checking that nobody else uses the mount point."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tdefs.errors import Exit, TdefsError, VolumeInUseError
from tdefs.mounts.known import DEAD, detach_dead, is_dead, mounts_of, tdefs_mounts
from tdefs.mounts.place import refuse_exchangeable
from tdefs.mounts.users import places_of
from tdefs.volume.description import Volume
from tdefs.volume.lock import VolumeLock, is_running
from tdefs.volume.session_record import read_session
from tdefs.way import follow

# Between the record of a session and its mount.
_MOUNTING_SECONDS = 1.0


def acquire(lock: VolumeLock, volume: Volume) -> None:
    """Take the volume's lock; the error says so if the daemon that holds it is not mounted any more."""
    try:
        lock.acquire()
    except VolumeInUseError as error:
        session = read_session(volume)
        if session is None or session.clean or not is_running(session.pid):
            # a daemon that only reads leaves no record
            users = {0, os.geteuid(), volume.private.stat().st_uid}
            points = [mount.mountpoint for mount in mounts_of(users) if mount.backing == volume.backing]
            if all(map(is_dead, points)):
                raise
            raise VolumeInUseError(
                error.message,
                detail="; ".join(f'it is mounted at "{place}"' for place in points),
                hint="unmount it with 'tdefs umount' first",
            ) from None
        if _appears(Path(session.mountpoint)):
            raise
        served = f'process {session.pid} serves what was detached from "{session.mountpoint}" while in use'
        places = [f"it is mounted {place}" for place in places_of(volume.backing)]
        raise VolumeInUseError(
            error.message,
            detail="; ".join([served, *places]),
            hint="it ends when the last file in it is closed: stop what was started there",
        ) from None


def _appears(mountpoint: Path) -> bool:
    """Return whether there is a mount; wait for one that another process is about to make."""
    deadline = time.monotonic() + _MOUNTING_SECONDS
    while all(mount.mountpoint != mountpoint for mount in tdefs_mounts()):
        if time.monotonic() > deadline:
            return False
        time.sleep(_MOUNTING_SECONDS / 20)
    return True


def prepare_mountpoint(mountpoint: Path | None, volume: Volume) -> Path:
    """Check the mount point, and detach the mount of a dead daemon there."""
    if mountpoint is None:
        raise TdefsError(
            Exit.USAGE,
            "no mount point",
            detail="neither the command line nor the configuration names one",
            hint=f"tdefs mount {volume.backing} MOUNTPOINT",
        )
    try:
        with follow(mountpoint) as way:
            refuse_exchangeable(way)
            resolved = way.path
    except NotADirectoryError:
        raise TdefsError(Exit.MOUNTPOINT_INVALID, f'mount point "{mountpoint}" is not a directory') from None
    except FileNotFoundError:
        raise TdefsError(
            Exit.MOUNTPOINT_INVALID, f'mount point "{mountpoint}" does not exist', hint="create the directory"
        ) from None
    except OSError as error:
        if error.errno not in DEAD:
            raise
        raise TdefsError(
            Exit.MOUNTPOINT_INVALID,
            f'mount point "{mountpoint}" lies in a dead mount',
            hint="mount that one again first",
        ) from None
    if is_dead(resolved):
        if all(mount.mountpoint != resolved for mount in tdefs_mounts()):
            raise TdefsError(
                Exit.MOUNTPOINT_INVALID,
                f'"{mountpoint}" is a dead mount of another file system',
                hint=f'take it away with "umount -l {mountpoint}"',
            )
        detach_dead(resolved)
    for mount in tdefs_mounts():
        if mount.mountpoint == resolved and mount.backing != volume.backing:
            raise TdefsError(
                Exit.MOUNTPOINT_INVALID,
                f'"{mountpoint}" is the mount point of another volume, "{mount.backing}"',
                hint="unmount that with 'tdefs umount', or choose another directory",
            )
    if resolved == volume.backing or resolved in volume.backing.parents or volume.backing in resolved.parents:
        raise TdefsError(
            Exit.MOUNTPOINT_INVALID,
            f'mount point "{resolved}" and backing directory "{volume.backing}" contain one another',
            hint="choose two directories side by side",
        )
    return resolved
