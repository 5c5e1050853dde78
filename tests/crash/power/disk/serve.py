"""Serves a disk of the model by FUSE, in a process of its own, and cuts its power on command.

    python -m tests.crash.power.disk.serve MOUNTPOINT SOCKET journal|'' [IMAGE]

A command is a JSON object on the socket, its answer a number. Nothing is cached for writing on the way, so that
the model sees every write at once; the kernel below has no part in what lasts.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

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

from tests.crash.power.disk.model import SECTOR, Disk, Keeps, Node

_FOREVER_SECONDS = 1e9
_BLOCK = 4096
_BLOCKS = 1 << 24
_COMMAND_SIZE = 1 << 16
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


class DiskOperations(pyfuse3.Operations):
    """One disk, as pyfuse3 calls it. File handles are the numbers of the nodes."""

    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.disk = disk
        #: How many writes may still be made, and what happens upon the next.
        self.writes_left = -1
        self.upon_write: Callable[[], None] = lambda: None

    # --- names

    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._find(parent_inode, name))

    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx)

    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._make(parent_inode, name, mode, ctx)

    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        return self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(self.disk.nodes[inode].target)

    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.disk.nodes[inode]
        self.disk.link(node, self.disk.nodes[new_parent_inode], new_name)
        return self._attributes(node)

    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        self._find(parent_inode, name)
        self.disk.unlink(self.disk.nodes[parent_inode], name)

    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        if self._find(parent_inode, name).entries():
            raise FUSEError(errno.ENOTEMPTY)
        self.disk.unlink(self.disk.nodes[parent_inode], name)

    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        moved = self._find(parent_inode_old, name_old)
        old, new = self.disk.nodes[parent_inode_old], self.disk.nodes[parent_inode_new]
        replaced = self.disk.find(new, name_new)
        if replaced and flags & _RENAME_NOREPLACE:
            raise FUSEError(errno.EEXIST)
        if replaced and not flags & _RENAME_EXCHANGE and replaced.entries():
            raise FUSEError(errno.ENOTEMPTY)
        if moved is not replaced:
            self.disk.rename((old, name_old), (new, name_new), exchange=bool(flags & _RENAME_EXCHANGE))

    # --- attributes

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self.disk.nodes[inode])

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self.disk.nodes[inode]
        if fields.update_size:
            self.disk.resize(node, attr.st_size)
        changed = replace(node.status)
        if fields.update_mode:
            changed.mode = node.kind | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            changed.uid = attr.st_uid
        if fields.update_gid:
            changed.gid = attr.st_gid
        if fields.update_atime:
            changed.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            changed.mtime_ns = attr.st_mtime_ns
        if changed != node.status:
            self.disk.set_attributes(node, changed)
        return self._attributes(node)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        figures = StatvfsData()
        figures.f_bsize = figures.f_frsize = _BLOCK
        figures.f_blocks = figures.f_bfree = figures.f_bavail = _BLOCKS
        figures.f_files = figures.f_ffree = figures.f_favail = _BLOCKS
        figures.f_namemax = 255
        return figures

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        raise FUSEError(errno.ENOSYS)

    # --- directories

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        # a node's position is its number, which never changes
        entries = sorted((number, name) for name, number in self.disk.nodes[fh].entries().items())
        for number, name in entries:
            if number > start_id and not pyfuse3.readdir_reply(
                token, FileNameT(name), self._attributes(self.disk.nodes[number]), number
            ):
                return

    async def releasedir(self, fh: FileHandleT) -> None:
        pass

    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        self.disk.sync(self.disk.nodes[fh])

    # --- files

    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        made = self._make(parent_inode, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        return FileInfo(fh=FileHandleT(made.st_ino)), made

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            self.disk.resize(self.disk.nodes[inode], 0)
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return bytes(self.disk.nodes[fh].content.present[off : off + size])

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self.disk.write(self.disk.nodes[fh], off, bytes(buf))
        self.writes_left -= 1
        if self.writes_left == 0:
            self.upon_write()
        return len(buf)

    async def flush(self, fh: FileHandleT) -> None:
        raise FUSEError(errno.ENOSYS)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        self.disk.sync(self.disk.nodes[fh])

    async def release(self, fh: FileHandleT) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        pass

    # --- helpers

    def _find(self, parent: int, name: bytes) -> Node:
        node = self.disk.find(self.disk.nodes[parent], name)
        if node is None:
            raise FUSEError(errno.ENOENT)
        return node

    def _make(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext, target: bytes = b""
    ) -> EntryAttributes:
        directory = self.disk.nodes[parent]
        if self.disk.find(directory, name):
            raise FUSEError(errno.EEXIST)
        return self._attributes(self.disk.make(directory, name, mode, ctx.uid, ctx.gid, target))

    def _attributes(self, node: Node) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(node.number)
        entry.entry_timeout = entry.attr_timeout = _FOREVER_SECONDS
        status = node.status
        entry.st_mode = ModeT(status.mode)
        entry.st_nlink = 2 if node.kind == stat.S_IFDIR else node.links
        entry.st_uid, entry.st_gid = status.uid, status.gid
        entry.st_size = len(node.target) if node.kind == stat.S_IFLNK else len(node.content.present)
        entry.st_blksize = _BLOCK
        entry.st_blocks = -(-len(node.content.present) // SECTOR)
        entry.st_atime_ns, entry.st_mtime_ns = status.atime_ns, status.mtime_ns
        entry.st_ctime_ns = status.ctime_ns
        return entry


async def _serve_commands(operations: DiskOperations, path: Path) -> None:
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    while True:
        line, _ = await listener.accept()
        command = json.loads(await line.recv(_COMMAND_SIZE))

        def obey(line: trio.socket.SocketType = line, command: dict[str, str] = command) -> None:
            # without a pause: once the power is cut no request may be answered any more
            answer = _execute(operations.disk, command)
            os.write(line.fileno(), json.dumps(answer).encode())
            line.close()
            if "end" in command:
                os._exit(0)

        if "upon_write" in command:
            operations.writes_left, operations.upon_write = int(command["upon_write"]), obey
        else:
            obey()


def _execute(disk: Disk, command: dict[str, str]) -> int:
    """Do what a command says; the answer is how many changes were not durable before it."""
    unsynced = disk.unsynced
    if "cut" in command:
        disk.cut_power(Random(command["seed"]), Keeps(command["cut"]), writing="upon_write" in command)
    elif "sync" in command:
        disk.sync_all()
    if "image" in command:
        Path(command["image"]).write_bytes(pickle.dumps(disk))
    return unsynced


async def _main(mountpoint: Path, socket: Path, disk: Disk) -> None:
    operations = DiskOperations(disk)
    pyfuse3.init(operations, str(mountpoint), {"fsname=powercut", "allow_other", "default_permissions"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve_commands, operations, socket)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    _, place, control, journal, *images = sys.argv
    stored = pickle.loads(Path(images[0]).read_bytes()) if images else None  # noqa: S301 - made by this module
    os.umask(0)
    trio.run(_main, Path(place), Path(control), stored or Disk(journal=bool(journal)))
