"""Whoever reads a WAL segment, by whatever descriptor, sees what was written: walsender, archiver, pg_waldump."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.support.volume import Volume

PAGE = 8192
SEGMENT = "000000010000000000000001"


@pytest.fixture
def segment(encrypted: Volume) -> Path:
    directory = encrypted.mountpoint / "pg_wal"
    directory.mkdir(exist_ok=True)
    path = directory / SEGMENT
    path.write_bytes(bytes(64 * PAGE))
    return path


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["cached reader", "cached writer", "durable writer"]))
)
def test_every_reader_sees_every_write_however_the_segment_was_opened(
    segment: Path, order: tuple[str, ...]
) -> None:
    flags = {
        "cached reader": os.O_RDONLY,
        "cached writer": os.O_RDWR,
        "durable writer": os.O_RDWR | os.O_DSYNC,
    }
    segment.read_bytes()  # the kernel's cache holds the old zeros
    opened = {name: os.open(segment, flags[name]) for name in order}
    try:
        for number, writer in enumerate(["durable writer", "cached writer", "durable writer"] * 4):
            data = bytes([number + 1]) * PAGE
            os.pwrite(opened[writer], data, number * PAGE)
            for name, fd in opened.items():
                assert os.pread(fd, PAGE, number * PAGE) == data, f"{writer} wrote, {name} reads"
            assert segment.read_bytes()[number * PAGE : (number + 1) * PAGE] == data
    finally:
        for fd in opened.values():
            os.close(fd)


def test_a_reader_that_comes_after_direct_writes_does_not_see_what_the_cache_held(segment: Path) -> None:
    for number in range(1, 20):
        segment.read_bytes()
        fd = os.open(segment, os.O_RDWR | os.O_DSYNC)
        os.pwrite(fd, bytes([number]) * PAGE, 0)
        os.close(fd)
        assert segment.read_bytes()[:PAGE] == bytes([number]) * PAGE


def test_a_durable_write_is_in_the_backing_file_when_it_returns(segment: Path, encrypted: Volume) -> None:
    backing = encrypted.data / "pg_wal" / SEGMENT
    fd = os.open(segment, os.O_RDWR | os.O_DSYNC)
    try:
        for number in range(1, 20):
            before = backing.read_bytes()
            os.pwrite(fd, bytes([number]) * PAGE, PAGE * number)
            after = backing.read_bytes()
            changed = {
                at // PAGE for at in range(0, len(after), PAGE) if before[at : at + PAGE] != after[at : at + PAGE]
            }
            assert changed == {number + 1}, "one page behind the header page"
    finally:
        os.close(fd)
