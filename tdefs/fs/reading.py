"""Reading: at once what the kernel has in memory, beside the event loop what must be waited for."""

from __future__ import annotations

from typing import cast

from tdefs.format.errors import DamagedLength
from tdefs.fs.calls import SystemCalls
from tdefs.fs.files import OpenFile
from tdefs.fs.loop import in_thread


class Reader:
    """Reads the files of one mount."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls

    async def read(self, file: OpenFile, offset: int, size: int) -> bytes:
        """Return *size* bytes of plaintext from *offset* on, fewer only at the end of the file.

        :raises DamagedLength: the backing file ends before that.
        """
        content = file.content
        at, count = content.extent(offset, size)
        if count == 0:
            return b""
        stored = self._calls.pread_cached("read:cached", file.fd, count, at)
        if stored is not None:
            return cast(bytes, content.decode(offset, size, stored))
        changes = content.changes
        try:
            plaintext = await in_thread(
                lambda: content.decode(offset, size, self._calls.pread("read", file.fd, count, at))
            )
        except DamagedLength:
            if content.changes == changes:
                raise
        else:
            if content.changes == changes:
                return cast(bytes, plaintext)
        # written to meanwhile: take a state that no write is halfway through
        at, count = content.extent(offset, size)
        return cast(bytes, content.decode(offset, size, self._calls.pread("read:again", file.fd, count, at)))
