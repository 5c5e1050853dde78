"""Which symbolic links of a volume lead out of all volumes that are mounted, or that the configuration names."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tdefs.config import Config
from tdefs.errors import TdefsError
from tdefs.mounts.known import Mount, mounts_of
from tdefs.offline.link_targets import leads_out
from tdefs.volume.description import Volume
from tdefs.volume.session_record import read_session


def mountpoints_of(volume: Volume, config: Config) -> set[Path]:
    """Return where *volume* is mounted, was mounted last, or will be mounted."""
    configured = config.for_backing(volume.backing).mountpoint
    found = {configured.resolve()} if configured is not None else set()
    found |= {mount.mountpoint for mount in trusted_mounts(volume) if mount.backing == volume.backing}
    with suppress(TdefsError, OSError):
        session = read_session(volume)
        if session is not None:
            found.add(Path(session.mountpoint))
    return found


def trusted_mounts(volume: Volume) -> list[Mount]:
    """Return the mounts of the owner of *volume*, of this user and of root."""
    users = {0, os.geteuid()}
    with suppress(OSError):
        users.add(volume.private.stat().st_uid)
    return mounts_of(users)


def link_judge(config: Config, volume: Volume) -> Callable[[str, str], bool]:
    """Return a function that returns whether a link of *volume*, given its path and target, leads to no volume."""
    own = mountpoints_of(volume, config)
    others = {mount.mountpoint for mount in trusted_mounts(volume)}
    others |= {one.mountpoint for one in config.volumes.values() if one.mountpoint is not None}
    return lambda path, target: leads_out(path, target, own, others)
