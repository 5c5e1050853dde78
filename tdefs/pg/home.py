"""The cluster that a tablespace or WAL of another volume belongs to, from its data directory; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tdefs.pg.control import ControlFile

# TABLESPACE_VERSION_DIRECTORY of src/include/common/relpath.h ends in the version of the catalogs
_VERSION_DIRECTORY = re.compile(r"(?:^|/)PG_[0-9.]+_([0-9]+)(?=/)")


@dataclass(frozen=True, slots=True)
class HomeCluster:
    """What the verification of a part of a cluster needs to know about the rest.

    ``place`` is the data directory. ``wal_is_elsewhere`` says that pg_wal does not lie in it. ``wal_directory``
    says where pg_wal lies in the volume that is verified, if that is known. ``wal_is_incomplete`` says that
    recovery fetches WAL from an archive or a primary.
    """

    place: str
    control: ControlFile
    wal_is_elsewhere: bool = False
    wal_directory: str | None = None
    wal_is_incomplete: bool = False


def tablespace_directory(path: str) -> tuple[str, int] | None:
    """Return the version directory of a tablespace that *path* passes through, and its catalog version."""
    match = _VERSION_DIRECTORY.search(path)
    return (path[: match.end()], int(match[1])) if match is not None else None


def cluster_above(path: str, clusters: Mapping[str, ControlFile | None]) -> str | None:
    """Return the nearest directory above the file at *path* that is one of the *clusters*."""
    directory = path
    while directory:
        directory = directory.rpartition("/")[0]
        if directory in clusters:
            return directory
    return None
