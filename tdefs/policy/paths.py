"""What a path is to PostgreSQL: the one place that derives a file's kind from its relative path.

The mount point may be PGDATA, a directory above it, a tablespace's place or a separate WAL directory. So the kind
follows from the end of the path: the file's name and the nearest directories with names that PostgreSQL fixes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

FIRST_NORMAL_OBJECT_ID = 16384
"""Objects that initdb made have smaller numbers (src/include/access/transam.h: FirstNormalObjectId)."""

MAX_OID = 2**32 - 1


class Kind(StrEnum):
    """What a file holds, as far as its path shows it. The values are the words of the policy's ``kinds``."""

    RELATION = "relation"
    CATALOG = "catalog"
    STRAY = "stray"
    RELATION_MAP = "relation_map"
    RELCACHE = "relcache"
    WAL = "wal"
    SLRU = "slru"
    CONTROL = "control"
    TEMP = "temp"
    REPLICATION = "replication"
    TWO_PHASE = "two_phase"
    STATISTICS = "statistics"
    CONFIGURATION = "configuration"
    LOG = "log"
    LOCK = "lock"
    VERSION = "version"
    BACKUP = "backup"
    SIGNAL = "signal"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class RelationFile:
    """One segment of one fork of a relfilenode.

    ``database`` is an OID, 0 for the shared relations in ``global/``; ``fork`` is ``main``, ``fsm``, ``vm`` or
    ``init``; ``segment`` counts from 0.
    """

    database: int
    relfilenode: int
    fork: str
    segment: int


@dataclass(frozen=True, slots=True)
class FileRole:
    """A file's kind, and which relation file it is: for ``relation``, ``catalog`` and temporary relations."""

    kind: Kind
    relation: RelationFile | None = None


_OID = re.compile(r"[1-9][0-9]{0,9}")

# src/common/relpath.c, GetRelationPath(); the reading direction is parse_filename_for_nontemp_relation() in
# src/backend/storage/file/reinit.c. No leading zeros, so that a number has one spelling only; the main fork has
# no suffix and segment 0 has none (_mdfd_segpath() in src/backend/storage/smgr/md.c).
_RELATION_NAME = re.compile(r"([1-9][0-9]{0,9})(?:_(fsm|vm|init))?(?:\.([1-9][0-9]{0,9}))?")

# looks_like_temp_rel_name() in src/backend/storage/file/fd.c: files that the server removes at start.
_TEMP_RELATION_NAME = re.compile(r"t[0-9]+_(([0-9]+)(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?)")

# TABLESPACE_VERSION_DIRECTORY in src/include/common/relpath.h.
_TABLESPACE_VERSION_DIRECTORY = re.compile(r"PG_[0-9]+(?:\.[0-9]+)?_[0-9]+")

# src/include/access/xlog_internal.h: IsXLogFileName() and its neighbours take upper-case digits only. The
# compressed forms are pg_receivewal's, .summary is the WAL summarizer's (src/backend/backup/walsummary.c), and
# .ready and .done lie in archive_status.
_WAL_NAME = re.compile(
    r"[0-9A-F]{24}(?:\.gz|\.lz4)?(?:\.partial)?(?:\.ready|\.done)?"
    r"|[0-9A-F]{24}\.[0-9A-F]{8}\.backup(?:\.ready|\.done)?"
    r"|[0-9A-F]{8}\.history(?:\.ready|\.done)?"
    r"|(?:[0-9A-F]{40}|temp)\.summary"
    r"|xlogtemp\.[0-9]+|RECOVERYXLOG|RECOVERYHISTORY"
)

# Files are written under a second name and renamed (postgresql.auto.conf.tmp, pg_filenode.map.tmp,
# pg_internal.init.1234): that name must get the same kind, since encryption is decided when it is created.
_NAME_PATTERNS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (_WAL_NAME, Kind.WAL),
    (re.compile(r"pgsql_tmp.*", re.DOTALL), Kind.TEMP),
    (re.compile(r"PG_VERSION"), Kind.VERSION),
    (re.compile(r"postmaster\.(?:pid|opts)|\.s\.PGSQL\.[0-9]+\.lock"), Kind.LOCK),
    (re.compile(r"(?:backup_label|tablespace_map|backup_manifest)(?:\.old|\.tmp)?"), Kind.BACKUP),
    (re.compile(r"(?:recovery|standby)\.signal|promote|fallback_promote|logrotate"), Kind.SIGNAL),
    (re.compile(r".*\.conf(?:\.tmp)?|recovery\.done", re.DOTALL), Kind.CONFIGURATION),
    (re.compile(r".*\.log|logfile|current_logfiles(?:\.tmp)?", re.DOTALL), Kind.LOG),
)

_DATABASE_FILE_PATTERNS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(r"pg_filenode\.map(?:\.tmp)?"), Kind.RELATION_MAP),
    (re.compile(r"pg_internal\.init(?:\.[0-9]+)?"), Kind.RELCACHE),
    (re.compile(r"PG_VERSION"), Kind.VERSION),
)

