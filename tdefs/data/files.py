"""Open files: the content of one inode over one descriptor of its backing file, shared by all its handles."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from tdefs.data.calls import SystemCalls
from tdefs.tree.inodes import Inode

# what tells an encrypted file: the magic and the volume id
_HEAD_SIZE = 32


class Content(Protocol):
    """What a file holds, as plaintext bytes; offsets and sizes in bytes. Errors are ``OSError``."""

    length: int
    changes: int

    def extent(self, offset: int, size: int) -> tuple[int, int]:
        """Return stored offset and size of what a read needs."""

    def decode(self, offset: int, size: int, stored: bytes | bytearray) -> bytes | bytearray | memoryview:
        """Return the plaintext of a read from the *stored* bytes of its extent."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data*."""

    def truncate(self, length: int) -> None:
        """Set the length."""


class BackingStore:
    """An open backing file, as the format's core wants to see it."""

    __slots__ = ("_calls", "_fd")

    def __init__(self, calls: SystemCalls, fd: int) -> None:
        self._calls = calls
        self._fd = fd

    def size(self) -> int:
        """Return the stored size."""
        return self._calls.fstat("file:size", self._fd).st_size

    def pread(self, size: int, offset: int) -> bytes:
        """Return *size* bytes, fewer only at the end of the file."""
        return self._calls.pread("file:read", self._fd, size, offset)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of *data*, or raise."""
        self._calls.pwrite("file:write", self._fd, data, offset)

    def truncate(self, size: int) -> None:
        """Set the stored size."""
        self._calls.ftruncate("file:truncate", self._fd, size)


class PlainContent:
    """A file that is stored as it is."""

    __slots__ = ("_check_head", "_store", "changes", "length")

    def __init__(self, store: BackingStore, size: int, check_head: Callable[[bytes], None]) -> None:
        """:param check_head: raises for first bytes that no plain file may have."""
        self._store = store
        self._check_head = check_head
        self.length = size
        self.changes = 0

    def extent(self, offset: int, size: int) -> tuple[int, int]:
        """Return the read itself, cut at the end of the file."""
        return offset, max(0, min(size, self.length - offset))

    def decode(self, offset: int, size: int, stored: bytes | bytearray) -> bytes | bytearray:
        """Return *stored*."""
        return stored

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data*."""
        self.changes += 1
        if offset < _HEAD_SIZE:
            head = self._store.pread(_HEAD_SIZE, 0).ljust(offset, b"\0")
            self._check_head(head[:offset] + data[:_HEAD_SIZE] + head[offset + len(data) :])
        try:
            self._store.pwrite(data, offset)
            self.length = max(self.length, offset + len(data))
        except OSError:
            self.length = self._store.size()
            raise

    def truncate(self, length: int) -> None:
        """Set the length."""
        self.changes += 1
        self._store.truncate(length)
        self.length = length


class OpenFile:
    """An inode's backing descriptor, and what is read and written through it."""

    __slots__ = ("content", "direct", "fd", "handles", "inode", "status", "syncing", "unsynced", "writable")

    def __init__(self, inode: Inode, fd: int, content: Content, status: os.stat_result, *, writable: bool) -> None:
        #: The attributes as they were when somebody last asked for them.
        self.status = status
        self.inode = inode
        self.fd = fd
        self.content = content
        self.writable = writable
        self.handles = 0
        #: Whether the kernel's cache is bypassed: the same for all handles that are open at a time.
        self.direct = False
        #: Set while a sync runs beside the event loop: only one at a time is told of an error by the kernel below.
        self.syncing: trio.Event | None = None
        #: Bytes written since the last sync.
        self.unsynced = 0


@dataclass(frozen=True, slots=True)
class Handle:
    """What the kernel calls a file handle: an open file, and how it was opened."""

    file: OpenFile
    flags: int

    @property
    def durable_writes(self) -> bool:
        """Tell whether each write must be durable when it returns (O_DSYNC, of which O_SYNC is a superset)."""
        return bool(self.flags & os.O_DSYNC)
