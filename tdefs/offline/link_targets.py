"""Whether a symbolic link leads out of all volumes, to a place where everything is in the clear; pure."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def leads_out(path: str, target: str, mountpoints: Collection[Path], others: Collection[Path]) -> bool:
    """Return whether a link leads to a place where no tdefs volume is mounted, as far as its target shows.

    :param path: the link's path, relative to the mount's root.
    :param mountpoints: where its own volume is, was or will be mounted.
    :param others: where other volumes are or will be mounted.
    """
    if not target.startswith("/"):
        within = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120
        if within.split("/")[0] != "..":
            return False
    places = [Path(os.path.normpath(root / Path(path).parent / target)) for root in mountpoints or [Path("/")]]
    known = [*mountpoints, *others]
    return not any(place.is_relative_to(one) for place in places for one in known)
