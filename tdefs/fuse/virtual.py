"""Virtual files: files that are in no volume, and can be read in ``.tdefs/`` at the root of a mount.

They have numbers of their own. So a request for one of them is recognised by its number before it reaches the
tree, whose operations know nothing of them. ``.tdefs`` can be opened by its name, and is not listed: initdb sees
an empty directory, and no backup copies it. Only the owner of the mount's root may read it.

A real file or directory of this name cannot be made, and nothing in ``.tdefs`` can be changed: EPERM, as for
a file that chattr(1) has made immutable.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FUSEError, InodeT, ReaddirToken

from tdefs.fuse.operations import FuseOperations
from tdefs.fuse.replies import Replies, reply

DIRECTORY = b".tdefs"
#: Numbers of virtual inodes and of their handles; the tree uses none as high (see tdefs.tree.inodes).
FIRST_NUMBER = 1 << 63

_DIRECTORY_NUMBER = FIRST_NUMBER
_DIRECTORY_MODE = stat.S_IFDIR | 0o500
_FILE_MODE = stat.S_IFREG | 0o400
_BLOCK_BYTES = 4096

_BY_NUMBER = (
    *("getattr", "setattr", "readlink", "open", "opendir", "access"),
    *("getxattr", "setxattr", "listxattr", "removexattr"),
    # of a handle, whose numbers begin at the same place
    *("read", "write", "flush", "fsync", "release", "readdir", "releasedir", "fsyncdir"),
)
_BY_PLACE = ("lookup", "mkdir", "mknod", "symlink", "create", "unlink", "rmdir")

Operation = Callable[..., Any]


class VirtualFile(ABC):
    """One virtual file; a kind of file is a class."""

    name: ClassVar[bytes]

    @abstractmethod
    async def content(self) -> bytes:
        """Return the content as it is now. This is called at each open, so a reader sees one state."""


class VirtualFiles(Replies):
    """The directory ``.tdefs`` and the files in it. Operations that are not here are refused."""

    def __init__(
        self, tree: FuseOperations, owner: Callable[[], tuple[int, int]], files: Sequence[VirtualFile]
    ) -> None:
        """:param owner: returns user and group of the mount's root as they are now."""
        super().__init__(tree.complaints)
        self.measured = tree.measured
        self._owner = owner
        self._files = {_DIRECTORY_NUMBER + 1 + at: file for at, file in enumerate(files)}
        self._numbers = {file.name: number for number, file in self._files.items()}
        self._open: dict[int, bytes] = {}
        self._last_handle = FIRST_NUMBER
        self._started_ns = time.time_ns()

    def subject(self, operation: str, arguments: Sequence[object]) -> str:
        """Return for the log the subject of a request with these arguments."""
        return "a virtual file in .tdefs"

    @reply
    async def lookup(self, parent: InodeT, name: FileNameT, *_: object) -> EntryAttributes:
        """Find ``.tdefs``, or a file in it."""
        if parent == pyfuse3.ROOT_INODE:
            return self._attributes(_DIRECTORY_NUMBER)
        if name not in self._numbers:
            raise FUSEError(errno.ENOENT)
        return self._attributes(self._numbers[name])

    @reply
    async def getattr(self, inode: InodeT, *_: object) -> EntryAttributes:
        """Return attributes."""
        return self._attributes(inode)

    @reply
    async def open(self, inode: InodeT, flags: int, *_: object) -> FileInfo:
        """Open a file to read. Until it is closed, a reader sees the content as it is now."""
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            raise FUSEError(errno.EPERM)
        content = await self._files[inode].content()
        self._last_handle += 1
        self._open[self._last_handle] = content
        # past the page cache: the kernel would read no further than the size, which is not known before
        return FileInfo(fh=FileHandleT(self._last_handle), direct_io=True, keep_cache=False)

    @reply
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read."""
        return self._open[fh][off : off + size]

    @reply
    async def release(self, fh: FileHandleT) -> None:
        """Close a file."""
        del self._open[fh]

    @reply
    async def opendir(self, inode: InodeT, *_: object) -> FileHandleT:
        """Open the directory; its handles need no number, since all are alike."""
        return FileHandleT(FIRST_NUMBER)

    @reply
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List the directory from a position on."""
        listed = [(b".", _DIRECTORY_NUMBER), (b"..", int(pyfuse3.ROOT_INODE)), *self._numbers.items()]
        for position in range(start_id, len(listed)):
            name, number = listed[position]
            entry = self._attributes(number)
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                return

    @reply
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close the directory."""

    # To answer ENOSYS would have the kernel sync no file and no directory of the mount any more.

    @reply
    async def fsync(self, fh: FileHandleT, *_: object) -> None:
        """Succeed: there is nothing to sync."""

    @reply
    async def fsyncdir(self, fh: FileHandleT, *_: object) -> None:
        """Succeed: there is nothing to sync."""

    # As the tree answers: the kernel asks once for the whole mount.

    @reply
    async def flush(self, fh: FileHandleT) -> None:
        """Answer once that closing needs no request of its own."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def getxattr(self, *_: object) -> bytes:
        """Answer once that there are no extended attributes."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def listxattr(self, *_: object) -> Sequence[Any]:
        """Answer once that there are no extended attributes."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def access(self, *_: object) -> bool:
        """Leave the answer to the kernel, which checks permissions itself on this mount."""
        raise FUSEError(errno.ENOSYS)

    def _attributes(self, number: int) -> EntryAttributes:
        entry = EntryAttributes()
        is_directory = number in (_DIRECTORY_NUMBER, pyfuse3.ROOT_INODE)
        entry.st_ino = InodeT(number)
        entry.st_mode = pyfuse3.ModeT(_DIRECTORY_MODE if is_directory else _FILE_MODE)
        entry.st_nlink = 2 if is_directory else 1
        entry.st_uid, entry.st_gid = self._owner()
        # zero, as in /proc: a reader goes on to the end
        entry.st_size = 0
        entry.st_blksize = _BLOCK_BYTES
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._started_ns
        # the owner of the mount's root can change
        entry.entry_timeout = entry.attr_timeout = 0
        return entry


