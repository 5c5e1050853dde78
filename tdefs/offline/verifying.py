"""Checking a whole volume without a mount: every header, length and page, and what is missing."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from threading import Event, Lock

from tdefs.format.errors import FormatError, PlantedNode, SharedFileId
from tdefs.format.special import PLANTED_NODE, name_of_node
from tdefs.keys.hierarchy import KeyRing
from tdefs.offline.abandoned import split_off_abandoned
from tdefs.offline.describing import EMPTY, LINK
from tdefs.offline.file_checking import SMALL_FILE_HINT, FileCheck, FileChecker, read_error_hint
from tdefs.offline.in_order import in_order
from tdefs.offline.reader import OfflineReader
from tdefs.offline.report import Finding, Note, Report, Unchecked
from tdefs.offline.walking import walk_all
from tdefs.pg.control import (
    CONTROL_FILE,
    RETIRED_CONTROL_FILE,
    BadControlFile,
    ControlFile,
    UnknownControlVersion,
    parse_control_file,
)
from tdefs.pg.home import HomeCluster, cluster_above, tablespace_directory
from tdefs.pg.pages import PAGE_SIZE
from tdefs.pg.small_files import odd_versions
from tdefs.pg.structure import Gap, find_gaps, find_wal_gaps, retired_directories, wal_directories
from tdefs.policy.paths import Kind, classify
from tdefs.text import printable, printable_path
from tdefs.volume.believed import STRICTEST, Believed
from tdefs.volume.description import Volume
from tdefs.volume.session_record import UNPROVEN, Ending

#: Files that are read at a time: while one waits for the disk, others are decrypted.
_THREADS = 4

_CONTROL_HINT = "restore pg_control from a backup; without it PostgreSQL does not start"
_RETIRED_HINT = (
    "nothing needs the file any more: pg_upgrade has retired the cluster; remove it by pg_upgrade's "
    "delete_old_cluster.sh, and do not start it"
)
_RETIRED = (
    "pg_upgrade has retired this cluster (--link or --swap) and renamed its pg_control, so that nobody starts it: "
    "its files are the new cluster's; do not put pg_control back, at least not once the new cluster was started; "
    "pg_upgrade's delete_old_cluster.sh removes all of it"
)
_NO_CLUSTER = "unknown: there is no pg_control above these files"
_OTHER_CLUSTER = "unknown: the catalogs are of another version than the cluster's"
_ASK_HINT = "name the data directory of their cluster with --pgdata"
_OTHERWISE_HINT = "'pg_checksums --check' on the mount checks them while the server is stopped"
_OUTSIDE = "on no tdefs volume that is known here: what lies there is in the clear"
_WAL_UNKNOWN = "it is unknown which of them recovery needs, and how long they must be"


class Verifier:
    """Checks one volume, once."""

    def __init__(self, volume: Volume, ring: KeyRing, believed: Believed = STRICTEST) -> None:
        self._volume = volume
        self._last = believed.last
        self._reader = OfflineReader(volume, ring, believed)
        self._report = Report()
        self._clusters: dict[str, ControlFile | None] = {}
        self._retired: set[str] = set()
        #: Plaintext length of every file that was found; ``None`` if it is unknown.
        self._lengths: dict[str, int | None] = {}
        self._versions: dict[str, bytes] = {}
        self._unchecked: Counter[str] = Counter()
        #: Whether the volume contains no cluster, so that it can only be a part of one.
        self._is_part = False
        #: Symbolic links, and what else is no file: path and mode.
        self._nodes: list[tuple[str, int]] = []
        self._stop = Event()
        self._lock = Lock()
        self._read = 0

    def files(self) -> list[tuple[str, int]]:
        """Return path and stored size of every file; directories that cannot be read become findings."""
        files = []
        for path, status in walk_all(self._volume, self._add_unreadable_directory):
            if stat.S_ISREG(status.st_mode):
                files.append((path, status.st_size))
            else:
                self._nodes.append((path, status.st_mode))
        return files

    def run(
        self,
        files: list[tuple[str, int]],
        progress: Callable[[int, int], object],
        homes: Callable[[], Sequence[HomeCluster]],
        leads_out: Callable[[str, str], bool],
    ) -> Report:
        """Check *files*, and everything else that :meth:`files` has seen.

        :param progress: called several times a second with the numbers of files and of stored bytes that are done.
        :param homes: returns the clusters that this volume is a part of; called if the volume needs them.
        :param leads_out: returns whether a link with this path and target leads to no tdefs volume.
        """
        if self._last.ending is Ending.UNCLEAN:
            self._note("the volume was not unmounted cleanly, or is mounted: files may lack what was never synced")
        elif self._last.ending is Ending.UNPROVEN:
            self._note(f"how the last session ended is not proven: {UNPROVEN} {self._last.reason}")
        self._read_control_files([path for path, _ in files])
        self._is_part = not self._clusters
        self._use_own_clusters([path for path, _ in files])
        asks = self._is_part or any(self._is_homeless(path) for path, _ in files)
        named = homes() if asks else ()
        self._use_homes(named, [path for path, _ in files])
        self._check_files(files, progress)
        self._check_file_ids()
        self._check_structure(named)
        unreadable = {path for path, length in self._lengths.items() if length is None}
        aside = split_off_abandoned(self._report.findings, unreadable, self._reader, self._clusters)
        self._report.findings, notes = aside
        self._report.notes += notes
        self._say_what_was_not_checked()
        self._check_nodes(leads_out)
        return self._report

    # --- what is known of the clusters

    def _read_control_files(self, paths: Sequence[str]) -> None:
        """Read the pg_control of each cluster in the volume. One that cannot be opened is reported later."""
        for path in paths:
            if path == CONTROL_FILE or path.endswith(f"/{CONTROL_FILE}"):
                self._read_control_file(path, path.removesuffix(CONTROL_FILE).rstrip("/"))
        for directory in retired_directories(set(paths)):
            self._retire(directory)
            path = f"{directory}/{RETIRED_CONTROL_FILE}".lstrip("/")
            self._report.notes.append(Note(path, _RETIRED))

    def _read_control_file(self, path: str, directory: str) -> None:
        cluster = None
        try:
            with self._reader.open(path) as file:
                cluster = parse_control_file(bytes(next(file.chunks(), b"")))
            checksums = _on_or_off(cluster)
        except BadControlFile as error:
            self._add(path, str(error), _CONTROL_HINT)
            checksums = f"unknown: {error}"
        except (UnknownControlVersion, FormatError) as error:
            checksums = f"unknown: {error}"
        except OSError as error:
            checksums = f"unknown: pg_control cannot be read: {error.strerror}"
        self._clusters[directory] = cluster
        self._report.checksums[directory] = checksums

    def _is_homeless(self, path: str) -> bool:
        """Return whether the file at *path* belongs to a cluster whose pg_control is elsewhere."""
        kind = classify(path).kind
        return kind in (Kind.RELATION, Kind.CATALOG, Kind.WAL) and cluster_above(path, self._clusters) is None

    def _use_own_clusters(self, paths: Sequence[str]) -> None:
        """Use the volume's clusters for tablespaces that lie beside them in the volume.

        The mount point is not known here. So a link in pg_tblspc counts for a directory with the same end of the
        path.
        """
        targets = {cluster: self._tablespaces(cluster) for cluster in self._clusters}
        if not any(targets.values()):
            return
        found = {tablespace_directory(path) for path in paths if self._is_homeless(path)}
        for directory, version in sorted(one for one in found if one is not None):
            place = PurePosixPath(directory).parent.parts
            linking = [
                cluster
                for cluster, links in targets.items()
                if place and any(link.parts[-len(place) :] == place for link in links)
            ]
            controls = [self._clusters[cluster] for cluster in linking]
            own = next((one for one in controls if one is not None and one.catalog_version == version), None)
            if own is not None:
                self._clusters[directory] = own
                self._report.checksums[directory] = _on_or_off(own)
            elif self._retired.intersection(linking):
                self._retire(directory)

    def _tablespaces(self, cluster: str) -> list[Path]:
        """Return where the links in a cluster's pg_tblspc lead."""
        directory = f"{cluster}/pg_tblspc".lstrip("/")
        links: list[Path] = []
        for path, _ in self._nodes:
            if path.rpartition("/")[0] == directory:
                with suppress(OSError, FormatError):  # they are reported later
                    links.append(Path(os.fsdecode(self._reader.link_target(path))))
        return links

    def _retire(self, directory: str) -> None:
        # its pg_control is no longer valid for the pages: they belong to the new cluster
        self._retired.add(directory)
        self._clusters[directory] = None
        self._report.checksums[directory] = "not needed: the cluster is retired"

    def _use_homes(self, homes: Sequence[HomeCluster], paths: Sequence[str]) -> None:
        """Use the clusters in *homes* for their tablespaces, recognised by the version of the catalogs."""
        if not homes:
            return
        by_catalogs = {home.control.catalog_version: home for home in homes}
        alone = homes[0] if len(homes) == 1 else None
        found: dict[str, HomeCluster | None] = {}
        for path in paths:
            if self._is_homeless(path) and classify(path).kind != Kind.WAL:
                directory, version = tablespace_directory(path) or ("", None)
                found[directory] = alone if version is None else by_catalogs.get(version)
        for directory, home in found.items():
            self._clusters[directory] = home.control if home is not None else None
            self._report.checksums[directory] = _on_or_off(home.control) if home is not None else _OTHER_CLUSTER
            if home is not None:
                self._note(f'{directory or "this part"} is judged by the cluster in "{home.place}"')

    # --- the files

    def _check_files(self, files: list[tuple[str, int]], progress: Callable[[int, int], object]) -> None:
        checker = FileChecker(self._reader, self._clusters, self._count, self._stop)
        done = 0

        def tick() -> None:
            progress(done, self._read)

        checks = in_order(lambda file: checker.check(*file), files, _THREADS, tick=tick, stop=self._stop)
        with closing(checks):
            for found in checks:
                done += 1
                self._record(found)
        tick()

    def _count(self, read: int) -> None:
        with self._lock:
            self._read += read

    def _record(self, found: FileCheck) -> None:
        self._lengths[found.path] = found.length
        for finding in found.findings:
            self._report.findings.append(self._hint_if_retired(finding))
        self._report.pages += found.pages
        directory = cluster_above(found.path, self._clusters)
        if found.unchecked_pages and directory not in self._retired:
            self._unchecked[directory or ""] += found.unchecked_pages
            if directory is None:
                self._report.checksums.setdefault("", _NO_CLUSTER)
        if found.version is not None:
            self._versions[found.path] = found.version
        if found.state is None:
            return
        self._report.states[found.state] += 1
        if found.state == EMPTY and found.stored_size > 0 and not found.length:
            self._report.notes.append(
                Note(
                    found.path,
                    "never synced before the crash, so its content was never promised: reads as empty",
                )
            )

    # --- what only all files together show

    def _check_file_ids(self) -> None:
        """Report each file that shares its file id, and so its key, with another file."""
        for shown_by in self._reader.file_ids.values():
            paths = list(shown_by.values())
            for path in paths if len(paths) > 1 else ():
                others = ", ".join(f'"{printable_path(os.fsencode(other))}"' for other in paths if other != path)
                error = SharedFileId(f"its file id is also that of {others}")
                self._add(path, str(error), error.hint)

    def _check_structure(self, homes: Sequence[HomeCluster]) -> None:
        """Check what only all files together show. A file that has a finding already gets no second one."""
        for path, fault in odd_versions(self._versions):
            self._add(path, fault, SMALL_FILE_HINT)
        known = {finding.path for finding in self._report.findings}
        for gap in self._gaps(homes):
            if gap.path not in known:
                known.add(gap.path)
                self._add(gap.path, gap.error, gap.hint)

    def _gaps(self, homes: Sequence[HomeCluster]) -> Iterator[Gap]:
        yield from find_gaps(self._lengths, self._clusters, self._is_link)
        segments = {
            directory: names
            for directory, names in wal_directories(self._lengths).items()
            if cluster_above(f"{directory}/", self._clusters) is None
        }
        for home in homes:
            directory = home.wal_directory
            if directory is None and home.wal_is_elsewhere and len(homes) == len(segments) == 1:
                directory = next(iter(segments))
            if directory is not None:
                prefix = f"{directory}/" if directory else ""
                yield from find_wal_gaps(prefix, self._lengths, home.control, complete=not home.wal_is_incomplete)
                self._note(f'the WAL is judged by the cluster in "{home.place}"')
        if self._is_part and not homes:  # WAL beside a cluster in the same volume is an archive
            for directory, names in segments.items():
                text = f"{_counted(names, 'WAL segment')}: {_WAL_UNKNOWN}"
                self._report.unchecked.append(Unchecked(directory, text, _ASK_HINT))

    def _is_link(self, path: str) -> bool:
        return (self._volume.data / path).is_symlink()

    def _check_nodes(self, leads_out: Callable[[str, str], bool]) -> None:
        """Note where each symbolic link leads, and report what was planted."""
        for path, mode in self._nodes:
            if not stat.S_ISLNK(mode):
                node = PlantedNode(PLANTED_NODE)
                self._report.findings.append(Finding(path, name_of_node(mode), str(node), node.hint))
                continue
            try:
                target = os.fsdecode(self._reader.link_target(path))
            except FileNotFoundError:
                continue  # PostgreSQL may remove files of a mounted volume
            except FormatError as error:
                self._report.findings.append(Finding(path, LINK, str(error), error.hint))
            except OSError as error:
                text = f"the symbolic link cannot be read: {error.strerror}"
                self._report.findings.append(Finding(path, LINK, text, read_error_hint(error)))
            else:
                out = f", {_OUTSIDE}" if leads_out(path, target) else ""
                self._report.notes.append(Note(path, f"leads to {printable(target)}{out}"))

    def _say_what_was_not_checked(self) -> None:
        for directory, pages in sorted(self._unchecked.items()):
            reason = self._report.checksums[directory]
            text = f"{_counted(pages, 'page')} of relations, except their headers; data checksums: {reason}"
            hint = _ASK_HINT if reason in (_NO_CLUSTER, _OTHER_CLUSTER) else _OTHERWISE_HINT
            self._report.unchecked.append(Unchecked(directory, text, hint))
        self._report.unchecked_pages = self._unchecked.total()
        self._report.wal_files = wal_directories(self._lengths).total()

    # --- the report

    def _hint_if_retired(self, finding: Finding) -> Finding:
        """Return the finding, with another hint if the file belongs to a retired cluster."""
        if cluster_above(finding.path, self._clusters) in self._retired:
            return replace(finding, hint=_RETIRED_HINT)
        return finding

    def _note(self, text: str) -> None:
        self._report.notes.append(Note("", text))

    def _add_unreadable_directory(self, error: OSError) -> None:
        path = str(error.filename).removeprefix(f"{self._volume.data}/")
        self._report.findings.append(
            Finding(path, "directory", f"the directory cannot be read: {error.strerror}", read_error_hint(error))
        )

    def _add(self, path: str, error: str, hint: str) -> None:
        self._report.findings.append(Finding(path, classify(path).kind.value, error, hint))


def _on_or_off(cluster: ControlFile) -> str:
    if cluster.page_size != PAGE_SIZE:
        return f"unknown: the cluster's pages have {cluster.page_size} bytes"
    return "on" if cluster.checksums else "off"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
