"""Writing a small file so that a crash leaves it whole, in its old or its new version."""

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
    """Write ``data`` to ``path``, as :func:`write_durably_in` does; see there for the errors."""
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

    The bytes go to a temporary file in the same directory, which others can never read. This file then takes the
    name in one step. It has the permission bits ``mode``, whatever the umask is, and belongs to ``owner`` (user,
    group) if one is given. After a crash the name has the old content (or does not exist) or the new content. At
    worst a temporary file stays beside it, whose name starts with a dot and ends in ``.tmp``.

    After an error everything is as before, with one exception: if only the last step, the fsync of the directory,
    failed, the new content is in place but may not survive a crash.

    :raises FileExistsError: ``replace`` is false and the name is taken, even by a dangling symbolic link.
    :raises OSError: any other failure.
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
    """Rename if ``new`` is not taken. rename(2) would silently replace it, also in a race."""
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
    """Make the entries of an open directory durable, in whatever mode it was opened.

    :raises OSError: they may be lost.
    """
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(directory: Path) -> None:
    """Make the entries of ``directory`` durable.

    :raises OSError: they may be lost.
    """
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
