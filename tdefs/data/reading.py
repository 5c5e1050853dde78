"""Reading: at once what the kernel has in memory, beside the event loop what must be waited for."""

from __future__ import annotations

from functools import partial
from typing import cast

from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.pace import Pace
from tdefs.data.workers import in_thread
from tdefs.format.errors import DamagedLength

# A thread's round trip is about 150 microseconds. Where the disk answers a small read sooner, waiting for
# it on the event loop is cheaper for all.
_QUICK_SECONDS = 0.0003
_SMALL_BYTES = 64 << 10
_SMOOTHING = 0.1


class Reader:
    """Reads the files of one mount."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        #: Of small reads from the disk.
        self._pace = Pace(_QUICK_SECONDS, _SMOOTHING)

    async def read(self, file: DataFile, offset: int, size: int) -> bytes:
        """Return *size* bytes of plaintext from *offset* on, fewer only at the end of the file.

        :raises DamagedLength: the backing file ends before that.
        """
        content = file.content
        at, count = content.extent(offset, size)
        if count == 0:
            return b""
        stored: bytes | bytearray | None = self._calls.pread_cached("read:cached", file.fd, count, at)
        if stored is None and count <= _SMALL_BYTES and self._pace.is_quick:
            stored = self._pread(file.fd, count, at)
        if stored is not None:
            return cast(bytes, content.decode(offset, size, stored))
        changes = content.changes
        try:
            plaintext = await in_thread(lambda: content.decode(offset, size, self._pread(file.fd, count, at)))
        except DamagedLength:
            if content.changes == changes:
                raise
        else:
            if content.changes == changes:
                return cast(bytes, plaintext)
        # written to meanwhile, or encrypted: take a state that no write is halfway through
        content = file.content
        at, count = content.extent(offset, size)
        return cast(bytes, content.decode(offset, size, self._calls.pread("read:again", file.fd, count, at)))

    def _pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read from the disk, and learn how long a small read takes."""
        work = partial(self._calls.pread, "read", fd, size, offset)
        return self._pace.timed(work) if size <= _SMALL_BYTES else work()
