"""Renaming, replacing and exchanging, with the changes of headers and links that each needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from errno import EEXIST, EINVAL
from functools import partial

from tdefs.data.identity import identity_at
from tdefs.format.header import ANY_PLACE, Identity
from tdefs.text import printable_path
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode, path_of
from tdefs.tree.links import Links, MovingLink
from tdefs.tree.names import Names, refuse_private
from tdefs.tree.removing import Removing

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

# a file whose header changes with a rename: what it was bound to, and what it becomes
_Rebound = tuple[Inode, Identity, Identity]


class Renaming:
    """Renames what lies in one mount."""

    def __init__(self, files: Files, names: Names, removing: Removing, links: Links) -> None:
        self._files = files
        self._identities = files.identities
        self._inodes = files.tree.inodes
        self._places = files.tree.places
        self._unsynced_names = files.tree.unsynced_names
        self._manifest = files.manifest
        self._complaints = files.complaints
        self._names = names
        self._removing = removing
        self._links = links

    def rename(self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int) -> None:
        """Rename, replace or exchange; a relation file's identity goes along.

        A header that must change first gets both identities, durably; then the name changes; then the header gets
        only the new one. So whenever this stops, each file can be opened where it lies. The same is done with
        links, which are made anew for that.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise OSError(EINVAL, os.strerror(EINVAL))
        refuse_private(parent, name)
        refuse_private(new_parent, new_name)
        inode, status = self._names.lookup(parent, name)
        target: Inode | None = None
        if self._names.exists(new_parent, new_name):
            target, target_status = self._names.lookup(new_parent, new_name)
            target_length = self._removing.length(target, target_status)
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
            with self._removing.held(replaced, new_parent, new_name):
                self._files.tree.calls.rename(
                    "rename",
                    name,
                    self._places.directory_fd(parent),
                    new_name,
                    self._places.directory_fd(new_parent),
                    flags,
                )
        except OSError:
            for node, old, _ in rebound:
                self._undo(parent, name, partial(self._identities.bind, node, old))
            for link in links:
                self._undo(parent, name, partial(self._links.undo, link))
            raise
        if target is inode:
            # two names of one file: rename(2) does nothing
            return
        if target is not None:
            if flags & RENAME_EXCHANGE:
                self._moved(target, new_parent, new_name, parent, name)
            else:
                self._removing.removed(target, new_parent, new_name, target_status, target_length)
        self._moved(inode, parent, name, new_parent, new_name)
        if rebound:
            self._forget_old_places(parent, new_parent, rebound)
        self._settle(new_parent, links)

    def _moved(self, inode: Inode, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes) -> None:
        self._inodes.moved(inode, parent, name, new_parent, new_name)
        self._unsynced_names.moved(new_parent, inode)

    def _check_left(self, inode: Inode) -> None:
        """Check that what will be moved is as the last unmount left it: at another place no check could see that.

        :raises OSError: EIO.
        """
        if inode.is_directory:
            self._manifest.check_below(inode)
        elif inode.is_file and not inode.is_planted and inode.bound:
            with suppress(OSError):  # an unreadable file can be moved, and is refused at its new place, too
                self._files.headers.form(inode)
        self._manifest.check(inode)

    def _bind_both(
        self,
        inode: Inode,
        names: int,
        old_path: str,
        new_path: str,
        rebound: list[_Rebound],
        links: list[MovingLink],
    ) -> None:
        """Bind the files that will be renamed to their old and new identities, and links to both places.

        Those that changed are added to *rebound* and *links*. A file that has other names under the old identity
        loses it.

        :raises OSError: EXDEV if a plain file would come to a place where the policy encrypts.
        """
        pending = [(inode, names, old_path, new_path)]
        directories: list[Inode] = []
        # no recursion: a tree may be deeper than any stack
        while pending:
            node, names, old_path, new_path = pending.pop()
            if node.is_directory:
                directories.append(node)
                for name in self._names.names_in(node):
                    child, status = self._names.lookup(node, name)
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
        """Do what :meth:`_bind_both` does, for one file or link."""
        if inode.is_link:
            moving = self._links.bind_both(inode, old_path, new_path)
            if moving is not None:
                links.append(moving)
        elif inode.is_file:
            self._identities.check_may_lie_at(inode, new_path)
            old, new = identity_at(old_path), identity_at(new_path)
            if old != new and old in self._identities.bound(inode):
                becomes = new if names == 1 else ANY_PLACE
                rebound.append((inode, old, becomes))
                self._identities.bind(inode, old, becomes)

    def _forget_old_places(self, parent: Inode, new_parent: Inode, rebound: list[_Rebound]) -> None:
        """After a rename: bind the renamed files only to their new identities.

        The name has changed, and the headers allow both places. So a failure here does not fail the rename.
        """
        try:
            # a header must not forget the old name while a crash could still bring it back
            for directory in (parent, new_parent):
                self._unsynced_names.sync_names_in(directory, "rename:directory", "rename:sync", answered=False)
            for node, _, new in rebound:
                self._identities.bind(node, new)
        except OSError as error:
            self._complaints.failed("rename", printable_path(new_parent.path()), error)
        for node, _, _ in rebound:
            self._inodes.drop_if_unused(node)

    def _settle(self, new_parent: Inode, links: list[MovingLink]) -> None:
        """After a rename: let each link lie only at its new place. A failure here does not fail the rename."""
        for link in links:
            try:
                self._links.settle(link)
            except OSError as error:
                self._complaints.failed("rename", printable_path(new_parent.path()), error)
            self._inodes.drop_if_unused(link.inode)

    def _undo(self, parent: Inode, name: bytes, work: Callable[[], None]) -> None:
        self._complaints.undo("rename", printable_path(os.fsencode(path_of(parent, name))), work)
