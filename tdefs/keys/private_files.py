"""The files that a key source needs: read, and refused where they are not fit, or a secret is open to others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tdefs.errors import Exit, TdefsError
from tdefs.keys.exposure import exposure
from tdefs.trust import check_trusted

#: The authorities that Debian trusts take a quarter of this.
_MAX_BYTES = 1 << 20


def read_file(path: Path, what: str, *, secret: bool) -> bytes:
    """Return the content of the ``what`` file.

    Raises TdefsError: KEY_SOURCE_UNAVAILABLE if it cannot be read, or is ``secret`` and others have access to it;
    CONFIG_EXPOSED if others could change it.
    """
    check_trusted(path, f"{what} file")
    try:
        # Nonblocking, so that a FIFO in its place is refused below instead of waited on.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise unfit(path, what, "it is no regular file")
            if secret:
                _check_private(path, what, status)
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise unfit(path, what, error.strerror or "") from None
    if len(data) > _MAX_BYTES:
        raise unfit(path, what, f"it has more than {_MAX_BYTES} bytes")
    return data


def unfit(path: Path, what: str, detail: str, hint: str = "") -> TdefsError:
    """Return the error for a file that a key source needs and cannot use."""
    return TdefsError(
        Exit.KEY_SOURCE_UNAVAILABLE, f'the {what} file "{path}" cannot be used', detail=detail, hint=hint
    )


def _check_private(path: Path, what: str, status: os.stat_result) -> None:
    exposed = exposure(path, status)
    if exposed:
        stranger = f"it belongs to another user, {status.st_uid}"
        detail = stranger if exposed.foreign else "group or others have access to it"
        raise unfit(path, what, detail, exposed.remedy)
