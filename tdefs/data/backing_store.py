"""A backing file as the format sees it: something with pread, pwrite and truncate."""

from __future__ import annotations

from tdefs.data.calls import SystemCalls


class BackingStore:
    """An open backing file. Offsets and sizes are stored ones, in bytes; errors are ``OSError``."""

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
