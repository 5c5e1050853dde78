"""``tdefs umount``: write everything to the disk and end a mount."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume, way_to_mount
from tdefs.control import ask_status
from tdefs.data.read_only import is_read_only
from tdefs.errors import Exit, TdefsError
from tdefs.mounts.known import detach_dead, is_dead, unmount
from tdefs.mounts.place import refuse_foreign_way
from tdefs.mounts.users import who_keeps
from tdefs.volume.description import Volume, read_volume
from tdefs.volume.lock import is_in_use, is_running
from tdefs.volume.session_record import SESSION_FILE, Session, read_session

_WAIT_SECONDS = 60
_POLL_SECONDS = 0.02
_UNSEEN = (
    "this user cannot see what keeps it: it may be mounted in a mount namespace of another user's process, or "
    "in one that only a file keeps ('findmnt -t nsfs')"
)


def register(subparsers: Subcommands) -> None:
    """Add the command ``umount``."""
    parser = subparsers.add_parser(
        "umount",
        help="write everything to the disk and end a mount",
        description="Writes everything to the disk and ends a mount. A mount stays if it is in use, has other "
        "mounts inside, or is mounted elsewhere, too (a bind mount, another mount namespace). The "
        "message then names the processes and places.",
    )
    add_volume(parser, help="the mount to end")
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    volume: VolumeChoice


def _run(_invocation: Invocation, options: _Options) -> int:
    mount, way = way_to_mount(options.volume.required())
    refuse_foreign_way(way, mount.device)
    if mount.may_be_asked and is_dead(mount.mountpoint):
        detach_dead(mount.mountpoint)
        return Exit.OK
    volume: Volume | None = None
    session: Session | None = None
    with suppress(TdefsError, OSError):
        volume = read_volume(mount.backing)
        session = read_session(volume)
    read_only = volume is not None and _is_only_read(volume)
    unmount(mount.mountpoint)
    try:
        volume = volume or read_volume(mount.backing)
    except (TdefsError, PermissionError):
        # the backing directory is somebody else's; the kernel has passed everything on
        return Exit.OK
    deadline = time.monotonic() + _WAIT_SECONDS
    while is_in_use(volume) if read_only else not _has_ended(volume, session):
        if time.monotonic() > deadline:
            raise TdefsError(
                Exit.MOUNT_FAILED,
                f'"{mount.mountpoint}" is unmounted, but its daemon has not ended after {_WAIT_SECONDS} s',
                detail="; ".join(who_keeps(mount.device)) or _UNSEEN,
                hint="see its log" if read_only else f'see its log "{volume.log_file}"',
            )
        time.sleep(_POLL_SECONDS)
    if not read_only and not _left_clean(volume, session):
        raise TdefsError(
            Exit.OS_ERROR,
            f'"{mount.mountpoint}" is unmounted, but not everything is known to be on the disk',
            detail="the disk below failed; the next mount looks for files that were left half made",
            hint=f'see the daemon\'s log "{volume.log_file}", unless it logs elsewhere',
        )
    return Exit.OK


def _is_only_read(volume: Volume) -> bool:
    """Return whether the daemon of *volume* changes nothing there, not even the record of the session."""
    status = ask_status(volume)
    return is_read_only(volume.backing) if status is None else status.read_only


def _has_ended(volume: Volume, session: Session | None) -> bool:
    """Return whether the daemon of *session* has ended; another one may have the volume mounted by now."""
    if not is_in_use(volume):
        return True
    now = read_session(volume)
    if session is None or now is None:
        return False
    return now.pid != session.pid or (now.clean and not is_running(now.pid))


def _left_clean(volume: Volume, session: Session | None) -> bool:
    """Return whether *session*, which has ended, wrote everything out; False if a later one has begun."""
    now = read_session(volume)
    if session is not None and now is not None and now.pid != session.pid:
        return True
    return now.clean if now is not None else not (volume.private / SESSION_FILE).exists()
