"""Requests for virtual files never reach the tree; all others reach it alone. Covers tdefs/fuse/virtual.py."""

from __future__ import annotations

import errno
import time
from collections import defaultdict
from typing import Any, cast

import pyfuse3
import pytest
import trio

from tdefs.data.complaints import Complaints
from tdefs.fuse.measured import Measured
from tdefs.fuse.operations import FuseOperations
from tdefs.fuse.virtual import DIRECTORY, FIRST_NUMBER, Dispatcher, VirtualFile, VirtualFiles

ROOT = int(pyfuse3.ROOT_INODE)


class Clock(VirtualFile):
    """Another content at each open."""

    name = b"clock"

    async def content(self) -> bytes:
        return str(time.monotonic_ns()).encode()


class Broken(VirtualFile):
    """Content that cannot be made."""

    name = b"broken"

    async def content(self) -> bytes:
        raise ZeroDivisionError


class Tree:
    """Stands for the operations of a mount: notes what it is asked."""

    def __init__(self) -> None:
        self.complaints = Complaints()
        self.measured: defaultdict[str, Measured] = defaultdict(Measured)
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        async def operation(*arguments: Any) -> str:
            self.asked.append((name, *arguments))
            return "the tree"

        return operation


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def dispatcher(tree: Tree) -> Dispatcher:
    operations = cast(FuseOperations, tree)
    return Dispatcher(operations, VirtualFiles(operations, lambda: (26, 27), [Clock(), Broken()]))


def ask(dispatcher: Dispatcher, operation: str, *arguments: Any) -> Any:
    async def asked() -> Any:
        return await getattr(dispatcher, operation)(*arguments)

    return trio.run(asked)


def refusal(dispatcher: Dispatcher, operation: str, *arguments: Any) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        ask(dispatcher, operation, *arguments)
    return int(caught.value.errno)


def numbers(dispatcher: Dispatcher) -> tuple[int, int]:
    """The numbers of the directory and of the clock in it."""
    directory = ask(dispatcher, "lookup", ROOT, DIRECTORY, None).st_ino
    return directory, ask(dispatcher, "lookup", directory, b"clock", None).st_ino


def test_the_directory_and_its_files_have_numbers_of_their_own_and_the_owner_of_the_root(
    dispatcher: Dispatcher,
) -> None:
    directory, clock = numbers(dispatcher)
    assert directory >= FIRST_NUMBER
    assert clock >= FIRST_NUMBER
    for number, mode in ((directory, 0o040500), (clock, 0o100400)):
        found = ask(dispatcher, "getattr", number, None)
        assert (found.st_mode, found.st_uid, found.st_gid, found.st_size) == (mode, 26, 27, 0)
    assert refusal(dispatcher, "lookup", directory, b"nothing", None) == errno.ENOENT


def test_each_open_has_a_content_of_its_own(dispatcher: Dispatcher) -> None:
    _, clock = numbers(dispatcher)
    first, second = (ask(dispatcher, "open", clock, 0, None) for _ in range(2))
    assert first.direct_io
    whole = ask(dispatcher, "read", first.fh, 0, 100)
    assert ask(dispatcher, "read", first.fh, 2, 3) == whole[2:5]
    assert ask(dispatcher, "read", first.fh, 0, 100) == whole != ask(dispatcher, "read", second.fh, 0, 100)
    assert ask(dispatcher, "read", first.fh, 1000, 100) == b""
    ask(dispatcher, "release", first.fh)
    assert ask(dispatcher, "read", second.fh, 0, 100)


def test_content_that_cannot_be_made_is_an_error_of_the_open_alone(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    directory, _ = numbers(dispatcher)
    broken = ask(dispatcher, "lookup", directory, b"broken", None).st_ino
    assert refusal(dispatcher, "open", broken, 0, None) == errno.EIO
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("operation", ["mkdir", "mknod", "symlink", "create", "unlink", "rmdir"])
@pytest.mark.parametrize("place", ["the directory", "in it"])
def test_no_name_can_be_made_or_removed(dispatcher: Dispatcher, operation: str, place: str) -> None:
    directory, _ = numbers(dispatcher)
    where = (ROOT, DIRECTORY) if place == "the directory" else (directory, b"clock")
    assert refusal(dispatcher, operation, *where, None, None, None) == errno.EPERM


def test_nothing_can_be_renamed_linked_or_changed(dispatcher: Dispatcher) -> None:
    directory, clock = numbers(dispatcher)
    for arguments in (
        (ROOT, DIRECTORY, ROOT, b"other"),
        (ROOT, b"other", ROOT, DIRECTORY),
        (directory, b"clock", ROOT, b"other"),
        (ROOT, b"other", directory, b"other"),
    ):
        assert refusal(dispatcher, "rename", *arguments, 0, None) == errno.EPERM
    assert refusal(dispatcher, "link", clock, ROOT, b"other", None) == errno.EPERM
    assert refusal(dispatcher, "link", ROOT, ROOT, DIRECTORY, None) == errno.EPERM
    assert refusal(dispatcher, "setattr", clock, None, None, None, None) == errno.EPERM
    assert refusal(dispatcher, "open", clock, 1, None) == errno.EPERM
    assert refusal(dispatcher, "write", FIRST_NUMBER + 1, 0, b"x") == errno.EPERM


def test_an_answer_for_a_virtual_file_has_the_kernel_stop_no_sync_of_the_mount(dispatcher: Dispatcher) -> None:
    """ENOSYS to fsync or fsyncdir would: the kernel remembers it for the whole mount."""
    _, clock = numbers(dispatcher)
    opened = ask(dispatcher, "open", clock, 0, None)
    ask(dispatcher, "fsync", opened.fh, False)
    ask(dispatcher, "fsyncdir", ask(dispatcher, "opendir", FIRST_NUMBER, None), False)


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        *((name, (ROOT, b"file", None)) for name in ("lookup", "mkdir", "mknod", "symlink", "create")),
        *((name, (7, DIRECTORY, None)) for name in ("lookup", "mkdir", "unlink", "rmdir")),
        *((name, (7, None)) for name in ("getattr", "setattr", "open", "opendir", "readlink", "getxattr")),
        *((name, (1, 0, 100)) for name in ("read", "write", "readdir", "fsync", "fsyncdir", "release", "flush")),
        ("rename", (ROOT, b"file", 7, DIRECTORY, 0, None)),
        ("link", (7, 8, DIRECTORY, None)),
        ("statfs", (None,)),
    ],
)
def test_the_tree_gets_everything_else(
    dispatcher: Dispatcher, tree: Tree, operation: str, arguments: tuple[Any, ...]
) -> None:
    assert ask(dispatcher, operation, *arguments) == "the tree"
    assert tree.asked == [(operation, *arguments)]


def test_lookups_of_virtual_files_are_not_taken_back_from_the_tree(dispatcher: Dispatcher, tree: Tree) -> None:
    ask(dispatcher, "forget", [(7, 1), (FIRST_NUMBER, 5), (FIRST_NUMBER + 1, 1)])
    assert tree.asked == [("forget", [(7, 1)])]


def test_a_request_of_the_tree_pays_for_no_further_coroutine(dispatcher: Dispatcher) -> None:
    made = cast(Any, dispatcher).read(1, 0, 1)
    assert made.__qualname__ == "Tree.__getattr__.<locals>.operation"
    made.close()
