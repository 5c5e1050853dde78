"""The disk that forgets: what was synced lasts, what was not may go, in every way that disks do."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from copy import deepcopy
from random import Random

import pytest

from tdefs.durable import fsync_directory
from tests.crash.power.disk.model import ROOT, SECTOR, Disk, Keeps, Node
from tests.crash.power.disk.mounted import PowerCutDisk


def _file(disk: Disk, name: bytes, directory: Node | None = None) -> Node:
    return disk.make(directory or disk.nodes[ROOT], name, stat.S_IFREG | 0o600, 0, 0)


def _directory(disk: Disk, name: bytes) -> Node:
    return disk.make(disk.nodes[ROOT], name, stat.S_IFDIR | 0o700, 0, 0)


def _disk_with(content: bytes) -> tuple[Disk, Node]:
    """A disk with a file "a", both durable."""
    disk = Disk()
    file = _file(disk, b"a")
    disk.write(file, 0, content)
    disk.sync_all()
    return disk, file


def _after_cuts(disk: Disk, keeps: Keeps, cuts: int = 300, *, writing: bool = False) -> Iterator[Disk]:
    for seed in range(cuts):
        copy = deepcopy(disk)
        copy.cut_power(Random(seed), keeps, writing=writing)
        yield copy


def _content(disk: Disk, *path: bytes) -> bytes | None:
    node = disk.nodes[ROOT]
    for name in path:
        found = disk.find(node, name)
        if found is None:
            return None
        node = found
    return bytes(node.content.present)


def _contents_after_cuts(disk: Disk, keeps: Keeps, cuts: int = 300, *, writing: bool = False) -> set[bytes | None]:
    """What the file "a" may hold afterwards; None where it is not there."""
    return {_content(one, b"a") for one in _after_cuts(disk, keeps, cuts, writing=writing)}


@pytest.mark.parametrize("keeps", list(Keeps))
def test_what_was_synced_lasts(keeps: Keeps) -> None:
    disk = Disk()
    file = _file(disk, b"a")
    disk.write(file, 0, b"x" * 5000)
    disk.resize(file, 4000)
    disk.sync(file)
    disk.sync(disk.nodes[ROOT])
    assert _contents_after_cuts(disk, keeps) == {b"x" * 4000}


def test_nothing_lasts_without_a_sync() -> None:
    disk, file = _disk_with(b"")
    disk.write(file, 0, b"x" * 5000)
    _file(disk, b"b")
    for one in _after_cuts(disk, Keeps.NOTHING):
        assert _content(one, b"a") == b""
        assert _content(one, b"b") is None


def test_a_file_that_was_synced_is_lost_with_its_name() -> None:
    disk = Disk()
    file = _file(disk, b"a")
    disk.write(file, 0, b"x")
    disk.sync(file)
    assert _contents_after_cuts(disk, Keeps.JOURNAL) == {None, b"x"}


@pytest.mark.parametrize("keeps", list(Keeps))
def test_with_a_journal_a_file_that_was_synced_keeps_its_name(keeps: Keeps) -> None:
    disk = Disk(journal=True)
    root = disk.nodes[ROOT]
    directory = disk.make(root, b"d", stat.S_IFDIR | 0o700, 0, 0)
    _file(disk, b"old", directory)
    disk.rename((directory, b"old"), (directory, b"new"), exchange=False)
    file = _file(disk, b"a", directory)
    disk.write(file, 0, b"x")
    disk.sync(file)
    disk.write(_file(disk, b"unsynced", directory), 0, b"y")
    for one in _after_cuts(disk, keeps):
        assert _content(one, b"d", b"a") == b"x"
        assert (_content(one, b"d", b"old"), _content(one, b"d", b"new")) == (None, b"")
    assert None in {_content(one, b"d", b"unsynced") for one in _after_cuts(disk, keeps)}


def test_a_write_is_torn_at_any_sector() -> None:
    disk, file = _disk_with(b"o" * 8192)
    disk.write(file, 0, b"n" * 8192)
    found = _contents_after_cuts(disk, Keeps.ANY, 3000)
    assert {b"n" * cut + b"o" * (8192 - cut) for cut in range(0, 8193, SECTOR)} <= found
    assert all(
        content and all(len(set(content[at : at + SECTOR])) == 1 for at in range(0, 8192, SECTOR))
        for content in found
    ), "a sector is never torn"


def test_a_write_under_way_is_torn_even_where_nothing_else_lasts() -> None:
    disk, file = _disk_with(b"o" * 2048)
    disk.write(file, 1024, b"1" * 1024)
    disk.write(file, 0, b"n" * 2048)
    found = _contents_after_cuts(disk, Keeps.NOTHING, writing=True)
    assert found == {b"n" * cut + b"o" * (2048 - cut) for cut in range(0, 2049, SECTOR)}


def test_a_later_write_overtakes_an_earlier_one() -> None:
    disk, file = _disk_with(b"o" * 1024)
    disk.write(file, 0, b"1" * 512)
    disk.write(file, 512, b"2" * 512)
    assert b"o" * 512 + b"2" * 512 in _contents_after_cuts(disk, Keeps.ANY)


def test_bytes_behind_a_truncation_that_lasts_are_zero() -> None:
    disk, file = _disk_with(b"o" * 2048)
    disk.resize(file, 100)
    disk.resize(file, 2048)
    cut_short = b"o" * 100 + bytes(1948)
    assert _contents_after_cuts(disk, Keeps.JOURNAL) == {b"o" * 2048, b"o" * 100, cut_short}


@pytest.mark.parametrize("keeps", [Keeps.JOURNAL, Keeps.ANY])
def test_a_rename_is_whole(keeps: Keeps) -> None:
    disk = Disk()
    root = disk.nodes[ROOT]
    directory = _directory(disk, b"d")
    disk.write(_file(disk, b"a"), 0, b"new")
    disk.write(_file(disk, b"b", directory), 0, b"old")
    disk.sync_all()
    disk.rename((root, b"a"), (directory, b"b"), exchange=False)
    found = {(_content(one, b"a"), _content(one, b"d", b"b")) for one in _after_cuts(disk, keeps)}
    assert found == {(b"new", b"old"), (None, b"new")}


@pytest.mark.parametrize("synced", [b"a", b"b"])
def test_syncing_either_directory_makes_a_rename_last(synced: bytes) -> None:
    disk = Disk()
    here, there = _directory(disk, b"a"), _directory(disk, b"b")
    disk.write(_file(disk, b"f", here), 0, b"x")
    disk.sync_all()
    disk.rename((here, b"f"), (there, b"f"), exchange=False)
    disk.sync(here if synced == b"a" else there)
    for one in _after_cuts(disk, Keeps.NOTHING):
        assert (_content(one, b"a", b"f"), _content(one, b"b", b"f")) == (None, b"x")


def test_journal_keeps_no_later_name_without_an_earlier_one() -> None:
    disk = Disk()
    for name in (b"1", b"2", b"3"):
        _file(disk, name)
    for one in _after_cuts(disk, Keeps.JOURNAL):
        there = [_content(one, name) is not None for name in (b"1", b"2", b"3")]
        assert there == sorted(there, reverse=True)


def test_mounted_disk_forgets_what_nobody_synced(disk: PowerCutDisk) -> None:
    disk.switch_on()
    here = disk.mountpoint
    (here / "synced").write_bytes(b"s" * 10000)
    with (here / "synced").open("rb") as file:
        os.fsync(file.fileno())
    fsync_directory(here)
    (here / "forgotten").write_bytes(b"f")
    (here / "synced").rename(here / "renamed")
    assert disk.cut(Keeps.NOTHING, seed=1) > 0
    disk.switch_on()
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {"synced": b"s" * 10000}


def test_mounted_disk_is_a_file_system(disk: PowerCutDisk) -> None:
    """What tdefs asks of a backing directory: links, exchanges, sockets, attributes; and all of it lasts."""
    disk.switch_on()
    here = disk.mountpoint
    (here / "d").mkdir()
    (here / "d" / "f").write_bytes(b"1")
    (here / "d" / "g").hardlink_to(here / "d" / "f")
    (here / "l").symlink_to("d/f")
    (here / "d" / "f").chmod(0o640)
    os.chown(here / "d" / "f", 1, 2)
    os.truncate(here / "d" / "f", 600)
    with pytest.raises(OSError, match="not empty"):
        (here / "d").rmdir()
    disk.switch_off()
    disk.switch_on()
    status = (here / "l").stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid, status.st_nlink) == (0o640, 1, 2, 2)
    assert (here / "d" / "g").read_bytes() == b"1".ljust(600, b"\0")
