"""Real threads read and change one open file at the same time. Each scenario fails when the lock is taken away."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tdefs.data.calls import SystemCalls
from tdefs.data.change_lock import ChangeLock
from tdefs.data.data_file import DataFile
from tdefs.data.reading import Reader
from tdefs.format.errors import DamagedLength
from tdefs.format.layout import PAGE_SIZE
from tests.support.open_files import open_new

THREADS = 4


class Slow(SystemCalls):
    """The real calls; other threads run after each, so that nothing is right by chance."""

    def pread(self, label: str, fd: int, size: int, offset: int) -> bytes:
        data = super().pread(label, fd, size, offset)
        time.sleep(0.001)
        return data

    def pread_cached(self, label: str, fd: int, size: int, offset: int) -> bytearray | None:
        data = super().pread_cached(label, fd, size, offset)
        time.sleep(0.001)
        return data

    def pwrite(self, label: str, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        super().pwrite(label, fd, data, offset)
        time.sleep(0.001)

    def ftruncate(self, label: str, fd: int, size: int) -> None:
        super().ftruncate(label, fd, size)
        time.sleep(0.001)


class NoLock(ChangeLock):
    """Lets every thread do what it wants."""

    def share(self) -> int:
        return self.changes

    begin_pages = acquire = acquire_for_change = end_sharing = lambda self: None
    end_pages = release = lambda self, written=0: None


@pytest.fixture
def file(tmp_path: Path) -> Iterator[DataFile]:
    file = open_new(tmp_path / "file", Slow())
    yield file
    os.close(file.fd)


def read(file: DataFile, offset: int, size: int) -> bytes:
    return bytes(trio.run(Reader(Slow()).read, file, offset, size))


def together(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own, and raise what one of them raised."""
    errors: list[Exception] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def parts_of_one_page(file: DataFile) -> None:
    """Each thread writes its own bytes of one page, which is read, changed and written for that."""
    file.write(0, bytes(PAGE_SIZE))
    size = 100

    def write(number: int) -> None:
        for turn in range(5):
            file.write((turn * THREADS + number) * size, bytes([number + 1]) * size)

    together(*(lambda number=number: write(number) for number in range(THREADS)))
    expected = b"".join(bytes([number + 1]) * size for number in range(THREADS)) * 5
    assert read(file, 0, PAGE_SIZE) == expected.ljust(PAGE_SIZE, b"\0")


def writes_that_make_the_file_longer(file: DataFile) -> None:
    """Each thread writes beyond the end that the others set."""
    size = 1000
    count = 5 * THREADS

    def write(number: int) -> None:
        for at in range(number, count, THREADS):
            file.write(at * size, bytes([at + 1]) * size)

    together(*(lambda number=number: write(number) for number in range(THREADS)))
    assert file.length == count * size
    assert read(file, 0, count * size) == b"".join(bytes([at + 1]) * size for at in range(count))


def reads_beside_changes_of_length(file: DataFile) -> None:
    """A file is cut and filled again and again; a read finds one of its states and never an error."""
    whole = [bytes([value]) * (2 * PAGE_SIZE + 100) for value in (1, 2)]
    file.write(0, whole[0])
    done = threading.Event()

    def change() -> None:
        try:
            for turn in range(12):
                file.truncate(0)
                file.write(0, whole[turn % 2])
        finally:
            done.set()

    def look() -> None:
        while not done.is_set():
            found = read(file, 0, len(whole[0]))
            assert found in (b"", *whole), found[:20]

    together(change, look, look)


SCENARIOS = (parts_of_one_page, writes_that_make_the_file_longer, reads_beside_changes_of_length)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_threads_leave_one_another_whole(scenario: Callable[[DataFile], None], file: DataFile) -> None:
    scenario(file)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_without_the_lock_they_do_not(scenario: Callable[[DataFile], None], file: DataFile) -> None:
    file.lock = NoLock()
    file.write(0, b"one thread alone needs no lock")
    assert read(file, 0, 100) == b"one thread alone needs no lock"
    file.truncate(0)
    with pytest.raises((AssertionError, DamagedLength, ValueError)):
        for _ in range(20):
            scenario(file)
            file.truncate(0)


def test_a_key_that_changes_is_never_mixed_with_content_of_the_other(tmp_path: Path) -> None:
    keys = iter(bytes([number]) * 32 + bytes([number + 100]) * 32 for number in range(1, 100))
    file = open_new(tmp_path / "file", Slow(), lambda: next(keys))
    try:
        reads_beside_changes_of_length(file)
    finally:
        os.close(file.fd)


def test_an_exchange_of_the_content_waits_for_reads_and_is_seen_by_the_next(tmp_path: Path) -> None:
    one, two = (open_new(tmp_path / name, Slow()) for name in ("one", "two"))
    for file, value in ((one, b"1"), (two, b"2")):
        file.write(0, value * 3 * PAGE_SIZE)
    spare = os.dup(one.fd)
    views = [(one.fd, one.content), (two.fd, two.content)]
    done = threading.Event()

    def exchange() -> None:
        try:
            for turn in range(20):
                with one.changed_alone():
                    os.dup2(spare if turn % 2 else two.fd, one.fd)
                    time.sleep(0.001)
                    one.exchange(views[(turn + 1) % 2][1])
        finally:
            done.set()

    def look() -> None:
        while not done.is_set():
            assert read(one, 0, 3 * PAGE_SIZE) in (b"1" * 3 * PAGE_SIZE, b"2" * 3 * PAGE_SIZE)

    together(exchange, look, look)
    for fd in (one.fd, two.fd, spare):
        os.close(fd)
