"""Checking one file of a volume to its end: header, length, and the content, as far as PostgreSQL checks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from errno import EACCES
from threading import Event

from tdefs.data.forms import Encrypted, Form, Plain
from tdefs.format.errors import DestroyedKey, FormatError
from tdefs.offline.describing import DAMAGED, EMPTY, ENCRYPTED, PLAIN, UNREADABLE
from tdefs.offline.reader import CHUNK_SIZE, OfflineReader, Plaintext
from tdefs.offline.report import Finding
from tdefs.pg.control import ControlFile
from tdefs.pg.home import cluster_above
from tdefs.pg.pages import DEFAULT_SEGMENT_PAGES, PAGE_SIZE, BadPage, bad_pages
from tdefs.pg.small_files import SMALL_KINDS, small_file_fault
from tdefs.policy.paths import FileRole, Kind, RelationFile, classify

_RELATION_KINDS = (Kind.RELATION, Kind.CATALOG)
# PostgreSQL rebuilds bad free-space and visibility maps from nothing. So without checksums, about which it would
# warn, there is nothing to report.
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
    "nothing of the file is lost, but the disk, or a person, has damaged the page: copy the file through "
    "the mount, and see the kernel's log"
)
SMALL_FILE_HINT = "restore the file from a backup; without it PostgreSQL does not start, or not serve the database"
_READ_HINT = "see the kernel's log for errors of the disk"
_RIGHTS_HINT = "verify as the user that mounts the volume"


class CheckStoppedError(Exception):
    """Somebody has asked to stop the check."""


@dataclass(slots=True)
class FileCheck:
    """What the check of one file has found.

    ``state`` is ``None`` if the file has vanished. ``length`` is the length of its plaintext in bytes, ``None`` if
    it is unknown. ``pages`` were checked. Of ``unchecked_pages`` at most the headers were checked, since
    pg_control is not known. ``version`` is the content of an intact PG_VERSION.
    """

    path: str
    stored_size: int
    state: str | None = None
    length: int | None = None
    pages: int = 0
    unchecked_pages: int = 0
    version: bytes | None = None
    findings: list[Finding] = field(default_factory=list)


class FileChecker:
    """Checks files of one volume; several threads may do so at once."""

    def __init__(
        self,
        reader: OfflineReader,
        clusters: Mapping[str, ControlFile | None],
        advance: Callable[[int], object],
        stop: Event,
    ) -> None:
        """:param clusters: by directory, what the pg_control says that is valid there.
        :param advance: called with the number of bytes that were read; a file's total is its stored size.
        :param stop: ends a check when it is set.
        """
        self._reader = reader
        self._clusters = clusters
        self._advance = advance
        self._stop = stop

    def check(self, path: str, size: int) -> FileCheck:
        """Read the file at *path*, whose stored size is *size* bytes, to its end.

        :raises CheckStoppedError: *stop* was set.
        """
        found = FileCheck(path, size)
        rest = size
        try:
            with self._reader.open(path) as file:
                found.length = file.length
                if not file.clean_header:
                    _add(found, "the header page is not zero after the header record", _HEADER_PAGE_HINT)
                for count in self._check_content(found, classify(path), file):
                    rest -= count
                    self._advance(count)
                found.state = _state(file.form)
        except FileNotFoundError:
            pass  # PostgreSQL may remove files of a mounted volume
        except FormatError as error:
            found.state = UNREADABLE if isinstance(error, DestroyedKey) else DAMAGED
            _add(found, str(error), error.hint)
        except OSError as error:
            found.state = UNREADABLE
            _add(found, f"the file cannot be read: {error.strerror}", read_error_hint(error))
        self._advance(rest)
        return found

    def _check_content(self, found: FileCheck, role: FileRole, file: Plaintext) -> Iterator[int]:
        """Check all of the content. Yield the number of bytes that were read, piece by piece."""
        relation = role.relation if role.kind in _RELATION_KINDS else None
        bad: list[BadPage] = []
        block = -1
        cluster: ControlFile | None = None
        if relation is not None:
            directory = cluster_above(found.path, self._clusters)
            cluster = None if directory is None else self._clusters[directory]
            block = _first_block(relation, cluster)
            if cluster is None or block < 0:
                found.unchecked_pages = file.length // PAGE_SIZE
        small = role.kind in SMALL_KINDS
        start = b""
        try:
            for chunk in file.chunks():
                if self._stop.is_set():
                    raise CheckStoppedError
                if small and not start:
                    start = bytes(chunk)
                if relation is not None and block >= 0:
                    bad += self._check_pages(found, relation, cluster, chunk, block)
                    block += CHUNK_SIZE // PAGE_SIZE
                yield len(chunk)
        finally:
            # bad pages that were found before a read error count, too
            if bad:
                _add_bad_pages(found, bad, cluster)
        if small:
            fault = small_file_fault(role.kind, found.path.rpartition("/")[2], start)
            if fault:
                _add(found, fault, SMALL_FILE_HINT)
            elif role.kind == Kind.VERSION:
                found.version = start
        if relation is not None and block >= 0 and file.length % PAGE_SIZE:
            _add(
                found,
                f"the length of {file.length} bytes is not a multiple of the page size of {PAGE_SIZE}",
                _PARTIAL_PAGE_HINT,
            )

    def _check_pages(
        self,
        found: FileCheck,
        relation: RelationFile,
        cluster: ControlFile | None,
        chunk: bytes | bytearray | memoryview,
        block: int,
    ) -> list[BadPage]:
        checksums = cluster is not None and cluster.checksums
        if not checksums and relation.fork not in _FORKS_WITH_SANE_HEADERS:
            return []
        if cluster is not None:
            found.pages += len(chunk) // PAGE_SIZE
        return list(bad_pages(chunk, block, checksums=checksums))


def read_error_hint(error: OSError) -> str:
    """Return the hint for a file or directory that cannot be read."""
    return _RIGHTS_HINT if error.errno == EACCES else _READ_HINT


def _add_bad_pages(found: FileCheck, bad: list[BadPage], cluster: ControlFile | None) -> None:
    others = len(bad) - 1
    more = f", and {others} more bad page{'' if others == 1 else 's'}" if others else ""
    hint = _NO_CLUSTER_HINT if cluster is None else _PAGES_HINT if cluster.shut_down else _CRASH_HINT
    text = f"block {bad[0].block}: {bad[0].reason}{more}"
    _add(found, text, hint, tuple(page.block for page in bad))


def _add(found: FileCheck, error: str, hint: str, blocks: tuple[int, ...] = ()) -> None:
    found.findings.append(Finding(found.path, classify(found.path).kind.value, error, hint, blocks))


def _state(form: Form) -> str:
    if isinstance(form, Encrypted):
        return ENCRYPTED
    return PLAIN if isinstance(form, Plain) else EMPTY


def _first_block(relation: RelationFile, cluster: ControlFile | None) -> int:
    """Return the block number of a segment's first page; -1 if the cluster's pages are of another size."""
    if cluster is None:
        return relation.segment * DEFAULT_SEGMENT_PAGES
    return relation.segment * cluster.segment_pages if cluster.page_size == PAGE_SIZE else -1
