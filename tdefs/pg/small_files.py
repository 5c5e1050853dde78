"""What PostgreSQL requires of PG_VERSION and of pg_filenode.map, which have no page checksums; pure."""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from tdefs.pg.control import crc32c
from tdefs.policy.paths import Kind

#: The kinds of files that are checked here.
SMALL_KINDS = (Kind.VERSION, Kind.RELATION_MAP)

_VERSION = re.compile(rb"[1-9][0-9]{0,2}(?:\.[0-9]{1,2})?\n")
# RelMapFile of src/backend/utils/cache/relmapper.c: magic, count, mappings of 8 bytes, CRC. PostgreSQL 16 has 64
# mappings, those before 62 and 4 bytes of padding.
_MAP_MAGIC = struct.pack("<I", 0x592717)
_MAP_HEADER = struct.Struct("<4sI")
_MAPPING = struct.Struct("<II")
_CRC_AT = {512: 504, 524: 520}


def small_file_fault(kind: Kind, name: str, content: bytes) -> str:
    """Return why PostgreSQL would refuse the file *name*, or "".

    :param content: all of it, or at least more than such a file can have.
    """
    if kind == Kind.VERSION and not _VERSION.fullmatch(content):
        return "PG_VERSION is damaged: it holds no version of PostgreSQL"
    if kind == Kind.RELATION_MAP and name == "pg_filenode.map":
        crc_at = _CRC_AT.get(len(content))
        if crc_at is None:
            return f"pg_filenode.map is damaged: it cannot have a length of {len(content)} bytes"
        crc = int.from_bytes(content[crc_at : crc_at + 4], "little")
        if not content.startswith(_MAP_MAGIC) or crc32c(content[:crc_at]) != crc:
            return "pg_filenode.map is damaged: its CRC does not match"
    return ""


def mapped_relfilenode(content: bytes, relation: int) -> int | None:
    """Return where an intact pg_filenode.map says that the catalog with the OID *relation* lies."""
    _, count = _MAP_HEADER.unpack_from(content)
    mappings = content[_MAP_HEADER.size :][: count * _MAPPING.size]
    return dict(_MAPPING.iter_unpack(mappings)).get(relation)


def odd_versions(contents: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    """Yield the paths of files PG_VERSION that contradict most others of their cluster, and the contradiction.

    If no version has a majority, each file is named, since nobody can know which of them is right.

    ValidatePgVersion() of src/backend/utils/init/miscinit.c demands the server's own version of each.
    """
    clusters: dict[str, dict[str, bytes]] = defaultdict(dict)
    for path, content in contents.items():
        directory = path.removesuffix("PG_VERSION").rstrip("/")
        parent, _, database = directory.rpartition("/")
        place, _, base = parent.rpartition("/")
        clusters[place if base == "base" and database.isdecimal() else directory][path] = content
    for found in clusters.values():
        (usual, times), *_ = Counter(found.values()).most_common(1)
        for path, content in found.items():
            if times == len(found):
                continue
            others = {_shown(other) for other in found.values()} - {_shown(content)}
            if times <= len(found) / 2:
                yield (
                    path,
                    f"PG_VERSION is damaged, here or elsewhere: it says {_shown(content)}, "
                    f"others of the cluster say {', '.join(sorted(others))}",
                )
            elif content != usual:
                yield (
                    path,
                    f"PG_VERSION is damaged: it says {_shown(content)}, "
                    f"all others of the cluster say {_shown(usual)}",
                )


def _shown(version: bytes) -> str:
    return version.decode("ascii").strip()
