"""Writing a small file so that after a crash it is there whole, in its old or its new version."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_durably(path: Path, data: bytes, mode: int = 0o600, *, replace: bool = True) -> None:
    """Write ``data`` to ``path``; when this returns, the file and its directory entry are durable.

    The bytes go to a temporary file in the same directory, never readable by others, which then takes
    the name ``path`` in one step, with the permission bits ``mode`` whatever the umask. A crash leaves at
    ``path`` the old content (or nothing) or the new content, and at worst a temporary file beside it whose
    name starts with a dot and ends in ``.tmp``.

    Raises FileExistsError if ``replace`` is false and ``path`` exists, even as a dangling symbolic link;
    OSError for anything else. After an error ``path`` is as before, with one exception: if only the last
    step, the fsync of the directory, failed, the new content is in place but may not survive a crash.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(descriptor, data)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace:
            temporary.replace(path)
        else:
            # rename(2) would silently replace; link(2) fails if the name is taken, also in a race.
            path.hardlink_to(temporary)
            temporary.unlink()
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_directory(path.parent)


def fsync_directory(directory: Path) -> None:
    """Make the entries of ``directory`` durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, however the kernel splits the writes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
