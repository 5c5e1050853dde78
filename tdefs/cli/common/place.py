"""Which volume a command means whose argument is something in a keystore: ``tdefs key rotate dk_1``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tdefs.config import load_config
from tdefs.errors import Exit, TdefsError
from tdefs.mounts.known import mounts_of
from tdefs.offline.reader import volume_at
from tdefs.volume.description import Volume


def add_place(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the volume."""
    parser.add_argument(
        "--volume",
        metavar="BACKING|MOUNTPOINT",
        type=Path,
        help="default: the only volume that the configuration names, or that this user has mounted",
    )


def volume_of(args: argparse.Namespace) -> Volume:
    """Return the volume that is meant.

    :raises TdefsError: USAGE if none is named and there is not just one; NOT_A_VOLUME, VOLUME_DAMAGED.
    """
    if args.volume is not None:
        return volume_at(args.volume)
    places = {path.resolve() for path in load_config(args.config).volumes}
    # whatever another user has mounted is not meant by a command that does not name it
    places = places or {mount.backing for mount in mounts_of({os.geteuid()})}
    if len(places) != 1:
        raise TdefsError(
            Exit.USAGE,
            "which volume?",
            detail=f"there are {len(places)} in the configuration, or mounted by this user",
            hint="name its backing directory or its mount point with --volume",
        )
    return volume_at(places.pop())
