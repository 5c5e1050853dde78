"""A relation file is bound to its place, yet no rename and no link through the mount ever shuts one out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.libc import RENAME_EXCHANGE, renameat2
from tests.fs.twins import Failure, content, outcome
from tests.support.volume import Volume
from tests.support.workspace import Workspace

SCENES: dict[str, list[Callable[[Path], object]]] = {
    "rename to another relation": [lambda r: (r / "base/5/16385").rename(r / "base/5/16386")],
    "rename to another database": [lambda r: (r / "base/5/16385").rename(r / "base/7/16385")],
    "rename out of the way and back": [
        lambda r: (r / "base/5/16385").rename(r / "backup"),
        lambda r: (r / "backup").rename(r / "base/5/16385"),
    ],
    "exchange": [lambda r: renameat2(r / "base/5/16385", r / "base/7/16385", RENAME_EXCHANGE)],
    "rename of a database's directory": [lambda r: (r / "base/5").rename(r / "base/6")],
    "exchange of databases' directories": [lambda r: renameat2(r / "base/5", r / "base/7", RENAME_EXCHANGE)],
    "rename of the directory above": [lambda r: (r / "base").rename(r / "old")],
    "link to another relation": [lambda r: (r / "base/7/16386").hardlink_to(r / "base/5/16385")],
    "link to no relation": [lambda r: (r / "kept").hardlink_to(r / "base/5/16385")],
    "link, then rename of the first": [
        lambda r: (r / "base/7/16386").hardlink_to(r / "base/5/16385"),
        lambda r: (r / "base/5/16385").rename(r / "base/5/16999"),
    ],
    "link with the same numbers, then rename of the first": [
        lambda r: (r / "sub/base/5/16385").hardlink_to(r / "base/5/16385"),
        lambda r: (r / "base/5/16385").rename(r / "base/5/16999"),
    ],
    "link with the same numbers, then rename of the second": [
        lambda r: (r / "sub/base/5/16385").hardlink_to(r / "base/5/16385"),
        lambda r: (r / "sub/base/5/16385").rename(r / "base/5/16999"),
    ],
    "link with the same numbers, then rename of the directory": [
        lambda r: (r / "sub/base/5/16385").hardlink_to(r / "base/5/16385"),
        lambda r: (r / "base/5").rename(r / "base/6"),
    ],
    "two links of no relation, one becomes a relation": [
        lambda r: (r / "two").hardlink_to(r / "one"),
        lambda r: (r / "one").rename(r / "base/5/16999"),
    ],
    "pg_upgrade --link, then the old cluster is removed": [
        lambda r: (r / "sub/base/5/16385").hardlink_to(r / "base/5/16385"),
        lambda r: (r / "base/5/16385").unlink(),
        lambda r: (r / "sub/base/5/16385").rename(r / "sub/base/5/16999"),
    ],
}


@pytest.mark.parametrize("again", [False, True], ids=["names known", "names unknown"])
def test_every_file_is_readable_under_each_of_its_names(scratch: Workspace, volume: Volume, again: bool) -> None:
    """:param again: mounted anew before each step, so that the daemon knows no name but those of the step."""
    plain = scratch.directory("plain")
    volume.mount()
    for root in (plain, volume.mountpoint):
        for name in SCENES:
            for path in ("base/5/16385", "base/5/16385_fsm", "base/7/16385", "sub/base/5/1259", "one"):
                (root / name / path).parent.mkdir(parents=True, exist_ok=True)
                (root / name / path).write_bytes(path.encode() * 1000)
    for turn in range(max(map(len, SCENES.values()))):
        if again:
            volume.umount()
            volume.mount()
        for name, steps in SCENES.items():
            for root in (plain, volume.mountpoint):
                for step in steps[turn : turn + 1]:
                    step(root / name)
        if not again:
            compare(plain, volume.mountpoint)
    volume.umount()
    volume.mount()
    compare(plain, volume.mountpoint)


def compare(plain: Path, mount: Path) -> None:
    """Compares all scenes, and says which of them differ."""
    different = {}
    for name in SCENES:
        got = outcome(content, mount / name)
        if got != content(plain / name):
            different[name] = got if isinstance(got, Failure) else "other content"
    assert different == {}


def test_a_rename_that_fails_leaves_the_file_readable(volume: Volume) -> None:
    volume.mount()
    root = volume.mountpoint
    for path in ("base/5/16385", "base/7/16386/inner"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_bytes(path.encode())
    with pytest.raises(IsADirectoryError):
        (root / "base/5/16385").rename(root / "base/7/16386")
    with pytest.raises(OSError, match="not empty"):
        (root / "base/5").rename(root / "base/7")
    with pytest.raises(FileNotFoundError):
        renameat2(root / "base/5/16385", root / "base/7/1", RENAME_EXCHANGE)
    assert (root / "base/5/16385").read_bytes() == b"base/5/16385"
    volume.umount()
    volume.mount()
    assert (root / "base/5/16385").read_bytes() == b"base/5/16385"


def test_a_number_that_is_used_again_brings_nothing_of_the_old_file_along(volume: Volume) -> None:
    """The file system below gives the inode number of a removed file to the next one, at once."""
    volume.mount()
    directory = volume.mountpoint / "base" / "5"
    directory.mkdir(parents=True)
    for number in range(16385, 16485):
        path = directory / f"{number}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"%d" % number * 2000)
        path.unlink()
        other = directory / f"{number}_fsm"
        other.write_bytes(b"other")
        assert os.fstat(fd).st_ino != other.stat().st_ino
        assert os.pread(fd, 10_000, 0) == b"%d" % number * 2000
        os.close(fd)
        assert other.read_bytes() == b"other"
        other.unlink()
