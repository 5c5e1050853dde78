"""Checking a whole volume without a mount: every header and length, every page that PostgreSQL can judge, and what
must be there but is missing."""

from __future__ import annotations

from collections.abc import Callable
from errno import EACCES

from tdefs.format.errors import DestroyedKey, FormatError
from tdefs.fs.abandoned import set_abandoned_aside
from tdefs.fs.offline import (
    CHUNK_SIZE,
    DAMAGED,
    EMPTY,
    ENCRYPTED,
    PLAIN,
    UNREADABLE,
    OfflineReader,
    Plaintext,
    walk,
)
from tdefs.fs.report import Finding, Note, Report
from tdefs.fs.sealing import Form, Plain, Sealed
from tdefs.keys.hierarchy import KeyRing
from tdefs.pg.control import CONTROL_FILE, BadControlFile, ControlFile, UnknownControlVersion, parse_control_file
from tdefs.pg.pages import DEFAULT_SEGMENT_PAGES, PAGE_SIZE, BadPage, bad_pages
from tdefs.pg.small_files import SMALL_KINDS, odd_versions, small_file_fault
from tdefs.pg.structure import find_gaps
from tdefs.policy.paths import FileRole, Kind, RelationFile, classify
from tdefs.volume import Volume, was_left_clean

_RELATION_KINDS = (Kind.RELATION, Kind.CATALOG)
# The free-space and visibility maps are rebuilt from nothing when they are bad, so without checksums, which
# PostgreSQL would warn of, there is nothing to report.
_FORKS_WITH_SANE_HEADERS = ("main", "init")

_PAGES_HINT = "restore the relation from a backup; an index can be rebuilt with REINDEX"
_CRASH_HINT = (
    "the cluster was not shut down cleanly, and PostgreSQL repairs pages torn by a crash from its WAL: start it, "
    "stop it, and verify again; what is still wrong then, restore from a backup"
)
_NO_CLUSTER_HINT = (
    "PostgreSQL repairs pages torn by a crash from its WAL: if it was not shut down cleanly, start it, stop it, "
    "and verify again; what is still wrong then, restore from a backup"
)
_PARTIAL_PAGE_HINT = (
    "a full disk or a crash while the relation grew leaves this, and PostgreSQL ignores such a page; otherwise "
    "the file was cut: restore it from a backup"
)
_HEADER_PAGE_HINT = (
    "nothing of the file is lost, but the disk, or who wrote to it, has damaged the page: copy the file through "
    "the mount, and see the kernel's log"
)
_SMALL_FILE_HINT = (
    "restore the file from a backup; without it PostgreSQL does not start, or not serve the database"
)
_CONTROL_HINT = "restore pg_control from a backup; without it PostgreSQL does not start"
_READ_HINT = "see the kernel's log for errors of the disk"
_RIGHTS_HINT = "verify as the user that mounts the volume"


