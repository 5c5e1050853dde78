"""Whether a file that holds a secret is open to other users."""

from __future__ import annotations

import os
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Exposure:
    """How other users may get at a file: it is a stranger's (``foreign``), or else its mode lets them.

    ``detail`` says so with the figures, and ``remedy`` is the shell command that closes the file.
    """

    foreign: bool
    detail: str
    remedy: str


def exposure(path: Path, status: os.stat_result) -> Exposure | None:
    """Return how the file or directory is open to users who are neither root nor this process's, or None.

    Root takes a file of any user. Group and others may have no permission at all.
    """
    quoted = shlex.quote(os.fspath(path))
    close = f"chmod {'700' if stat.S_ISDIR(status.st_mode) else '600'} {quoted}"
    user = os.geteuid()
    if user != 0 and status.st_uid not in (0, user):
        return Exposure(
            foreign=True,
            detail=f"its owner is user {status.st_uid}, and tdefs runs as user {user}",
            remedy=f"chown {user} {quoted} && {close}",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return Exposure(
            foreign=False,
            detail=f"its mode is {mode:04o}, and group and others may have no permission",
            remedy=close,
        )
    return None
