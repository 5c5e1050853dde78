"""The one way from an inode to its backing file: by a name, or by a descriptor of its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOENT, ENOTDIR, ESTALE

from tdefs.data.calls import SystemCalls
from tdefs.data.descriptors import Descriptors
from tdefs.tree.checked_opening import CheckedOpening, Exchanged, stale
from tdefs.tree.directory_descriptors import DirectoryDescriptors
from tdefs.tree.held import Held
from tdefs.tree.inode import Backing, Inode, path_of


class Places:
    """Where the inodes of one mount lie, and how they are reached there."""

    def __init__(
        self,
        calls: SystemCalls,
        descriptors: Descriptors,
        opening: CheckedOpening,
        directories: DirectoryDescriptors,
        held: Held,
    ) -> None:
        """:param held: descriptors of inodes without names."""
        self._calls = calls
        self._opening = opening
        self._directories = directories
        self.descriptors = descriptors
        self.held = held

    def directory_fd(self, directory: Inode) -> int:
        """Return an ``O_PATH`` descriptor of a directory; it stays valid for hundreds of further calls.

        :raises OSError: ESTALE when the directory cannot be found any more.
        """
        return self._directories.fd(directory)

    def place(self, inode: Inode) -> tuple[bytes, int]:
        """Return a name and the descriptor of its directory through which *inode* can be reached.

        If it has no name any more, the name is empty, and the descriptor is its own.

        :raises OSError: ESTALE if it has neither.
        """
        if len(inode.names) == 1:
            parent, name = inode.names[0]
            return name, self._directories.fd(parent)
        found = self._named_place(inode)
        if found is not None:
            return found
        fd = self.held.get(inode)
        if fd is None and inode.open_file is not None:
            fd = inode.open_file.fd
        if fd is None:
            raise stale()
        return b"", fd

    def has_name(self, inode: Inode) -> bool:
        """Return whether *inode*, which has just lost a name, can be reached by another one.

        :raises OSError: this cannot be found out.
        """
        return len(inode.names) == 1 or self._named_place(inode) is not None

    def _named_place(self, inode: Inode) -> tuple[bytes, int] | None:
        for parent, name in inode.names:
            # a name in a directory that the kernel forgot may have moved with it
            try:
                directory = self._directories.fd(parent)
                status = self._calls.stat("inodes:place", name, directory)
            except OSError as error:
                if error.errno not in (ENOENT, ESTALE) and not isinstance(error, Exchanged):
                    raise
                continue
            if inode.is_backed_by(status):
                return name, directory
        return None

    def open_inode(self, label: str, inode: Inode, flags: int) -> int:
        """Open the backing file of *inode*, and nothing that somebody has put in its place.

        :param flags: of open(2); none of them may change anything, since the check comes after.
        :raises OSError: EIO when something else lies there; the log names it.
        """
        name, directory = self.place(inode)
        return self._opening.open_checked(label, inode, name, flags, directory)

    @contextmanager
    def reached(self, label: str, inode: Inode) -> Iterator[int]:
        """Give an ``O_PATH`` descriptor of the backing file of *inode* during a ``with`` block.

        :raises OSError: as :meth:`open_inode`.
        """
        fd = self.open_inode(label, inode, os.O_PATH)
        try:
            yield fd
        finally:
            self.descriptors.let_go(label, fd)

    @contextmanager
    def reached_new(self, label: str, parent: Inode, name: bytes, status: os.stat_result) -> Iterator[int]:
        """Give a descriptor of a node that was just made and has *status*, as :meth:`reached`.

        :raises OSError: EIO when something else lies there by now, or the node is a hard link of something else.
        """
        made = Inode(0, Backing.of(status), stat.S_IFMT(status.st_mode), 0)
        made.names.append((parent, name))
        if not made.is_directory and status.st_nlink != 1:
            raise self._opening.exchanged(made)
        with self.reached(label, made) as fd:
            yield fd

    def check(self, inode: Inode, status: os.stat_result) -> None:
        """Check that what has *status* is *inode*: device, inode number and type.

        :raises OSError: EIO when it is something else; the log names it.
        """
        self._opening.check(inode, status)

    def hold(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Before a name is removed: keep a descriptor of *inode*, until the kernel forgets it.

        An open file has its own descriptor.

        :raises OSError: no descriptor can be opened. The name may be removed all the same: then the kernel gets
            ESTALE, and looks the name up again.
        """
        if inode.lookups > 0 and inode.open_file is None:
            above = self._directories.fd(parent)
            self.held.keep(inode, self._opening.open_checked("inodes:hold", inode, name, os.O_PATH, above))

    def paths(self, inode: Inode) -> list[str]:
        """Return the known paths of *inode*; if there are several, only those that still lead to it.

        :raises OSError: this cannot be found out.
        """
        if len(inode.names) == 1:
            return [path_of(*inode.names[0])]
        found = {path_of(*place): None for place in list(inode.names) if self._leads_to(*place, inode)}
        return list(found)

    def _leads_to(self, parent: Inode, name: bytes, inode: Inode) -> bool:
        try:
            status = self._calls.stat("inodes:path", name, self._directories.fd(parent))
        except OSError as error:
            if error.errno not in (ENOENT, ENOTDIR, ESTALE) and not isinstance(error, Exchanged):
                raise
            return False
        return inode.is_backed_by(status)

    def close(self) -> None:
        """Close every descriptor that is kept."""
        self.held.close()
        self._directories.close_all()
