"""The random reads of the benchmark, and how it looks into the page cache."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from benchmarks.page_cache import cached_bytes, cached_bytes_below
from benchmarks.random_reads import PAGE, Reads, rate, read_pages, reads_per_second, shares, shuffled_pages, turns


def test_every_second_page_is_read_once_and_by_one_job_in_the_same_order_on_every_system() -> None:
    pages = shuffled_pages(100 * PAGE + 1)
    assert sorted(pages) == list(range(0, 100, 2))
    assert pages != sorted(pages)
    assert pages == shuffled_pages(100 * PAGE)
    parts = shares(pages, 16)
    assert len(parts) == 16
    assert sorted(page for part in parts for page in part) == list(range(0, 100, 2))


def test_every_job_reads_all_cached_pages_and_begins_elsewhere() -> None:
    pages = shuffled_pages(64 * PAGE)
    parts = turns(pages, 4)
    assert all(sorted(part) == sorted(pages) for part in parts)
    assert [part[0] for part in parts] == [pages[0], pages[8], pages[16], pages[24]]


def test_jobs_that_run_one_after_the_other_are_not_counted_as_if_at_once() -> None:
    assert rate([Reads(100, 10.0, 11.0), Reads(100, 11.0, 12.0)]) == 100
    assert rate([Reads(100, 10.0, 11.0), Reads(100, 10.0, 11.0)]) == 200


def test_reading_ends_when_all_pages_are_read_or_the_time_is_up(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    path.write_bytes(bytes(4 * PAGE))
    assert read_pages(path, [3, 0], 60).count == 2
    assert read_pages(path, [0, 1, 2], 0).count == 1
    assert reads_per_second(path, 2, 0.1) > 0
    assert reads_per_second(path, 2, 0.1, again=True) > 0


def test_an_error_of_the_readers_is_an_error_of_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pages"
    path.write_bytes(bytes(4 * PAGE))

    def fail(*_: object) -> bytes:
        raise OSError(5, "a page that cannot be read")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(EOFError):
        reads_per_second(path, 2, 0.1)
    assert "a page that cannot be read" in capfd.readouterr().err


def test_page_cache_of_a_file_is_counted_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "cached"
    size = 16 * mmap.PAGESIZE
    path.write_bytes(os.urandom(size))
    assert cached_bytes(path) == size
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if cached_bytes(path):
            pytest.skip("this file system keeps its files in memory")
        assert cached_bytes(path) == 0
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(descriptor, 1, 0)
        assert cached_bytes(path) == mmap.PAGESIZE
    finally:
        os.close(descriptor)


def test_only_large_files_count_as_the_files_below(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "large").write_bytes(bytes(8 * mmap.PAGESIZE))
    (tmp_path / "small").write_bytes(bytes(mmap.PAGESIZE))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "link").symlink_to("base/large")
    assert cached_bytes_below(tmp_path, 2 * mmap.PAGESIZE) == 8 * mmap.PAGESIZE
    assert cached_bytes_below(tmp_path, 0) == 9 * mmap.PAGESIZE
