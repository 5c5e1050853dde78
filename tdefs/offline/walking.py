"""The files of a volume without a mount: which there are, and opening one. Nothing is ever written.

Paths are relative to the volume's data directory, as they are relative to its mount point. Bytes that are not
UTF-8 are surrogates, as os.fsdecode() makes them. Symbolic links are never followed: a tablespace behind one is
another volume.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR, ELOOP, ENOENT

from tdefs.format.header import RECORD_SIZE
from tdefs.format.layout import HEADER_SIZE
from tdefs.volume.description import Volume

#: Directories nested more deeply are not read: each costs as many steps as there are directories above it.
MOST_LEVELS = 1000


def walk(
    volume: Volume, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and attributes of every regular file, sorted within each directory; see :func:`walk_all`."""
    for path, status in walk_all(volume, on_error):
        if stat.S_ISREG(status.st_mode):
            yield path, status


def walk_all(
    volume: Volume, on_error: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and attributes of everything that is no directory, sorted within each directory.

    What vanishes meanwhile is skipped.

    :param on_error: called for a directory that cannot be read; without it the error is raised.
    """
    pending = [""]
    while pending:
        directory = pending.pop()
        try:
            entries = _entries(volume, directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            error.filename = os.fspath(volume.data / directory)
            if on_error is None:
                raise
            on_error(error)
            continue
        below = []
        for name, status in entries:
            path = f"{directory}/{name}" if directory else name
            if stat.S_ISDIR(status.st_mode):
                below.append(path)
            else:
                yield path, status
        pending += reversed(below)


def _entries(volume: Volume, directory: str) -> list[tuple[str, os.stat_result]]:
    """Return names and attributes of the entries of a directory, sorted, without those that vanish meanwhile."""
    if directory.count("/") >= MOST_LEVELS:
        raise OSError(ELOOP, "it is nested too deeply")
    found = []
    fd = open_directory(volume, [part for part in directory.split("/") if part], os.O_RDONLY)
    try:
        for name in sorted(os.listdir(fd)):
            with suppress(FileNotFoundError):
                found.append((name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
    finally:
        os.close(fd)
    return found


def open_directory(volume: Volume, parts: list[str], access: int) -> int:
    """Open a directory below the volume's data directory, one component of *parts* after the other.

    So no symbolic link can lead out of the volume, and a path may be longer than PATH_MAX, as in a mount.
    """
    parts = [volume.data.name, *parts]
    fd = os.open(volume.backing, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    for number, part in enumerate(parts, 1):
        flags = (os.O_PATH if number < len(parts) else access) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            inner = os.open(part, flags, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def first_bytes(fd: int) -> bytes:
    """Return the bytes that decide the form of a file: its header record, or the header page if that is zero."""
    page = os.pread(fd, RECORD_SIZE, 0)
    return page if any(page) else os.pread(fd, HEADER_SIZE, 0)


@contextmanager
def open_without_links(volume: Volume, path: str, access: int = os.O_RDONLY) -> Iterator[int]:
    """Open a regular file during a ``with`` block.

    One component is opened at a time, so that no symbolic link leads out of the volume.

    :raises OSError: ENOENT for ``..``, ELOOP or ENOTDIR for a symbolic link, EISDIR for
        what is neither a regular file nor a link.
    """
    *directories, name = path.split("/")
    parts = [*directories, name]
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise FileNotFoundError(ENOENT, os.strerror(ENOENT), path)
    fd = open_directory(volume, directories, os.O_PATH)
    try:
        # nonblocking, so that this does not wait for a FIFO in the file's place
        flags = access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(name, flags, dir_fd=fd)
    finally:
        os.close(fd)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR), path)
        yield file
    finally:
        os.close(file)
