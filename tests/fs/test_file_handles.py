"""File handles (name_to_handle_at) lead to the file that they were made of, or to none.

What the kernel has forgotten it does not find by a handle: for that, tdefs would have to be fit for export by NFS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fs.libc import FileHandle
from tests.fs.twins import Failure, Twins, outcome
from tests.support.caches import drop_caches
from tests.support.children import needs_root
from tests.support.volume import Volume

pytestmark = needs_root

STALE = Failure("ESTALE")


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def found(handle: FileHandle, directory: Path) -> bytes | Failure:
    """The content of the file that a handle leads to on the directory's mount."""

    def read(place: Path) -> bytes:
        with opened(place) as mount, os.fdopen(handle.open(mount), "rb") as file:
            return file.read()

    return outcome(read, directory)


def replaced(path: Path, content: bytes) -> None:
    new = path.with_name("new")
    new.write_bytes(content)
    new.rename(path)


def made_again(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("again", [made_again, replaced])
def test_a_handle_of_a_removed_file_never_opens_another_one(
    small: Volume, again: Callable[[Path, bytes], None]
) -> None:
    path = small.mountpoint / "file"
    handles: dict[bytes, FileHandle] = {}
    numbers = set()
    for number in range(40):
        content = b"%d" % number
        again(path, content)
        numbers.add(path.stat().st_ino)
        handles[content] = FileHandle(path)
        assert found(handles[content], small.mountpoint) == content
    assert len(numbers) < len(handles), "no number was used again"
    assert [found(handle, small.mountpoint) for handle in handles.values()] == [STALE] * 39 + [b"39"]


def test_a_handle_leads_to_a_file_wherever_it_is_renamed_to(twins: Twins) -> None:
    def rename(directory: Path) -> object:
        path = directory / "file"
        path.write_bytes(b"1")
        handle = FileHandle(path)
        path.rename(directory / "elsewhere")
        seen = [found(handle, directory)]
        (directory / "linked").hardlink_to(directory / "elsewhere")
        (directory / "elsewhere").unlink()
        seen.append(found(handle, directory))
        (directory / "linked").unlink()
        return [*seen, found(handle, directory)]

    assert twins.same(rename) == [b"1", b"1", STALE]


def test_a_handle_is_good_again_when_the_kernel_has_looked_the_file_up_again(mounted: Path) -> None:
    path = mounted / "base" / "file"
    path.parent.mkdir()
    path.write_bytes(b"1")
    handle = FileHandle(path)
    drop_caches(2)
    assert found(handle, mounted) in (b"1", STALE)
    path.stat()
    assert found(handle, mounted) == b"1"


def test_a_handle_of_before_a_remount_never_opens_another_file(small: Volume) -> None:
    path, kept = small.mountpoint / "file", small.mountpoint / "kept"
    for one in (path, kept):
        one.write_bytes(one.name.encode())
    number = path.stat().st_ino
    handles = [FileHandle(kept), FileHandle(path)]
    small.umount()
    small.mount()
    path.unlink()
    made = [small.mountpoint / f"made{at}" for at in range(50)]
    for one in made:
        one.write_bytes(b"after")
    assert number in {one.stat().st_ino for one in made}, "the number was not used again"
    kept.stat()
    assert [found(handle, small.mountpoint) for handle in handles] == [b"kept", STALE]
