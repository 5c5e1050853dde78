"""Making things durable: data, headers and directory entries, on the event loop or beside it.

A worker thread costs more than a quick fsync, and a slow fsync on the event loop holds up every other request, so
each one goes where recent ones say it is cheaper.
"""

from __future__ import annotations

import errno
import os
from functools import partial

from tdefs.fs.calls import SystemCalls
from tdefs.fs.files import OpenFile
from tdefs.fs.inodes import Inode, InodeTable
from tdefs.fs.loop import in_thread
from tdefs.fs.pace import Pace

# A thread's round trip is about 150 microseconds; above this a sync is worth one.
_QUICK_SECONDS = 0.0005
# So much unsynced data makes a sync slow on any device.
_MUCH_DATA = 1 << 20
_SMOOTHING = 0.2


class Durability:
    """Syncs files and directories of one mount."""

    def __init__(self, calls: SystemCalls, inodes: InodeTable) -> None:
        self._calls = calls
        self._inodes = inodes
        self._pace = Pace(_QUICK_SECONDS, _SMOOTHING)

    async def sync(self, file: OpenFile, *, datasync: bool) -> None:
        """Make the file's content durable, and the directory entries that lead to it.

        :raises OSError: something may be lost; every later sync fails, too, until the file was closed by all.
        """
        if file.loss is not None:
            raise OSError(file.loss, os.strerror(file.loss))
        much = file.unsynced > _MUCH_DATA
        file.unsynced = 0
        work = partial(self._sync_file, file.fd, datasync)
        try:
            if much:
                await in_thread(work)
            elif self._pace.is_quick:
                self._pace.timed(work)
            else:
                await in_thread(partial(self._pace.timed, work))
            for directory in self._inodes.unsynced_above(file.inode):
                self._inodes.sync_names(directory, "fsync:directory", "fsync:entry")
        except OSError as error:
            file.loss = error.errno or errno.EIO
            raise

    async def sync_directory(self, directory: Inode, fd: int) -> None:
        """Make the entries of an open directory durable."""
        last = self._inodes.last_unsynced_name(directory)
        work = partial(self._calls.fsync, "fsyncdir", fd)
        if self._pace.is_quick:
            work()
        else:
            await in_thread(work)
        self._inodes.names_synced(directory, last)

    def _sync_file(self, fd: int, datasync: bool) -> None:
        if datasync:
            self._calls.fdatasync("fsync:data", fd)
        else:
            self._calls.fsync("fsync", fd)
