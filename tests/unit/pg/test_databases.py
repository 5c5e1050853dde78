"""Which rows of pg_database count, in pages made by hand. Covers tdefs/pg/databases.py.

Real pages are read in tests/postgres/test_abandoned_databases.py.
"""

from __future__ import annotations

import struct

import pytest

from tdefs.pg.databases import Standing, read_databases, status_in_segment

OF_14, OF_15 = 202107181, 202209061
ABORTED, COMMITTED = 2, 1
OLD, NEW, CRASHED, UNDONE = 700, 701, 702, 703
STATUS = {OLD: COMMITTED, NEW: COMMITTED, CRASHED: 0, UNDONE: ABORTED}

XMAX_LOCK_ONLY = 0x0080
XMIN_COMMITTED, XMIN_INVALID, FROZEN = 0x0100, 0x0200, 0x0300
XMAX_COMMITTED, XMAX_INVALID, XMAX_IS_MULTI = 0x0400, 0x0800, 0x1000


def row(xmin: int, xmax: int, infomask: int, *, oid: int = 16384, limit: int = -1, limit_at: int = 80) -> bytes:
    header = struct.pack("<II10xHHB", xmin, xmax, 18, infomask, 24) + b"\0"
    return header + struct.pack("<I", oid).ljust(limit_at, b"\xff") + struct.pack("<i", limit) + bytes(20)


def page(*rows: bytes, flags: int = 1) -> bytes:
    made = bytearray(8192)
    upper = 8192
    for number, content in enumerate(rows):
        upper -= (len(content) + 7) // 8 * 8
        made[upper : upper + len(content)] = content
        struct.pack_into("<I", made, 24 + 4 * number, upper | flags << 15 | len(content) << 17)
    struct.pack_into("<HHH", made, 12, 24 + 4 * len(rows), upper, 8192)
    return bytes(made)


def read(*rows: bytes, catalog: int = OF_15, flags: int = 1) -> dict[int, Standing]:
    return read_databases([page(*rows, flags=flags)], catalog, STATUS.__getitem__)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param((OLD, 0, XMAX_INVALID), id="committed, says pg_xact"),
        pytest.param((CRASHED, 0, XMIN_COMMITTED | XMAX_INVALID), id="committed, says the row"),
        pytest.param((CRASHED, 0, FROZEN | XMAX_INVALID), id="frozen"),
        pytest.param((1, 0, 0), id="made by initdb"),
        pytest.param((OLD, CRASHED, 0), id="a deletion that a crash ended"),
        pytest.param((OLD, UNDONE, 0), id="a deletion that was undone"),
        pytest.param((OLD, NEW, XMAX_INVALID), id="no deletion, says the row"),
        pytest.param((OLD, NEW, XMAX_LOCK_ONLY), id="locked"),
        pytest.param((OLD, NEW, XMAX_IS_MULTI), id="deleted by a MultiXact, perhaps"),
    ],
)
def test_living_row_is_a_database(header: tuple[int, int, int]) -> None:
    assert read(row(*header)) == {16384: Standing.THERE}


@pytest.mark.parametrize(
    "header",
    [
        pytest.param((CRASHED, 0, XMAX_INVALID), id="a creation that a crash ended"),
        pytest.param((UNDONE, 0, XMAX_INVALID), id="a creation that was undone"),
        pytest.param((OLD, 0, XMIN_INVALID | XMAX_INVALID), id="undone, says the row"),
        pytest.param((OLD, NEW, 0), id="deleted, says pg_xact"),
        pytest.param((OLD, CRASHED, XMAX_COMMITTED), id="deleted, says the row"),
    ],
)
def test_dead_row_is_none(header: tuple[int, int, int]) -> None:
    assert read(row(*header)) == {}


@pytest.mark.parametrize(("catalog", "limit_at"), [(OF_14, 208), (OF_15, 80)])
def test_half_dropped_database_is_told_in_each_layout(catalog: int, limit_at: int) -> None:
    rows = [
        row(OLD, 0, XMAX_INVALID, oid=oid, limit=limit, limit_at=limit_at)
        for oid, limit in ((16384, -2), (16385, -1), (16386, 5))
    ]
    assert read(*rows, catalog=catalog) == {
        16384: Standing.HALF_DROPPED,
        16385: Standing.THERE,
        16386: Standing.THERE,
    }


@pytest.mark.parametrize("flags", [0, 2, 3])
def test_line_pointer_without_a_row_is_passed_over(flags: int) -> None:
    assert read(row(OLD, 0, 0), flags=flags) == {}


def test_garbage_ends_in_no_error() -> None:
    for content in (b"", bytes(10), bytes(8192), b"\xff" * 8192, b"\x55" * 8192, page(bytes(10))):
        assert read_databases([content], OF_15, STATUS.__getitem__) == {}


def test_status_is_two_bits_from_the_low_end() -> None:
    segment = bytes([0b11_10_01_00, 0b00_00_00_01])
    assert [status_in_segment(segment, xid) for xid in range(6)] == [0, 1, 2, 3, 1, 0]
    assert status_in_segment(segment, 32 * 8192 * 4 + 1) == 1
    with pytest.raises(IndexError):
        status_in_segment(segment, 8)
