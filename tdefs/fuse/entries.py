"""Attributes and entries of directories, in the form that the kernel gets."""

from __future__ import annotations

import os
import stat

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken

from tdefs.fuse.appearance import appearance
from tdefs.fuse.handles import DirectoryHandle
from tdefs.text import printable_path
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode
from tdefs.tree.namespace import Namespace

# tdefs is the only writer of the backing directory and all changes pass through the kernel that caches, so what
# the kernel knows stays true.
FOREVER_SECONDS = 1e9


class Entries:
    """Makes the answers to the kernel about inodes."""

    def __init__(self, files: Files, namespace: Namespace) -> None:
        self._files = files
        self._inodes = files.tree.inodes
        self._namespace = namespace

    @staticmethod
    def missing() -> EntryAttributes:
        """Return the answer that a name does not exist; the kernel remembers it."""
        missing = EntryAttributes()
        missing.st_ino = 0
        missing.entry_timeout = FOREVER_SECONDS
        return missing

    def looked_up(self, inode: Inode, status: os.stat_result) -> EntryAttributes:
        """Return attributes for a reply that counts as a lookup.

        :raises OSError: they cannot be found out.
        """
        try:
            entry = self.attributes(inode, status)
        except OSError:
            self._inodes.drop_if_unused(inode)
            raise
        inode.looked_up()
        return entry

    def attributes(self, inode: Inode, status: os.stat_result) -> EntryAttributes:
        """Return the attributes of *inode*, whose backing file has *status*.

        :raises OSError: they cannot be found out.
        """
        entry = EntryAttributes()
        entry.st_ino = inode.number
        entry.generation = inode.generation
        entry.entry_timeout = FOREVER_SECONDS
        entry.attr_timeout = FOREVER_SECONDS
        entry.st_mode, entry.st_rdev, entry.st_size = appearance(self._files, inode, status)
        last_known = inode.last_known
        entry.st_nlink = status.st_nlink if last_known is None else last_known.links
        entry.st_uid = status.st_uid
        entry.st_gid = status.st_gid
        entry.st_blksize = status.st_blksize
        entry.st_blocks = status.st_blocks
        entry.st_atime_ns = status.st_atime_ns
        entry.st_mtime_ns = status.st_mtime_ns
        entry.st_ctime_ns = status.st_ctime_ns
        return entry

    def list_directory(self, directory: DirectoryHandle, start: int, token: ReaddirToken) -> None:
        """List a directory from the position *start* on, until the reply is full.

        Positions count in the list of names as it was when reading began (or began again). Later names are not in
        it, and removed names are left out, so no position ever shifts.

        :raises OSError: the directory cannot be read.
        """
        inode = directory.inode
        if start == 0:
            missing = self._files.manifest.missing_in(inode)
            directory.names = [b".", b"..", *self._namespace.names_in(inode), *missing]
        for position in range(start, len(directory.names)):
            name = directory.names[position]
            if name in (b".", b".."):
                # the kernel takes number and type from here, and no lookup is counted
                dot = EntryAttributes()
                dot.st_ino = (inode.names[0][0] if name == b".." and inode.names else inode).number
                dot.st_mode = stat.S_IFDIR
                if not pyfuse3.readdir_reply(token, name, dot, position + 1):
                    return
                continue
            listed = self._listed(inode, name)
            if listed is None:
                continue
            found, entry = listed
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                self._inodes.drop_if_unused(found)
                return
            found.looked_up()

    def _listed(self, directory: Inode, name: bytes) -> tuple[Inode, EntryAttributes] | None:
        """Return the entry of *name*, which existed when reading began; ``None`` if it is gone."""
        inode: Inode | None = None
        status: os.stat_result | None = None
        try:
            inode, status = self._namespace.lookup(directory, name)
            return inode, self.attributes(inode, status)
        except OSError as error:
            if inode is not None:
                self._inodes.drop_if_unused(inode)
            if isinstance(error, FileNotFoundError):
                return None
            # this one cannot be examined now, but the others can be listed
            path = b"/".join(part for part in (directory.path(), name) if part)
            self._files.complaints.failed("readdir", printable_path(path), error)
            return self._stand_in(path, status)

    def _stand_in(self, path: bytes, status: os.stat_result | None) -> tuple[Inode, EntryAttributes]:
        """Return an entry for a file that cannot be examined; the kernel asks again when the file is used.

        :param status: its attributes in the backing directory. Without them its type is unknown, too. Then the
            kernel lists the name without an inode.
        """
        inode = self._inodes.stand_in(path, status)
        if status is not None:
            entry = self.attributes(inode, status)
        else:
            entry = EntryAttributes()
            entry.st_ino = inode.number
            entry.st_mode = 0
        entry.entry_timeout = entry.attr_timeout = 0
        return inode, entry
