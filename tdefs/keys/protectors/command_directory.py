"""The directory for a key command's own files, beside the keystore."""

from __future__ import annotations

import os
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from tdefs.errors import Exit, TdefsError, naming
from tdefs.keys.exposure import exposure
from tdefs.private import UntrustedError, kind_of, own_place


def command_directory(keystore: Path) -> Path:
    """Return where the key command of ``keystore`` keeps its files, whether or not that exists."""
    return keystore.with_name(keystore.name + ".d").absolute()


def ensure_command_directory(directory: Path) -> None:
    """Make ``directory`` (mode 0700), durably, or check that an existing one is closed to other users.

    Raises TdefsError: KEYSTORE_EXPOSED if it is not, by the rules for the keystore itself; FILE_UNTRUSTED;
    OS_ERROR.
    """
    try:
        with own_place(directory) as above:
            with suppress(FileExistsError), naming(directory):
                os.mkdir(directory.name, 0o700, dir_fd=above.fd)
                above.sync()
            status = above.status(directory.name)
    except OSError as error:
        raise TdefsError(
            Exit.OS_ERROR,
            f'could not create the directory "{directory}" for the key command\'s files',
            detail=error.strerror or str(error),
            hint=f"create it for the user who runs tdefs: install -d -m 700 -o USER"
            f" {shlex.quote(os.fspath(directory))}",
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedError(
            directory, f"the key command's files belong there, and it is {kind_of(status)}", "move it away"
        )
    exposed = exposure(directory, status)
    if exposed:
        raise TdefsError(
            Exit.KEYSTORE_EXPOSED,
            f'the key command\'s directory "{directory}" is open to other users',
            detail=exposed.detail,
            hint=exposed.remedy,
        )
