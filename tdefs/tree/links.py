"""Symbolic links of a mount, whose targets are encrypted.

The text of a link says where it may lie, and cannot be changed in place. So a rename first replaces the link by
one that may lie at both places, then renames it, and then replaces it by one that may lie only at the new place.
Each new link is made aside and takes the place of the old one by rename(2). Whenever this stops, and whichever of
these steps a crash takes back, each link can be read where it lies.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from errno import ENAMETOOLONG, ENOENT, EROFS

from tdefs.data.calls import Owner, SystemCalls
from tdefs.data.link_encryption import LinkCipher
from tdefs.data.staging import Staging
from tdefs.format.errors import ForeignLink, FormatError
from tdefs.format.links import MAX_TARGET_BYTES, SEVERAL_NAMES, Link
from tdefs.text import printable_path
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode, path_of
from tdefs.tree.refusals import refusal

_RENAME_NOREPLACE = 1


@dataclass(frozen=True, slots=True)
class MovingLink:
    """A link whose rename is under way."""

    inode: Inode
    link: Link
    status: os.stat_result
    old_path: bytes
    new_path: bytes


class Links:
    """The symbolic links of one mount."""

    def __init__(self, files: Files, staging: Staging | None) -> None:
        """:param staging: ``None`` for a volume that is only read."""
        self._calls: SystemCalls = files.tree.calls
        self._inodes = files.tree.inodes
        self._places = files.tree.places
        self._manifest = files.manifest
        self._policy = files.policy
        self._complaints = files.complaints
        self._cipher = LinkCipher(lambda: files.forms.ring)
        self._staging = staging

    def make(self, parent: Inode, name: bytes, target: bytes, owner: Owner) -> None:
        """Make a link to *target*.

        :raises OSError: ENAMETOOLONG for a target of more than :data:`MAX_TARGET_BYTES` bytes, among others.
        """
        text = self._text(target, path_of(parent, name))
        self._calls.symlink("symlink", text, name, self._places.directory_fd(parent), owner)

    def read(self, inode: Inode) -> bytes:
        """Return where a link leads to, and end a rename of it that a crash interrupted.

        :raises OSError: EIO or ENOKEY for a link that cannot be presented; the log says why.
        """
        try:
            link, status = self._open(inode, list(map(os.fsencode, self._places.paths(inode))))
        except FormatError as error:
            raise refusal(self._places, inode, error) from error
        if len(link.places) > 1 and inode.names and self._staging is not None:
            try:
                self._manifest.will_change(inode)
                self._replace(inode, link, status, (os.fsencode(inode.path()),))
            except OSError as error:
                # it can be read as it is
                self._complaints.failed("readlink", inode.shown(), error)
        return link.target

    def copy(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Make a link like *inode* at another place, in place of a hard link.

        :raises OSError: as :meth:`read`, and EEXIST.
        """
        target = self.read(inode)
        with self._places.reached("link:open", inode) as fd:
            status = self._calls.stat("link:stat", b"", fd)
        text = self._text(target, path_of(parent, name))
        place = path_of(parent, name)
        self._put(text, status, place, name, self._places.directory_fd(parent), _RENAME_NOREPLACE)

    def bind_both(self, inode: Inode, old_path: str, new_path: str) -> MovingLink | None:
        """Before a rename: let a link lie at both places.

        :returns: ``None`` for a link that cannot be read. It can be renamed, and can be read at the new place only
            if it belongs there.
        """
        old, new = os.fsencode(old_path), os.fsencode(new_path)
        if old == new:
            return None
        try:
            link, status = self._open(inode, [old])
        except FormatError:
            return None
        self._replace(inode, link, status, (old, new))
        return MovingLink(inode, link, status, old, new)

    def settle(self, moving: MovingLink) -> None:
        """After a rename: let a link lie at its new place alone."""
        self._replace(moving.inode, moving.link, moving.status, (moving.new_path,))

    def undo(self, moving: MovingLink) -> None:
        """After a rename that failed: let a link lie at its old place alone."""
        self._replace(moving.inode, moving.link, moving.status, (moving.old_path,))

    def _open(self, inode: Inode, paths: list[bytes]) -> tuple[Link, os.stat_result]:
        """Return the link of *inode*, which must belong at all of *paths*, and its attributes.

        :raises FormatError: it cannot be presented.
        """
        with self._places.reached("readlink:open", inode) as fd:
            status = self._calls.stat("readlink:stat", b"", fd)
            if status.st_nlink > 1:
                raise ForeignLink(SEVERAL_NAMES)
            link = self._cipher.decrypt(self._calls.readlink("readlink", b"", fd))
        for path in paths:
            link.check_lies_at(path)
        return link, status

    def _text(self, target: bytes, path: str) -> bytes:
        if not target:
            raise OSError(ENOENT, os.strerror(ENOENT))
        if len(target) > MAX_TARGET_BYTES:
            raise OSError(ENAMETOOLONG, os.strerror(ENAMETOOLONG))
        return self._cipher.encrypt(target, (os.fsencode(path),), self._policy.decide(path).key_name)

    def _replace(self, inode: Inode, link: Link, like: os.stat_result, paths: tuple[bytes, ...]) -> None:
        """Put a link that may lie at *paths* in the place of *inode*, with the owner and times of *like*."""
        name, directory = self._places.place(inode)
        key_name = self._policy.decide(os.fsdecode(paths[-1])).key_name
        text = self._cipher.encrypt(link.target, paths, key_name, link)
        self._inodes.exchange_backing(inode, self._put(text, like, os.fsdecode(paths[0]), name, directory, 0))

    def _put(
        self, text: bytes, like: os.stat_result, path: str, name: bytes, directory: int, flags: int
    ) -> os.stat_result:
        """Make a link with *text* and the owner and times of *like*, and then rename it to *name*, at *path*."""
        staging = self._staging
        if staging is None:
            raise OSError(EROFS, os.strerror(EROFS))
        temporary = staging.new_name()
        self._calls.symlink("relink:make", text, temporary, staging.fd, Owner(os.geteuid(), os.getegid()))
        try:
            status = self._make_alike(staging.open(temporary), like)
            self._calls.rename("relink:rename", temporary, staging.fd, name, directory, flags)
        except OSError:
            subject = printable_path(os.fsencode(path))
            self._complaints.undo(
                "link", subject, lambda: self._calls.unlink("relink:undo", temporary, staging.fd)
            )
            raise
        return status

    def _make_alike(self, fd: int, like: os.stat_result) -> os.stat_result:
        """Give the link that *fd* leads to the owner and times of *like*; return its attributes. Closes *fd*."""
        try:
            status = self._calls.fstat("relink:made", fd)
            if (status.st_uid, status.st_gid) != (like.st_uid, like.st_gid):
                # only root may give a link to every group; the group of a link has no effect
                with suppress(PermissionError):
                    self._calls.chown("relink:chown", b"", like.st_uid, like.st_gid, fd)
            self._calls.utimens("relink:times", b"", like.st_atime_ns, like.st_mtime_ns, fd)
        finally:
            self._places.descriptors.let_go("relink:close", fd)
        return status
