"""Which databases a cluster has, read from the pages of pg_database without a server; pure.

The layouts are PageHeaderData and ItemIdData of src/include/storage, HeapTupleHeaderData of
src/include/access/htup_details.h, FormData_pg_database of src/include/catalog/pg_database.h, and the two bits for
each transaction of src/backend/access/transam/clog.c, on 64-bit little-endian hosts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum

from tdefs.pg.pages import PAGE_SIZE

#: DatabaseRelationId: the number of pg_database in global/pg_filenode.map.
PG_DATABASE = 1262
#: Template1DbOid: every cluster has template1, unless somebody has replaced it by another one of that name.
TEMPLATE1 = 1
#: Transactions in one segment of pg_xact: two bits for each, 32 pages.
XIDS_OF_SEGMENT = PAGE_SIZE * 4 * 32

_PAGE_HEADER_SIZE = 24
_LOWER_AT = 12
_LINE_POINTER = struct.Struct("<I")
_LP_NORMAL = 1
# t_xmin, t_xmax; t_infomask2, t_infomask, t_hoff
_TUPLE_HEADER = struct.Struct("<II10xHHB")

_XMAX_LOCK_ONLY = 0x0080
_XMIN_COMMITTED = 0x0100
_XMIN_INVALID = 0x0200
_XMAX_COMMITTED = 0x0400
_XMAX_INVALID = 0x0800
_XMAX_IS_MULTI = 0x1000

_FIRST_NORMAL_XID = 3
_COMMITTED = 1

# CATALOG_VERSION_NO of PostgreSQL 15, in which the names of the locales come after datconnlimit
_CATALOG_OF_15 = 202209061
_LIMIT_AT = 80
_LIMIT_AT_BEFORE_15 = 208
# DATCONNLIMIT_INVALID_DB
_HALF_DROPPED = -2


class Standing(IntEnum):
    """What pg_database says about a database."""

    THERE = 0
    #: DROP DATABASE was begun: nobody can connect any more, and its files may be gone.
    HALF_DROPPED = 1


def read_databases(
    pages: Iterable[bytes | memoryview], catalog_version: int, xact_status: Callable[[int], int]
) -> dict[int, Standing]:
    """Return the databases that the *pages* of pg_database list, by their OIDs.

    The answer is complete only for a cluster that needs no WAL. A row that a MultiXact may have deleted counts as
    existing.

    :param catalog_version: what pg_control says.
    :param xact_status: the two bits of a transaction in pg_xact.
    """
    limit_at = _LIMIT_AT if catalog_version >= _CATALOG_OF_15 else _LIMIT_AT_BEFORE_15
    found = {}
    for page in pages:
        for row, tuple_header in _tuples(page):
            if not _is_visible(tuple_header, xact_status) or len(row) < limit_at + 4:
                continue
            oid = int.from_bytes(row[:4], "little")
            limit = int.from_bytes(row[limit_at : limit_at + 4], "little", signed=True)
            found[oid] = Standing.HALF_DROPPED if limit == _HALF_DROPPED else Standing.THERE
    return found


def status_in_segment(segment: bytes | memoryview, xid: int) -> int:
    """Return the two bits of the transaction *xid* in its *segment* of pg_xact.

    :raises IndexError: the segment ends before it.
    """
    number = xid % XIDS_OF_SEGMENT
    return segment[number // 4] >> number % 4 * 2 & 3


def _tuples(page: bytes | memoryview) -> Iterator[tuple[bytes, tuple[int, int, int]]]:
    """Yield the columns of each tuple, and xmin, xmax and infomask of its header."""
    lower = int.from_bytes(page[_LOWER_AT : _LOWER_AT + 2], "little")
    for at in range(_PAGE_HEADER_SIZE, min(lower, len(page)) - _LINE_POINTER.size + 1, _LINE_POINTER.size):
        (pointer,) = _LINE_POINTER.unpack_from(page, at)
        offset, flags, length = pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17
        if flags != _LP_NORMAL or length < _TUPLE_HEADER.size or offset + length > len(page):
            continue
        xmin, xmax, _, infomask, header_size = _TUPLE_HEADER.unpack_from(page, offset)
        yield bytes(page[offset + header_size : offset + length]), (xmin, xmax, infomask)


def _is_visible(tuple_header: tuple[int, int, int], xact_status: Callable[[int], int]) -> bool:
    """Return whether a tuple is visible, if no transaction is running: what is not committed never will be."""
    xmin, xmax, infomask = tuple_header

    def committed(xid: int) -> bool:
        return xid < _FIRST_NORMAL_XID or xact_status(xid) == _COMMITTED

    # both bits together: frozen
    if not infomask & _XMIN_COMMITTED and (infomask & _XMIN_INVALID or not committed(xmin)):
        return False
    if infomask & (_XMAX_INVALID | _XMAX_LOCK_ONLY | _XMAX_IS_MULTI) or xmax == 0:
        return True
    return not (infomask & _XMAX_COMMITTED or committed(xmax))
