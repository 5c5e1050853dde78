"""The place of a mount: checking that nobody else can lead it elsewhere, and that the mount came to lie there."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.mounts.known import detach
from tdefs.mounts.table import FUSE_TYPE, MountInfo, all_mounts, backing_of
from tdefs.way import Way, follow, mount_number

_USER = re.compile(r"user_id=(\d+)")


def refuse_exchangeable(way: Way, *, but: Collection[int] = ()) -> None:
    """Check that nobody else could exchange a component of the path of a mount point.

    Otherwise root would mount, or unmount, in another place.

    :param but: users that may exchange them.
    :raises TdefsError: MOUNTPOINT_INVALID.
    """
    for one in way.exchangeable:
        if one.user is None or one.user not in but:
            raise TdefsError(
                Exit.MOUNTPOINT_INVALID,
                f'others could exchange "{one.place}", on the way to the mount point',
                detail=one.reason,
                hint="choose a mount point whose directories above are root's, such as /srv/postgresql/15; the "
                "mount point itself may be the cluster's user's" + (f"; or: {one.remedy}" if one.remedy else ""),
            )


def refuse_foreign_way(mountpoint: Path, device: str) -> None:
    """Before root unmounts: check that nobody else could lead *mountpoint*, as it was given, to another mount.

    The user who made the mount may do so.

    :param device: the mount's, ``MAJOR:MINOR``.
    :raises TdefsError: MOUNTPOINT_INVALID.
    """
    if os.geteuid() != 0:
        return  # fusermount3 unmounts only the user's own mounts
    users = {
        int(found[1])
        for mount in all_mounts()
        if mount.device == device
        for option in mount.options
        if (found := _USER.fullmatch(option))
    }
    with suppress(OSError), follow(mountpoint) as way:  # a dead mount on the way is found later
        refuse_exchangeable(way, but=users)


@dataclass(frozen=True, slots=True)
class MountPlace:
    """A mount point that was reached, while it is open."""

    path: Path
    target: str
    """The path for libfuse: through an open directory, if this process mounts by itself."""
    before: frozenset[int]
    """The numbers of the mounts that existed before."""

    def device(self, backing: Path) -> str:
        """Return the device of the new mount; "" if it was unmounted already.

        No request is sent to the mount, which is not served yet.

        :raises TdefsError: MOUNT_MISPLACED; it was unmounted again.
        """
        top = 0
        with suppress(OSError), follow(self.path, last_link=False) as way:
            if way.path == self.path:
                top = mount_number(way.fd)
        new = [mount for mount in all_mounts() if self._is_new(mount, backing)]
        for mount in new:
            if mount.number == top and mount.mountpoint == self.path:
                return mount.device
        # propagation gives a mount several places; none of these is the right one
        for mount in new[::-1]:
            detach(mount)
        if new:
            raise TdefsError(
                Exit.MOUNT_MISPLACED,
                f'the volume came to lie at "{new[0].mountpoint}" instead of "{self.path}", and was unmounted',
                detail="a directory on the way to the mount point was renamed or replaced meanwhile",
                hint="find out which process changes directories there, then mount again",
            )
        return ""

    def _is_new(self, mount: MountInfo, backing: Path) -> bool:
        is_ours = mount.kind == FUSE_TYPE and backing_of(mount.source) == backing
        return is_ours and mount.number not in self.before


@contextmanager
def mount_place(mountpoint: Path) -> Iterator[MountPlace]:
    """Open *mountpoint*, a path without links, during a ``with`` block.

    :raises TdefsError: MOUNTPOINT_INVALID; MOUNT_MISPLACED for a path that leads elsewhere by now.
    """
    try:
        with follow(mountpoint) as way:
            refuse_exchangeable(way)
            if way.path != mountpoint:
                raise TdefsError(
                    Exit.MOUNT_MISPLACED,
                    f'mount point "{mountpoint}" leads to "{way.path}" by now',
                    detail="a directory on the way to it was replaced by a symbolic link",
                    hint="find out which process changes directories there, then mount again",
                )
            # fusermount3, which mounts for a user, is a process of its own and checks the place itself
            target = f"/proc/self/fd/{way.fd}" if os.geteuid() == 0 else os.fspath(mountpoint)
            yield MountPlace(mountpoint, target, frozenset(mount.number for mount in all_mounts()))
    except FileNotFoundError:
        raise TdefsError(
            Exit.MOUNTPOINT_INVALID, f'mount point "{mountpoint}" is not there any more', hint="create it again"
        ) from None
