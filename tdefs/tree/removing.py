"""Removing names, and keeping a file without a name within reach until the kernel forgets it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tdefs.text import printable_path
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode, LastKnown, path_of
from tdefs.tree.names import Names


class Removing:
    """Removes names of one mount."""

    def __init__(self, files: Files, names: Names) -> None:
        self._files = files
        self._names = names
        self._calls = files.tree.calls
        self._inodes = files.tree.inodes
        self._places = files.tree.places
        self._manifest = files.manifest

    def unlink(self, parent: Inode, name: bytes) -> None:
        """Remove a name; the file lives on while it is open or has other names."""
        inode, status = self._names.lookup(parent, name)
        length = self.length(inode, status)
        self._manifest.will_go(inode, parent, name)
        with self.held(inode, parent, name):
            self._calls.unlink("unlink", name, self._places.directory_fd(parent))
        self.removed(inode, parent, name, status, length)

    def rmdir(self, parent: Inode, name: bytes) -> None:
        """Remove an empty directory."""
        inode, status = self._names.lookup(parent, name)
        self._manifest.will_go(inode, parent, name)
        with self.held(inode, parent, name):
            self._calls.rmdir("rmdir", name, self._places.directory_fd(parent))
        self.removed(inode, parent, name, status, status.st_size)

    def length(self, inode: Inode, status: os.stat_result) -> int:
        """Return the length to remember of a file that is about to be removed; 0 if it cannot be read."""
        if not inode.is_file:
            return status.st_size
        try:
            return self._files.opener.length(inode, status)
        except OSError:
            return 0

    @contextmanager
    def held(self, inode: Inode | None, parent: Inode, name: bytes) -> Iterator[None]:
        """Keep *inode*, if any, within reach of the kernel while a name of it is removed, and afterwards."""
        if inode is None:
            yield
            return
        try:
            self._places.hold(inode, parent, name)
        except OSError as error:
            path = os.fsencode(path_of(parent, name))
            self._files.complaints.failed("removal (hold)", printable_path(path), error)
        try:
            yield
        except BaseException:
            self._places.held.drop(inode)
            raise

    def removed(self, inode: Inode, parent: Inode, name: bytes, status: os.stat_result, length: int) -> None:
        """Note that a name is gone; if it was the last one, also what is known of the file."""
        last = inode.is_directory or status.st_nlink == 1
        path = inode.path()
        self._inodes.removed(inode, parent, name, last=last)
        if inode.is_directory:
            self._files.tree.unsynced_names.directory_removed(inode)
        if last:
            self._files.shared_ids.forget(inode)
        with suppress(OSError):  # if its other names cannot be checked, they and the descriptor stay
            if self._places.has_name(inode):
                self._places.held.drop(inode)
            else:
                inode.names.clear()
                inode.lost_last_name(LastKnown(status, length, 0 if last else status.st_nlink - 1, path))
        self._files.opener.close_idle(inode)
