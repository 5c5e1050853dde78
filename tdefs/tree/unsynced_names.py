"""Names that may not be on the disk yet: which directories have them, and making them durable.

Each open file has a flag for this (``DataFile.names_durable``). It is set here when a name above the file is added
or synced. So a sync of a file whose names are durable needs no search.
"""

from __future__ import annotations

import os

from tdefs.data.calls import SystemCalls
from tdefs.data.descriptors import Descriptors
from tdefs.data.losses import Event, Losses
from tdefs.errors import errno_of
from tdefs.tree.directory_descriptors import DirectoryDescriptors
from tdefs.tree.inode import Backing, Inode
from tdefs.tree.inodes import InodeTable


class NamesIn:
    """The names in one directory, for a sync of it that a program asked for."""

    def __init__(self, unsynced: UnsyncedNames, directory: Inode) -> None:
        self._unsynced = unsynced
        self._directory = directory
        self.losses: Losses = directory.losses

    def last_unsynced(self) -> int | None:
        """Return a number for the last name that came, and may not be on the disk."""
        return self._unsynced.last_in(self._directory)

    def synced(self, last: int | None) -> None:
        """Note that the directory was synced when *last* was its last name."""
        self._unsynced.synced(self._directory, last)

    def lost(self, errno: int) -> None:
        """Note that the sync failed with *errno*, which the program that asked for it gets."""
        self._unsynced.lost(self._directory, errno, answered=True)


class UnsyncedNames:
    """The names of one mount that may not be on the disk yet."""

    def __init__(
        self,
        calls: SystemCalls,
        descriptors: Descriptors,
        directories: DirectoryDescriptors,
        inodes: InodeTable,
    ) -> None:
        self._calls = calls
        self._descriptors = descriptors
        self._directories = directories
        self._inodes = inodes
        # The number of the last name that came, for each directory with such names. By backing, since the kernel
        # may forget the inode before the names are durable.
        self._last: dict[Backing, int] = {}
        self._added = 0

    # --- which names these are

    def added(self, parent: Inode, inode: Inode) -> None:
        """Note that *inode* got a name in *parent*: a sync of it must make the name durable, too."""
        self._added += 1
        self._last[parent.backing] = self._added
        if inode.open_file is not None:
            inode.open_file.names_durable = False

    def moved(self, parent: Inode, inode: Inode) -> None:
        """Note that *inode* was renamed into *parent*. With a directory come all files below it."""
        self.added(parent, inode)
        if inode.is_directory:
            for below in self._inodes:
                if below.open_file is not None and parent in self.above(below):
                    below.open_file.names_durable = False

    def directory_removed(self, directory: Inode) -> None:
        """Note that *directory* is gone: another one may get its inode number."""
        self._last.pop(directory.backing, None)

    def last_in(self, directory: Inode) -> int | None:
        """Return a number for the last name that came into *directory* and may not be on the disk."""
        return self._last.get(directory.backing)

    def names_in(self, directory: Inode) -> NamesIn:
        """Return what a sync of *directory* needs to know of the names in it."""
        return NamesIn(self, directory)

    def above(self, inode: Inode) -> list[Inode]:
        """Return the directories above *inode* with names that may not be on the disk, the nearest first."""
        found: list[Inode] = []
        waiting = [parent for parent, _ in inode.names]
        while waiting and self._last:
            directory = waiting.pop(0)
            # if the kernel forgot it, it may lie elsewhere by now, and is another inode
            directory = self._inodes.with_backing(directory.backing) or directory
            if directory.backing in self._last and directory not in found:
                found.append(directory)
            if directory is not self._inodes.root:
                waiting += [parent for parent, _ in directory.names]
        return found

    def is_entry_durable(self, inode: Inode) -> bool:
        """Return whether the names of *inode* itself are known to be on the disk."""
        return all(parent.backing not in self._last for parent, _ in inode.names)

    # --- making them durable

    def sync_above(self, inode: Inode) -> None:
        """Make the names durable that lead to *inode*, which is open, and note that they are.

        :raises OSError: a name may be lost.
        """
        for directory in self.above(inode):
            self.sync_names_in(directory, "fsync:directory", "fsync:entry", answered=True)
        if inode.open_file is not None:
            inode.open_file.names_durable = True

    def sync_names_in(self, directory: Inode, open_label: str, sync_label: str, *, answered: bool) -> None:
        """Make the names in *directory* durable: all of them, so that the next new file in it needs no sync.

        :param answered: whether an error is the answer to a sync that a program asked for.
        :raises OSError: a name may be lost.
        """
        if answered:
            directory.losses.report(Event.SYNC_OF_WRITE)
        last = self.last_in(directory)
        above = self._directories.fd(directory)
        fd = self._descriptors.open_at(open_label, b".", os.O_RDONLY | os.O_DIRECTORY, 0, above)
        try:
            self._calls.fsync(sync_label, fd)
        except OSError as error:
            self.lost(directory, errno_of(error), answered=answered)
            raise
        finally:
            self._descriptors.let_go(open_label, fd)
        self.synced(directory, last)

    def synced(self, directory: Inode, last: int | None) -> None:
        """Note that *directory* was synced when *last* was its last name: a later one may have missed it."""
        if self._last.get(directory.backing) == last:
            self._last.pop(directory.backing, None)

    def lost(self, directory: Inode, errno: int, *, answered: bool) -> None:
        """Note that a sync of *directory* failed: every program that relies on a name in it must learn of it.

        :param answered: whether a program gets the error at once; then only those that have something open must
            learn of it, too.
        """
        for inode in self._inodes:
            if inode.handles > 0 and inode.open_file is not None and directory in self.above(inode):
                inode.losses.failed(errno, Event.FAILED_ANSWERED)
        if directory.handles > 0 or not answered:
            directory.losses.failed(errno, Event.FAILED_ANSWERED if answered else Event.FAILED_UNNOTICED)
