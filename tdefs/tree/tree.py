"""The parts that know the names and inodes of one mount, made once and put together."""

from __future__ import annotations

import stat

from tdefs.data.calls import SystemCalls
from tdefs.data.descriptors import Descriptors
from tdefs.tree.checked_opening import CheckedOpening
from tdefs.tree.directory_descriptors import DirectoryDescriptors
from tdefs.tree.held import Held
from tdefs.tree.inode import ROOT_NUMBER, Backing, Inode
from tdefs.tree.inodes import InodeTable
from tdefs.tree.places import Places
from tdefs.tree.unsynced_names import UnsyncedNames


class Tree:
    """The tree of one mount: which inodes the kernel knows, where they lie, and which names may be lost."""

    def __init__(self, calls: SystemCalls, root_fd: int) -> None:
        """:param root_fd: a descriptor of the directory that is served; the caller closes it."""
        self.calls = calls
        status = calls.fstat("inodes:root", root_fd)
        root = Inode(ROOT_NUMBER, Backing.of(status), stat.S_IFDIR, 0)
        root.looked_up()
        root.names.append((root, b"."))
        descriptors = Descriptors(calls)
        held = Held(descriptors)
        opening = CheckedOpening(calls, descriptors)
        directories = DirectoryDescriptors(opening, descriptors, held, root, root_fd)
        self.inodes = InodeTable(calls, root, directories, held)
        self.places = Places(calls, descriptors, opening, directories, held)
        self.unsynced_names = UnsyncedNames(calls, descriptors, directories, self.inodes)

    @property
    def root(self) -> Inode:
        """The inode of the mount's root."""
        return self.inodes.root

    def close(self) -> None:
        """Close every descriptor that is kept."""
        self.places.close()
