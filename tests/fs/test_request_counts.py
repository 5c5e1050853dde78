"""What costs how many requests: the fewer, the faster, and each one more is a loss that no other test sees."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.caches import kept_caches
from tests.support.volume import Volume

PAGE = 8192
COMMITS = 300

CLOCK_REALTIME_COARSE = 5  # of <time.h>, by which the kernel stamps files


@pytest.fixture(autouse=True)
def _caches() -> Iterator[None]:
    with kept_caches():
        yield


@contextmanager
def counted(volume: Volume) -> Iterator[Counter[str]]:
    """Count the requests of what is done inside; complete after it."""
    before = Counter(volume.status()["requests"])
    made: Counter[str] = Counter()
    yield made
    made.update(Counter(volume.status()["requests"]) - before)


@pytest.fixture
def wal(encrypted: Volume) -> Path:
    directory = encrypted.mountpoint / "pg_wal"
    directory.mkdir(exist_ok=True)
    path = directory / "000000010000000000000002"
    path.write_bytes(bytes(64 * PAGE))
    os.sync()
    return path


def test_a_commit_through_the_cache_is_a_write_and_a_sync(encrypted: Volume, wal: Path) -> None:
    fd = os.open(wal, os.O_RDWR)
    try:
        with counted(encrypted) as made:
            stamps = [os.fstat(fd).st_mtime_ns]
            for number in range(COMMITS):
                os.pwrite(fd, os.urandom(PAGE), number % 64 * PAGE)
                stamps.append(os.fstat(fd).st_mtime_ns)
                os.fdatasync(fd)
    finally:
        os.close(fd)
    assert made["write"] == made["fsync"] == COMMITS
    # The kernel passes on a modification time when it has a new one, which it has once in a tick of its clock.
    assert made["setattr"] <= sum(before != after for before, after in pairwise(stamps))
    assert made["getattr"] <= len(stamps)  # of asking for the times
    assert set(made) <= {
        "write",
        "fsync",
        "setattr",
        "getattr",
        "release",
        "statfs",
    }  # statfs: of asking for the status


def test_a_commit_past_the_cache_is_one_request(encrypted: Volume, wal: Path) -> None:
    fd = os.open(wal, os.O_RDWR | os.O_DSYNC)
    try:
        with counted(encrypted) as made:
            for number in range(COMMITS):
                os.pwrite(fd, os.urandom(PAGE), number % 64 * PAGE)
    finally:
        os.close(fd)
    assert made["write"] == COMMITS
    assert set(made) <= {"write", "release", "statfs"}


def test_what_was_written_is_read_from_the_cache(encrypted: Volume) -> None:
    path = encrypted.mountpoint / "written"
    path.write_bytes(os.urandom(100 * PAGE))
    with counted(encrypted) as made:
        for _ in range(5):
            path.read_bytes()
    assert made["read"] == 0
    assert made["open"] == 5
    assert made["lookup"] == 0


def test_large_writes_and_reads_go_in_large_requests(encrypted: Volume) -> None:
    path = encrypted.mountpoint / "large"
    size = 32 << 20
    with counted(encrypted) as made, path.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
    assert made["write"] <= 2 * (size >> 20)


def test_names_that_are_not_there_are_asked_for_once(encrypted: Volume) -> None:
    with counted(encrypted) as made:
        for _ in range(5):
            assert not (encrypted.mountpoint / "no such name").exists()
    assert made["lookup"] == 1


def test_times_of_cached_writes_reach_the_backing_file(encrypted: Volume) -> None:
    path = encrypted.mountpoint / "timed"
    path.write_bytes(b"1")
    os.utime(path, ns=(10**18, 10**18))
    fd = os.open(path, os.O_RDWR)
    try:
        for _ in range(3):
            # within one tick of the kernel's clock a write leaves the time alone, and there is nothing to pass on
            while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= os.fstat(fd).st_mtime_ns:
                time.sleep(0.001)
            os.pwrite(fd, b"2", 0)
            os.fsync(fd)
        shown, stored = os.fstat(fd), (encrypted.data / "timed").stat()
    finally:
        os.close(fd)
    assert stored.st_mtime_ns == shown.st_mtime_ns > 10**18
    assert stored.st_atime_ns == shown.st_atime_ns == 10**18
