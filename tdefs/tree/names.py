"""Looking names up, and listing them."""

from __future__ import annotations

import os
from errno import ENOENT, EPERM

from tdefs.manifest.bound import Bound
from tdefs.tree.inode import ROOT_NUMBER, Inode
from tdefs.tree.tree import Tree
from tdefs.volume.description import PRIVATE_DIRECTORY

_PRIVATE_NAME = os.fsencode(PRIVATE_DIRECTORY)


class Names:
    """The names in the directories of one mount."""

    def __init__(self, tree: Tree, manifest: Bound) -> None:
        self._calls = tree.calls
        self._inodes = tree.inodes
        self._places = tree.places
        self._manifest = manifest

    def lookup(self, parent: Inode, name: bytes) -> tuple[Inode, os.stat_result]:
        """Return the inode at a place and its attributes in the backing directory.

        :raises OSError: ENOENT if there is nothing.
        """
        if _is_private(parent, name):
            raise OSError(ENOENT, os.strerror(ENOENT))
        try:
            status = self._calls.stat("lookup", name, self._places.directory_fd(parent))
        except FileNotFoundError:
            self._manifest.check_missing(parent, name)
            raise
        self._manifest.check_name(parent, name)
        return self._inodes.enter(parent, name, status), status

    def exists(self, parent: Inode, name: bytes) -> bool:
        """Return whether there is something at a place.

        :raises OSError: this cannot be found out.
        """
        try:
            self._calls.stat("exists", name, self._places.directory_fd(parent))
        except FileNotFoundError:
            return False
        return True

    def names_in(self, directory: Inode) -> list[bytes]:
        """Return the names in a directory, without ``.`` and ``..``.

        :raises OSError: it cannot be read.
        """
        fd = self._places.open_inode("readdir:open", directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = self._calls.listdir("readdir", fd)
        finally:
            self._places.descriptors.let_go("readdir:close", fd)
        return [name for name in names if not _is_private(directory, name)]


def _is_private(parent: Inode, name: bytes) -> bool:
    """Return whether a name is that of tdefs's own directory, which the mount does not show."""
    return parent.number == ROOT_NUMBER and name == _PRIVATE_NAME


def refuse_private(parent: Inode, name: bytes) -> None:
    """Refuse to make anything under the name of tdefs's own directory.

    :raises OSError: EPERM.
    """
    if _is_private(parent, name):
        raise OSError(EPERM, os.strerror(EPERM))
