"""``tdefs verify``: read every header and page of a volume and report damage."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tdefs.cli.common.home_cluster import linking_clusters, named_cluster
from tdefs.cli.common.invocation import Invocation
from tdefs.cli.common.link_places import link_judge
from tdefs.cli.common.output import print_fields, print_json, print_line
from tdefs.cli.common.parsing import Subcommands, takes
from tdefs.cli.common.place import VolumeChoice, add_volume
from tdefs.cli.common.progress import ReadProgress
from tdefs.cli.common.tampering import binding_of, tampering_findings
from tdefs.cli.common.unlocking import KeystoreAccess, add_keystore_access, keystore_path, unlock
from tdefs.errors import Exit
from tdefs.manifest.checking import examine
from tdefs.offline.reader import STATES
from tdefs.offline.report import Report
from tdefs.offline.verifying import Verifier
from tdefs.text import printable
from tdefs.volume.description import Volume
from tdefs.volume.lock import is_in_use


def register(subparsers: Subcommands) -> None:
    """Add the command ``verify``."""
    parser = subparsers.add_parser(
        "verify",
        help="read every header and page of a volume and report damage",
        description="Reads a whole volume, without a mount and without changing anything. It checks each "
        "header with its MAC and its place, the lengths, and in relation files the page headers, "
        "and the page checksums if the cluster has data checksums. It reports where each symbolic "
        "link leads to, and planted files. For a tablespace or a WAL directory it finds the "
        "cluster by the links to it, or by --pgdata. The exit code is 0 if nothing is wrong, "
        f"{Exit.VERIFY_FOUND_DAMAGE} for damage, {Exit.TAMPERING_FOUND} if no file is damaged but "
        f"some are not as the last unmount left them, and {Exit.VERIFY_INCOMPLETE} if nothing is "
        "wrong but the cluster is not known, so that its pages were not checked.",
    )
    add_volume(parser)
    add_keystore_access(parser)
    parser.add_argument(
        "--pgdata",
        metavar="DIR",
        type=Path,
        help="the cluster of this tablespace or WAL: its data directory, or the backing directory of that",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress on standard error")
    takes(parser, _Options, _run)


@dataclass(frozen=True, slots=True)
class _Options:
    volume: VolumeChoice
    access: KeystoreAccess
    pgdata: Path | None
    json: bool
    quiet: bool


def _run(invocation: Invocation, options: _Options) -> int:
    volume = options.volume.find()
    mounted = is_in_use(volume)
    if mounted:
        print(
            f'tdefs: warning: volume "{printable(str(volume.backing))}" is in use\n'
            "DETAIL:  what changes while it is read may be reported as damage\n"
            "HINT:  unmount it, and verify again, before you believe a finding",
            file=sys.stderr,
        )
    known = unlock(options.access, volume)
    verifier = Verifier(volume, known.unlocked.ring, known.believed)
    named = named_cluster(options.access, volume, options.pgdata) if options.pgdata is not None else None
    files = verifier.files()
    with ReadProgress(len(files), sum(size for _, size in files), quiet=options.quiet) as progress:
        report = verifier.run(
            files,
            progress.update,
            lambda: [named] if named is not None else list(linking_clusters(options.access, volume)),
            link_judge(invocation.config, volume),
        )
    damage = len(report.findings)
    report.findings += tampering_findings(
        examine(binding_of(volume, known, keystore_path(options.access, volume)))
    )
    if options.json:
        print_json(_as_object(volume, report, mounted=mounted))
    else:
        _print_report(report)
    if report.findings:
        return Exit.VERIFY_FOUND_DAMAGE if damage else Exit.TAMPERING_FOUND
    return Exit.VERIFY_INCOMPLETE if report.unchecked else Exit.OK


def _print_report(report: Report) -> None:
    for finding in report.findings:
        print_line(f"{printable(finding.path)}: {finding.error}")
        print_line(f"HINT:  {finding.hint}")
    for note in report.notes:
        print_line(f"note: {printable(note.path) + ': ' if note.path else ''}{note.text}")
    for one in report.unchecked:
        print_line(f"not checked: {printable(one.path) + ': ' if one.path else ''}{one.text}")
        print_line(f"HINT:  {one.hint}")
    if report.findings or report.notes or report.unchecked:
        print_line()
    checksums = [
        (f"checksums in {directory or 'the volume'}", state)
        for directory, state in sorted(report.checksums.items())
    ]
    print_fields(
        [
            ("files", sum(report.states.values())),
            *((state, report.states[state]) for state in STATES),
            ("pages checked", report.pages),
            ("pages not checked", report.unchecked_pages),
            ("WAL files not checked", report.wal_files),
            *checksums,
            ("findings", len(report.findings)),
        ]
    )


def _as_object(volume: Volume, report: Report, *, mounted: bool) -> dict[str, Any]:
    """Return the JSON object of a report; its keys are part of the interface."""
    return {
        "backing": str(volume.backing),
        "volume_id": volume.volume_id.hex(),
        "mounted": mounted,
        "files": {state: report.states[state] for state in STATES},
        "pages": report.pages,
        "unchecked_pages": report.unchecked_pages,
        "wal_files": report.wal_files,
        "checksums": report.checksums,
        "findings": [asdict(finding) for finding in report.findings],
        "unchecked": [asdict(one) for one in report.unchecked],
        "notes": [asdict(note) for note in report.notes],
    }
