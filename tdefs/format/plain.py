"""A file that is stored as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from tdefs.format.content import FileState, Range, Store

# the magic number and the volume id, by which an encrypted file is recognised
_HEAD_SIZE = 32


class SizedStore(Store, Protocol):
    """A store that can be asked for its size."""

    def size(self) -> int:
        """Return the stored size in bytes."""


class PlainContent:
    """The content of a file that is stored as it is."""

    __slots__ = ("_check_head", "_store", "state")

    def __init__(self, store: SizedStore, state: FileState, check_head: Callable[[bytes], None]) -> None:
        """:param check_head: raises for first bytes that no plain file may have."""
        self._store = store
        self.state = state
        self._check_head = check_head

    def ranges(self, offset: int, size: int) -> Sequence[Range]:
        """Return the read itself, cut at the end of the file."""
        count = min(size, self.state.length - offset)
        return ((offset, count),) if count > 0 else ()

    def decode(self, offset: int, size: int, stored: Sequence[bytes | bytearray]) -> bytes | bytearray:
        """Return what is stored."""
        return stored[0]

    def is_inside(self, offset: int, size: int) -> bool:
        """Return whether a write lies behind the first bytes, and does not make the file longer."""
        return offset >= _HEAD_SIZE and offset + size <= self.state.length

    def write(self, offset: int, data: bytes) -> None:
        """Write all of *data*."""
        if offset < _HEAD_SIZE:
            head = self._store.pread(_HEAD_SIZE, 0).ljust(offset, b"\0")
            self._check_head(head[:offset] + data[:_HEAD_SIZE] + head[offset + len(data) :])
        end = offset + len(data)
        try:
            self._store.pwrite(data, offset)
        except OSError:
            if end > self.state.length:
                self.state.length = self._store.size()
            raise
        if end > self.state.length:
            self.state.length = end

    def truncate(self, length: int) -> None:
        """Set the length."""
        self._store.truncate(length)
        self.state.length = length
