"""What PostgreSQL demands of a page, on pages captured from real clusters. Covers tdefs/pg/pages.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdefs.pg.pages import _BASES, PAGE_SIZE, bad_pages, page_checksums

DATA = Path(__file__).parent / "data"
#: File, block number, and the checksum that the server wrote (bytes 8 and 9).
CAPTURED = [("pg15_pg_class_block_3.page", 3, 0xEE96), ("pg18_pg_class_fsm_block_2.page", 2, 0xC597)]


def reasons(pages: bytes, block: int = 0, *, checksums: bool = True) -> dict[int, str]:
    return {page.block: page.reason for page in bad_pages(pages, block, checksums=checksums)}


def flip(page: bytes, offset: int, bit: int = 0) -> bytes:
    return page[:offset] + bytes([page[offset] ^ 1 << bit]) + page[offset + 1 :]


def heap_page() -> bytes:
    return (DATA / CAPTURED[0][0]).read_bytes()


def slow_checksum(page: bytes, block: int) -> int:
    """pg_checksum_page() word by word, as src/include/storage/checksum_impl.h has it."""
    sums = list(_BASES)
    words = memoryview(page[:8] + b"\0\0" + page[10:]).cast("I")
    for position, word in enumerate([*words, *[0] * 64]):
        mixed = sums[position % 32] ^ word
        sums[position % 32] = mixed * 16777619 & 0xFFFFFFFF ^ mixed >> 17
    result = block
    for value in sums:
        result ^= value
    return result % 65535 + 1


@pytest.mark.parametrize(("name", "block", "checksum"), CAPTURED)
def test_checksum_is_the_one_the_server_wrote(name: str, block: int, checksum: int) -> None:
    page = (DATA / name).read_bytes()
    assert page_checksums(page, block) == [checksum]
    assert reasons(page, block) == {}


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5), st.integers(0, 2**32 - 6))
def test_many_pages_at_once_have_the_checksums_of_each_alone(seeds: list[bytes], first: int) -> None:
    pages = [(seed * PAGE_SIZE)[:PAGE_SIZE] for seed in seeds]
    assert page_checksums(b"".join(pages), first) == [
        slow_checksum(page, first + number) for number, page in enumerate(pages)
    ]


def test_no_pages_have_no_checksums() -> None:
    assert page_checksums(b"", 0) == []
    assert reasons(b"") == {}


@pytest.mark.parametrize("offset", [0, 8, 24, 4096, PAGE_SIZE - 1])
def test_one_flipped_bit_anywhere_in_a_page_is_caught_by_its_checksum(offset: int) -> None:
    found = reasons(flip(heap_page(), offset, 5), 3)
    assert list(found) == [3]
    assert "the page checksum does not match: stored" in found[3]


def test_page_at_another_block_is_caught_by_its_checksum() -> None:
    assert list(reasons(heap_page(), 4)) == [4]


def test_bad_pages_are_named_by_their_block_across_batches() -> None:
    count = 100
    pages = [bytes(PAGE_SIZE)] * count
    for number in (0, 31, 32, 99):
        pages[number] = flip(heap_page(), 5000)
    assert list(reasons(b"".join(pages), 1000)) == [1000, 1031, 1032, 1099]


def test_zero_page_is_good() -> None:
    assert reasons(bytes(PAGE_SIZE)) == {}


def test_new_page_that_is_not_all_zero_is_bad() -> None:
    found = reasons(flip(bytes(PAGE_SIZE), 8191), checksums=False)
    assert found == {0: "the page header is that of a new page, but the page is not all zero"}


@pytest.mark.parametrize(
    ("offset", "value", "word"),
    [
        (10, 0x0008, "flags 0x8"),
        (12, 8000, "lower 8000"),
        (14, 8193, "upper 8193"),
        (16, 8191, "special 8191"),
        (16, 8200, "special 8200"),
    ],
)
def test_insane_page_header_is_bad_without_checksums(offset: int, value: int, word: str) -> None:
    page = heap_page()
    page = page[:offset] + value.to_bytes(2, "little") + page[offset + 2 :]
    found = reasons(page, checksums=False)
    assert "the page header is not sane" in found[0]
    assert word in found[0]


def test_without_checksums_only_the_header_counts() -> None:
    assert reasons(flip(heap_page(), 5000), checksums=False) == {}


def test_part_of_a_page_at_the_end_is_not_looked_at() -> None:
    assert reasons(heap_page() + b"x" * 100, 3) == {}
    assert reasons(b"x" * 100) == {}
