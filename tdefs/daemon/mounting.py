"""Mounting, and taking away a mount that never served."""

from __future__ import annotations

import logging

from tdefs.daemon.records import begin_journal
from tdefs.daemon.request import MountRequest, fuse_options
from tdefs.daemon.served import ServedMount
from tdefs.daemon.virtual_files import operations_of
from tdefs.errors import Exit, TdefsError
from tdefs.fuse.loop import Connection
from tdefs.mounts.failure import why_not_mounted
from tdefs.mounts.known import detach_dead, tdefs_mounts
from tdefs.mounts.place import mount_place

log = logging.getLogger(__name__)


def mount(served: ServedMount) -> Connection:
    """Mount; return the connection, and note the device.

    The journal of changed files is begun last, before anything can be changed. Files that were added to a volume
    are reported only as long as there is no journal, so a mount that fails must not leave one.

    :raises TdefsError: MOUNT_FAILED, MOUNTPOINT_INVALID, MOUNT_MISPLACED or OS_ERROR, with nothing mounted.
    """
    request = served.request
    with mount_place(request.mountpoint) as place:
        try:
            connection = Connection(operations_of(served), place.target, fuse_options(request))
        except RuntimeError as error:
            raise _refused(request, error) from None
        try:
            served.device = place.device(request.volume.backing)
            if not request.read_only:
                begin_journal(request, served.bound)
        except BaseException:
            connection.cut()
            connection.close()
            take_away(request)
            raise
        return connection


def take_away(request: MountRequest) -> None:
    """Take away a mount that never served; its connection is closed, so no program waits for it."""
    place = request.mountpoint, request.volume.backing
    if all((mount.mountpoint, mount.backing) != place for mount in tdefs_mounts()):
        return
    try:
        detach_dead(request.mountpoint)
    except (TdefsError, OSError):
        log.exception("the mount at %s could not be taken away", request.mountpoint)


def _refused(request: MountRequest, error: RuntimeError) -> TdefsError:
    """Return why libfuse could not mount."""
    refusal = why_not_mounted(request.mountpoint, fuse_options(request))
    return TdefsError(
        Exit.MOUNT_FAILED,
        f'could not mount at "{request.mountpoint}"',
        detail=f"{error}: {refusal.reason}",
        hint=refusal.hint,
    )
