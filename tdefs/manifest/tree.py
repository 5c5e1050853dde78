"""What lies in a volume's data directory now, in the manifest's own form: by names, kinds and lengths, quickly."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tdefs.format.header import RECORD_SIZE, resembles_header
from tdefs.format.layout import HEADER_SIZE
from tdefs.manifest.record import NO_TAG, Entry, Listing, NodeKind, digest

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: Returns the tag of a file, given the descriptor of its directory, that directory's path, its name, its length.
Tags = Callable[[int, bytes, bytes, int], bytes]


@dataclass(slots=True)
class Tree:
    """What was seen; ``several`` has by device and inode number the paths of files with more than one name."""

    directories: dict[bytes, Listing] = field(default_factory=dict)
    unread: set[bytes] = field(default_factory=set)
    several: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)


def _no_tag(_directory: int, _path: bytes, _name: bytes, _length: int) -> bytes:
    return NO_TAG


def look_through(root: int, tags: Tags = _no_tag) -> Tree:
    """Return what lies below the open directory *root*, following no link.

    A directory that cannot be read is in ``unread``; what vanishes meanwhile is left out.

    :param tags: asked for each regular file.
    """
    found = Tree()
    pending = [b""]
    while pending:
        path = pending.pop()
        try:
            fd = open_directory(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            found.unread.add(path)
            continue
        try:
            below = _look_at(fd, path, tags, found)
        except OSError:
            found.unread.add(path)
            below = []
        finally:
            os.close(fd)
        pending += [join(path, name) for name in reversed(below)]
    return found


def _look_at(fd: int, path: bytes, tags: Tags, found: Tree) -> list[bytes]:
    """Add the listing of one directory; return the names of those in it."""
    entries: dict[bytes, Entry] = {}
    below: list[bytes] = []
    with os.scandir(fd) as names:
        for one in names:
            name = os.fsencode(one.name)
            try:
                status = one.stat(follow_symlinks=False)
                entries[name] = _entry(fd, path, name, status, tags)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(status.st_mode):
                below.append(name)
            elif status.st_nlink > 1:
                found.several.setdefault((status.st_dev, status.st_ino), []).append(join(path, name))
    found.directories[path] = Listing.of(entries)
    return sorted(below)


def _entry(fd: int, path: bytes, name: bytes, status: os.stat_result, tags: Tags) -> Entry:
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return Entry(NodeKind.FILE, status.st_size, tags(fd, path, name, status.st_size))
    if stat.S_ISDIR(mode):
        return Entry(NodeKind.DIRECTORY, 0)
    if stat.S_ISLNK(mode):
        text = os.readlink(name, dir_fd=fd)
        return Entry(NodeKind.LINK, len(text), digest(text))
    return Entry(NodeKind.SPECIAL, status.st_rdev)


def tag_in(fd: int, name: bytes, length: int, volume_id: bytes) -> bytes:
    """Return the tag of the regular file *name*, of *length* stored bytes, in the open directory *fd*.

    A file without content gets another file id when it is next written to, so its header is not bound.
    """
    if length <= HEADER_SIZE:
        return NO_TAG
    with suppress(OSError):
        file = os.open(name, _FILE_FLAGS, dir_fd=fd)
        try:
            return tag_of(os.pread(file, RECORD_SIZE, 0), length, volume_id)
        finally:
            os.close(file)
    return NO_TAG


def tag_of(head: bytes, length: int, volume_id: bytes) -> bytes:
    """Return the tag of a file of *length* stored bytes that starts with *head*."""
    if length <= HEADER_SIZE or not resembles_header(head, volume_id):
        return NO_TAG
    return digest(head[:RECORD_SIZE])


def open_directory(root: int, path: bytes) -> int:
    """Open the directory at *path* below *root*, one component at a time, so that no link leads elsewhere.

    Raises OSError.
    """
    fd = os.open(b".", _DIRECTORY_FLAGS, dir_fd=root)
    for part in filter(None, path.split(b"/")):
        try:
            inner = os.open(part, _DIRECTORY_FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def join(directory: bytes, name: bytes) -> bytes:
    """Return the path of *name* in *directory*."""
    return directory + b"/" + name if directory else name
