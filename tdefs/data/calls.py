"""The one object through which the mounted file system makes its system calls on the backing directory.

Each call carries a label that names its place in the code, so that a test can make exactly one of them fail, stop
or lie. Errors are ``OSError``. Names are bytes, relative to a directory descriptor; offsets and sizes are bytes.
Where a name may be empty, the call is about what the descriptor itself leads to, which may have no name any more.

No call follows a symbolic link. A user who can write to the backing directory may exchange at any time what a name
leads to. So attributes are set, and hard links are made, through a descriptor that tdefs.tree.places has checked.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable
from errno import EINVAL, ENXIO
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)

_UTIME_OMIT = (1 << 30) - 2
# linux/exportfs.h
_MAX_HANDLE_SIZE = 128
# what precedes the handle proper: its size and type
_HANDLE_HEAD = 8


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _FileHandle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("content", ctypes.c_char * _MAX_HANDLE_SIZE))


class Owner(NamedTuple):
    """The user and group to which a new node will belong."""

    uid: int
    gid: int


def _made_for(owner: Owner, mode: int, make: Callable[[], T]) -> T:
    """Call *make* so that what it makes belongs to *owner* from the first instant on, where that is possible.

    That takes root, or the capabilities CAP_SETUID and CAP_SETGID. A daemon that made a node and then gave it away
    could die in between, and PostgreSQL would recover to a file that it may not open. The daemon makes the node
    itself, and it must still be given away, where *owner* may not make it (a device, or a directory that only a
    supplementary group may write to), or would lose set-id bits.
    """
    # not for root: with a way back from root's user id the kernel takes away what the daemon may do to files
    if owner.uid not in (0, os.geteuid()) and not mode & (stat.S_ISUID | stat.S_ISGID):
        # of this thread alone
        gid = _libc.setfsgid(owner.gid)
        uid = _libc.setfsuid(owner.uid)
        try:
            return make()
        except PermissionError:
            pass
        finally:
            _libc.setfsuid(uid)
            _libc.setfsgid(gid)
    return make()


def _itself(fd: int) -> bytes:
    """Return a path that leads to the file of *fd*, even if it has no name, and through no symbolic link."""
    return b"/proc/self/fd/%d" % fd


class SystemCalls:
    """The real calls."""

    def create(self, label: str, name: bytes, flags: int, mode: int, directory: int, owner: Owner) -> int:
        """Make a file *name* in *directory* for *owner*, if it can be, and open it."""
        flags |= os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return _made_for(owner, mode, lambda: os.open(name, flags, mode, dir_fd=directory))

    def open(self, label: str, name: bytes, flags: int, mode: int, directory: int) -> int:
        """Open *name* in *directory*; never follows a symbolic link, never leaks into a child process.

        The name may be empty. A FIFO that somebody has put in the place of a file is not waited for.
        """
        flags |= os.O_CLOEXEC | os.O_NONBLOCK
        if not name:
            return os.open(_itself(directory), flags)
        return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=directory)

    def close(self, label: str, fd: int) -> None:
        """Close *fd*."""
        os.close(fd)

    def pread(self, label: str, fd: int, size: int, offset: int) -> bytes:
        """Return *size* bytes, fewer only at the end of the file."""
        data = os.pread(fd, size, offset)
        if len(data) == size or not data:
            return data
        pieces = [data]
        got = len(data)
        while got < size:
            data = os.pread(fd, size - got, offset + got)
            if not data:
                break
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def pread_cached(self, label: str, fd: int, size: int, offset: int) -> bytearray | None:
        """Return *size* bytes if the kernel has all of them in memory, else ``None`` without waiting."""
        buffer = bytearray(size)
        try:
            got = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError:
            # EAGAIN: not in memory. EOPNOTSUPP: the file system below does not know. The read that waits decides.
            return None
        return buffer if got == size else None

    def pwrite(self, label: str, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of *data*, or raise."""
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            data = memoryview(data)[written:]
            offset += written
            written = os.pwrite(fd, data, offset)

    def ftruncate(self, label: str, fd: int, size: int) -> None:
        """Set the size of an open file."""
        os.ftruncate(fd, size)

    def seek_data(self, label: str, fd: int, offset: int) -> int:
        """Return where data begins at or behind *offset*; the size where there is nothing but a hole."""
        try:
            return os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == ENXIO:
                return os.lseek(fd, 0, os.SEEK_END)
            if error.errno == EINVAL:
                return offset  # the file system below does not know
            raise

    def getxattr(self, label: str, fd: int, name: str) -> bytes:
        """Return the value of an extended attribute of an open file."""
        return os.getxattr(fd, name)

    def setxattr(self, label: str, fd: int, name: str, value: bytes) -> None:
        """Set an extended attribute of an open file."""
        os.setxattr(fd, name, value)

    def removexattr(self, label: str, fd: int, name: str) -> None:
        """Remove an extended attribute of an open file."""
        os.removexattr(fd, name)

    def fsync(self, label: str, fd: int) -> None:
        """Make data and metadata of *fd* durable."""
        os.fsync(fd)

    def fdatasync(self, label: str, fd: int) -> None:
        """Make data of *fd*, and what is needed to read it, durable."""
        os.fdatasync(fd)

    def stat(self, label: str, name: bytes, directory: int) -> os.stat_result:
        """Return the attributes of *name* itself, not of what it points to. The name may be empty."""
        if not name:
            return os.fstat(directory)
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def handle(self, label: str, name: bytes, directory: int) -> bytes:
        """Return the handle of *name*, which no other file of its file system ever has: name_to_handle_at(2)."""
        found = _FileHandle(_MAX_HANDLE_SIZE)
        if _libc.name_to_handle_at(directory, name, ctypes.byref(found), ctypes.byref(ctypes.c_int()), 0) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return bytes(found)[: _HANDLE_HEAD + found.size]

    def fstat(self, label: str, fd: int) -> os.stat_result:
        """Return the attributes of an open file."""
        return os.fstat(fd)

    def fchmod(self, label: str, fd: int, mode: int) -> None:
        """Set the mode of an open file."""
        os.fchmod(fd, mode)

    def chmod(self, label: str, fd: int, mode: int) -> None:
        """Set the mode of what *fd* leads to; O_PATH is enough. By name, chmod(2) would follow symbolic links."""
        os.chmod(_itself(fd), mode)  # noqa: PTH101 - a link of /proc is no path

    def fchown(self, label: str, fd: int, uid: int, gid: int) -> None:
        """Set the owner of an open file; -1 keeps one."""
        os.fchown(fd, uid, gid)

    def chown(self, label: str, name: bytes, uid: int, gid: int, directory: int) -> None:
        """Set the owner of *name* itself; -1 keeps one. The name may be empty."""
        if name:
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
        else:
            os.chown(_itself(directory), uid, gid)

    def futimens(self, label: str, fd: int, atime_ns: int, mtime_ns: int) -> None:
        """Set the times of an open file, in nanoseconds since 1970."""
        os.utime(fd, ns=(atime_ns, mtime_ns))

    def set_mtime(self, label: str, fd: int, mtime_ns: int) -> None:
        """Set the modification time of an open file, in nanoseconds since 1970; the access time stays."""
        times = (_Timespec * 2)(_Timespec(0, _UTIME_OMIT), _Timespec(*divmod(mtime_ns, 10**9)))
        if _libc.futimens(fd, times) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def utimens(self, label: str, name: bytes, atime_ns: int, mtime_ns: int, directory: int) -> None:
        """Set the times of *name* itself, in nanoseconds since 1970. The name may be empty."""
        if name:
            os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=directory, follow_symlinks=False)
        else:
            os.utime(_itself(directory), ns=(atime_ns, mtime_ns))

    def mkdir(self, label: str, name: bytes, mode: int, directory: int, owner: Owner) -> None:
        """Make a directory for *owner*, if it can be."""
        _made_for(owner, mode, lambda: os.mkdir(name, mode, dir_fd=directory))

    def mknod(self, label: str, name: bytes, mode: int, device: int, directory: int, owner: Owner) -> None:
        """Make a socket, FIFO or device node for *owner*, if it can be."""
        _made_for(owner, mode, lambda: os.mknod(name, mode, device, dir_fd=directory))

    def symlink(self, label: str, target: bytes, name: bytes, directory: int, owner: Owner) -> None:
        """Make *name* a symbolic link to *target* for *owner*, if it can be."""
        _made_for(owner, 0, lambda: os.symlink(target, name, dir_fd=directory))

    def readlink(self, label: str, name: bytes, directory: int) -> bytes:
        """Return where the symbolic link *name* points. The name may be empty."""
        return os.readlink(name, dir_fd=directory)

    def link(self, label: str, fd: int, new_name: bytes, new_directory: int) -> None:
        """Make a hard link of what *fd* leads to; O_PATH is enough."""
        os.link(_itself(fd), new_name, dst_dir_fd=new_directory)

    # No system call removes or renames what a descriptor leads to. The next three go by name, and what lies there
    # may have been exchanged an instant before. Then they remove or move what was put there instead. A user who
    # could put it there could have removed or moved the other one as well. Nothing outside of the two directories
    # is touched, and nothing that a link leads to. What moved is checked like anything else when it is looked up.

    def unlink(self, label: str, name: bytes, directory: int) -> None:
        """Remove a name that is no directory."""
        os.unlink(name, dir_fd=directory)

    def rmdir(self, label: str, name: bytes, directory: int) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=directory)

    def rename(
        self, label: str, name: bytes, directory: int, new_name: bytes, new_directory: int, flags: int
    ) -> None:
        """Rename with the *flags* of renameat2(2)."""
        if flags == 0:
            os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=new_directory)
        elif _libc.renameat2(directory, name, new_directory, new_name, flags) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), os.fsdecode(name))

    def listdir(self, label: str, directory: int) -> list[bytes]:
        """Return the names in an open directory, without ``.`` and ``..``."""
        return [os.fsencode(name) for name in os.listdir(directory)]

    def statvfs(self, label: str, fd: int) -> os.statvfs_result:
        """Return the figures of the file system that *fd* lies on."""
        return os.fstatvfs(fd)

    def syncfs(self, label: str, fd: int) -> None:
        """Write out everything of the file system that *fd* lies on."""
        if _libc.syncfs(fd) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
