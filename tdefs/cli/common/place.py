"""Which volume a command means: by ``--volume``, by an argument, or because there is only one."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from tdefs.cli.common.invocation import Invocation
from tdefs.errors import Exit, TdefsError
from tdefs.mounts.known import Mount, find_mount, mounts_of, tdefs_mounts
from tdefs.volume.description import Volume, read_volume

_METAVAR = "BACKING|MOUNTPOINT"
_DEFAULT = "default: the only volume that the configuration names, or that this user has mounted"
_HINT = "name its backing directory or its mount point with --volume"


@dataclass(frozen=True, slots=True)
class VolumeChoice:
    """The volume that the command line names, if it names one."""

    invocation: Invocation
    volume: Path | None
    volume_argument: Path | None = None
    """The same without ``--volume``, where the command has no other argument."""

    @property
    def named(self) -> Path | None:
        """What the command line names.

        :raises TdefsError: USAGE if it names two volumes.
        """
        one, other = self.volume, self.volume_argument
        if one is not None and other is not None and one.absolute() != other.absolute():
            raise TdefsError(
                Exit.USAGE,
                "two volumes are named",
                detail=f'"{other}" as an argument, and "{one}" with --volume',
                hint="name one of them",
            )
        return other if one is None else one

    def required(self) -> Path:
        """Return what the command line names.

        :raises TdefsError: USAGE if it names none.
        """
        named = self.named
        if named is None:
            raise TdefsError(Exit.USAGE, "which volume?", hint=_HINT)
        return named

    def find(self) -> Volume:
        """Return the volume that is meant.

        :raises TdefsError: USAGE if none is named and there is not exactly one; NOT_A_VOLUME, VOLUME_DAMAGED.
        """
        return volume_at(self._place())

    def find_named(self) -> Volume:
        """Return the volume that is meant, which must be named.

        :raises TdefsError: USAGE if none is named; NOT_A_VOLUME, VOLUME_DAMAGED.
        """
        return volume_at(self.required())

    def find_mount(self) -> Mount:
        """Return the mount of the volume that is meant.

        :raises TdefsError: USAGE if none is named and there is not exactly one; NOT_MOUNTED.
        """
        return mount_at(self._place())

    def _place(self) -> Path:
        named = self.named
        if named is not None:
            return named
        places = {path.resolve() for path in self.invocation.config.volumes}
        # a command that names no volume does not mean one that another user has mounted
        places = places or {mount.backing for mount in mounts_of({os.geteuid()})}
        if len(places) != 1:
            raise TdefsError(
                Exit.USAGE,
                "which volume?",
                detail=f"there are {len(places)} in the configuration, or mounted by this user",
                hint=_HINT,
            )
        return places.pop()


def volume_at(place: Path) -> Volume:
    """Return the volume whose backing directory or mount point is *place*; the mount may be dead.

    :raises TdefsError: NOT_A_VOLUME or VOLUME_DAMAGED.
    """
    try:
        backing = find_mount(place).backing
    except TdefsError:
        backing = place
    return read_volume(backing)


def mount_at(place: Path) -> Mount:
    """Return the mount whose mount point or backing directory is *place*.

    :raises TdefsError: NOT_MOUNTED.
    """
    return way_to_mount(place)[0]


def way_to_mount(place: Path) -> tuple[Mount, Path]:
    """Return the mount whose mount point or backing directory is *place*, and its mount point as it was named.

    :raises TdefsError: NOT_MOUNTED.
    """
    try:
        return find_mount(place), place
    except TdefsError:
        backing = Path(os.path.realpath(place))
        for mount in tdefs_mounts():
            if mount.backing == backing:
                return mount, mount.mountpoint
        raise


def add_volume(parser: argparse.ArgumentParser, *, argument: bool = True, help: str = _DEFAULT) -> None:
    """Add the option that names the volume.

    :param argument: whether it can be named without ``--volume``, too: so in commands without another argument.
    """
    if argument:
        parser.add_argument("volume_argument", metavar=_METAVAR, type=Path, nargs="?", help=help)
        help = f"the same as {_METAVAR}"
    parser.add_argument("--volume", metavar=_METAVAR, type=Path, help=help)
