"""Listing a directory shows what is in it, each name once, also while entries come and go."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.fs.libc import DirectoryStream
from tests.fs.twins import Twins

MANY = 5000


def fill(directory: Path, count: int) -> set[bytes]:
    names = {b"entry.%05d" % number for number in range(count)}
    for name in names:
        os.mknod(os.fsencode(directory) + b"/" + name)
    return names


def test_five_thousand_entries_are_listed_once_each(twins: Twins) -> None:
    names = fill(twins.mount, MANY)
    assert Counter(os.listdir(os.fsencode(twins.mount))) == Counter(names)
    assert {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(twins.mount)} == {
        os.fsdecode(name): True for name in names
    }


def test_what_stays_is_neither_missed_nor_doubled_while_others_come_and_go(twins: Twins) -> None:
    staying = fill(twins.mount, 800)
    script = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "number = 0\n"
        "while os.path.exists('going on'):\n"
        "    number += 1\n"
        "    open(f'new.{number}', 'x').close()\n"
        "    os.rename(f'new.{number}', f'renamed.{number}')\n"
        "    if number > 50: os.unlink(f'renamed.{number - 50}')\n"
    )
    (twins.mount / "going on").touch()
    child = subprocess.Popen([sys.executable, "-c", script, twins.mount])
    try:
        for _ in range(10):
            stream = DirectoryStream(twins.mount)
            seen = Counter(stream.rest())
            stream.close()
            assert {name for name in seen if name.startswith(b"entry")} == staying
            assert max(seen.values()) == 1
    finally:
        (twins.mount / "going on").unlink()
        assert child.wait(60) == 0


def test_removing_each_entry_as_it_is_read_empties_a_directory(twins: Twins) -> None:
    """As rm -r and PostgreSQL's rmtree() do."""
    fill(twins.mount, 1000)
    stream = DirectoryStream(twins.mount)
    while (name := stream.read()) is not None:
        if name not in (b".", b".."):
            (twins.mount / os.fsdecode(name)).unlink()
    stream.close()
    assert os.listdir(twins.mount) == []


def test_dot_and_dot_dot_are_listed_with_their_inodes(twins: Twins) -> None:
    def read(directory: Path) -> object:
        (directory / "sub").mkdir()
        (directory / "file").touch()
        stream = DirectoryStream(directory / "sub")
        names = sorted(stream.rest())
        stream.close()
        listed = subprocess.run(["ls", "-ai", directory / "sub"], capture_output=True, text=True, check=True)
        numbers = {line.split()[1]: int(line.split()[0]) for line in listed.stdout.splitlines()}
        here, above = (directory / "sub").stat().st_ino, directory.stat().st_ino
        return names, numbers == {".": here, "..": above}

    assert twins.same(read) == ([b".", b".."], True)


def test_positions_in_a_directory_can_be_returned_to(twins: Twins) -> None:
    fill(twins.mount, 1000)
    stream = DirectoryStream(twins.mount)
    first = [stream.read() for _ in range(400)]
    position = stream.tell()
    rest = stream.rest()
    assert len(first) + len(rest) == 1002
    stream.seek(position)
    assert stream.rest() == rest
    # entries that go do not move those that stay
    (twins.mount / os.fsdecode(first[100] or b"")).unlink()
    (twins.mount / os.fsdecode(rest[200])).unlink()
    stream.seek(position)
    assert stream.rest() == rest[:200] + rest[201:]
    stream.rewind()
    (twins.mount / "new").touch()
    stream.rewind()
    assert len(again := stream.rest()) == 1001
    assert b"new" in again
    stream.close()


def test_two_who_read_one_directory_do_not_disturb_each_other(twins: Twins) -> None:
    names = fill(twins.mount, 600) | {b".", b".."}
    one, two = DirectoryStream(twins.mount), DirectoryStream(twins.mount)
    seen: list[list[bytes]] = [[], []]
    for _ in range(len(names)):
        for place, stream in enumerate((one, two)):
            name = stream.read()
            assert name is not None
            seen[place].append(name)
    assert one.read() is None
    assert two.read() is None
    assert Counter(seen[0]) == Counter(seen[1]) == Counter(names)
    one.close()
    two.close()


def test_kinds_of_entries_are_told_without_a_stat(twins: Twins) -> None:
    def read(directory: Path) -> object:
        (directory / "file").touch()
        (directory / "directory").mkdir()
        (directory / "link").symlink_to("file")
        os.mkfifo(directory / "fifo")
        return sorted(
            (
                entry.name,
                entry.is_file(follow_symlinks=False),
                entry.is_dir(follow_symlinks=False),
                entry.is_symlink(),
            )
            for entry in os.scandir(directory)
        )

    twins.same(read)


def test_a_directory_renamed_or_removed_while_it_is_read_is_read_to_its_end(twins: Twins) -> None:
    fill(twins.mount, 10)
    (twins.mount / "old").mkdir()
    names = fill(twins.mount / "old", 600) | {b".", b".."}
    stream = DirectoryStream(twins.mount / "old")
    seen = [stream.read() for _ in range(300)]
    (twins.mount / "old").rename(twins.mount / "new")
    assert Counter([*seen, *stream.rest()]) == Counter(names)
    stream.rewind()
    assert Counter(stream.rest()) == Counter(names)
    stream.close()


def test_names_found_missing_are_found_once_they_exist(twins: Twins) -> None:
    """The kernel remembers what is not there."""

    def use(directory: Path) -> object:
        seen = []
        makers: list[Callable[[Path], object]] = [
            lambda path: path.touch(),
            lambda path: path.mkdir(),
            lambda path: path.symlink_to("x"),
            lambda path: os.mkfifo(path),
            lambda path: path.hardlink_to(directory / "file"),
            lambda path: (directory / "other").rename(path),
        ]
        (directory / "file").touch()
        (directory / "other").touch()
        for number, make in enumerate(makers):
            path = directory / f"name{number}"
            seen.append(os.path.lexists(path))
            make(path)
            seen.append(os.path.lexists(path))
            path.rename(directory / "moved")
            seen += [os.path.lexists(path), os.path.lexists(directory / "moved")]
            (directory / "moved").rmdir() if number == 1 else (directory / "moved").unlink()
            seen.append(os.path.lexists(directory / "moved"))
        return seen

    twins.same(use)
