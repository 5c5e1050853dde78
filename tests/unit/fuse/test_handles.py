"""The table of handles: a number stands for one file or directory, and it is in use until it is released."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import cast

import pytest

from tdefs.data.data_file import DataFile
from tdefs.data.losses import Losses
from tdefs.format.content import Content
from tdefs.fuse.handles import Handles
from tdefs.tree.inode import ROOT_NUMBER, Backing, Inode

WAL_NAME = b"000000010000000000000001"


def make_inode(directory: bytes = b"base", name: bytes = b"file") -> Inode:
    root = Inode(ROOT_NUMBER, Backing(1, 2), stat.S_IFDIR, 0)
    above = Inode(3, Backing(1, 3), stat.S_IFDIR, 0)
    above.names.append((root, directory))
    inode = Inode(4, Backing(1, 4), stat.S_IFREG, 0)
    inode.names.append((above, name))
    return inode


def make_file() -> DataFile:
    status = Path("/").stat()
    return DataFile(-1, cast(Content, None), status, Losses(), lambda: None, writable=True, names_durable=True)


def test_a_handle_counts_its_inode_as_open_until_it_is_released() -> None:
    handles, inode, file = Handles(), make_inode(), make_file()
    first, _ = handles.open_file(inode, file, os.O_RDONLY)
    second, _ = handles.open_file(inode, file, os.O_RDWR)
    assert (inode.handles, handles.open_files) == (2, 2)
    assert handles.file(first).file is handles.file(second).file is file
    assert handles.close_file(first) is inode
    assert (inode.handles, handles.numbers_of_files()) == (1, [second])


def test_a_number_is_used_once_for_files_and_directories_together() -> None:
    handles, inode = Handles(), make_inode()
    numbers = []
    for _ in range(3):
        number, _ = handles.open_file(inode, make_file(), os.O_RDONLY)
        handles.close_file(number)
        numbers += [number, handles.open_directory(inode, 7)]
    assert len(set(numbers)) == 6
    assert handles.close_directory(numbers[1]) == 7


def test_a_number_that_is_not_in_use_is_refused() -> None:
    handles, inode = Handles(), make_inode()
    directory = handles.open_directory(inode, 7)
    file, _ = handles.open_file(inode, make_file(), os.O_RDONLY)
    for ask, number in (
        (handles.file, directory),
        (handles.close_file, directory),
        (handles.directory, file),
        (handles.close_directory, file),
        (handles.file, file + 1),
    ):
        with pytest.raises(OSError) as caught:
            ask(number)
        assert caught.value.errno == errno.EBADF
    assert inode.handles == 2


def test_handles_that_are_open_at_a_time_use_the_kernels_cache_alike() -> None:
    handles, inode, file = Handles(), make_inode(b"pg_wal", WAL_NAME), make_file()
    cached, keep = handles.open_file(inode, file, os.O_RDWR)
    assert (file.direct, keep) == (False, True)
    durable, _ = handles.open_file(inode, file, os.O_RDWR | os.O_DSYNC)
    assert not file.direct
    handles.close_file(cached)
    handles.close_file(durable)
    durable, keep = handles.open_file(inode, file, os.O_RDWR | os.O_DSYNC)
    assert (file.direct, keep) == (True, True)
    handles.close_file(durable)
    _, keep = handles.open_file(inode, file, os.O_RDWR)
    assert (file.direct, keep) == (False, False), "the cache may hold what was there before the direct writes"
