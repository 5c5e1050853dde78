"""Attributes of inodes: what a plain directory would show, with the plaintext's length."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from errno import ESTALE

from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode
from tdefs.tree.refusals import refuse_planted


@dataclass(frozen=True, slots=True)
class Changes:
    """Which attributes to set; ``None`` leaves one as it is. Times are nanoseconds since 1970."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Attributes:
    """Reads and sets the attributes of one mount's inodes."""

    def __init__(self, files: Files) -> None:
        self._calls: SystemCalls = files.tree.calls
        self._places = files.tree.places
        self._opener = files.opener
        self._manifest = files.manifest

    def status(self, inode: Inode) -> os.stat_result:
        """Return the attributes of the backing file."""
        if inode.open_file is not None:
            return self._calls.fstat("getattr:open", inode.open_file.fd)
        if inode.last_known is not None and inode not in self._places.held:
            return inode.last_known.status
        name, directory = self._places.place(inode)
        status = self._calls.stat("getattr", name, directory)
        self._places.check(inode, status)
        return status

    def change(self, inode: Inode, changes: Changes) -> os.stat_result:
        """Set attributes and return those that hold then.

        The kernel sets the times of written files late. If the file has been removed by then, this does nothing,
        since an error would fail a syncfs(2).

        :raises OSError: ESTALE if other attributes of a file are to be set that cannot be reached any more.
        """
        if inode.last_known is not None and inode.open_file is None and inode not in self._places.held:
            if (changes.size, changes.mode, changes.uid, changes.gid) != (None, None, None, None):
                raise OSError(ESTALE, os.strerror(ESTALE))
            return inode.last_known.status
        refuse_planted(self._places, inode)
        if changes.size is not None:
            self._truncate(inode, changes.size)
        file = inode.open_file
        if file is not None:
            return self._change_open(file, changes)
        with self._places.reached("setattr:open", inode) as fd:
            return self._change_closed(fd, changes)

    def pass_on_mtime(self, file: DataFile, mtime_ns: int) -> os.stat_result:
        """Set the modification time that the kernel kept while it cached writes; the kernel ignores the reply.

        Nothing here may read the backing file's times. If the file system below has multigrain timestamps
        (Linux 6.13 and later), a write that follows such a read gets a time of its own, and moves the clock of all
        other file systems. Then the kernel would send a new time after every write: one more request for every
        commit.
        """
        self._calls.set_mtime("setattr:mtime", file.fd, mtime_ns)
        return file.status

    def _change_open(self, file: DataFile, changes: Changes) -> os.stat_result:
        """Set attributes through the descriptor: the file may have no name any more."""
        if changes.uid is not None or changes.gid is not None:
            uid, gid = _or_keep(changes.uid), _or_keep(changes.gid)
            self._calls.fchown("setattr:chown", file.fd, uid, gid)
        if changes.mode is not None:
            self._calls.fchmod("setattr:chmod", file.fd, stat.S_IMODE(changes.mode))
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            atime_ns, mtime_ns = _times(changes, self._calls.fstat("setattr:stat", file.fd))
            self._calls.futimens("setattr:times", file.fd, atime_ns, mtime_ns)
        file.status = self._calls.fstat("setattr:stat", file.fd)
        return file.status

    def _change_closed(self, fd: int, changes: Changes) -> os.stat_result:
        """Set attributes through an ``O_PATH`` descriptor."""
        if changes.uid is not None or changes.gid is not None:
            uid, gid = _or_keep(changes.uid), _or_keep(changes.gid)
            self._calls.chown("setattr:chown", b"", uid, gid, fd)
        if changes.mode is not None:
            self._calls.chmod("setattr:chmod", fd, stat.S_IMODE(changes.mode))
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            atime_ns, mtime_ns = _times(changes, self._calls.stat("setattr:stat", b"", fd))
            self._calls.utimens("setattr:times", b"", atime_ns, mtime_ns, fd)
        return self._calls.stat("setattr:stat", b"", fd)

    def _truncate(self, inode: Inode, size: int) -> None:
        file = self._opener.open(inode, writable=True)
        try:
            if inode.bound and size != file.length:
                self._manifest.will_change(inode, goes=size == 0)
            file.truncate(size)
        finally:
            self._opener.close_if_unused(inode)


def _or_keep(number: int | None) -> int:
    return -1 if number is None else number


def _times(changes: Changes, status: os.stat_result) -> tuple[int, int]:
    atime_ns = status.st_atime_ns if changes.atime_ns is None else changes.atime_ns
    mtime_ns = status.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
    return atime_ns, mtime_ns
