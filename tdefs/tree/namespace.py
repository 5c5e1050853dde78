"""The directory tree of one mount: looking up, making, linking, removing and renaming."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from errno import EEXIST

from tdefs.data.calls import Owner
from tdefs.data.data_file import DataFile
from tdefs.data.identity import identity_at
from tdefs.data.staging import Staging
from tdefs.format.header import Identity
from tdefs.format.special import Special
from tdefs.text import printable_path
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode, path_of
from tdefs.tree.links import Links
from tdefs.tree.names import Names, refuse_private
from tdefs.tree.refusals import refuse_planted
from tdefs.tree.removing import Removing
from tdefs.tree.renaming import Renaming


class Namespace:
    """Everything that a program can do with names; other classes look up, remove and rename."""

    def __init__(self, files: Files, staging: Staging | None = None) -> None:
        """:param staging: where a rename makes new links; ``None`` for a volume that is only read."""
        self._calls = files.tree.calls
        self._inodes = files.tree.inodes
        self._places = files.tree.places
        self._unsynced_names = files.tree.unsynced_names
        self._manifest = files.manifest
        self._identities = files.identities
        self._opener = files.opener
        self._creator = files.creator
        self._complaints = files.complaints
        self._links = Links(files, staging)
        names = Names(files.tree, files.manifest)
        removing = Removing(files, names)
        self._names = names
        self.lookup = names.lookup
        self.names_in = names.names_in
        self.unlink = removing.unlink
        self.rmdir = removing.rmdir
        self.rename = Renaming(files, names, removing, self._links).rename

    def hand_over(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> tuple[Inode, os.stat_result]:
        """Make the caller the owner of a node that was just made, and return it.

        In a directory with the set-group-ID bit the backing file system has set the directory's group already.

        :param mode: with the type bits for a directory.
        :raises OSError: the node was removed again.
        """
        directory = self._places.directory_fd(parent)
        try:
            status = self._calls.stat("adopt:stat", name, directory)
            above = self._calls.stat("adopt:parent", b".", directory)
            wanted_gid = status.st_gid if above.st_mode & stat.S_ISGID else owner.gid
            if (owner.uid, wanted_gid) != (status.st_uid, status.st_gid):
                with self._places.reached_new("adopt:open", parent, name, status) as fd:
                    self._calls.chown("adopt:chown", b"", owner.uid, wanted_gid, fd)
                    if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(status.st_mode):
                        # chown(2) takes these bits away
                        self._calls.chmod("adopt:chmod", fd, stat.S_IMODE(status.st_mode))
                    status = self._calls.stat("adopt:stat", b"", fd)
        except OSError:
            if stat.S_ISDIR(mode):
                self._undo("mkdir", parent, name, lambda: self._calls.rmdir("adopt:undo", name, directory))
            else:
                self._undo("create", parent, name, lambda: self._calls.unlink("adopt:undo", name, directory))
            raise
        inode = self._inodes.enter(parent, name, status)
        self._unsynced_names.added(parent, inode)
        return inode, status

    def create(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> tuple[Inode, DataFile]:
        """Make a regular file and open it; :meth:`hand_over` completes it."""
        refuse_private(parent, name)
        return self._creator.create(parent, name, stat.S_IMODE(mode), owner)

    def mkdir(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> tuple[Inode, os.stat_result]:
        """Make a directory."""
        refuse_private(parent, name)
        self._manifest.will_come(parent, name)
        self._calls.mkdir("mkdir", name, stat.S_IMODE(mode), self._places.directory_fd(parent), owner)
        return self.hand_over(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), owner)

    def mknod(
        self, parent: Inode, name: bytes, mode: int, device: int, owner: Owner
    ) -> tuple[Inode, os.stat_result]:
        """Make a regular file, a socket, a FIFO or, where the daemon may, a device node."""
        if stat.S_ISREG(mode) or stat.S_IFMT(mode) == 0:
            made, _ = self.create(parent, name, mode, owner)
            self._opener.close_if_unused(made)
        else:
            refuse_private(parent, name)
            self._manifest.will_come(parent, name)
            special = Special(stat.S_IFMT(mode), os.major(device), os.minor(device))
            self._creator.create_special(parent, name, stat.S_IMODE(mode), owner, special)
        return self.hand_over(parent, name, mode, owner)

    def symlink(self, parent: Inode, name: bytes, target: bytes, owner: Owner) -> tuple[Inode, os.stat_result]:
        """Make a symbolic link."""
        refuse_private(parent, name)
        self._manifest.will_come(parent, name)
        self._links.make(parent, name, target, owner)
        return self.hand_over(parent, name, 0, owner)

    def readlink(self, inode: Inode) -> bytes:
        """Return where a symbolic link points."""
        self._manifest.check(inode)
        return self._links.read(inode)

    def link(self, inode: Inode, parent: Inode, name: bytes) -> tuple[Inode, os.stat_result]:
        """Give a file one more name, and return it. A name of another identity lets the file lie anywhere.

        A symbolic link belongs to one place, so a second one with the same target is made.
        """
        refuse_private(parent, name)
        refuse_planted(self._places, inode)
        self._manifest.check(inode)  # under another name a difference would not be seen
        if inode.is_link:
            self._manifest.will_come(parent, name)
            self._links.copy(inode, parent, name)
            made, status = self.lookup(parent, name)
            self._unsynced_names.added(parent, made)
            return made, status
        directory = self._places.directory_fd(parent)
        given_up: tuple[Identity, ...] = ()
        if inode.is_file:
            if self._names.exists(parent, name):
                raise OSError(EEXIST, os.strerror(EEXIST))
            self._identities.check_may_lie_at(inode, path_of(parent, name))
            self._manifest.will_change(inode)
            given_up = self._identities.give_up(inode, identity_at(path_of(parent, name)))
        self._manifest.will_come(parent, name)
        try:
            with self._places.reached("link:open", inode) as fd:
                self._calls.link("link", fd, name, directory)
        except OSError:
            if given_up:
                self._undo("link", parent, name, lambda: self._identities.bind(inode, *given_up))
            raise
        try:
            status = self._calls.stat("link:stat", name, directory)
        except OSError:
            self._undo("link", parent, name, lambda: self._calls.unlink("link:undo", name, directory))
            raise
        self._inodes.enter(parent, name, status)
        self._unsynced_names.added(parent, inode)
        return inode, status

    def _undo(self, operation: str, parent: Inode, name: bytes, work: Callable[[], None]) -> None:
        self._complaints.undo(operation, printable_path(os.fsencode(path_of(parent, name))), work)
