"""Distinguishing damage from the remains of a crash in the middle of CREATE or DROP DATABASE.

PostgreSQL neither syncs nor reads nor removes the directory that such a crash leaves. So its files may be missing,
and its pages torn, in a cluster that has lost nothing (createdb() and dropdb() of
src/backend/commands/dbcommands.c).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from errno import ENOENT
from functools import cache

from tdefs.format.errors import FormatError
from tdefs.offline.reader import OfflineReader
from tdefs.offline.report import Finding, Note
from tdefs.pg.control import ControlFile
from tdefs.pg.databases import (
    PG_DATABASE,
    TEMPLATE1,
    XIDS_OF_SEGMENT,
    Standing,
    read_databases,
    status_in_segment,
)
from tdefs.pg.pages import PAGE_SIZE
from tdefs.pg.small_files import mapped_relfilenode
from tdefs.policy.paths import database_directory

_NO_DATABASE = (
    "a crash during CREATE or DROP DATABASE has left the directory behind: no database has this number, and "
    "PostgreSQL does not read it; remove the directory"
)
_HALF_DROPPED = (
    "a crash has interrupted DROP DATABASE: nobody can connect to the database any more, and the files go when it "
    "is dropped again"
)


def split_off_abandoned(
    findings: list[Finding],
    unreadable: set[str],
    reader: OfflineReader,
    clusters: Mapping[str, ControlFile | None],
) -> tuple[list[Finding], list[Note]]:
    """Return the findings that matter, and a note for each directory that no database needs.

    In doubt a finding stays: if the WAL may know more, or the list of databases is not intact.

    :param unreadable: paths of files in a state that no crash of PostgreSQL causes: findings about them always
        stay.
    :param clusters: by directory, what the pg_control in it says.
    """
    suspects: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        directory, _, _ = finding.path.rpartition("/")
        in_base = directory.rpartition("/")[0].rpartition("/")[2] == "base"
        if in_base and database_directory(finding.path) and finding.path not in unreadable:
            suspects[directory].append(finding)
    damaged = {finding.path for finding in findings}

    @cache
    def databases(place: str, cluster: ControlFile) -> dict[int, Standing]:
        return _databases_of(place, cluster, reader, damaged)

    notes = []
    aside: set[Finding] = set()
    for directory, of_directory in sorted(suspects.items()):
        base, _, number = directory.rpartition("/")
        place = base.removesuffix("base").rstrip("/")
        cluster = clusters.get(place)
        if cluster is None or not (known := databases(place, cluster)):
            continue
        standing = known.get(int(number))
        # a DROP DATABASE that has begun is never undone, but only the WAL may know a database
        if standing == Standing.THERE or (standing is None and not cluster.needs_no_wal):
            continue
        count = len(of_directory)
        files = "1 file is missing or damaged" if count == 1 else f"{count} files are missing or damaged"
        reason = _NO_DATABASE if standing is None else _HALF_DROPPED
        notes.append(Note(directory, f"{files}, which is no loss: {reason}"))
        aside.update(of_directory)
    return [finding for finding in findings if finding not in aside], notes


def _databases_of(
    place: str, cluster: ControlFile, reader: OfflineReader, damaged: set[str]
) -> dict[int, Standing]:
    """Return the databases of the cluster in the directory *place*; none if they are not known for sure."""
    if cluster.page_size != PAGE_SIZE:
        return {}
    prefix = f"{place}/" if place else ""

    @cache
    def read(path: str) -> bytes:
        if path in damaged:
            raise FileNotFoundError(ENOENT, "not intact", path)
        with reader.open(path) as file:
            return b"".join(file.chunks())

    def xact_status(xid: int) -> int:
        return status_in_segment(read(f"{prefix}pg_xact/{xid // XIDS_OF_SEGMENT:04X}"), xid)

    try:
        number = mapped_relfilenode(read(f"{prefix}global/pg_filenode.map"), PG_DATABASE)
        content = read(f"{prefix}global/{number}")
        pages = (content[at : at + PAGE_SIZE] for at in range(0, len(content), PAGE_SIZE))
        databases = read_databases(pages, cluster.catalog_version, xact_status)
    except (OSError, FormatError, IndexError):
        return {}
    return databases if TEMPLATE1 in databases else {}
