"""``tdefs ls``: which files are encrypted, and with which key; asks the files themselves, without a secret."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tdefs.cli.output import print_json, print_table
from tdefs.errors import Exit
from tdefs.fs.offline import ENCRYPTED, PLAIN, Description, describe_all, volume_at

_YES_NO = {ENCRYPTED: "yes", PLAIN: "no"}
_HEADERS = ("path", "kind", "encrypted", "data key", "round", "algorithm", "size")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``ls``."""
    parser = subparsers.add_parser(
        "ls",
        help="list the files of a volume: encrypted or not, data key, round, algorithm",
        description="Lists the files of a volume as they are on the disk; needs no key. What a file says of "
        "itself is checked only so far as that goes without one: 'tdefs verify' checks the rest.",
    )
    parser.add_argument("place", metavar="BACKING|MOUNTPOINT", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    found = describe_all(volume_at(args.place))
    if args.json:
        print_json([_as_object(one) for one in found])
        return Exit.OK
    # a damaged file's error takes the place of what cannot be told
    rows = [
        (
            one.path,
            one.kind,
            _YES_NO.get(one.state, one.state),
            one.data_key,
            one.round,
            one.algorithm,
            one.size,
            one.error or "",
        )
        for one in found
    ]
    print_table((*_HEADERS, ""), rows, numbers=("round", "size"))
    return Exit.OK


def _as_object(one: Description) -> dict[str, Any]:
    """Return the JSON object of one file; its keys are part of the interface."""
    found = asdict(one)
    error = found.pop("error")
    found["encrypted"] = one.state == ENCRYPTED
    return found if error is None else found | {"error": error}