class Dispatcher(pyfuse3.Operations):
    """Passes each request on: to the virtual files if it concerns one of them or their place, else to the tree."""

    supports_dot_lookup = FuseOperations.supports_dot_lookup
    enable_writeback_cache = FuseOperations.enable_writeback_cache
    enable_acl = FuseOperations.enable_acl

    def __init__(self, tree: FuseOperations, virtual: VirtualFiles) -> None:
        self._tree = tree
        for name in _BY_NUMBER:
            setattr(self, name, _by_number(getattr(tree, name), getattr(virtual, name, _refuse)))
        for name in _BY_PLACE:
            setattr(self, name, _by_place(getattr(tree, name), getattr(virtual, name, _refuse)))
        self._link, self._rename = tree.link, tree.rename
        for name in ("init", "statfs", "stacktrace"):
            setattr(self, name, getattr(tree, name))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back lookups; virtual inodes count none."""
        await self._tree.forget([one for one in inode_list if one[0] < FIRST_NUMBER])

    def link(self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, *rest: Any) -> Any:
        """Make a hard link, but not of a virtual file, or to the place of one."""
        if inode >= FIRST_NUMBER or _is_virtual(new_parent_inode, new_name):
            return _refuse()
        return self._link(inode, new_parent_inode, new_name, *rest)

    def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        *rest: Any,
    ) -> Any:
        """Rename, but not a virtual file, and not to the place of one."""
        if _is_virtual(parent_inode_old, name_old) or _is_virtual(parent_inode_new, name_new):
            return _refuse()
        return self._rename(parent_inode_old, name_old, parent_inode_new, name_new, *rest)


def _is_virtual(parent: int, name: bytes) -> bool:
    """Return whether *name* in the directory *parent* is the place of a virtual file or of their directory."""
    return parent >= FIRST_NUMBER or (name == DIRECTORY and parent == pyfuse3.ROOT_INODE)


async def _refuse(*_: object) -> Any:
    """Refuse to change anything."""
    raise FUSEError(errno.EPERM)


# These return what the operation returns, to be awaited, so a request pays for no further coroutine.


def _by_number(tree: Operation, virtual: Operation) -> Operation:
    def operation(number: int, *rest: Any) -> Any:
        return virtual(number, *rest) if number >= FIRST_NUMBER else tree(number, *rest)

    return operation


def _by_place(tree: Operation, virtual: Operation) -> Operation:
    def operation(parent: int, name: bytes, *rest: Any) -> Any:
        # most requests are seen to be no virtual file's by the first comparison, so no function is called for them
        if (name == DIRECTORY or parent >= FIRST_NUMBER) and _is_virtual(parent, name):
            return virtual(parent, name, *rest)
        return tree(parent, name, *rest)

    return operation
