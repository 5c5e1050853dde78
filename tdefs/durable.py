"""Writing a small file so that after a crash it is there whole, in its old or its new version."""

from __future__ import annotations

import ctypes
import os
import secrets
from contextlib import suppress
from errno import EINVAL, ENOSYS
from pathlib import Path

from tdefs.errors import naming

# linux/fs.h
_RENAME_NOREPLACE = 1

_libc = ctypes.CDLL(None, use_errno=True)


def write_durably(path: Path, data: bytes, mode: int = 0o600, *, replace: bool = True) -> None:
    """Write ``data`` to ``path``, as :func:`write_durably_in` does, which says what is raised."""
    directory = _open_directory(path.parent)
    try:
        with naming(path):
            write_durably_in(directory, path.name, data, mode, replace=replace)
    finally:
        os.close(directory)


def write_durably_in(
    directory: int,
    name: str,
    data: bytes,
    mode: int = 0o600,
    *,
    replace: bool = True,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write ``data`` to ``name`` in an open directory; when this returns, file and directory entry are durable.

    The bytes go to a temporary file in the same directory, never readable by others, which then takes
    the name in one step, with the permission bits ``mode`` whatever the umask, and belongs to ``owner`` (user,
    group) if one is given. A crash leaves at the name the old content (or nothing) or the new content, and at
    worst a temporary file beside it whose name starts with a dot and ends in ``.tmp``.

    Raises FileExistsError if ``replace`` is false and the name is taken, even by a dangling symbolic link;
    OSError for anything else. After an error all is as before, with one exception: if only the last
    step, the fsync of the directory, failed, the new content is in place but may not survive a crash.
    """
    temporary = f".{name}.{secrets.token_hex(8)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        try:
            _write_all(descriptor, data)
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            _rename_to_new(directory, temporary, name)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    sync_directory(directory)


def _rename_to_new(directory: int, name: str, new: str) -> None:
    """Rename where ``new`` is not taken; rename(2) would silently replace it, in a race, too."""
    arguments = directory, os.fsencode(name), directory, os.fsencode(new), _RENAME_NOREPLACE
    if _libc.renameat2(*arguments) == 0:
        return
    error = ctypes.get_errno()
    if error not in (EINVAL, ENOSYS):
        raise OSError(error, os.strerror(error), new)
    # a network file system: for a moment the file has both names
    os.link(name, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    os.unlink(name, dir_fd=directory)


def sync_directory(directory: int) -> None:
    """Make the entries of an open directory durable, by whatever right it was opened. Raises OSError."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(directory: Path) -> None:
    """Make the entries of ``directory`` durable. Raises OSError."""
    descriptor = _open_directory(directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_directory(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, however the kernel splits the writes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
