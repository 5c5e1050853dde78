"""Descriptors of what lost its last name while the kernel still knows it.

After the kernel has found a name, and before it opens the file, another process may remove or replace that name.
On a plain disk the file is opened all the same. Here that needs a descriptor, opened before the name goes and kept
until the kernel forgets the inode. The kernel forgets an unused inode at once; then the space is free.
"""

from __future__ import annotations

from collections import OrderedDict

from tdefs.data.descriptors import Descriptors
from tdefs.tree.inode import Inode

# A file with other names, not known here, may stay in the kernel's memory for long after one is gone.
_MOST = 512
# so many at once when there are too many open files
_GIVEN_UP = 32


class Held:
    """At most some hundred descriptors, one for each inode; the one used longest ago is closed first."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._fds: OrderedDict[Inode, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._fds)

    def __contains__(self, inode: Inode) -> bool:
        return inode in self._fds

    def keep(self, inode: Inode, fd: int) -> None:
        """Take over *fd*, through which *inode* can be reached."""
        self.drop(inode)
        self._fds[inode] = fd
        while len(self._fds) > _MOST:
            self._close_oldest()

    def get(self, inode: Inode) -> int | None:
        """Return the descriptor of *inode*; it stays valid during the next opening."""
        fd = self._fds.get(inode)
        if fd is not None:
            self._fds.move_to_end(inode)
        return fd

    def drop(self, inode: Inode) -> None:
        """Close the descriptor of *inode*, if there is one."""
        fd = self._fds.pop(inode, None)
        if fd is not None:
            self._descriptors.let_go("held:close", fd)

    def give_up(self) -> bool:
        """Close some, but not the one used last, which may be in use now; return whether there were any."""
        before = len(self._fds)
        while len(self._fds) > max(1, before - _GIVEN_UP):
            self._close_oldest()
        return len(self._fds) < before

    def close(self) -> None:
        """Close all."""
        while self._fds:
            self._close_oldest()

    def _close_oldest(self) -> None:
        _, fd = self._fds.popitem(last=False)
        self._descriptors.let_go("held:close", fd)
