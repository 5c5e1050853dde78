"""A read beside which the file changed is done again, whatever came of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tdefs.data.calls import SystemCalls
from tdefs.data.data_file import DataFile
from tdefs.data.reading import Reader
from tdefs.format.errors import DamagedLength
from tdefs.format.layout import PAGE_SIZE
from tests.support.open_files import open_new

OLD, NEW = b"old " * 30_000, b"new " * 30_000


class Racing(SystemCalls):
    """The real calls, where nothing is in memory. Something happens beside each first read."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.error: Exception | None = None

    def pread_cached(self, label: str, fd: int, size: int, offset: int) -> bytearray | None:
        return None

    def pread(self, label: str, fd: int, size: int, offset: int) -> bytes:
        self.labels.append(label)
        data = super().pread(label, fd, size, offset)
        if label == "read":
            self.meanwhile()
            if self.error is not None:
                raise self.error
        return data


@pytest.fixture
def calls() -> Racing:
    return Racing()


@pytest.fixture
def file(tmp_path: Path, calls: Racing) -> Iterator[DataFile]:
    file = open_new(tmp_path / "file", calls)
    file.write(0, OLD)
    calls.labels.clear()
    yield file
    os.close(file.fd)


def read(calls: Racing, file: DataFile, size: int = len(OLD)) -> bytes:
    return bytes(trio.run(Reader(calls).read, file, 0, size))


ERRORS = [
    OSError(errno.EIO, "the disk fails"),
    OSError(errno.EBADF, "it is another descriptor now"),
    DamagedLength("the file ends before that"),
    ValueError("what was decrypted makes no sense"),
    MemoryError(),
]
CHANGES: dict[str, Callable[[DataFile], None]] = {
    "whole pages": lambda file: file.write(0, NEW[: 2 * PAGE_SIZE]),
    "part of a page": lambda file: file.write(5, NEW[5:100]),
    "longer": lambda file: file.write(len(OLD), NEW),
    "shorter": lambda file: file.truncate(10),
}


@pytest.mark.parametrize("error", [None, *ERRORS], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_a_read_beside_which_the_file_changed_is_done_again(
    calls: Racing, file: DataFile, change: str, error: Exception | None
) -> None:
    calls.meanwhile = lambda: CHANGES[change](file)
    calls.error = error
    found = read(calls, file, 8 * PAGE_SIZE + 7)
    assert "read:again" in calls.labels
    calls.error = None
    calls.meanwhile = lambda: None
    assert found == read(calls, file, 8 * PAGE_SIZE + 7)


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_an_error_of_a_read_beside_which_nothing_changed_is_raised(
    calls: Racing, file: DataFile, error: Exception
) -> None:
    calls.error = error
    with pytest.raises(type(error)):
        read(calls, file)
    assert "read:again" not in calls.labels


def test_an_error_of_the_second_read_is_raised(calls: Racing, file: DataFile, tmp_path: Path) -> None:
    calls.meanwhile = lambda: CHANGES["whole pages"](file)
    calls.error = OSError(errno.EIO, "the disk fails")

    class Fails(Racing):
        def pread(self, label: str, fd: int, size: int, offset: int) -> bytes:
            if label == "read:again":
                raise OSError(errno.ENODEV, "the disk is gone")
            return calls.pread(label, fd, size, offset)

    with pytest.raises(OSError, match="gone"):
        trio.run(Reader(Fails()).read, file, 0, len(OLD))


def test_a_read_whose_descriptor_was_exchanged_is_done_again(
    calls: Racing, file: DataFile, tmp_path: Path
) -> None:
    other = open_new(tmp_path / "other", calls)
    other.write(0, NEW)
    calls.labels.clear()

    def exchange() -> None:
        with file.changed_alone():
            os.dup2(other.fd, file.fd)
            file.exchange(other.content)

    calls.meanwhile = exchange
    assert read(calls, file) == NEW
    assert "read:again" in calls.labels
    os.close(other.fd)


def test_a_read_beside_which_nothing_changed_is_done_once(calls: Racing, file: DataFile) -> None:
    assert read(calls, file) == OLD
    assert calls.labels == ["read"]


def test_a_read_beyond_the_end_reads_nothing(calls: Racing, file: DataFile) -> None:
    assert bytes(trio.run(Reader(calls).read, file, len(OLD), 100)) == b""
    assert calls.labels == []
