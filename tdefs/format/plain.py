"""A file that is stored as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tdefs.format.content import Store

# the magic number and the volume id, by which an encrypted file is recognised
_HEAD_SIZE = 32


class SizedStore(Store, Protocol):
    """A store that can be asked for its size."""

    def size(self) -> int:
        """Return the stored size in bytes."""


class PlainContent:
    """The content of a file that is stored as it is."""

    __slots__ = ("_check_head", "_store", "changes", "length")

    def __init__(self, store: SizedStore, size: int, check_head: Callable[[bytes], None]) -> None:
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
