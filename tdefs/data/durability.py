"""Making data, headers and directory entries durable, on the event loop or in a thread.

A thread costs more than a quick fsync. A slow fsync on the event loop holds up every other request. So the time of
recent ones decides where the next one runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import trio

from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.losses import Event, Losses
from tdefs.data.pace import Pace
from tdefs.data.workers import in_thread
from tdefs.errors import errno_of

# A thread's round trip is about 150 microseconds; above this a sync is worth one.
_QUICK_SECONDS = 0.0005
# So much unsynced data makes a sync slow on any device.
_MUCH_DATA = 1 << 20
_SMOOTHING = 0.2


class NamesToSync(Protocol):
    """The names in one directory, as the tree knows them."""

    losses: Losses

    def last_unsynced(self) -> int | None:
        """Return a number for the last name that came into the directory and may not be on the disk."""

    def synced(self, last: int | None) -> None:
        """Note that the directory was synced when *last* was its last name: a later one may have missed it."""

    def lost(self, errno: int) -> None:
        """Note that a sync of the directory failed with *errno*, which the program that asked for it gets."""


class Durability:
    """Syncs files and directories of one mount."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        self._pace = Pace(_QUICK_SECONDS, _SMOOTHING)

    async def sync(self, file: DataFile, *, datasync: bool, of_write: bool = False) -> None:
        """Make the file's content durable, and the directory entries that lead to it.

        :param of_write: whether the error will be that of a write, not of a sync that a program asked for.
        :raises OSError: something may be lost; every later sync fails, too, until all have closed the file.
        """
        kind = Event.SYNC_OF_WRITE if of_write else Event.SYNC_OF_KERNEL
        while file.syncing is not None:
            await file.syncing.wait()
        file.losses.report(kind)
        much = file.lock.take_unsynced() > _MUCH_DATA
        work = partial(self._sync_file, file.fd, datasync)
        try:
            if much:
                await self._beside(file, work)
            elif self._pace.is_quick:
                self._pace.timed(work)
            else:
                await self._beside(file, partial(self._pace.timed, work))
            # a sync that failed meanwhile may have got the error of what this one was to write
            file.losses.report(kind)
            if not file.names_durable:
                file.sync_names()
        except Exception as error:
            is_write_back = of_write and not file.direct
            file.losses.failed(
                errno_of(error), Event.FAILED_WRITE_BACK if is_write_back else Event.FAILED_ANSWERED
            )
            raise

    async def sync_directory(self, names: NamesToSync, fd: int) -> None:
        """Make the entries of an open directory durable.

        :raises OSError: names may be lost; every later sync fails, too, until all have closed the directory.
        """
        names.losses.report(Event.SYNC_OF_WRITE)
        last = names.last_unsynced()
        work = partial(self._calls.fsync, "fsyncdir", fd)
        try:
            if self._pace.is_quick:
                work()
            else:
                await in_thread(work)
        except Exception as error:
            names.lost(errno_of(error))
            raise
        names.losses.report(Event.SYNC_OF_WRITE)
        names.synced(last)

    async def _beside(self, file: DataFile, work: Callable[[], None]) -> None:
        """Sync *file* in a thread, while no other sync of it runs: the kernel reports an error to one only."""
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