class Verifier:
    """Checks one volume, once."""

    def __init__(self, volume: Volume, ring: KeyRing) -> None:
        self._volume = volume
        self._reader = OfflineReader(volume, ring)
        self._report = Report()
        self._clusters: dict[str, ControlFile | None] = {}
        #: Plaintext length of every file that was there; ``None`` where it cannot be told.
        self._lengths: dict[str, int | None] = {}
        self._versions: dict[str, bytes] = {}

    def files(self) -> list[tuple[str, int]]:
        """Return path and stored size of every file; directories that cannot be read become findings."""
        return [(path, status.st_size) for path, status in walk(self._volume, self._add_unreadable_directory)]

    def run(self, files: list[tuple[str, int]], progress: Callable[[int], object]) -> Report:
        """Check *files*; *progress* is told the bytes that were done, stored size being the total."""
        if not was_left_clean(self._volume):
            self._report.notes.append(
                Note(
                    "", "the volume was not unmounted cleanly, or is mounted: files may lack what was never synced"
                )
            )
        for path, _ in files:
            if path == CONTROL_FILE or path.endswith("/" + CONTROL_FILE):
                self._read_control_file(path)
        for path, size in files:
            self._check(path, size)
            progress(size)
        self._check_structure()
        unreadable = {path for path, length in self._lengths.items() if length is None}
        aside = set_abandoned_aside(self._report.findings, unreadable, self._reader, self._clusters)
        self._report.findings, notes = aside
        self._report.notes += notes
        return self._report

    def _check_structure(self) -> None:
        """Look at what only all files together tell; what is said of a file already is enough."""
        for path, fault in odd_versions(self._versions):
            self._add(path, fault, _SMALL_FILE_HINT)
        known = {finding.path for finding in self._report.findings}
        for gap in find_gaps(
            self._lengths, self._clusters, lambda path: (self._volume.backing / path).is_symlink()
        ):
            if gap.path not in known:
                known.add(gap.path)
                self._add(gap.path, gap.error, gap.hint)

    def _check(self, path: str, size: int) -> None:
        """Read one file to its end."""
        role = classify(path)
        self._lengths[path] = None
        try:
            with self._reader.open(path) as file:
                self._lengths[path] = file.length
                if not file.clean_header:
                    self._add(path, "the header page is not zero behind the header record", _HEADER_PAGE_HINT)
                self._check_content(path, role, file)
                state = _state(file.form)
        except FileNotFoundError:
            return  # a mounted volume lives on
        except FormatError as error:
            state = UNREADABLE if isinstance(error, DestroyedKey) else DAMAGED
            self._add(path, str(error), error.hint)
        except OSError as error:
            state = UNREADABLE
            hint = _RIGHTS_HINT if error.errno == EACCES else _READ_HINT
            self._add(path, f"the file cannot be read: {error.strerror}", hint)
        self._report.states[state] += 1
        if state == EMPTY and size > 0 and not self._lengths[path]:
            self._report.notes.append(
                Note(path, "never synced before the crash, so its content was never promised: reads as empty")
            )

    def _check_content(self, path: str, role: FileRole, file: Plaintext) -> None:
        relation = role.relation if role.kind in _RELATION_KINDS else None
        bad: list[BadPage] = []
        block = -1
        cluster: ControlFile | None = None
        if relation is not None:
            cluster = self._cluster_of(path)
            block = _first_block(relation, cluster)
        if role.kind in SMALL_KINDS:
            start = bytes(next(file.chunks(), b""))
            fault = small_file_fault(role.kind, path.rpartition("/")[2], start)
            if fault:
                self._add(path, fault, _SMALL_FILE_HINT)
            elif role.kind == Kind.VERSION:
                self._versions[path] = start
        try:
            for chunk in file.chunks():
                if relation is not None and block >= 0:
                    bad += self._check_pages(relation, cluster, chunk, block)
                    block += CHUNK_SIZE // PAGE_SIZE
        finally:
            # what was found before a read error counts too
            if bad:
                self._add_bad_pages(path, bad, cluster)
        if relation is not None and block >= 0 and file.length % PAGE_SIZE:
            self._add(
                path,
                f"the length of {file.length} bytes is not a multiple of the page size of {PAGE_SIZE}",
                _PARTIAL_PAGE_HINT,
            )

    def _check_pages(
        self, relation: RelationFile, cluster: ControlFile | None, chunk: bytes | memoryview, block: int
    ) -> list[BadPage]:
        checksums = cluster is not None and cluster.checksums
        if not checksums and relation.fork not in _FORKS_WITH_SANE_HEADERS:
            return []
        self._report.pages += len(chunk) // PAGE_SIZE
        return list(bad_pages(chunk, block, checksums=checksums))

    def _cluster_of(self, path: str) -> ControlFile | None:
        """Return the nearest pg_control above the file at *path*; ``None`` if it is unknown."""
        directory = path
        while directory:
            directory = directory.rpartition("/")[0]
            if directory in self._clusters:
                return self._clusters[directory]
        self._report.checksums.setdefault("", "unknown: there is no pg_control above these files")
        return None

    def _read_control_file(self, path: str) -> None:
        """Learn of the cluster that *path* is the pg_control of; one that cannot be opened is found later."""
        directory = path.removesuffix(CONTROL_FILE).rstrip("/")
        cluster = None
        try:
            with self._reader.open(path) as file:
                cluster = parse_control_file(bytes(next(file.chunks(), b"")))
            checksums = "on" if cluster.checksums else "off"
        except BadControlFile as error:
            self._add(path, str(error), _CONTROL_HINT)
            checksums = f"unknown: {error}"
        except (UnknownControlVersion, FormatError) as error:
            checksums = f"unknown: {error}"
        except OSError as error:
            checksums = f"unknown: pg_control cannot be read: {error.strerror}"
        if cluster is not None and cluster.page_size != PAGE_SIZE:
            checksums = f"unknown: the cluster's pages have {cluster.page_size} bytes"
        self._clusters[directory] = cluster
        self._report.checksums[directory] = checksums

    def _add_bad_pages(self, path: str, bad: list[BadPage], cluster: ControlFile | None) -> None:
        others = len(bad) - 1
        more = f", and {others} more bad page{'' if others == 1 else 's'}" if others else ""
        hint = _NO_CLUSTER_HINT if cluster is None else _PAGES_HINT if cluster.shut_down else _CRASH_HINT
        text = f"block {bad[0].block}: {bad[0].reason}{more}"
        self._add(path, text, hint, tuple(page.block for page in bad))

    def _add_unreadable_directory(self, error: OSError) -> None:
        path = str(error.filename).removeprefix(f"{self._volume.backing}/")
        hint = _RIGHTS_HINT if error.errno == EACCES else _READ_HINT
        self._report.findings.append(
            Finding(path, "directory", f"the directory cannot be read: {error.strerror}", hint)
        )

    def _add(self, path: str, error: str, hint: str, blocks: tuple[int, ...] = ()) -> None:
        self._report.findings.append(Finding(path, classify(path).kind.value, error, hint, blocks))


def _state(form: Form) -> str:
    if isinstance(form, Sealed):
        return ENCRYPTED
    return PLAIN if isinstance(form, Plain) else EMPTY


def _first_block(relation: RelationFile, cluster: ControlFile | None) -> int:
    """Return the block number of a segment's first page; -1 if the cluster's pages are of another size."""
    if cluster is None:
        return relation.segment * DEFAULT_SEGMENT_PAGES
    return relation.segment * cluster.segment_pages if cluster.page_size == PAGE_SIZE else -1
