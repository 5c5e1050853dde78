"""A sync of a file makes the names durable that lead to it: one sync of a directory for all that are new in it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.durability import Durability
from tdefs.format.content import Content
from tdefs.tree.inode import Inode
from tdefs.tree.tree import Tree as ServedTree


class Counting(SystemCalls):
    """The real calls; remembers what was synced, and fails when told to."""

    def __init__(self) -> None:
        self.synced: list[str] = []
        self.failing: str | None = None
        #: Fails one sync, slowly, while others succeed.
        self.told_once = False

    def fsync(self, label: str, fd: int) -> None:
        self._sync(label, fd)

    def fdatasync(self, label: str, fd: int) -> None:
        self._sync(label, fd)

    def _sync(self, label: str, fd: int) -> None:
        if self.told_once:
            self.told_once = False
            time.sleep(0.2)
            raise OSError(errno.EIO, "the disk fails")
        if label == self.failing:
            raise OSError(errno.EIO, "the disk fails")
        self.synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)


class Tree:
    """Files and directories below a root, known as the kernel would know them."""

    def __init__(self, root: Path) -> None:
        self.calls = Counting()
        self._root = root
        self.root_fd = os.open(root, os.O_RDONLY)
        self.served = ServedTree(self.calls, self.root_fd)
        self.inodes = self.served.inodes
        self.names = self.served.unsynced_names
        self.durability = Durability(self.calls)
        self._files: list[int] = []

    def directory(self, parent: Inode, name: str) -> Inode:
        fd = self.served.places.directory_fd(parent)
        os.mkdir(name, dir_fd=fd)
        return self._entered(parent, name)

    def file(self, parent: Inode, name: str) -> DataFile:
        fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self.served.places.directory_fd(parent))
        self._files.append(fd)
        return self.opened(fd, self._entered(parent, name))

    def opened(self, fd: int, inode: Inode) -> DataFile:
        """As the opener does it, without what reads and writes."""
        inode.open_file = DataFile(
            fd,
            cast(Content, None),
            os.fstat(fd),
            inode.losses,
            partial(self.names.sync_above, inode),
            writable=True,
            names_durable=not self.names.above(inode),
        )
        return inode.open_file

    def inode_of(self, file: DataFile) -> Inode:
        return next(inode for inode in self.inodes if inode.open_file is file)

    def _entered(self, parent: Inode, name: str) -> Inode:
        status = os.stat(name, dir_fd=self.served.places.directory_fd(parent))
        inode = self.inodes.enter(parent, os.fsencode(name), status)
        inode.looked_up()
        self.names.added(parent, inode)
        return inode

    def sync(self, file: DataFile) -> list[str]:
        """Sync and return the names of what was synced."""
        self.calls.synced.clear()
        trio.run(self._sync, file)
        return list(self.calls.synced)

    async def _sync(self, file: DataFile) -> None:
        await self.durability.sync(file, datasync=False)

    def sync_directory(self, directory: Inode, fd: int) -> None:
        async def work() -> None:
            await self.durability.sync_directory(self.names.names_in(directory), fd)

        trio.run(work)

    def close(self) -> None:
        for fd in [*self._files, self.root_fd]:
            os.close(fd)
        self.served.close()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    root = tmp_path / "root"
    root.mkdir()
    tree = Tree(root)
    yield tree
    tree.close()


def test_a_new_file_is_synced_with_all_directories_above_it(tree: Tree) -> None:
    base = tree.directory(tree.inodes.root, "base")
    file = tree.file(tree.directory(base, "5"), "16384")
    assert tree.sync(file) == ["16384", "5", "base", "root"]
    assert tree.sync(file) == ["16384"]


def test_one_sync_of_a_directory_serves_all_names_in_it(tree: Tree) -> None:
    files = [tree.file(tree.inodes.root, f"f{number}") for number in range(5)]
    assert tree.sync(files[3]) == ["f3", "root"]
    for number in (0, 1, 2, 3, 4):
        assert tree.sync(files[number]) == [f"f{number}"]


def test_a_name_that_comes_later_needs_another_sync(tree: Tree) -> None:
    first = tree.file(tree.inodes.root, "first")
    tree.sync(first)
    second = tree.file(tree.inodes.root, "second")
    assert tree.sync(second) == ["second", "root"]


def test_a_rename_needs_a_sync_of_where_the_file_came_to_lie(tree: Tree) -> None:
    other = tree.directory(tree.inodes.root, "other")
    file = tree.file(tree.inodes.root, "file")
    tree.sync(file)
    inode = tree.inode_of(file)
    tree.inodes.moved(inode, tree.inodes.root, b"file", other, b"file")
    tree.names.moved(other, inode)
    assert tree.sync(file)[1:] == ["other"]


def test_every_name_of_a_file_with_several_is_made_durable(tree: Tree) -> None:
    other = tree.directory(tree.inodes.root, "other")
    file = tree.file(tree.inodes.root, "file")
    tree.sync(file)
    inode = tree.inode_of(file)
    inode.names.append((other, b"link"))
    tree.names.added(other, inode)
    assert sorted(tree.sync(file)) == ["file", "other"]


def test_the_callers_own_sync_of_a_directory_counts(tree: Tree) -> None:
    file = tree.file(tree.inodes.root, "file")
    tree.sync_directory(tree.inodes.root, tree.root_fd)
    assert tree.sync(file) == ["file"]


def test_a_sync_that_fails_does_not_count(tree: Tree) -> None:
    file = tree.file(tree.inodes.root, "file")
    tree.calls.failing = "fsync:entry"
    with pytest.raises(OSError, match="the disk fails"):
        tree.sync(file)
    tree.calls.failing = "fsyncdir"
    with pytest.raises(OSError, match="the disk fails"):
        tree.sync_directory(tree.inodes.root, tree.root_fd)
    tree.calls.failing = None
    other = tree.file(tree.inodes.root, "other")
    assert tree.sync(other) == ["other", "root"]


def test_a_name_that_comes_during_a_sync_of_its_directory_is_not_taken_for_durable(tree: Tree) -> None:
    root = tree.inodes.root
    tree.file(root, "before")
    last = tree.names.last_in(root)
    file = tree.file(root, "meanwhile")
    tree.names.synced(root, last)
    assert tree.sync(file) == ["meanwhile", "root"]


def test_a_directory_that_the_kernel_forgot_is_still_known_to_have_new_names(tree: Tree) -> None:
    base = tree.directory(tree.inodes.root, "base")
    tree.inode_of(tree.file(base, "file")).open_file = None  # it is closed
    for inode in [tree.inodes[number] for number in list(known(tree))]:
        tree.inodes.forget(inode.number, inode.lookups)
    status = os.stat("base", dir_fd=tree.root_fd)
    again = tree.inodes.enter(tree.inodes.root, b"base", status)
    assert again is not base
    file = tree.inodes.enter(again, b"file", os.stat("base/file", dir_fd=tree.root_fd))
    fd = os.open("base/file", os.O_RDWR, dir_fd=tree.root_fd)
    try:
        assert tree.sync(tree.opened(fd, file)) == ["file", "base", "root"]
    finally:
        os.close(fd)


def test_after_a_failed_sync_every_sync_fails(tree: Tree) -> None:
    file = tree.file(tree.inodes.root, "file")
    tree.calls.failing = "fsync"
    for _ in range(3):
        with pytest.raises(OSError, match=r"Input/output error|the disk fails"):
            tree.sync(file)
        tree.calls.failing = None


def known(tree: Tree) -> Any:
    return tree.inodes._by_number


def test_of_two_syncs_at_a_time_neither_says_success_when_one_was_told_of_an_error(tree: Tree) -> None:
    """The kernel below tells an error to the first of two syncs of one descriptor, and success to the other."""
    file = tree.file(tree.inodes.root, "file")
    file.lock.unsynced = 2 << 20  # much data, so that the syncs run beside the event loop
    errors: list[int | None] = []
    tree.calls.told_once = True

    async def sync() -> None:
        file.lock.unsynced = 2 << 20
        try:
            await tree.durability.sync(file, datasync=False)
        except OSError as error:
            errors.append(error.errno)

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sync)
            nursery.start_soon(sync)

    trio.run(both)
    assert errors == [errno.EIO, errno.EIO]
