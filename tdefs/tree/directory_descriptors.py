"""Descriptors of directories: every system call on the tree uses one of them, and never a long path."""

from __future__ import annotations

import os
from collections import OrderedDict
from errno import ENOTDIR

from tdefs.data.descriptors import Descriptors
from tdefs.tree.checked_opening import CheckedOpening, stale
from tdefs.tree.held import Held
from tdefs.tree.inode import Inode

_MOST = 512


class DirectoryDescriptors:
    """At most some hundred ``O_PATH`` descriptors; the one used longest ago is closed first."""

    def __init__(
        self, opening: CheckedOpening, descriptors: Descriptors, held: Held, root: Inode, root_fd: int
    ) -> None:
        """:param root_fd: stays open until the end, and is closed by the caller."""
        self._opening = opening
        self._descriptors = descriptors
        self._held = held
        self._root = root
        self._root_fd = root_fd
        self._fds: OrderedDict[Inode, int] = OrderedDict()

    def fd(self, directory: Inode) -> int:
        """Return the descriptor of a directory; it stays valid for hundreds of further calls.

        :raises OSError: ESTALE when the directory cannot be found any more.
        """
        fd = self._known(directory)
        if fd is not None:
            return fd
        if not directory.is_directory:
            raise OSError(ENOTDIR, os.strerror(ENOTDIR))
        # from the nearest ancestor with a descriptor down, one component at a time, so that no path is too long
        chain = [directory]
        while True:
            if not chain[-1].names:
                raise stale()
            above_fd = self._known(chain[-1].names[0][0])
            if above_fd is not None:
                break
            chain.append(chain[-1].names[0][0])
        opened: int | None = None
        for node in reversed(chain):
            _, name = node.names[0]
            try:
                fd = self._opening.open_checked(
                    "inodes:directory", node, name, os.O_PATH | os.O_DIRECTORY, above_fd
                )
            except FileNotFoundError:
                raise stale() from None
            finally:
                if opened is not None:
                    self._descriptors.let_go("inodes:directory", opened)
            opened = above_fd = fd
        self._fds[directory] = above_fd
        if len(self._fds) > _MOST:
            _, oldest = self._fds.popitem(last=False)
            self._descriptors.let_go("inodes:directory", oldest)
        return above_fd

    def _known(self, directory: Inode) -> int | None:
        if directory is self._root:
            return self._root_fd
        fd = self._fds.get(directory)
        if fd is not None:
            self._fds.move_to_end(directory)
        elif not directory.names:
            fd = self._held.get(directory)
        return fd

    def close(self, directory: Inode) -> None:
        """Close the descriptor of *directory*, if there is one."""
        fd = self._fds.pop(directory, None)
        if fd is not None:
            self._descriptors.let_go("inodes:directory", fd)

    def close_all(self) -> None:
        """Close every descriptor but the root's."""
        while self._fds:
            _, fd = self._fds.popitem()
            self._descriptors.let_go("inodes:close", fd)
