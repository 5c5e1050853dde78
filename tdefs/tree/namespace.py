"""Names in directories: looking up, making, removing, linking and renaming, with what each means for headers."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, EINVAL, ENOENT, EPERM
from functools import partial

from tdefs.data.calls import Owner, SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.forms import identity_at
from tdefs.data.staging import Staging
from tdefs.format.header import ANY_PLACE, Identity
from tdefs.format.special import Special
from tdefs.text import printable_path
from tdefs.tree.inodes import ROOT_NUMBER, Ghost, Inode, InodeTable, path_of
from tdefs.tree.links import Links, MovingLink
from tdefs.tree.opening import Opener
from tdefs.volume.description import PRIVATE_DIRECTORY

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_PRIVATE_NAME = os.fsencode(PRIVATE_DIRECTORY)


# a file whose header changes with a rename: what it was bound to, and what it becomes
_Rebound = tuple[Inode, Identity, Identity]


class Namespace:
    """The directory tree of one mount."""

    def __init__(
        self, calls: SystemCalls, inodes: InodeTable, opener: Opener, staging: Staging | None = None
    ) -> None:
        """:param staging: where links are made anew; ``None`` for a volume that is only read."""
        self._calls = calls
        self._inodes = inodes
        self._opener = opener
        self._links = Links(calls, inodes, opener, staging)
        self._manifest = opener.manifest

    def lookup(self, parent: Inode, name: bytes) -> tuple[Inode, os.stat_result]:
        """Return the inode at a place and its attributes in the backing directory.

        :raises OSError: ENOENT if there is none.
        """
        if _is_private(parent, name):
            raise OSError(ENOENT, os.strerror(ENOENT))
        try:
            status = self._calls.stat("lookup", name, self._inodes.directory_fd(parent))
        except FileNotFoundError:
            self._manifest.check_missing(parent, name)
            raise
        self._manifest.check_name(parent, name)
        return self._inodes.enter(parent, name, status), status

    def names_in(self, directory: Inode) -> list[bytes]:
        """Return the names in a directory, without ``.`` and ``..``."""
        fd = self._inodes.open_inode("readdir:open", directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = self._calls.listdir("readdir", fd)
        finally:
            self._inodes.descriptors.let_go("readdir:close", fd)
        return [name for name in names if not _is_private(directory, name)]

    def adopt(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> tuple[Inode, os.stat_result]:
        """Give a node that was just made to the caller, if it is not the caller's yet, and return it.

        In a directory with the set-group-ID bit the group is the directory's, which the backing file system has
        already seen to.

        :param mode: with the bits of the type for a directory.
        :raises OSError: the node is gone again.
        """
        directory = self._inodes.directory_fd(parent)
        try:
            status = self._calls.stat("adopt:stat", name, directory)
            above = self._calls.stat("adopt:parent", b".", directory)
            wanted_gid = status.st_gid if above.st_mode & stat.S_ISGID else owner.gid
            if (owner.uid, wanted_gid) != (status.st_uid, status.st_gid):
                with self._inodes.reached_new("adopt:open", parent, name, status) as fd:
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
        self._inodes.name_added(parent, inode)
        return inode, status

    def create(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> tuple[Inode, DataFile]:
        """Make a regular file and open it; :meth:`adopt` completes it."""
        _refuse_private(parent, name)
        return self._opener.create(parent, name, stat.S_IMODE(mode), owner)

    def mkdir(self, parent: Inode, name: bytes, mode: int, owner: Owner) -> tuple[Inode, os.stat_result]:
        """Make a directory."""
        _refuse_private(parent, name)
        self._manifest.will_come(parent, name)
        self._calls.mkdir("mkdir", name, stat.S_IMODE(mode), self._inodes.directory_fd(parent), owner)
        return self.adopt(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), owner)

    def mknod(
        self, parent: Inode, name: bytes, mode: int, device: int, owner: Owner
    ) -> tuple[Inode, os.stat_result]:
        """Make a regular file, a socket, a FIFO or, where the daemon may, a device node."""
        if stat.S_ISREG(mode) or stat.S_IFMT(mode) == 0:
            made, _ = self.create(parent, name, mode, owner)
            self._opener.close_if_unused(made)
        else:
            _refuse_private(parent, name)
            self._manifest.will_come(parent, name)
            special = Special(stat.S_IFMT(mode), os.major(device), os.minor(device))
            self._opener.create_special(parent, name, stat.S_IMODE(mode), owner, special)
        return self.adopt(parent, name, mode, owner)

    def symlink(self, parent: Inode, name: bytes, target: bytes, owner: Owner) -> tuple[Inode, os.stat_result]:
        """Make a symbolic link."""
        _refuse_private(parent, name)
        self._manifest.will_come(parent, name)
        self._links.make(parent, name, target, owner)
        return self.adopt(parent, name, 0, owner)

    def readlink(self, inode: Inode) -> bytes:
        """Return where a symbolic link points."""
        self._manifest.check(inode)
        return self._links.read(inode)

    def unlink(self, parent: Inode, name: bytes) -> None:
        """Remove a name; the file lives on while it is open or has other names."""
        inode, status = self.lookup(parent, name)
        length = self._length(inode, status)
        self._manifest.will_go(inode, parent, name)
        with self._held(inode, parent, name):
            self._calls.unlink("unlink", name, self._inodes.directory_fd(parent))
        self._removed(inode, parent, name, status, length)

    def rmdir(self, parent: Inode, name: bytes) -> None:
        """Remove an empty directory."""
        inode, status = self.lookup(parent, name)
        self._manifest.will_go(inode, parent, name)
        with self._held(inode, parent, name):
            self._calls.rmdir("rmdir", name, self._inodes.directory_fd(parent))
        self._removed(inode, parent, name, status, status.st_size)

    def link(self, inode: Inode, parent: Inode, name: bytes) -> tuple[Inode, os.stat_result]:
        """Give a file one more name, and return it. Under another identity it is bound to none from then on.

        A symbolic link belongs to one place, so another one with its target is made.
        """
        _refuse_private(parent, name)
        self._opener.refuse_planted(inode)
        self._manifest.check(inode)  # under another name nobody could tell that it differs
        if inode.is_link:
            self._manifest.will_come(parent, name)
            self._links.copy(inode, parent, name)
            made = self.lookup(parent, name)
            self._inodes.name_added(parent, made[0])
            return made
        directory = self._inodes.directory_fd(parent)
        given_up: tuple[Identity, ...] = ()
        if inode.is_file:
            if self._exists(parent, name):
                raise OSError(EEXIST, os.strerror(EEXIST))
            self._opener.check_may_lie_at(inode, path_of(parent, name))
            self._manifest.will_change(inode)
            given_up = self._opener.give_up_identity(inode, identity_at(path_of(parent, name)))
        self._manifest.will_come(parent, name)
        try:
            with self._inodes.reached("link:open", inode) as fd:
                self._calls.link("link", fd, name, directory)
        except OSError:
            if given_up:
                self._undo("link", parent, name, lambda: self._opener.bind(inode, *given_up))
            raise
        try:
            status = self._calls.stat("link:stat", name, directory)
        except OSError:
            self._undo("link", parent, name, lambda: self._calls.unlink("link:undo", name, directory))
            raise
        self._inodes.enter(parent, name, status)
        self._inodes.name_added(parent, inode)
        return inode, status

    def rename(self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int) -> None:
        """Rename, replace or exchange; a relation file's identity goes along.

        A header that must change names both identities, durably, before the name changes, and only the new one
        afterwards: whenever this stops, each file can be opened where it lies. So it is with links, which are made
        anew for that.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise OSError(EINVAL, os.strerror(EINVAL))
        _refuse_private(parent, name)
        _refuse_private(new_parent, new_name)
        inode, status = self.lookup(parent, name)
        target: Inode | None = None
        if self._exists(new_parent, new_name):
            target, target_status = self.lookup(new_parent, new_name)
            target_length = self._length(target, target_status)
            if flags & RENAME_NOREPLACE:
                raise OSError(EEXIST, os.strerror(EEXIST))
        old_path, new_path = path_of(parent, name), path_of(new_parent, new_name)
        rebound: list[_Rebound] = []
        links: list[MovingLink] = []
        for moving in (inode, target if flags & RENAME_EXCHANGE else None):
            if moving is not None:
                self._check_left(moving)
        if target is not inode:
            exchange = bool(flags & RENAME_EXCHANGE)
            self._manifest.will_move(
                inode, target, os.fsencode(old_path), os.fsencode(new_path), exchange=exchange
            )
        try:
            self._bind_both(inode, status.st_nlink, old_path, new_path, rebound, links)
            if target is not None and flags & RENAME_EXCHANGE:
                self._bind_both(target, target_status.st_nlink, new_path, old_path, rebound, links)
            replaced = target if not flags & RENAME_EXCHANGE else None
            with self._held(replaced, new_parent, new_name):
                self._calls.rename(
                    "rename",
                    name,
                    self._inodes.directory_fd(parent),
                    new_name,
                    self._inodes.directory_fd(new_parent),
                    flags,
                )
        except OSError:
            for node, old, _ in rebound:
                self._undo("rename", parent, name, partial(self._opener.bind, node, old))
            for link in links:
                self._undo("rename", parent, name, partial(self._links.undo, link))
            raise
        if target is inode:
            # two names of one file: rename(2) does nothing
            return
        if target is not None:
            if flags & RENAME_EXCHANGE:
                self._inodes.moved(target, new_parent, new_name, parent, name)
            else:
                self._removed(target, new_parent, new_name, target_status, target_length)
        self._inodes.moved(inode, parent, name, new_parent, new_name)
        if rebound:
            self._forget_old_places(parent, new_parent, rebound)
        self._settle(new_parent, links)

    def _check_left(self, inode: Inode) -> None:
        """Refuse to move what is not as the last unmount left it: at another place nobody could tell.

        :raises OSError: EIO.
        """
        if inode.is_directory:
            self._manifest.check_below(inode)
        elif inode.is_file and not inode.is_planted and inode.bound:
            with suppress(OSError):  # what cannot be read can be moved, and is refused there, too
                self._opener.form(inode)
        self._manifest.check(inode)

    def _length(self, inode: Inode, status: os.stat_result) -> int:
        """Return the length to remember of what is about to be removed; a file that cannot be read can go, too."""
        if not inode.is_file:
            return status.st_size
        try:
            return self._opener.length(inode, status)
        except OSError:
            return 0

    def _removed(self, inode: Inode, parent: Inode, name: bytes, status: os.stat_result, length: int) -> None:
        """Note that a name is gone, and what was known of a file that lost its last one."""
        last = inode.is_directory or status.st_nlink == 1
        path = inode.path()
        self._inodes.removed(inode, parent, name, last=last)
        if last:
            self._opener.forget_file_id(inode)
        with suppress(OSError):  # which of its other names lead to it cannot be told: they and the descriptor stay
            if self._inodes.has_name(inode):
                self._inodes.held.drop(inode)
            else:
                inode.names.clear()
                inode.ghost = Ghost(status, length, 0 if last else status.st_nlink - 1, path)
        self._opener.close_idle(inode)

    @contextmanager
    def _held(self, inode: Inode | None, parent: Inode, name: bytes) -> Iterator[None]:
        """Keep *inode*, if any, within reach of the kernel while a name of it goes, and after it went."""
        if inode is None:
            yield
            return
        try:
            self._inodes.hold(inode, parent, name)
        except OSError as error:
            path = os.fsencode(path_of(parent, name))
            self._opener.complaints.failed("removal (hold)", printable_path(path), error)
        try:
            yield
        except BaseException:
            self._inodes.held.drop(inode)
            raise

    def _bind_both(
        self,
        inode: Inode,
        names: int,
        old_path: str,
        new_path: str,
        rebound: list[_Rebound],
        links: list[MovingLink],
    ) -> None:
        """Bind what is about to be renamed to its old and its new identity, and links to both places.

        What changed is added to *rebound* and *links*.
        A file with other names under the old identity gives it up.

        :raises OSError: EXDEV where a plain file would come to lie in a place of encrypted ones.
        """
        pending = [(inode, names, old_path, new_path)]
        directories: list[Inode] = []
        # no recursion: a tree may be deeper than any stack
        while pending:
            node, names, old_path, new_path = pending.pop()
            if node.is_directory:
                directories.append(node)
                for name in self.names_in(node):
                    child, status = self.lookup(node, name)
                    tail = "/" + os.fsdecode(name)
                    pending.append((child, status.st_nlink, old_path + tail, new_path + tail))
                continue
            self._bind_one_to_both(node, names, old_path, new_path, rebound, links)
            if node is not inode:
                self._inodes.drop_if_unused(node)
        for node in reversed(directories[1:]):
            self._inodes.drop_if_unused(node)

    def _bind_one_to_both(
        self,
        inode: Inode,
        names: int,
        old_path: str,
        new_path: str,
        rebound: list[_Rebound],
        links: list[MovingLink],
    ) -> None:
        """Do what :meth:`_bind_both` does for what is no directory."""
        if inode.is_link:
            moving = self._links.bind_both(inode, old_path, new_path)
            if moving is not None:
                links.append(moving)
        elif inode.is_file:
            self._opener.check_may_lie_at(inode, new_path)
            old, new = identity_at(old_path), identity_at(new_path)
            if old != new and old in self._opener.bound(inode):
                becomes = new if names == 1 else ANY_PLACE
                rebound.append((inode, old, becomes))
                self._opener.bind(inode, old, becomes)

    def _forget_old_places(self, parent: Inode, new_parent: Inode, rebound: list[_Rebound]) -> None:
        """After a rename: bind what was renamed to its new identity alone.

        The name has changed by now, and the headers name both places, so a failure here is none of the rename's.
        """
        try:
            # a header must not forget the old name while a crash could still bring it back
            for directory in (parent, new_parent):
                self._inodes.sync_names(directory, "rename:directory", "rename:sync", told=False)
            for node, _, new in rebound:
                self._opener.bind(node, new)
        except OSError as error:
            self._opener.complaints.failed("rename", printable_path(new_parent.path()), error)
        for node, _, _ in rebound:
            self._inodes.drop_if_unused(node)

    def _settle(self, new_parent: Inode, links: list[MovingLink]) -> None:
        """After a rename: let each link lie at its new place alone. A failure is none of the rename's."""
        for link in links:
            try:
                self._links.settle(link)
            except OSError as error:
                self._opener.complaints.failed("rename", printable_path(new_parent.path()), error)
            self._inodes.drop_if_unused(link.inode)

    def _undo(self, operation: str, parent: Inode, name: bytes, work: Callable[[], None]) -> None:
        self._opener.undo(operation, path_of(parent, name), work)

    def _exists(self, parent: Inode, name: bytes) -> bool:
        try:
            self._calls.stat("exists", name, self._inodes.directory_fd(parent))
        except FileNotFoundError:
            return False
        return True


def _is_private(parent: Inode, name: bytes) -> bool:
    """Tell whether a name is tdefs's own directory, which the mount does not show."""
    return parent.number == ROOT_NUMBER and name == _PRIVATE_NAME


def _refuse_private(parent: Inode, name: bytes) -> None:
    if _is_private(parent, name):
        raise OSError(EPERM, os.strerror(EPERM))
