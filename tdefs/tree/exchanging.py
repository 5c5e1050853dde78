"""Exchanging the backing file of an inode while it is in use: a file that was rewritten stays the same inode."""

from __future__ import annotations

import os

from tdefs.tree.files import Files
from tdefs.tree.inode import Inode


class Exchanging:
    """Exchanges the backing files of one mount's inodes."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._inodes = files.tree.inodes

    def exchange(self, inode: Inode, fd: int, status: os.stat_result) -> None:
        """Note that the open file *fd* has taken the place of *inode*'s backing file, under all its names.

        The new file holds the same plaintext, maybe under another key or in the clear. The inode keeps its number,
        generation, names, handles and losses; an open file keeps its descriptor's number. Before the new file
        takes the first name, the caller has noted the change in the manifest (``Bound.will_change``) and has
        waited for syncs and writes of the file. A read that is under way is done again.

        :param fd: open for reading and writing; the caller closes it.
        :param status: of the new file.
        :raises OSError: the new file cannot be presented. The inode still has its old backing file.
        """
        old_backing, old_form = inode.backing, inode.form
        self._files.shared_ids.forget(inode)
        self._inodes.exchange_backing(inode, status)
        inode.form = None
        try:
            form = self._files.headers.read(inode, fd)
            file = inode.open_file
            if file is not None:
                content = self._files.contents.content(inode, file.fd, form, status.st_size, can_write=False)
                with file.changed_alone():
                    os.dup2(fd, file.fd, inheritable=False)
                    file.exchange(content)
                file.status = status
        except BaseException:
            self._files.shared_ids.forget(inode)
            self._inodes.take_back_backing(inode, old_backing)
            inode.form = old_form
            self._files.shared_ids.note(inode)
            raise
