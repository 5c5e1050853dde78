"""Reading: data in the kernel's memory at once, data on a slow disk in a thread."""

from __future__ import annotations

from functools import partial
from typing import cast

from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.pace import Pace
from tdefs.data.workers import in_thread

# A thread's round trip is about 150 microseconds. Where the disk answers a small read sooner, waiting for
# it on the event loop is cheaper for all.
_QUICK_SECONDS = 0.0003
_SMALL_BYTES = 64 << 10
_SMOOTHING = 0.1

Plaintext = bytes | bytearray | memoryview


class Reader:
    """Reads the files of one mount."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        #: Of small reads from the disk.
        self._pace = Pace(_QUICK_SECONDS, _SMOOTHING)

    async def read(self, file: DataFile, offset: int, size: int) -> bytes:
        """Return *size* bytes of plaintext from *offset* on, fewer only at the end of the file.

        If the file changed during the read, it is read again, even after an error: the bytes, the length and the
        key may be of different states of the file, and the descriptor may be another one.

        :raises DamagedLength: the backing file ends before that.
        """
        lock = file.lock
        changes = lock.share()
        try:
            try:
                plaintext = self._read_at_once(file, offset, size)
            finally:
                lock.end_sharing()
            if plaintext is None:
                plaintext = await in_thread(partial(self._read_waiting, file, offset, size))
        except Exception:
            if lock.changes == changes:
                raise
        else:
            if lock.changes == changes:
                return cast(bytes, plaintext)
        return cast(bytes, self._read_again(file, offset, size))

    def _read_at_once(self, file: DataFile, offset: int, size: int) -> Plaintext | None:
        """Return the plaintext if there is no need to wait for long; ``None``: a thread must wait."""
        content = file.content
        ranges = content.ranges(offset, size)
        if not ranges:
            return b""
        stored: list[bytes | bytearray] = []
        for at, count in ranges:
            piece: bytes | bytearray | None = self._calls.pread_cached("read:cached", file.fd, count, at)
            if piece is None and count <= _SMALL_BYTES and self._pace.is_quick:
                piece = self._pread(file.fd, count, at)
            if piece is None:
                return None
            stored.append(piece)
        return content.decode(offset, size, stored)

    def _read_waiting(self, file: DataFile, offset: int, size: int) -> Plaintext:
        """Wait for the disk, and hold no lock: the result is right if the file did not change meanwhile."""
        content = file.content
        ranges = content.ranges(offset, size)
        stored = [self._pread(file.fd, count, at) for at, count in ranges]
        return content.decode(offset, size, stored) if stored else b""

    def _read_again(self, file: DataFile, offset: int, size: int) -> Plaintext:
        """Read while nothing else reads or changes the file."""
        file.lock.acquire()
        try:
            content = file.content
            ranges = content.ranges(offset, size)
            stored = [self._calls.pread("read:again", file.fd, count, at) for at, count in ranges]
            return content.decode(offset, size, stored) if stored else b""
        finally:
            file.lock.release()

    def _pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read from the disk, and measure a small read."""
        work = partial(self._calls.pread, "read", fd, size, offset)
        return self._pace.timed(work) if size <= _SMALL_BYTES else work()
