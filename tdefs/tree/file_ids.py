"""Which backing file has which file id: two files with the same id have one key, and must not both be used."""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from errno import EACCES, ENOENT, ENOTDIR, EPERM

from tdefs.data.calls import SystemCalls
from tdefs.data.forms import Encrypted
from tdefs.data.identity import identity_at
from tdefs.format.header import RECORD_SIZE, Header, shown_file_id
from tdefs.tree.inode import Backing, Inode, path_of
from tdefs.tree.inodes import InodeTable
from tdefs.tree.places import Places

_RECORD = struct.Struct("<16sQQ")
# file ids are random, so each holds the same share
_BUCKETS = 1024
# a search must end, however deeply somebody has nested directories
_MOST_LEVELS = 1000
# a directory that was removed meanwhile, or that the daemon's user may not read
_NOT_THERE = (ENOENT, ENOTDIR, EACCES, EPERM)


class FileIds:
    """The file ids that were seen in one mount, and their files: 32 bytes of memory for each.

    A file may have changed below since it was noted, so a second file with the same id is read again.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, bytearray] = {}

    def add(self, file_id: bytes, backing: Backing) -> None:
        """Note that the file *backing* has *file_id*."""
        bucket = self._buckets.setdefault(self._bucket(file_id), bytearray())
        if not bucket or backing not in self.backings(file_id):
            bucket.extend(_RECORD.pack(file_id, *backing))

    def remove(self, file_id: bytes, backing: Backing) -> None:
        """Note that the file *backing* is gone, or does not have *file_id* any more."""
        bucket = self._buckets.get(self._bucket(file_id))
        if bucket is not None:
            for at in self._places(bucket, file_id):
                if _RECORD.unpack_from(bucket, at) == (file_id, *backing):
                    del bucket[at : at + _RECORD.size]
                    return

    def backings(self, file_id: bytes) -> list[Backing]:
        """Return the files that had *file_id* when they were read: several only if somebody made a copy."""
        bucket = self._buckets.get(self._bucket(file_id))
        if bucket is None:
            return []
        found = [_RECORD.unpack_from(bucket, at) for at in self._places(bucket, file_id)]
        return [Backing(device, number) for _, device, number in found]

    def are_only_of(self, file_id: bytes, backing: Backing) -> bool:
        """Return whether only *backing* has shown *file_id*. This is asked at every opening, so it is quick."""
        bucket = self._buckets.get(int.from_bytes(file_id[:2], "little") % _BUCKETS)
        if bucket is None:
            return True
        at = bucket.find(file_id)
        return at < 0 or (
            _RECORD.unpack_from(bucket, at) == (file_id, *backing)
            and at % _RECORD.size == 0
            and bucket.find(file_id, at + 1) < 0
        )

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values()) // _RECORD.size

    @staticmethod
    def _bucket(file_id: bytes) -> int:
        return int.from_bytes(file_id[:2], "little") % _BUCKETS

    @staticmethod
    def _places(bucket: bytearray, file_id: bytes) -> list[int]:
        found = []
        at = bucket.find(file_id)
        while at >= 0:
            if at % _RECORD.size == 0:
                found.append(at)
            at = bucket.find(file_id, at + 1)
        return found


class SharedFileIds:
    """Finds the files of one mount that have the same file id at this moment."""

    def __init__(self, calls: SystemCalls, inodes: InodeTable, places: Places) -> None:
        self._calls = calls
        self._inodes = inodes
        self._places = places
        self.ids = FileIds()

    def note(self, inode: Inode) -> None:
        """Note that *inode* has its file id, if it lies where it may be opened."""
        form = inode.form
        if isinstance(form, Encrypted) and inode.names and is_at_home(inode, form.header):
            self.ids.add(form.header.file_id, inode.backing)

    def forget(self, inode: Inode) -> None:
        """Note that *inode* is gone, or is about to get another file id or another backing file."""
        if isinstance(inode.form, Encrypted):
            self.ids.remove(inode.form.header.file_id, inode.backing)

    def others_with(self, inode: Inode, file_id: bytes) -> list[bytes]:
        """Return the paths of the other files with *file_id*; forget those that do not have it any more.

        :raises OSError: this cannot be found out.
        """
        if self.ids.are_only_of(file_id, inode.backing):
            return []
        found = []
        for backing in self.ids.backings(file_id):
            if backing == inode.backing:
                continue
            path = self._path_of(backing, file_id)
            if path is None:
                self.ids.remove(file_id, backing)
            else:
                found.append(path)
        return found

    def _path_of(self, backing: Backing, file_id: bytes) -> bytes | None:
        """Return where the file *backing* lies, if it still has *file_id*."""
        inode = self._inodes.with_backing(backing)
        for parent, name in inode.names if inode is not None else ():
            with suppress(FileNotFoundError):
                if self._shows(name, self._places.directory_fd(parent), backing, file_id):
                    return os.fsencode(path_of(parent, name))
        return self._search(backing, file_id)

    def _search(self, backing: Backing, file_id: bytes) -> bytes | None:
        """Look for a file that the kernel has forgotten: every directory is read, since its path was not kept.

        This happens only if somebody has made a copy.
        """
        pending = [b""]
        while pending:
            directory = pending.pop()
            if directory.count(b"/") >= _MOST_LEVELS:
                continue
            try:
                fd = self._open_directory(directory)
            except OSError as error:
                if error.errno in _NOT_THERE:
                    continue
                raise
            try:
                for name in self._calls.listdir("twin:list", fd):
                    path = directory + b"/" + name if directory else name
                    with suppress(FileNotFoundError):
                        if stat.S_ISDIR(self._calls.stat("twin:stat", name, fd).st_mode):
                            pending.append(path)
                        elif self._shows(name, fd, backing, file_id):
                            return path
            finally:
                self._places.descriptors.let_go("twin:close", fd)
        return None

    def _open_directory(self, path: bytes) -> int:
        """Open a directory, one component after the other: no link leads out, and no path is too long."""
        flags = os.O_RDONLY | os.O_DIRECTORY
        root = self._places.directory_fd(self._inodes.root)
        fd = self._places.descriptors.open_at("twin:open", b".", flags, 0, root)
        for name in filter(None, path.split(b"/")):
            try:
                inner = self._places.descriptors.open_at("twin:open", name, flags, 0, fd)
            finally:
                self._places.descriptors.let_go("twin:close", fd)
            fd = inner
        return fd

    def _shows(self, name: bytes, directory: int, backing: Backing, file_id: bytes) -> bool:
        """Return whether *name* is the file *backing*, and has *file_id*; also if it may not be read."""
        status = self._calls.stat("twin:stat", name, directory)
        if (status.st_dev, status.st_ino) != backing or not stat.S_ISREG(status.st_mode):
            return False
        try:
            fd = self._places.descriptors.open_at("twin:open", name, os.O_RDONLY | os.O_NONBLOCK, 0, directory)
        except PermissionError:
            return True
        try:
            record = self._calls.pread("twin:read", fd, RECORD_SIZE, 0)
        finally:
            self._places.descriptors.let_go("twin:close", fd)
        return shown_file_id(record) == file_id


def is_at_home(inode: Inode, header: Header) -> bool:
    """Return whether *header* allows all known names of *inode*."""
    return all(header.accepts(identity_at(path_of(parent, name))) for parent, name in inode.names)
