"""The FUSE operations: each translates one request into calls on the file core, and the result into a reply.

What happens between two ``await`` expressions is atomic, since all requests are served on one event loop; only
waiting reads and syncs leave it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from tdefs.data.calls import Owner, SystemCalls
from tdefs.data.data_file import DataFile, Handle
from tdefs.data.durability import Durability
from tdefs.data.losses import Event
from tdefs.data.reading import Reader
from tdefs.data.staging import Staging
from tdefs.errors import errno_of
from tdefs.fuse.appearance import appearance
from tdefs.fuse.loop import after_earlier_requests
from tdefs.fuse.replies import Replies, reply
from tdefs.policy.paths import Kind, classify
from tdefs.text import printable_path
from tdefs.tree.attributes import Attributes, Changes
from tdefs.tree.inodes import Inode, InodeTable
from tdefs.tree.namespace import Namespace
from tdefs.tree.opening import Opener

log = logging.getLogger(__name__)

# tdefs is the only writer of the backing directory and all changes pass through the kernel that caches, so what
# the kernel knows stays true.
FOREVER_SECONDS = 1e9

_BY_HANDLE = frozenset({"read", "write", "flush", "fsync", "release"})
_BY_DIRECTORY_HANDLE = frozenset({"readdir", "releasedir", "fsyncdir"})


class _Directory:
    """An open directory: a descriptor to sync, and the names as they were when reading began."""

    __slots__ = ("fd", "inode", "names")

    def __init__(self, inode: Inode, fd: int) -> None:
        self.inode = inode
        self.fd = fd
        self.names: list[bytes] = []


class FuseOperations(Replies, pyfuse3.Operations):
    """One mount, as pyfuse3 calls it."""

    supports_dot_lookup = False
    enable_writeback_cache = True
    enable_acl = False

    def __init__(
        self,
        calls: SystemCalls,
        inodes: InodeTable,
        opener: Opener,
        root_fd: int,
        staging: Staging | None = None,
    ) -> None:
        """:param staging: where links are made anew; ``None`` for a volume that is only read."""
        super().__init__(opener.complaints)
        self._calls = calls
        self._inodes = inodes
        self._opener = opener
        self._namespace = Namespace(calls, inodes, opener, staging)
        self._attributes = Attributes(calls, inodes, opener)
        self._reader = Reader(calls)
        self._durability = Durability(calls)
        self._root_fd = root_fd
        self._handles: dict[int, tuple[Inode, Handle]] = {}
        self._directories: dict[int, _Directory] = {}
        self._last_handle = 0
        #: Set as soon as the kernel and libfuse have agreed on how they talk: from then on requests are served.
        self.serves = trio.Event()

    @property
    def open_handles(self) -> int:
        """Return how many file handles the kernel holds."""
        return len(self._handles)

    def close(self) -> None:
        """Close what the kernel left open, once no request comes any more."""
        for handle in list(self._handles):
            self._release(handle)
        for directory in self._directories.values():
            self._inodes.descriptors.let_go("close:directory", directory.fd)
        self._directories.clear()
        self._opener.close_all_idle()
        self._inodes.close()

    def init(self) -> None:
        """Take note that the first request has come (FUSE_INIT)."""
        self.serves.set()

    # --- names ---------------------------------------------------------------------------------------------

    @reply
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a name; one that is not there is remembered by the kernel, too."""
        try:
            inode, status = self._namespace.lookup(self._inodes[parent_inode], name)
        except FileNotFoundError:
            missing = EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = FOREVER_SECONDS
            return missing
        return self._entry(inode, status)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back lookups. There is no reply, so nothing here may fail."""
        for number, lookups in inode_list:
            try:
                self._inodes.forget(number, lookups)
            except Exception:
                log.exception("unexpected error in forget")

    @reply
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        parent = self._inodes[parent_inode]
        with self._making(parent, name):
            return self._entry(*self._namespace.mkdir(parent, name, mode, _owner(ctx)))

    @reply
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a file, socket, FIFO or device node."""
        parent = self._inodes[parent_inode]
        with self._making(parent, name):
            return self._entry(*self._namespace.mknod(parent, name, mode, rdev, _owner(ctx)))

    @reply
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        parent = self._inodes[parent_inode]
        with self._making(parent, name):
            return self._entry(*self._namespace.symlink(parent, name, target, _owner(ctx)))

    @reply
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """Return where a symbolic link points."""
        return self._namespace.readlink(self._inodes[inode])

    @reply
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a hard link."""
        node = self._inodes[inode]
        parent = self._inodes[new_parent_inode]
        with self._making(parent, new_name):
            return self._entry(*self._namespace.link(node, parent, new_name))

    @reply
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a name."""
        self._namespace.unlink(self._inodes[parent_inode], name)

    @reply
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        self._namespace.rmdir(self._inodes[parent_inode], name)

    @reply
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Rename, replace or exchange."""
        old, new = self._inodes[parent_inode_old], self._inodes[parent_inode_new]
        self._namespace.rename(old, name_old, new, name_new, flags)

    # --- attributes ----------------------------------------------------------------------------------------

    @reply
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Return attributes."""
        node = self._inodes[inode]
        return self._reply_attributes(node, self._attributes.status(node))

    @reply
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Set length, mode, owner and times. The change time is the backing file system's own."""
        node = self._inodes[inode]
        if fh is not None and fields.update_mtime and not (fields.update_size or fields.update_mode):
            # only the kernel itself sets times through a handle: those of writes that it has cached
            status = self._pass_on_mtime(self._handle(fh)[1].file, attr.st_mtime_ns)
            return self._reply_attributes(node, status)
        changes = Changes(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._reply_attributes(node, self._attributes.change(node, changes))

    @reply
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Return the figures of the file system below."""
        await self._forgotten_is_closed()
        figures = self._calls.statvfs("statfs", self._root_fd)
        reply = StatvfsData()
        for name in (
            "f_bsize",
            "f_frsize",
            "f_blocks",
            "f_bfree",
            "f_bavail",
            "f_files",
            "f_ffree",
            "f_favail",
            "f_namemax",
        ):
            setattr(reply, name, getattr(figures, name))
        return reply

    @reply
    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Leave the answer to the kernel, which checks permissions itself on this mount and asks no more."""
        raise FUSEError(errno.ENOSYS)

    # There are no extended attributes. ENOSYS makes the kernel stop asking, where ENOTSUP would cost a request
    # for security.capability before each write.

    @reply
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """Say once that there are none."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Say once that there are none."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """Say once that there are none."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Say once that there are none."""
        raise FUSEError(errno.ENOSYS)

    # --- directories ---------------------------------------------------------------------------------------

    @reply
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        node = self._inodes[inode]
        fd = self._inodes.open_inode("opendir", node, os.O_RDONLY | os.O_DIRECTORY)
        handle = self._new_handle()
        self._directories[handle] = _Directory(node, fd)
        node.handles += 1
        return handle

    @reply
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List a directory from a position on.

        Positions count in the list of names that was taken when reading began (or began again): names that come
        later are not in it, and those that go are left out, so no position ever shifts.
        """
        directory = self._directories[fh]
        if start_id == 0:
            missing = self._opener.manifest.missing_in(directory.inode)
            directory.names = [b".", b"..", *self._namespace.names_in(directory.inode), *missing]
        for position in range(start_id, len(directory.names)):
            name = directory.names[position]
            if name in (b".", b".."):
                # the kernel takes number and type from here, and no lookup is counted
                entry = EntryAttributes()
                entry.st_ino = self._dot(directory.inode, name).number
                entry.st_mode = stat.S_IFDIR
                if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                    return
                continue
            listed = self._listed(directory.inode, name)
            if listed is None:
                continue
            inode, entry = listed
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                self._inodes.drop_if_unused(inode)
                return
            inode.lookups += 1

    @reply
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        directory = self._directories.pop(fh)
        directory.inode.handles -= 1
        if directory.inode.handles == 0:
            directory.inode.losses.closed_by_all()
        self._inodes.descriptors.let_go("releasedir", directory.fd)

    @reply
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a directory's entries durable."""
        directory = self._directories[fh]
        await self._durability.sync_directory(self._inodes.names_in(directory.inode), directory.fd)

    # --- files ---------------------------------------------------------------------------------------------

    @reply
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a file and open it."""
        parent = self._inodes[parent_inode]
        with self._making(parent, name):
            made, file = self._namespace.create(parent, name, mode, _owner(ctx))
            try:
                inode, status = self._namespace.adopt(parent, name, mode, _owner(ctx))
            except OSError:
                self._opener.close_if_unused(made)
                raise
        return self._open_reply(made, Handle(file, flags)), self._entry(inode, status)

    @reply
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file. The kernel sends O_TRUNC along, so opening may also cut."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        node = self._inodes[inode]
        file = self._opener.open(node, writable=writable)
        try:
            if flags & os.O_TRUNC:
                if node.bound and file.length:
                    self._opener.manifest.will_change(node)
                file.truncate(0)
        except OSError:
            self._opener.close_if_unused(node)
            raise
        return self._open_reply(node, Handle(file, flags))

    @reply
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read."""
        return await self._reader.read(self._handle(fh)[1].file, off, size)

    @reply
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write. The kernel gives the offset also for O_APPEND, since it owns the length."""
        inode, handle = self._handle(fh)
        file = handle.file
        try:
            if not file.writable:
                # a write-back of pages that were made dirty through a descriptor closed since
                self._opener.open(inode, writable=True)
            if inode.bound and off + len(buf) > file.length:
                self._opener.manifest.will_change(inode)
            try:
                file.write(off, buf)
            except OSError as error:
                if not await self.more_room(error):
                    raise
                file.write(off, buf)
        except Exception as error:
            if not file.direct:
                # a write-back: the program's write succeeded long ago, and its next sync reports the error
                file.losses.failed(errno_of(error), Event.FAILED_WRITE_BACK)
            raise
        if handle.durable_writes:
            await self._durability.sync(file, datasync=True, of_write=True)
        return len(buf)

    @reply
    async def flush(self, fh: FileHandleT) -> None:
        """Say once that closing needs no request of its own: every write has been passed on already."""
        raise FUSEError(errno.ENOSYS)

    @reply
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a file durable."""
        await self._durability.sync(self._handle(fh)[1].file, datasync=datasync)

    @reply
    async def release(self, fh: FileHandleT) -> None:
        """Close a file handle."""
        self._release(fh)

    # --- helpers -------------------------------------------------------------------------------------------

    def subject(self, operation: str, arguments: Sequence[object]) -> str:
        """Return for the log which file, or directory, a request with these arguments was about."""
        number = arguments[0] if arguments else None
        try:
            if operation in _BY_HANDLE:
                inode = self._handles[cast(int, number)][0]
            elif operation in _BY_DIRECTORY_HANDLE:
                inode = self._directories[cast(int, number)].inode
            else:
                inode = self._inodes[cast(int, number)]
        except (KeyError, OSError):
            return "the mount"
        name = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], bytes) else b""
        return printable_path(b"/".join(part for part in (inode.path(), name) if part)) if name else inode.shown()

    async def more_room(self, error: OSError) -> bool:
        """Tell whether there is more room since a request failed: that of files that were removed before."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._inodes.held:
            return False
        await self._forgotten_is_closed()
        return True

    async def _forgotten_is_closed(self) -> None:
        """Close what the kernel has forgotten before it sent this request, though it may be told of later.

        On a plain disk the space of a removed file is free when unlink(2) returns.
        """
        held = self._inodes.held
        if held:
            await after_earlier_requests(lambda: not held)

    @contextmanager
    def _making(self, parent: Inode, name: bytes) -> Iterator[None]:
        """Have the kernel look again for what could not be made, when what there is of it could not be removed."""
        try:
            yield
        except OSError:
            if self.complaints.left_behind:
                with suppress(RuntimeError):  # no thread can be had; the error to be told is the first one
                    pyfuse3.invalidate_entry_async(parent.number, name, ignore_enoent=True)
            raise

    def _handle(self, fh: int) -> tuple[Inode, Handle]:
        try:
            return self._handles[fh]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def _new_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle

    def _open_reply(self, inode: Inode, handle: Handle) -> FileInfo:
        number = self._new_handle()
        self._handles[number] = inode, handle
        file = handle.file
        keep_cache = True
        if file.handles == 0:
            # PostgreSQL opens WAL with O_DSYNC under wal_sync_method = open_datasync. Past the kernel's cache such
            # a commit is one request, through it two. All handles that are open at a time are alike, and who
            # comes after direct ones does not find what the cache held before, so no view is ever stale.
            file.direct = handle.durable_writes and classify(os.fsdecode(inode.path())).kind is Kind.WAL
            keep_cache = not inode.bypassed
            inode.bypassed = file.direct
        file.handles += 1
        return FileInfo(fh=number, keep_cache=keep_cache, direct_io=file.direct)

    def _release(self, fh: int) -> None:
        inode, handle = self._handles.pop(fh)
        file = handle.file
        file.handles -= 1
        if file.handles == 0:
            file.losses.closed_by_all()
        self._opener.close_if_unused(inode)

    def _pass_on_mtime(self, file: DataFile, mtime_ns: int) -> os.stat_result:
        try:
            return self._attributes.pass_on_mtime(file, mtime_ns)
        except OSError as error:
            # the kernel does this within a sync, which then has failed without asking for one
            file.losses.failed(errno_of(error), Event.FAILED_ANSWERED)
            raise

    def _dot(self, directory: Inode, name: bytes) -> Inode:
        return directory.names[0][0] if name == b".." and directory.names else directory

    def _listed(self, directory: Inode, name: bytes) -> tuple[Inode, EntryAttributes] | None:
        """Return what to list for *name*, which was there when reading began; nothing when it is gone."""
        inode: Inode | None = None
        status: os.stat_result | None = None
        try:
            inode, status = self._namespace.lookup(directory, name)
            return inode, self._reply_attributes(inode, status)
        except OSError as error:
            if inode is not None:
                self._inodes.drop_if_unused(inode)
            if isinstance(error, FileNotFoundError):
                return None
            # nothing can be told of this one now; the others can be listed
            path = b"/".join(part for part in (directory.path(), name) if part)
            self.complaints.failed("readdir", printable_path(path), error)
            return self._stand_in(path, status)

    def _stand_in(self, path: bytes, status: os.stat_result | None) -> tuple[Inode, EntryAttributes]:
        """Return what to list for a file of which nothing can be told; the kernel asks again when it is used.

        :param status: its attributes in the backing directory. Without them its type is unknown, too: the kernel
            lists the name so, and takes no inode for it.
        """
        inode = self._inodes.stand_in(path, status)
        if status is not None:
            entry = self._reply_attributes(inode, status)
        else:
            entry = EntryAttributes()
            entry.st_ino = inode.number
            entry.st_mode = 0
        entry.entry_timeout = entry.attr_timeout = 0
        return inode, entry

    def _entry(self, inode: Inode, status: os.stat_result) -> EntryAttributes:
        """Return attributes for a reply that counts as a lookup."""
        try:
            entry = self._reply_attributes(inode, status)
        except OSError:
            self._inodes.drop_if_unused(inode)
            raise
        inode.lookups += 1
        return entry

    def _reply_attributes(self, inode: Inode, status: os.stat_result) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode.number
        entry.generation = inode.generation
        entry.entry_timeout = FOREVER_SECONDS
        entry.attr_timeout = FOREVER_SECONDS
        entry.st_mode, entry.st_rdev, entry.st_size = appearance(self._opener, inode, status)
        entry.st_nlink = status.st_nlink
        if inode.ghost is not None:
            entry.st_nlink = inode.ghost.links
        entry.st_uid = status.st_uid
        entry.st_gid = status.st_gid
        entry.st_blksize = status.st_blksize
        entry.st_blocks = status.st_blocks
        entry.st_atime_ns = status.st_atime_ns
        entry.st_mtime_ns = status.st_mtime_ns
        entry.st_ctime_ns = status.st_ctime_ns
        return entry


def _owner(ctx: RequestContext) -> Owner:
    """Return whom what the caller makes belongs to."""
    return Owner(ctx.uid, ctx.gid)
