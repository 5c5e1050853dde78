"""Files with the secrets of key sources: private keys, tokens, passwords of either."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from tdefs.errors import Exit, TdefsError

_MAX_BYTES = 65536


def check_private(path: Path, what: str) -> None:
    """Refuse a file that is missing, or that anybody but its owner may read or write.

    ``what`` says what it holds. Raises TdefsError(KEY_SOURCE_UNAVAILABLE).
    """
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, what, error) from None
    _check(path, what, status)


def read_private(path: Path, what: str) -> bytes:
    """Return the content of a file that :func:`check_private` lets pass. Raises the same."""
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_BYTES + 1) or b""
    except OSError as error:
        raise unreadable(path, what, error) from None
    _check(path, what, status)
    if len(content) > _MAX_BYTES:
        raise TdefsError(Exit.KEY_SOURCE_UNAVAILABLE, f'the {what} "{path}" is longer than {_MAX_BYTES} bytes')
    return content


def unreadable(path: Path, what: str, error: OSError) -> TdefsError:
    """Return the error for a file that a key source needs and that cannot be read."""
    return TdefsError(
        Exit.KEY_SOURCE_UNAVAILABLE,
        f'could not read the {what} "{path}"',
        detail=error.strerror or type(error).__name__,
    )


def _check(path: Path, what: str, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise TdefsError(
            Exit.KEY_SOURCE_UNAVAILABLE,
            f'the {what} "{path}" is accessible to other users',
            detail=f"its mode is {mode:04o}, and group and others may have no permission",
            hint=f"chmod 600 {shlex.quote(str(path))}",
        )
