"""Type, rights and size of a node as programs see them, if they differ from those in the backing directory."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from tdefs.data.forms import Encrypted
from tdefs.format.links import target_length
from tdefs.format.special import special_of
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode


class Appearance(NamedTuple):
    """The fields of stat(2) that differ."""

    mode: int
    rdev: int
    size: int


def appearance(files: Files, inode: Inode, status: os.stat_result) -> Appearance:
    """Return what *inode*, whose backing file has *status*, looks like.

    A planted node can be listed and removed. A planted link is a link that cannot be read. A planted FIFO, socket
    or device looks like an empty file, so that the kernel asks tdefs when a program opens it. Otherwise the kernel
    would serve it.

    :raises OSError: this cannot be found out now.
    """
    if not inode.is_file:
        return _of_no_file(inode, status)
    size = files.opener.length(inode, status)
    special = special_of(inode.form.header.identities) if isinstance(inode.form, Encrypted) else None
    if special is not None and (files.manifest.is_refused(inode) or not files.identities.may_be_special(inode)):
        # the kernel would serve it without asking tdefs
        return Appearance(stat.S_IFREG | stat.S_IMODE(status.st_mode), 0, 0)
    if special is not None:
        device = os.makedev(special.major, special.minor)
        return Appearance(special.type | stat.S_IMODE(status.st_mode), device, 0)
    return Appearance(status.st_mode, 0, size)


def _of_no_file(inode: Inode, status: os.stat_result) -> Appearance:
    """Return what a link, a directory or a planted node looks like."""
    if inode.is_link:
        return Appearance(status.st_mode, 0, target_length(status.st_size) or status.st_size)
    if inode.is_directory:
        return Appearance(status.st_mode, status.st_rdev, status.st_size)
    return Appearance(stat.S_IFREG | stat.S_IMODE(status.st_mode), 0, 0)
