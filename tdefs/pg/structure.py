"""Which files of a cluster are missing, or have an impossible length; pure.

No file of a cluster lists the others. So a removed file is found only if other files, or pg_control, prove that it
must exist. What is reported is certain, or may be useless remains of a crash, as each hint says.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tdefs.pg.control import CONTROL_FILE, RETIRED_CONTROL_FILE, ControlFile
from tdefs.pg.databases import XIDS_OF_SEGMENT
from tdefs.pg.pages import PAGE_SIZE
from tdefs.policy.paths import Kind, RelationFile, classify

#: Files of a data directory that initdb makes, and without which PostgreSQL does not start.
_ALWAYS_THERE = ("PG_VERSION", CONTROL_FILE, "global/pg_filenode.map")
#: Files of a data directory: while one of these exists, WAL may come from elsewhere
#: (src/backend/access/transam/xlogrecovery.c).
WAL_FROM_ELSEWHERE = ("backup_label", "standby.signal", "recovery.signal")
#: Directories below a data directory that hold the states of transactions (src/backend/access/transam/slru.c).
_PERSISTENT_SLRUS = ("pg_xact", "pg_multixact/offsets", "pg_multixact/members", "pg_commit_ts")
# What pg_basebackup --incremental writes in place of a segment (src/include/backup/basebackup_incremental.h).
_INCREMENTAL = "INCREMENTAL."
_WAL_SEGMENT = re.compile(r"[0-9A-F]{24}")
_SLRU_SEGMENT = re.compile(r"[0-9A-F]{4,6}")
_XIDS = 1 << 32
# PG_CONTROL_FILE_SIZE of src/include/catalog/pg_control.h
_CONTROL_FILE_BYTES = 8192

_RESTORE_HINT = "restore the file from a backup"
_LEFTOVER_HINT = (
    "restore the file from a backup; if no pg_class has a relation of this number, nothing is lost: a crash has "
    "left the other files behind"
)
_DATABASE_HINT = (
    "restore the file from a backup; if the cluster was not shut down cleanly, first start it, stop it, and "
    "verify again: this shows whether a crash in CREATE or DROP DATABASE has left the directory behind"
)
_WAL_HINT = "recovery needs it: restore it from the WAL archive, or the cluster from a backup"
_XACT_HINT = "restore the file from a backup, unless pg_resetwal -x was used on the cluster"
_SHORT_HINT = (
    "restore the relation from a backup; if the cluster was not shut down cleanly, first start it, stop it, and "
    "verify again"
)


@dataclass(frozen=True, slots=True)
class Gap:
    """A file that is missing, or of an impossible length."""

    path: str
    error: str
    hint: str


def find_gaps(
    lengths: Mapping[str, int | None],
    clusters: Mapping[str, ControlFile | None],
    is_link: Callable[[str], bool],
) -> Iterator[Gap]:
    """Yield what is missing among the files of a volume.

    :param lengths: by path, the plaintext length of each regular file in bytes; ``None`` if it is unknown.
    :param clusters: by directory ("" or "15/main"), what the pg_control in it says.
    :param is_link: returns whether a path is a symbolic link: files behind a link are not in ``lengths``.
    """
    for retired in retired_directories(lengths):
        lengths = {path: length for path, length in lengths.items() if not path.startswith(_prefix(retired))}
    for directory in sorted(_data_directories(lengths)):
        prefix = _prefix(directory)
        for name in _ALWAYS_THERE:
            if prefix + name not in lengths:
                yield Gap(prefix + name, f"the file is missing: the data directory has no {name}", _RESTORE_HINT)
        if not any(path.startswith(f"{prefix}base/") for path in lengths) and not is_link(f"{prefix}base"):
            yield Gap(f"{prefix}base", "the directory is missing, or there is nothing in it", _RESTORE_HINT)
        control = lengths.get(prefix + CONTROL_FILE)
        if control is not None and control != _CONTROL_FILE_BYTES:
            error = f"pg_control has {_CONTROL_FILE_BYTES} bytes, not {control}"
            yield Gap(prefix + CONTROL_FILE, error, _RESTORE_HINT)
        cluster = clusters.get(directory)
        if cluster is not None:
            if not is_link(f"{prefix}pg_wal"):
                complete = all(prefix + name not in lengths for name in WAL_FROM_ELSEWHERE)
                yield from find_wal_gaps(f"{prefix}pg_wal/", lengths, cluster, complete=complete)
            yield from _xact_gaps(prefix, lengths, cluster, is_link)
            yield from _partial_slru_segments(prefix, lengths)
    yield from _database_gaps(lengths)
    yield from _relation_gaps(lengths, clusters)


def retired_directories(paths: Collection[str]) -> list[str]:
    """Return the data directories that pg_upgrade has made unusable: their files now belong to the new cluster."""
    found = [path.removesuffix(RETIRED_CONTROL_FILE) for path in paths if path.endswith(RETIRED_CONTROL_FILE)]
    return sorted(
        prefix.rstrip("/")
        for prefix in found
        if (not prefix or prefix.endswith("/")) and prefix + CONTROL_FILE not in paths
    )


def _prefix(directory: str) -> str:
    """Return the beginning of the paths of the files below *directory*."""
    return f"{directory}/" if directory else ""


def _data_directories(paths: Iterable[str]) -> set[str]:
    """Return the directories that are certainly data directories: they have two of three typical entries."""
    witnesses: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        for name in ("PG_VERSION", "global", "base"):
            if name == "PG_VERSION" and (path == name or path.endswith(f"/{name}")):
                witnesses[path.removesuffix(name).rstrip("/")].add(name)
            elif name != "PG_VERSION" and (place := _parent_of(path, name)) is not None:
                witnesses[place].add(name)
    # a database's own directory has a PG_VERSION, too, but nothing in base/ or global/
    return {directory for directory, found in witnesses.items() if len(found) > 1}


def _parent_of(path: str, name: str) -> str | None:
    """Return the parent of the directory *name* that *path* passes through, if *path* is a file of a cluster."""
    parts = path.split("/")
    depth = 2 if name == "global" else 3
    if len(parts) < depth or parts[-depth] != name:
        return None
    if classify(path).kind not in (Kind.RELATION, Kind.CATALOG, Kind.CONTROL, Kind.RELATION_MAP, Kind.VERSION):
        return None
    return "/".join(parts[:-depth])


def wal_directories(paths: Iterable[str]) -> Counter[str]:
    """Return the directories that hold WAL segments, and the number of segments in each."""
    found: Counter[str] = Counter()
    for path in paths:
        directory, _, name = path.rpartition("/")
        if _WAL_SEGMENT.fullmatch(name):
            found[directory] += 1
    return found


def find_wal_gaps(
    prefix: str, lengths: Mapping[str, int | None], cluster: ControlFile, *, complete: bool
) -> Iterator[Gap]:
    """Yield what is missing among the WAL segments of a cluster.

    :param prefix: the beginning of the paths of its WAL segments: "pg_wal/", or "" in a volume for WAL only.
    :param complete: whether everything that recovery needs must exist.
    """
    size = cluster.wal_segment_size
    if not 1 << 20 <= size <= 1 << 30 or size.bit_count() != 1:
        return
    segments = {}
    for path, length in lengths.items():
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and _WAL_SEGMENT.fullmatch(name):
            segments[name] = length
            if length is not None and length != size:
                error = f"a WAL segment has {size} bytes, not {length}"
                yield Gap(path, error, _WAL_HINT)
    if not complete:
        return
    there = {_segment_number(name, size) for name in segments}
    first, last = cluster.redo // size, cluster.checkpoint // size
    if not cluster.shut_down:
        # what was written after the checkpoint: without a gap, since segments are made one after the other
        newest = max(segments, default="")[:8]
        last = max([last, *(_segment_number(name, size) for name in segments if name.startswith(newest))])
    for number in range(first, min(last, first + len(there) + 1) + 1):
        if number not in there:
            timeline = max(segments, default="00000001")[:8]
            high, low = divmod(number, (1 << 32) // size)
            yield Gap(f"{prefix}{timeline}{high:08X}{low:08X}", "the WAL segment is missing", _WAL_HINT)


def _segment_number(name: str, size: int) -> int:
    return int(name[8:16], 16) * ((1 << 32) // size) + int(name[16:24], 16)


def _xact_gaps(
    prefix: str, lengths: Mapping[str, int | None], cluster: ControlFile, is_link: Callable[[str], bool]
) -> Iterator[Gap]:
    if is_link(f"{prefix}pg_xact"):
        return
    first = cluster.oldest_xid // XIDS_OF_SEGMENT
    count = ((cluster.next_xid - 1) // XIDS_OF_SEGMENT - first) % (_XIDS // XIDS_OF_SEGMENT) + 1
    for number in range(first, first + count):
        path = f"{prefix}pg_xact/{number % (_XIDS // XIDS_OF_SEGMENT):04X}"
        if path not in lengths:
            yield Gap(path, "the file is missing: it says which transactions were committed", _XACT_HINT)


def _partial_slru_segments(prefix: str, lengths: Mapping[str, int | None]) -> Iterator[Gap]:
    for path, length in lengths.items():
        directory, _, name = path.rpartition("/")
        if not length or length % PAGE_SIZE == 0 or not _SLRU_SEGMENT.fullmatch(name):
            continue
        if directory in {prefix + slru for slru in _PERSISTENT_SLRUS}:
            error = f"the length of {length} bytes is not a multiple of the page size of {PAGE_SIZE}"
            yield Gap(path, error, _SHORT_HINT)


def _database_gaps(lengths: Mapping[str, int | None]) -> Iterator[Gap]:
    """Yield the two files that a database's directory must have beside its catalogs, if they are missing.

    A directory of a tablespace that holds only tables has neither.
    """
    catalogs = set()
    for path in lengths:
        parent, _, _ = path.rpartition("/")
        place, _, database = parent.rpartition("/")
        if not (place == "base" or place.endswith("/base")) or not database.isdecimal():
            continue
        role = classify(path)
        if role.kind in (Kind.CATALOG, Kind.RELATION_MAP, Kind.VERSION):
            catalogs.add(parent)
    for directory in sorted(catalogs):
        for name in ("PG_VERSION", "pg_filenode.map"):
            if f"{directory}/{name}" not in lengths:
                yield Gap(
                    f"{directory}/{name}",
                    f"the file is missing: the database has no {name}",
                    _DATABASE_HINT,
                )


def _relation_gaps(lengths: Mapping[str, int | None], clusters: Mapping[str, ControlFile | None]) -> Iterator[Gap]:
    segments: dict[tuple[str, int, str], dict[int, str]] = defaultdict(dict)
    for path in lengths:
        directory, _, name = path.rpartition("/")
        role = classify(f"{directory}/{name.removeprefix(_INCREMENTAL)}")
        if role.relation is not None and role.kind in (Kind.RELATION, Kind.CATALOG):
            relation: RelationFile = role.relation
            segments[directory, relation.relfilenode, relation.fork][relation.segment] = path
    for (directory, relfilenode, fork), found in sorted(segments.items()):
        base = f"{directory}/{relfilenode}"
        name = base if fork == "main" else f"{base}_{fork}"
        if _has_no_main_fork(directory, relfilenode, fork, segments):
            yield Gap(base, f"the file is missing: there is a {fork} fork and no main fork", _LEFTOVER_HINT)
        # a segment that is no longer needed stays, empty (mdtruncate() of src/backend/storage/smgr/md.c)
        last = max((number for number, path in found.items() if lengths[path] != 0), default=0)
        full = _full_segment(directory, clusters)
        for number in range(last):
            segment = name if number == 0 else f"{name}.{number}"
            if number not in found:
                yield Gap(segment, f"the segment is missing: there is {name}.{last}", _LEFTOVER_HINT)
            elif _INCREMENTAL in found[number]:
                continue
            elif full is not None and (length := lengths[found[number]]) not in (None, full):
                yield Gap(
                    segment, f"the segment has {length} bytes, not {full}: there is {name}.{last}", _SHORT_HINT
                )
            if number >= len(found):
                break  # a segment number far above all others proves no more


def _has_no_main_fork(
    directory: str, relfilenode: int, fork: str, segments: Mapping[tuple[str, int, str], object]
) -> bool:
    """Return whether the main fork is missing. A standby has only the init fork of an unlogged relation."""
    if fork not in ("fsm", "vm") or (directory, relfilenode, "main") in segments:
        return False
    return (directory, relfilenode, "init") not in segments


def _full_segment(directory: str, clusters: Mapping[str, ControlFile | None]) -> int | None:
    """Return the length of a full segment of the cluster above *directory*; ``None`` where it is unknown."""
    while directory:
        directory = directory.rpartition("/")[0]
        cluster = clusters.get(directory)
        if cluster is not None:
            return cluster.segment_pages * cluster.page_size
    return None
