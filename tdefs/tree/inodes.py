"""The inodes that the kernel knows, by number and by backing file.

An inode has the number of its backing file if possible, so that tools see what a plain directory would show. The
number stays in use until the kernel forgets the inode. If a new backing file has such a number, its inode gets one
from a range of its own.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator

from tdefs.data.calls import SystemCalls
from tdefs.data.losses import Losses
from tdefs.tree.checked_opening import stale
from tdefs.tree.directory_descriptors import DirectoryDescriptors
from tdefs.tree.held import Held
from tdefs.tree.inode import ROOT_NUMBER, Backing, Inode, LastKnown

_FIRST_PRIVATE_NUMBER = 1 << 62


class InodeTable:
    """All known inodes of one mount. Nothing here awaits, so each call is atomic for the event loop."""

    def __init__(self, calls: SystemCalls, root: Inode, directories: DirectoryDescriptors, held: Held) -> None:
        """:param directories, held: what is closed when an inode is dropped."""
        self._calls = calls
        self._directories = directories
        self._held = held
        self.root = root
        self._by_number: dict[int, Inode] = {ROOT_NUMBER: root}
        # a plain pair finds a backing, too, and costs less to make
        self._by_backing: dict[tuple[int, int], Inode] = {root.backing: root}
        self._next_private = _FIRST_PRIVATE_NUMBER
        # random, since the kernel may have handles from an earlier mount
        self._next_generation = int.from_bytes(os.urandom(4), "little")
        #: Losses of files that the kernel has forgotten.
        self._lost: dict[Backing, Losses] = {}

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Inode]:
        """Every known inode, as of now."""
        return iter(list(self._by_number.values()))

    def __getitem__(self, number: int) -> Inode:
        try:
            return self._by_number[number]
        except KeyError:
            raise stale() from None

    def with_backing(self, backing: Backing) -> Inode | None:
        """Return the known inode of a backing file."""
        return self._by_backing.get(backing)

    def enter(self, parent: Inode, name: bytes, status: os.stat_result) -> Inode:
        """Return the inode of *name* in *parent*, which has just been seen with *status*."""
        inode = self._by_backing.get((status.st_dev, status.st_ino))
        if inode is None:
            backing = Backing.of(status)
            generation = self._generation(parent, name)
            inode = Inode(self._free_number(backing), backing, stat.S_IFMT(status.st_mode), generation)
            self._by_number[inode.number] = inode
            self._by_backing[backing] = inode
            inode.losses = self._lost.pop(backing, inode.losses)
        if inode.last_known is not None:
            inode.got_name()
            self._held.drop(inode)
        place = (parent, name)
        if place not in inode.names:
            if inode.is_directory:
                inode.names.clear()
            inode.names.append(place)
            if inode.open_file is not None:
                inode.open_file.names_durable = False  # nobody knows whether this name is on the disk
        return inode

    def removed(self, inode: Inode, parent: Inode, name: bytes, *, last: bool) -> None:
        """Note that a name is gone. After the *last* one the backing inode number may be used again."""
        place = (parent, name)
        if place in inode.names:
            inode.names.remove(place)
        if last:
            inode.names.clear()
            self._by_backing.pop(inode.backing, None)
            self._directories.close(inode)
        self.drop_if_unused(inode)

    def moved(self, inode: Inode, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes) -> None:
        """Note that a name became another one."""
        place = (parent, name)
        if place in inode.names:
            inode.names.remove(place)
        inode.names.append((new_parent, new_name))

    def exchange_backing(self, inode: Inode, status: os.stat_result) -> None:
        """Note that another file in the backing directory, with *status*, has taken the place of *inode*'s.

        It lies there under all names of the inode, and has the same type. To the kernel the inode stays what it
        is: its number, generation, names and counts, its losses, and its open file.
        """
        self._set_backing(inode, Backing.of(status))

    def take_back_backing(self, inode: Inode, backing: Backing) -> None:
        """Undo :meth:`exchange_backing`: *inode* has its old *backing* again."""
        self._set_backing(inode, backing)

    def _set_backing(self, inode: Inode, backing: Backing) -> None:
        if self._by_backing.get(inode.backing) is inode:
            del self._by_backing[inode.backing]
            self._by_backing[backing] = inode
        inode.backing = backing
        inode.exchanged = False

    def forget(self, number: int, lookups: int) -> Inode | None:
        """Take back *lookups*; at zero, and when nothing holds the file open, the inode is dropped.

        :returns: the inode, if the kernel does not know it any more, but its file is open.
        """
        inode = self._by_number.get(number)
        if inode is None or inode is self.root:
            return None
        inode.forgotten(lookups)
        self.drop_if_unused(inode)
        return inode if inode.lookups <= 0 and inode.open_file is not None else None

    def drop_if_unused(self, inode: Inode) -> None:
        """Drop *inode* when neither the kernel nor an open file refers to it."""
        if inode.is_in_use or inode is self.root:
            return
        self._by_number.pop(inode.number, None)
        if inode.losses and inode.names:
            self._lost[inode.backing] = inode.losses
        if self._by_backing.get(inode.backing) is inode:
            del self._by_backing[inode.backing]
        self._directories.close(inode)
        self._held.drop(inode)

    def stand_in(self, path: bytes, status: os.stat_result | None) -> Inode:
        """Return an inode to list in place of a file that cannot be examined at the moment.

        It has a number that no file ever has, so the kernel never confuses it with the file.

        :param status: the file's attributes in the backing directory, if they are known.
        """
        self._next_private += 1
        mode = stat.S_IFMT(status.st_mode) if status is not None else 0
        inode = Inode(self._next_private, Backing(0, self._next_private), mode, self._new_generation())
        if status is not None:
            inode.lost_last_name(LastKnown(status, 0, status.st_nlink, path))
        self._by_number[inode.number] = inode
        return inode

    def _generation(self, parent: Inode, name: bytes) -> int:
        """Return a number that distinguishes a file from earlier and later ones with the same inode number.

        The handle that the file system below gives out for it holds a generation, which changes when the number
        is used again. CRC-32 finds every change within 32 bits, so files with one number get different checksums.
        Where there are no handles, a generation is new each time the kernel gets to know a file.
        """
        try:
            return zlib.crc32(self._calls.handle("inodes:handle", name, self._directories.fd(parent)))
        except OSError:
            return self._new_generation()

    def _new_generation(self) -> int:
        self._next_generation = (self._next_generation + 1) % (1 << 32)
        return self._next_generation

    def _free_number(self, backing: Backing) -> int:
        if (
            backing.device == self.root.backing.device
            and ROOT_NUMBER < backing.number < _FIRST_PRIVATE_NUMBER
            and backing.number not in self._by_number
        ):
            return backing.number
        self._next_private += 1
        return self._next_private
