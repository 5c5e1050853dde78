"""The directory for a key command's own files, beside the keystore."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from tdefs.durable import fsync_directory
from tdefs.errors import Exit, TdefsError
from tdefs.keys.exposure import exposure


def command_directory(keystore: Path) -> Path:
    """Return where the key command of ``keystore`` keeps its files, whether or not that exists."""
    return keystore.with_name(keystore.name + ".d").absolute()


def ensure_command_directory(directory: Path) -> None:
    """Make ``directory`` (mode 0700), durably, or check that an existing one is closed to other users.

    Raises TdefsError: KEYSTORE_EXPOSED if it is not, by the rules for the keystore itself; OS_ERROR.
    """
    try:
        try:
            directory.mkdir(mode=0o700)
            fsync_directory(directory.parent)
        except FileExistsError:
            pass
        status = directory.stat()
    except OSError as error:
        raise TdefsError(
            Exit.OS_ERROR,
            f'could not create the directory "{directory}" for the key command\'s files',
            detail=error.strerror or str(error),
            hint=f"create it for the user who runs tdefs: install -d -m 700 -o USER"
            f" {shlex.quote(os.fspath(directory))}",
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise TdefsError(
            Exit.OS_ERROR, f'"{directory}", where the key command\'s files belong, is not a directory'
        )
    exposed = exposure(directory, status)
    if exposed:
        raise TdefsError(
            Exit.KEYSTORE_EXPOSED,
            f'the key command\'s directory "{directory}" is open to other users',
            detail=exposed.detail,
            hint=exposed.remedy,
        )
