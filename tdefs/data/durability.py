"""Making things durable: data, headers and directory entries, on the event loop or beside it.

A worker thread costs more than a quick fsync, and a slow fsync on the event loop holds up every other request, so
each one goes where recent ones say it is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from tdefs.data.calls import SystemCalls
from tdefs.data.files import OpenFile
from tdefs.data.losses import Loss
from tdefs.data.pace import Pace
from tdefs.errors import errno_of
from tdefs.fuse.loop import in_thread
from tdefs.tree.inodes import Inode, InodeTable

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

    async def sync(self, file: OpenFile, *, datasync: bool, of_write: bool = False) -> None:
        """Make the file's content durable, and the directory entries that lead to it.

        :param of_write: whether the error will be that of a write, not of a sync that somebody asked for.
        :raises OSError: something may be lost; every later sync fails, too, until the file was closed by all.
        """
        inode = file.inode
        while file.syncing is not None:
            await file.syncing.wait()
        if inode.loss is not None:
            inode.loss.tell(kernel_asks=not of_write)
        much = file.unsynced > _MUCH_DATA
        file.unsynced = 0
        work = partial(self._sync_file, file.fd, datasync)
        try:
            if much:
                await self._beside(file, work)
            elif self._pace.is_quick:
                self._pace.timed(work)
            else:
                await self._beside(file, partial(self._pace.timed, work))
            if inode.loss is not None:
                # what failed meanwhile may have been told of what this sync was to write
                inode.loss.tell(kernel_asks=not of_write)
            for directory in self._inodes.unsynced_above(inode):
                self._inodes.sync_names(directory, "fsync:directory", "fsync:entry", told=True)
        except Exception as error:
            of_write_back = of_write and not file.direct
            inode.lost(Loss(errno_of(error), told=not of_write_back, kernel_tells=of_write_back))
            raise

    async def sync_directory(self, directory: Inode, fd: int) -> None:
        """Make the entries of an open directory durable.

        :raises OSError: names may be lost; every later sync fails, too, until the directory was closed by all.
        """
        if directory.loss is not None:
            directory.loss.tell(kernel_asks=False)
        last = self._inodes.last_unsynced_name(directory)
        work = partial(self._calls.fsync, "fsyncdir", fd)
        try:
            if self._pace.is_quick:
                work()
            else:
                await in_thread(work)
        except Exception as error:
            self._inodes.names_lost(directory, errno_of(error), told=True)
            raise
        if directory.loss is not None:
            directory.loss.tell(kernel_asks=False)
        self._inodes.names_synced(directory, last)

    async def _beside(self, file: OpenFile, work: Callable[[], None]) -> None:
        """Sync *file* in a thread, while no other sync of it runs: the error of both would be told to one."""
        file.syncing = trio.Event()
        try:
            await in_thread(work)
        finally:
            file.syncing.set()
            file.syncing = None

    def _sync_file(self, fd: int, datasync: bool) -> None:
        if datasync:
            self._calls.fdatasync("fsync:data", fd)
        else:
            self._calls.fsync("fsync", fd)
