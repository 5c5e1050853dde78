"""``tdefs verify``: read every header and page of a volume, and report what is wrong."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tdefs.cli.output import print_fields, print_json, print_line
from tdefs.cli.unlock import add_keystore_arguments, unlock
from tdefs.errors import Exit
from tdefs.fs.offline import STATES, volume_at
from tdefs.fs.report import Report
from tdefs.fs.verifying import Verifier
from tdefs.text import printable
from tdefs.volume import Volume, is_in_use


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``verify``."""
    parser = subparsers.add_parser(
        "verify",
        help="read every header and page of a volume, and report what is wrong",
        description="Reads a whole volume without a mount and without changing anything: headers with their MAC "
        "and their place, lengths, and of relation files the pages' headers, and their checksums if the cluster "
        f"has data checksums. Exit code 0 if nothing is wrong, {Exit.VERIFY_FOUND_DAMAGE} if something is.",
    )
    parser.add_argument("backing", metavar="BACKING", type=Path)
    add_keystore_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    volume = volume_at(args.backing)
    mounted = is_in_use(volume)
    if mounted:
        print(
            f'tdefs: warning: volume "{printable(str(volume.backing))}" is in use\n'
            "DETAIL:  what changes while it is read may be reported as damage\n"
            "HINT:  unmount it, and verify again, before you believe a finding",
            file=sys.stderr,
        )
    verifier = Verifier(volume, unlock(args, volume))
    files = verifier.files()
    total = sum(size for _, size in files)
    # disable=None: only where standard error is a terminal
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=None, file=sys.stderr) as bar:
        report = verifier.run(files, bar.update)
    if args.json:
        print_json(_as_object(volume, report, mounted=mounted))
    else:
        _print_report(report)
    return Exit.VERIFY_FOUND_DAMAGE if report.findings else Exit.OK


def _print_report(report: Report) -> None:
    for finding in report.findings:
        print_line(f"{printable(finding.path)}: {finding.error}")
        print_line(f"HINT:  {finding.hint}")
    for note in report.notes:
        print_line(f"note: {printable(note.path) + ': ' if note.path else ''}{note.text}")
    if report.findings or report.notes:
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
        "checksums": report.checksums,
        "findings": [asdict(finding) for finding in report.findings],
        "notes": [asdict(note) for note in report.notes],
    }
