"""What PostgreSQL itself requires of a page that it reads: a valid header, and its checksum; pure.

The rules are PageIsVerified() of src/backend/storage/page/bufpage.c (PageIsVerifiedExtended() in 14 to 17) and
pg_checksum_page() of src/include/storage/checksum_impl.h, unchanged from PostgreSQL 9.3 to 18.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import xor

PAGE_SIZE = 8192
DEFAULT_SEGMENT_PAGES = 131072
"""RELSEG_SIZE: pages in a full segment of a relation, unless the server was built otherwise."""

_ZERO_PAGE = bytes(PAGE_SIZE)

# src/include/storage/bufpage.h, PageHeaderData: checksum, flags, lower, upper, special follow the LSN.
_HEADER = struct.Struct("<8x5H")
_CHECKSUM_AT = 8
_VALID_FLAG_BITS = 0x0007

# checksum_impl.h: a page is 64 rows of 32 words; each column is hashed from a base of its own.
_ROW_SIZE = 128
_PRIME = 16777619
_LANE = 0xFFFFFFFF
_BASES = (
    *(0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C),
    *(0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB),
    *(0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4),
    *(0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756),
)

# Enough pages that Python's cost for each operation does not matter, few enough to stay in the processor's cache.
_BATCH_PAGES = 32


@dataclass(frozen=True, slots=True)
class BadPage:
    """A page that PostgreSQL would refuse: its block number in the relation's fork, and why."""

    block: int
    reason: str


def bad_pages(pages: bytes | bytearray | memoryview, first_block: int, *, checksums: bool) -> Iterator[BadPage]:
    """Yield each of consecutive *pages* that PostgreSQL would refuse to read.

    :param pages: whole pages; an incomplete one at the end is ignored.
    :param first_block: the block number of the first, counted over all segments of the fork.
    :param checksums: whether the cluster has data checksums.
    """
    view = memoryview(pages)
    for start in range(0, len(view) - PAGE_SIZE + 1, _BATCH_PAGES * PAGE_SIZE):
        batch = view[start : min(start + _BATCH_PAGES * PAGE_SIZE, len(view) - len(view) % PAGE_SIZE)]
        block = first_block + start // PAGE_SIZE
        computed = page_checksums(batch, block) if checksums else [None] * (len(batch) // PAGE_SIZE)
        for number, checksum in enumerate(computed):
            reason = _fault(batch[number * PAGE_SIZE : (number + 1) * PAGE_SIZE], checksum)
            if reason:
                yield BadPage(block + number, reason)


def _fault(page: memoryview, checksum: int | None) -> str:
    """Return why PostgreSQL refuses *page*, or "". Its computed *checksum* is given if there are checksums."""
    stored, flags, lower, upper, special = _HEADER.unpack_from(page)
    if upper == 0:
        # PageIsNew(): all of it must be zero, and no checksum is expected
        return "" if page == _ZERO_PAGE else "the page header is that of a new page, but the page is not all zero"
    if checksum is not None and checksum != stored:
        return f"the page checksum does not match: stored {stored:04x}, computed {checksum:04x}"
    sane = (
        flags & ~_VALID_FLAG_BITS == 0 and lower <= upper <= special <= PAGE_SIZE and special % 8 == 0  # MAXALIGN
    )
    if sane:
        return ""
    return f"the page header is not sane: flags {flags:#x}, lower {lower}, upper {upper}, special {special}"


def page_checksums(pages: bytes | bytearray | memoryview, first_block: int) -> list[int]:
    """Return the checksum of each of consecutive whole *pages*, the first of them block *first_block*.

    The checksum of a new page means nothing. Each big integer below holds one 32-bit column of all pages in each
    of its 64-bit slots, so that one operation in Python does the work of many. Even columns are in one integer,
    odd ones in another. A product of 32 and 25 bits stays in its slot.
    """
    count = len(pages) // PAGE_SIZE
    even, odd, mask = _initial(count)
    cleared = bytearray(pages)
    # the checksum is computed as if its own field were zero
    cleared[_CHECKSUM_AT::PAGE_SIZE] = cleared[_CHECKSUM_AT + 1 :: PAGE_SIZE] = bytes(count)
    view = memoryview(cleared)
    for offset in range(0, PAGE_SIZE, _ROW_SIZE):
        row = b"".join([view[at : at + _ROW_SIZE] for at in range(offset, len(view), PAGE_SIZE)])
        words = int.from_bytes(row, "little")
        even = _mix(even ^ (words & mask), mask)
        odd = _mix(odd ^ (words >> 32 & mask), mask)
    for _ in range(2):
        even, odd = _mix(even, mask), _mix(odd, mask)
    columns = memoryview((even ^ odd).to_bytes(count * _ROW_SIZE, "little")).cast("Q")
    width = len(columns) // count if count else 0
    folded = [reduce(xor, columns[number * width : (number + 1) * width]) for number in range(count)]
    return [(value ^ (first_block + number)) % 65535 + 1 for number, value in enumerate(folded)]


def _mix(value: int, mask: int) -> int:
    """Return one FNV round of every slot. *mask* cuts off what the shift brings in from the slot above."""
    return (value * _PRIME ^ value >> 17) & mask


@lru_cache(maxsize=_BATCH_PAGES + 1)
def _initial(count: int) -> tuple[int, int, int]:
    """Return the even and odd columns' bases, and the mask of a slot's lower half, for *count* pages."""
    even, odd = (
        int.from_bytes(b"".join(base.to_bytes(8, "little") for base in _BASES[first::2]) * count, "little")
        for first in (0, 1)
    )
    return even, odd, int.from_bytes(_LANE.to_bytes(8, "little") * (len(_BASES) // 2 * count), "little")
