"""Making things durable: data, headers and directory entries, on the event loop or beside it.

A worker thread costs more than a quick fsync, and a slow fsync on the event loop holds up every other request, so
each one goes where recent ones say it is cheaper.
"""

from __future__ import annotations

import errno
import os
import time

from tdefs.fs.calls import SystemCalls
from tdefs.fs.files import OpenFile
from tdefs.fs.inodes import Inode, InodeTable
from tdefs.fs.loop import in_thread

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
        self._typical_seconds = _QUICK_SECONDS

    async def sync(self, file: OpenFile, *, datasync: bool) -> None:
        """Make the file's content durable, and the directory entries that lead to it.

        :raises OSError: something may be lost; every later sync fails, too, until the file was closed by all.
        """
        if file.loss is not None:
            raise OSError(file.loss, os.strerror(file.loss))
        much = file.unsynced > _MUCH_DATA
        file.unsynced = 0
        try:
            if much:
                await in_thread(lambda: self._sync_file(file.fd, datasync))
            elif self._typical_seconds > _QUICK_SECONDS:
                self._learn(await in_thread(lambda: self._sync_file(file.fd, datasync)))
            else:
                self._learn(self._sync_file(file.fd, datasync))
            for directory in self._inodes.unsynced_above(file.inode):
                self._sync_names(directory)
        except OSError as error:
            file.loss = error.errno or errno.EIO
            raise

    async def sync_directory(self, directory: Inode, fd: int) -> None:
        """Make the entries of an open directory durable."""
        last = self._inodes.last_unsynced_name(directory)
        if self._typical_seconds > _QUICK_SECONDS:
            await in_thread(lambda: self._calls.fsync("fsyncdir", fd))
        else:
            self._calls.fsync("fsyncdir", fd)
        self._inodes.names_synced(directory, last)

    def _sync_file(self, fd: int, datasync: bool) -> float:
        """Sync and return how long that took, in seconds."""
        start = time.perf_counter()
        if datasync:
            self._calls.fdatasync("fsync:data", fd)
        else:
            self._calls.fsync("fsync", fd)
        return time.perf_counter() - start

    def _learn(self, seconds: float) -> None:
        self._typical_seconds += _SMOOTHING * (seconds - self._typical_seconds)

    def _sync_names(self, directory: Inode) -> None:
        """Make the names in a directory durable: all of them, so that the next new file in it needs no sync."""
        last = self._inodes.last_unsynced_name(directory)
        above = self._inodes.directory_fd(directory)
        fd = self._calls.open("fsync:directory", b".", os.O_RDONLY | os.O_DIRECTORY, 0, above)
        try:
            self._calls.fsync("fsync:entry", fd)
        finally:
            self._calls.close("fsync:directory", fd)
        self._inodes.names_synced(directory, last)
