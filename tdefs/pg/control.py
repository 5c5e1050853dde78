"""What tdefs needs from pg_control: whether data pages have checksums, and which files must exist; pure.

The layout is ControlFileData of src/include/catalog/pg_control.h, as 64-bit little-endian hosts have it. Up to the
checksum version it is the same from PostgreSQL 13 to 18; 18 put one field between it and the CRC.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: Its path in a data directory.
CONTROL_FILE = "global/pg_control"
#: No pg_control is longer.
MOST_CONTROL_BYTES = 1 << 16
#: Its name after pg_upgrade --link or --swap has made the old cluster unusable (disable_old_cluster()).
RETIRED_CONTROL_FILE = "global/pg_control.old"

_VERSIONS = struct.Struct("<8xIII")  # pg_control_version, catalog_version_no, state
_CHECKPOINT = struct.Struct("<QQ16xQ12xI")  # checkPoint; checkPointCopy: redo, nextXid, oldestXid
_CHECKPOINT_AT = 32
_SIZES = struct.Struct("<II4xI")  # blcksz, relseg_size, xlog_seg_size
_SIZES_AT = 216
_CHECKSUM_VERSION_AT = 252

# PG_CONTROL_VERSION: where the CRC lies. 1300 is PostgreSQL 13 to 16, 1700 is 17, 1800 is 18.
_CRC_AT = {1300: 288, 1700: 288, 1800: 292}
# Where the CRC of an unknown version may lie: the struct has grown by a few fields in ten years.
_CRC_AT_LEAST, _CRC_AT_MOST = 256, 508

# DBState
_SHUTDOWNED = 1
_SHUTDOWNED_IN_RECOVERY = 2


class BadControlFile(Exception):
    """The content is not an intact pg_control."""


class UnknownControlVersion(Exception):
    """A pg_control of a PostgreSQL version that this module does not know."""


@dataclass(frozen=True, slots=True)
class ControlFile:
    """What pg_control says about its cluster.

    ``catalog_version`` is the date of the system catalogs' layout, ``state`` is a DBState.
    ``segment_pages`` is the number of pages in a full segment of a relation, ``wal_segment_size`` is in bytes.
    ``checkpoint`` and ``redo`` are WAL positions: the record of the last checkpoint, and the start of recovery.
    Transactions from ``oldest_xid`` on, below ``next_xid``, have their states in pg_xact; both have 32 bits.
    """

    version: int
    catalog_version: int
    state: int
    page_size: int
    segment_pages: int
    checksums: bool
    checkpoint: int
    redo: int
    wal_segment_size: int
    next_xid: int
    oldest_xid: int

    @property
    def shut_down(self) -> bool:
        """Whether the server was stopped in order."""
        return self.state in (_SHUTDOWNED, _SHUTDOWNED_IN_RECOVERY)

    @property
    def needs_no_wal(self) -> bool:
        """Whether the relation files are complete without WAL; those of a standby may not be."""
        return self.state == _SHUTDOWNED


def system_identifier(content: bytes) -> int:
    """Return the number that initdb gave a cluster, and that all its copies have, from *content* of pg_control.

    :raises BadControlFile: as :func:`parse_control_file`.
    :raises UnknownControlVersion: the same.
    """
    parse_control_file(content)
    return int.from_bytes(content[:8], "little")


def parse_control_file(content: bytes) -> ControlFile:
    """Return what the *content* of a pg_control says.

    :raises BadControlFile: it is cut short, its CRC does not match, or other bytes than zeros follow the CRC.
    :raises UnknownControlVersion: it is not of PostgreSQL 13 to 18.
    """
    if len(content) < _VERSIONS.size:
        raise BadControlFile(f"pg_control is cut short: {len(content)} bytes are left")
    version, catalog_version, state = _VERSIONS.unpack_from(content)
    crc_at = _CRC_AT.get(version)
    if crc_at is None:
        if not _has_crc_somewhere(content):
            raise BadControlFile("pg_control is damaged: neither its version nor its CRC is valid")
        raise UnknownControlVersion(f"pg_control is of version {version}; known are those of PostgreSQL 13 to 18")
    if len(content) < crc_at + 4:
        raise BadControlFile(f"pg_control is cut short: {len(content)} bytes are left")
    if crc32c(content[:crc_at]) != int.from_bytes(content[crc_at : crc_at + 4], "little"):
        raise BadControlFile("pg_control is damaged: its CRC does not match")
    if any(content[crc_at + 4 :]):
        # update_controlfile() of src/common/controldata_utils.c fills it up with zeros
        raise BadControlFile("pg_control is damaged: it is not all zero after its CRC")
    checkpoint, redo, next_xid, oldest_xid = _CHECKPOINT.unpack_from(content, _CHECKPOINT_AT)
    page_size, segment_pages, wal_segment_size = _SIZES.unpack_from(content, _SIZES_AT)
    (checksum_version,) = struct.unpack_from("<I", content, _CHECKSUM_VERSION_AT)
    return ControlFile(
        version,
        catalog_version,
        state,
        page_size,
        segment_pages,
        checksum_version != 0,
        checkpoint,
        redo,
        wal_segment_size,
        next_xid & 0xFFFFFFFF,
        oldest_xid,
    )


def _has_crc_somewhere(content: bytes) -> bool:
    """Return whether it may be intact, in a version whose layout is unknown."""
    crc = 0xFFFFFFFF
    for at, byte in enumerate(content[: _CRC_AT_MOST + 4]):
        if (
            at >= _CRC_AT_LEAST
            and at % 4 == 0
            and crc ^ 0xFFFFFFFF == int.from_bytes(content[at : at + 4], "little")
        ):
            return True
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return False


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of *data*, as src/port/pg_crc32c_sb8.c computes it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_table_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(_crc_table_entry(byte) for byte in range(256))
