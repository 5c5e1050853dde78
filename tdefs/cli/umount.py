"""``tdefs umount``: write everything out and end a mount."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.fs.mounts import detach, find_mount, is_dead, unmount
from tdefs.volume import is_in_use, read_volume, was_left_clean

_WAIT_SECONDS = 60
_POLL_SECONDS = 0.02


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``umount``."""
    parser = subparsers.add_parser("umount", help="write everything out and end a mount")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", type=Path)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    mount = find_mount(args.mountpoint)
    if is_dead(mount.mountpoint):
        detach(mount.mountpoint)
        return Exit.OK
    unmount(mount.mountpoint)
    try:
        volume = read_volume(mount.backing)
    except (TdefsError, PermissionError):
        # the backing directory is somebody else's; the kernel has passed everything on
        return Exit.OK
    deadline = time.monotonic() + _WAIT_SECONDS
    while is_in_use(volume):
        if time.monotonic() > deadline:
            raise TdefsError(
                Exit.MOUNT_FAILED,
                f'"{mount.mountpoint}" is unmounted, but its daemon has not ended after {_WAIT_SECONDS} s',
                hint=f'see its log "{volume.log_file}"',
            )
        time.sleep(_POLL_SECONDS)
    if not was_left_clean(volume):
        raise TdefsError(
            Exit.OS_ERROR,
            f'"{mount.mountpoint}" is unmounted, but not everything is known to be on the disk',
            detail="the disk below failed; the next mount looks for files that were left half made",
            hint=f'see the daemon\'s log "{volume.log_file}", unless it was told to log elsewhere',
        )
    return Exit.OK