# PostgreSQL's own directories: everything below them is of one kind. With dynamic_shared_memory_type = mmap,
# pg_dynshmem holds tuples on their way between parallel workers.
_DIRECTORY_KINDS = {
    "pg_wal": Kind.WAL,
    "pg_xlog": Kind.WAL,
    "pg_xact": Kind.SLRU,
    "pg_clog": Kind.SLRU,
    "pg_multixact": Kind.SLRU,
    "pg_subtrans": Kind.SLRU,
    "pg_commit_ts": Kind.SLRU,
    "pg_serial": Kind.SLRU,
    "pg_notify": Kind.SLRU,
    "pg_twophase": Kind.TWO_PHASE,
    "pg_logical": Kind.REPLICATION,
    "pg_replslot": Kind.REPLICATION,
    "pg_snapshots": Kind.REPLICATION,
    "pg_stat": Kind.STATISTICS,
    "pg_stat_tmp": Kind.STATISTICS,
    "pg_dynshmem": Kind.TEMP,
    "pgsql_tmp": Kind.TEMP,
}

# Common words, so they count only as a file's direct parent.
_PARENT_KINDS = {
    "archive_status": Kind.WAL,
    "log": Kind.LOG,
    "pg_log": Kind.LOG,
    "conf.d": Kind.CONFIGURATION,
}


@lru_cache(maxsize=8192)
def classify(relpath: str) -> FileRole:
    """Return what the file at ``relpath`` (relative to the mount's root) is. Any text has a kind."""
    directories, name = _split(relpath)
    database = _database(directories)
    if database is not None:
        return _in_database_directory(database, name)
    if len(directories) == 1 and _is_oid(directories[0]):
        # Mounted over base/ itself, or over a tablespace's version directory. Only a relation file's name counts,
        # since the number may also be the version in a directory above PGDATA (15/main).
        role = _relation_role(int(directories[0]), name)
        if role is not None:
            return role
    if "pg_replslot" in directories[-2:]:
        # A slot's name is the user's: pg_replslot/pg_wal/state is legal.
        return FileRole(Kind.REPLICATION)
    for directory in reversed(directories):
        if directory in _DIRECTORY_KINDS:
            return FileRole(_DIRECTORY_KINDS[directory])
    if directories and directories[-1] in _PARENT_KINDS:
        return FileRole(_PARENT_KINDS[directories[-1]])
    return FileRole(_first_match(_NAME_PATTERNS, name) or Kind.OTHER)


def database_directory(relpath: str) -> int | None:
    """Return the OID of the database in whose directory the file lies, 0 for ``global/``, None elsewhere."""
    return _database(_split(relpath)[0])


def _split(relpath: str) -> tuple[list[str], str]:
    """Split into directories and name, without hidden directories.

    Copying tools put files that they are about to rename into a hidden directory (rsync --partial-dir). Such a
    file must be treated as what it will become.
    """
    *directories, name = relpath.split("/")
    return [part for part in directories if part and not part.startswith(".")], name


def _is_oid(text: str) -> bool:
    return _OID.fullmatch(text) is not None and int(text) <= MAX_OID


def _database(directories: list[str]) -> int | None:
    if not directories:
        return None
    if directories[-1] == "global":
        return 0
    if len(directories) < 2 or not _is_oid(directories[-1]):
        return None
    if directories[-2] == "base" or _TABLESPACE_VERSION_DIRECTORY.fullmatch(directories[-2]):
        return int(directories[-1])
    return None


def _in_database_directory(database: int, name: str) -> FileRole:
    role = _relation_role(database, name)
    if role is not None:
        return role
    if database == 0 and name in ("pg_control", "pg_control.old"):  # pg_upgrade leaves the second
        return FileRole(Kind.CONTROL)
    # An unknown name may be a relation file before its rename (.16385.Ab1Xyz of rsync, 16385.pgbackrest.tmp).
    return FileRole(_first_match(_DATABASE_FILE_PATTERNS, name) or Kind.STRAY)


def _relation_role(database: int, name: str) -> FileRole | None:
    relation = _relation_file(database, name)
    if relation is not None:
        catalog = relation.relfilenode < FIRST_NORMAL_OBJECT_ID
        return FileRole(Kind.CATALOG if catalog else Kind.RELATION, relation)
    temporary = _TEMP_RELATION_NAME.fullmatch(name)
    if temporary is not None:
        return FileRole(Kind.TEMP, _relation_file(database, temporary[1]))
    return None


def _relation_file(database: int, name: str) -> RelationFile | None:
    match = _RELATION_NAME.fullmatch(name)
    if match is None:
        return None
    relfilenode, segment = int(match[1]), int(match[3] or 0)
    if relfilenode > MAX_OID or segment > MAX_OID:
        return None
    return RelationFile(database, relfilenode, match[2] or "main", segment)


def _first_match(patterns: tuple[tuple[re.Pattern[str], Kind], ...], name: str) -> Kind | None:
    return next((kind for pattern, kind in patterns if pattern.fullmatch(name)), None)
