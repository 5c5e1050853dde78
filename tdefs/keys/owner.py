"""To whom the files beside a keystore belong."""

from __future__ import annotations

import os


def give(descriptor: int, owner: os.stat_result) -> None:
    """Give a file to the keystore's owner: what root changes must still be readable by the daemon's user."""
    if os.geteuid() == 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
