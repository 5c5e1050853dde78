"""The FUSE operations: each translates one request into calls on the file core, and the result into a reply.

Code between two ``await`` expressions is atomic, since all requests are served on one event loop. Only reads and
syncs that wait for a disk leave it.
"""

from __future__ import annotations

import errno
import logging
import os
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
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from tdefs.data.calls import Owner
from tdefs.data.data_file import DataFile
from tdefs.data.durability import Durability
from tdefs.data.losses import Event
from tdefs.data.reading import Reader
from tdefs.data.staging import Staging
from tdefs.errors import errno_of
from tdefs.fuse.entries import Entries
from tdefs.fuse.handles import Handles
from tdefs.fuse.loop import after_earlier_requests
from tdefs.fuse.replies import reply
from tdefs.fuse.unsupported import Unsupported
from tdefs.text import printable_path
from tdefs.tree.attributes import Attributes, Changes
from tdefs.tree.files import Files
from tdefs.tree.inode import Inode
from tdefs.tree.namespace import Namespace

log = logging.getLogger(__name__)

_BY_HANDLE = frozenset({"read", "write", "flush", "fsync", "release"})
_BY_DIRECTORY_HANDLE = frozenset({"readdir", "releasedir", "fsyncdir"})


class FuseOperations(Unsupported):
    """One mount, as pyfuse3 calls it."""

    supports_dot_lookup = False
    enable_writeback_cache = True
    enable_acl = False

    def __init__(self, files: Files, root_fd: int, staging: Staging | None = None) -> None:
        """:param staging: where a rename makes new links; ``None`` for a volume that is only read."""
        super().__init__(files.complaints)
        self._files = files
        self._calls = files.tree.calls
        self._inodes = files.tree.inodes
        self._places = files.tree.places
        self._opener = files.opener
        self._manifest = files.manifest
        self._namespace = Namespace(files, staging)
        self._attributes = Attributes(files)
        self._entries = Entries(files, self._namespace)
        self._reader = Reader(self._calls)
        self._durability = Durability(self._calls)
        self._root_fd = root_fd
        self._handles = Handles()
        #: Set when the kernel and libfuse have agreed on the protocol: from then on requests are served.
        self.serves = trio.Event()

    @property
    def open_handles(self) -> int:
        """Return how many file handles the kernel holds."""
        return self._handles.open_files

    def close(self) -> None:
        """Close what the kernel left open, once no request comes any more."""
        for number in self._handles.numbers_of_files():
            self._opener.close_if_unused(self._handles.close_file(number))
        for number in self._handles.numbers_of_directories():
            self._places.descriptors.let_go("close:directory", self._handles.close_directory(number))
        self._opener.close_all_idle()
        self._files.tree.close()

    def init(self) -> None:
        """Note that the first request has come (FUSE_INIT)."""
        self.serves.set()

    # --- names ---------------------------------------------------------------------------------------------

    @reply
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """Find a name; the kernel remembers also a name that does not exist."""
        try:
            inode, status = self._namespace.lookup(self._inodes[parent_inode], name)
        except FileNotFoundError:
            return self._entries.missing()
        return self._entries.looked_up(inode, status)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Take back lookups. There is no reply, so nothing here may fail.

        A file that is only put aside is closed. The kernel forgets the directories above it next. If one of them
        is moved after that, nobody knows where the file lies.
        """
        for number, lookups in inode_list:
            try:
                forgotten = self._inodes.forget(number, lookups)
                if forgotten is not None:
                    self._opener.close_idle(forgotten)
            except Exception:
                log.exception("unexpected error in forget")

    @reply
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        parent = self._inodes[parent_inode]
        with self._making(parent, name):
            return self._entries.looked_up(*self._namespace.mkdir(parent, name, mode, _owner(ctx)))

    @reply
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a file, socket, FIFO or device node."""
        parent = self._inodes[parent_inode]
        with self._making(parent, name):
            return self._entries.looked_up(*self._namespace.mknod(parent, name, mode, rdev, _owner(ctx)))

    @reply
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symbolic link."""
        parent = self._inodes[parent_inode]
        with self._making(parent, name):
            return self._entries.looked_up(*self._namespace.symlink(parent, name, target, _owner(ctx)))

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
            return self._entries.looked_up(*self._namespace.link(node, parent, new_name))

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
        return self._entries.attributes(node, self._attributes.status(node))

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
            status = self._pass_on_mtime(self._handles.file(fh).file, attr.st_mtime_ns)
            return self._entries.attributes(node, status)
        changes = Changes(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entries.attributes(node, self._attributes.change(node, changes))

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

    # --- directories ---------------------------------------------------------------------------------------

    @reply
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        node = self._inodes[inode]
        fd = self._places.open_inode("opendir", node, os.O_RDONLY | os.O_DIRECTORY)
        return self._handles.open_directory(node, fd)

    @reply
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """List a directory from a position on."""
        self._entries.list_directory(self._handles.directory(fh), start_id, token)

    @reply
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._places.descriptors.let_go("releasedir", self._handles.close_directory(fh))

    @reply
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a directory's entries durable."""
        directory = self._handles.directory(fh)
        names = self._files.tree.unsynced_names.names_in(directory.inode)
        await self._durability.sync_directory(names, directory.fd)

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
                inode, status = self._namespace.hand_over(parent, name, mode, _owner(ctx))
            except OSError:
                self._opener.close_if_unused(made)
                raise
        return self._open_reply(made, file, flags), self._entries.looked_up(inode, status)

    @reply
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file. The kernel sends O_TRUNC along, so opening may also cut."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        node = self._inodes[inode]
        file = self._opener.open(node, writable=writable)
        try:
            if flags & os.O_TRUNC:
                if node.bound and file.length:
                    self._manifest.will_change(node)
                file.truncate(0)
        except OSError:
            self._opener.close_if_unused(node)
            raise
        return self._open_reply(node, file, flags)

    @reply
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read."""
        return await self._reader.read(self._handles.file(fh).file, off, size)

    @reply
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write. The kernel gives the offset also for O_APPEND, since it owns the length."""
        handle = self._handles.file(fh)
        inode, file = handle.inode, handle.file
        try:
            if not file.writable:
                # the kernel writes back pages that were changed through a descriptor that is closed by now
                self._opener.make_writable(inode, file)
            if inode.bound and off + len(buf) > file.length:
                self._manifest.will_change(inode)
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
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Make a file durable."""
        await self._durability.sync(self._handles.file(fh).file, datasync=datasync)

    @reply
    async def release(self, fh: FileHandleT) -> None:
        """Close a file handle."""
        self._opener.close_if_unused(self._handles.close_file(fh))

    # --- helpers -------------------------------------------------------------------------------------------

    def subject(self, operation: str, arguments: Sequence[object]) -> str:
        """Return for the log the file or directory of a request with these arguments."""
        number = arguments[0] if arguments else None
        try:
            if operation in _BY_HANDLE:
                inode = self._handles.file(cast(int, number)).inode
            elif operation in _BY_DIRECTORY_HANDLE:
                inode = self._handles.directory(cast(int, number)).inode
            else:
                inode = self._inodes[cast(int, number)]
        except (KeyError, OSError):
            return "the mount"
        name = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], bytes) else b""
        return printable_path(b"/".join(part for part in (inode.path(), name) if part)) if name else inode.shown()

    async def more_room(self, error: OSError) -> bool:
        """Return whether there is more room since a request failed: removed files may be closed by now."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._places.held:
            return False
        await self._forgotten_is_closed()
        return True

    async def _forgotten_is_closed(self) -> None:
        """Close the files that the kernel forgot before it sent this request, even if it reports them later.

        On a plain disk the space of a removed file is free when unlink(2) returns.
        """
        held = self._places.held
        if held:
            await after_earlier_requests(lambda: not held)

    @contextmanager
    def _making(self, parent: Inode, name: bytes) -> Iterator[None]:
        """If a node could be made only in part, and not be removed, have the kernel look its name up again."""
        try:
            yield
        except OSError:
            if self.complaints.left_behind:
                with suppress(RuntimeError):  # no thread can be had; the first error is the answer
                    pyfuse3.invalidate_entry_async(parent.number, name, ignore_enoent=True)
            raise

    def _open_reply(self, inode: Inode, file: DataFile, flags: int) -> FileInfo:
        number, keep_cache = self._handles.open_file(inode, file, flags)
        return FileInfo(fh=number, keep_cache=keep_cache, direct_io=file.direct)

    def _pass_on_mtime(self, file: DataFile, mtime_ns: int) -> os.stat_result:
        try:
            return self._attributes.pass_on_mtime(file, mtime_ns)
        except OSError as error:
            # the kernel does this within a sync, which fails then before it asks for a sync
            file.losses.failed(errno_of(error), Event.FAILED_ANSWERED)
            raise


def _owner(ctx: RequestContext) -> Owner:
    """Return the owner of nodes that the caller makes."""
    return Owner(ctx.uid, ctx.gid)
