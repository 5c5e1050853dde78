"""The directory for a key command's own files, beside the keystore."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from tdefs.durable import fsync_directory
from tdefs.errors import Exit, TdefsError


def command_directory(keystore: Path) -> Path:
    """Return where the key command of ``keystore`` keeps its files, whether or not that exists."""
    return keystore.with_name(keystore.name + ".d").absolute()


def ensure_command_directory(directory: Path) -> None:
    """Make ``directory`` (mode 0700), durably, or check that an existing one is closed to other users.

    Raises TdefsError: KEYSTORE_EXPOSED if it is not, by the rules for the keystore itself; OS_ERROR.
    """
    quoted = shlex.quote(os.fspath(directory))
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
            hint=f"create it for the user who runs tdefs: install -d -m 700 -o USER {quoted}",
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise TdefsError(
            Exit.OS_ERROR, f'"{directory}", where the key command\'s files belong, is not a directory'
        )
    mode = stat.S_IMODE(status.st_mode)
    if os.geteuid() != 0 and status.st_uid not in (0, os.geteuid()):
        raise _exposed(
            directory,
            f"its owner is user {status.st_uid}, and tdefs runs as user {os.geteuid()}",
            f"chown {os.geteuid()} {quoted} && chmod 700 {quoted}",
        )
    if mode & 0o077:
        raise _exposed(
            directory,
            f"its mode is {mode:04o}, and group and others may have no permission",
            f"chmod 700 {quoted}",
        )


def _exposed(directory: Path, detail: str, hint: str) -> TdefsError:
    return TdefsError(
        Exit.KEYSTORE_EXPOSED,
        f'the key command\'s directory "{directory}" is open to other users',
        detail=detail,
        hint=hint,
    )
