"""What the kernel has open: files and directories, by the number of their handle."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from errno import EBADF

from tdefs.data.data_file import DataFile
from tdefs.policy.paths import Kind, classify
from tdefs.tree.inode import Inode


class FileHandle:
    """An open file, and how it was opened."""

    # no frozen dataclass: one is made for each file that a program opens, and that would take three times as long
    __slots__ = ("durable_writes", "file", "inode")

    def __init__(self, inode: Inode, file: DataFile, flags: int) -> None:
        self.inode = inode
        self.file = file
        #: Whether each write must be durable when it returns (O_DSYNC, which is a part of O_SYNC).
        self.durable_writes = bool(flags & os.O_DSYNC)


@dataclass(slots=True)
class DirectoryHandle:
    """An open directory: a descriptor to sync, and the names as they were when reading began."""

    inode: Inode
    fd: int
    names: list[bytes] = field(default_factory=list)


class Handles:
    """The handles of one mount. A number is used once."""

    def __init__(self) -> None:
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._last = 0

    @property
    def open_files(self) -> int:
        """How many handles of files there are."""
        return len(self._files)

    def file(self, number: int) -> FileHandle:
        """Return a handle of a file.

        :raises OSError: EBADF if no handle has that number.
        """
        try:
            return self._files[number]
        except KeyError:
            raise _no_handle() from None

    def directory(self, number: int) -> DirectoryHandle:
        """Return a handle of a directory.

        :raises OSError: EBADF if no handle has that number.
        """
        try:
            return self._directories[number]
        except KeyError:
            raise _no_handle() from None

    def open_file(self, inode: Inode, file: DataFile, flags: int) -> tuple[int, bool]:
        """Add a handle of a file; return its number, and whether the kernel may keep what it has cached.

        PostgreSQL opens WAL with O_DSYNC under wal_sync_method = open_datasync. Past the kernel's cache such a
        commit is one request, through it two. All handles that are open at a time are alike, and the first handle
        after direct ones empties the cache, so no program ever reads old data.
        """
        handle = FileHandle(inode, file, flags)
        keep_cache = True
        if inode.handles == 0:
            file.direct = handle.durable_writes and classify(os.fsdecode(inode.path())).kind is Kind.WAL
            keep_cache = not inode.bypassed
            inode.bypassed = file.direct
        inode.opened()
        self._last += 1
        self._files[self._last] = handle
        return self._last, keep_cache

    def close_file(self, number: int) -> Inode:
        """Take a handle of a file away; return its inode.

        :raises OSError: EBADF if no handle has that number.
        """
        handle = self._files.pop(number, None)
        if handle is None:
            raise _no_handle()
        inode = handle.inode
        inode.closed()
        return inode

    def open_directory(self, inode: Inode, fd: int) -> int:
        """Add a handle of a directory that is open as *fd*; return its number."""
        inode.opened()
        self._last += 1
        self._directories[self._last] = DirectoryHandle(inode, fd)
        return self._last

    def close_directory(self, number: int) -> int:
        """Take a handle of a directory away; return its descriptor, which the caller closes.

        :raises OSError: EBADF if no handle has that number.
        """
        handle = self.directory(number)
        del self._directories[number]
        handle.inode.closed()
        return handle.fd

    def numbers_of_files(self) -> list[int]:
        """Return the numbers of all handles of files."""
        return list(self._files)

    def numbers_of_directories(self) -> list[int]:
        """Return the numbers of all handles of directories."""
        return list(self._directories)


def _no_handle() -> OSError:
    return OSError(EBADF, os.strerror(EBADF))
