"""The files in a volume's data directory now, in the form of the manifest: names, kinds and lengths."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import ELOOP

from tdefs.data.calls import SystemCalls
from tdefs.data.zeros import StoredDoubts
from tdefs.format.header import RECORD_SIZE, resembles_header
from tdefs.format.layout import HEADER_SIZE
from tdefs.manifest.record import NO_TAG, PLAIN_TAG, Listing, NodeKind, digest
from tdefs.volume.description import Volume
from tdefs.way import follow

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# PostgreSQL's trees have five levels, and other trees some more. Somebody may plant thousands of levels, and the
# mount must not be busy with these.
_MOST_LEVELS = 64
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: Returns the tag of a file, given its name and its length.
Tag = Callable[[bytes, int], bytes]
#: Returns a function for the tags of the files in a directory, given its descriptor and its path.
Tags = Callable[[int, bytes], Tag]


@dataclass(slots=True)
class Tree:
    """The files; ``several`` has the paths of files with more than one name, by device and inode number."""

    directories: dict[bytes, Listing] = field(default_factory=dict)
    unread: set[bytes] = field(default_factory=set)
    several: dict[tuple[int, int], list[bytes]] = field(default_factory=dict)


def _no_tag(_name: bytes, _length: int) -> bytes:
    return NO_TAG


def _no_tags(_fd: int, _path: bytes) -> Tag:
    return _no_tag


def look_through(root: int, tags: Tags = _no_tags) -> Tree:
    """Return the files below the open directory *root*; links are not followed.

    Directories that cannot be read, or are nested too deeply, are in ``unread``. Files that vanish meanwhile are
    left out.

    :param tags: is called for each directory; the function that it returns, for each regular file in it.
    """
    found = Tree()
    pending = [b""]
    while pending:
        path = pending.pop()
        if path.count(b"/") >= _MOST_LEVELS:
            found.unread.add(path)
            continue
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
    rows: list[tuple[bytes, int, int, bytes]] = []
    below: list[bytes] = []
    tag = tags(fd, path)
    with os.scandir(fd) as names:
        # in the order in which they lie on the disk, which is much faster where nothing is in memory
        entries = sorted(names, key=os.DirEntry.inode)
    for one in entries:
        name = os.fsencode(one.name)
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            mode = status.st_mode
            if stat.S_ISREG(mode):
                rows.append((name, NodeKind.FILE, status.st_size, tag(name, status.st_size)))
            elif stat.S_ISDIR(mode):
                rows.append((name, NodeKind.DIRECTORY, 0, NO_TAG))
                below.append(name)
            elif stat.S_ISLNK(mode):
                text = os.readlink(name, dir_fd=fd)
                rows.append((name, NodeKind.LINK, len(text), digest(text)))
            else:
                rows.append((name, NodeKind.SPECIAL, status.st_rdev, NO_TAG))
        except FileNotFoundError:
            continue
        if status.st_nlink > 1 and not stat.S_ISDIR(mode):
            found.several.setdefault((status.st_dev, status.st_ino), []).append(join(path, name))
    found.directories[path] = Listing.of(rows)
    return sorted(below)


def tag_in(fd: int, name: bytes, length: int, volume_id: bytes) -> bytes:
    """Return the tag of the regular file *name*, of *length* stored bytes, in the open directory *fd*.

    A file without content gets another file id when it is next written to, so its header is not bound.
    """
    if length == 0:
        return NO_TAG
    with suppress(OSError):
        file = os.open(name, _FILE_FLAGS, dir_fd=fd)
        try:
            head = os.pread(file, RECORD_SIZE, 0)
            if resembles_header(head, volume_id):
                return digest(head) if length > HEADER_SIZE else NO_TAG
            return PLAIN_TAG if any(head) or _is_marked(file, length) else NO_TAG
        finally:
            os.close(file)
    return NO_TAG


def _is_marked(file: int, length: int) -> bool:
    return StoredDoubts(SystemCalls(), file, length, lambda: False).is_marked_plain()


def fits(tag: bytes, head: bytes, volume_id: bytes) -> bool:
    """Return whether the file that has the *tag* in the manifest can be one that starts with *head*."""
    if tag == PLAIN_TAG:
        return not resembles_header(head, volume_id)
    return tag in (NO_TAG, digest(head[:RECORD_SIZE]))


def open_root(volume: Volume) -> int:
    """Open the data directory of a volume; a link in its place, or in that of BACKING, is not followed.

    :raises OSError: it cannot be opened.
    """
    with follow(volume.backing, last_link=False) as way:
        if way.path != volume.backing:  # which had no links when it was read
            raise OSError(ELOOP, os.strerror(ELOOP), str(volume.backing))
        return os.open(volume.data.name, _DIRECTORY_FLAGS, dir_fd=way.fd)


def open_directory(root: int, path: bytes) -> int:
    """Open the directory at *path* below *root*, one component at a time, so that no link leads elsewhere.

    :raises OSError: it cannot be opened.
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
