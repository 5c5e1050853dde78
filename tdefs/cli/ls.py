"""``tdefs ls``: which files are encrypted, and with which key; asks the files themselves, without a secret."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tdefs.cli.output import print_json, print_table
from tdefs.cli.unlock import add_keystore_place, read_keystore
from tdefs.errors import Exit, TdefsError
from tdefs.fs.believed import shown
from tdefs.fs.offline import ENCRYPTED, PLAIN, UNREADABLE, Description, describe_all, volume_at
from tdefs.keys.document import Document
from tdefs.text import printable
from tdefs.volume import Volume

_YES_NO = {ENCRYPTED: "yes", PLAIN: "no"}
_HEADERS = ("path", "kind", "encrypted", "data key", "round", "algorithm", "size")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``ls``."""
    parser = subparsers.add_parser(
        "ls",
        help="list the files of a volume: encrypted or not, data key, round, algorithm",
        description="Lists the files of a volume as they are on the disk; needs no key. What a file says of "
        "itself is checked only so far as that goes without one: 'tdefs verify' checks the rest. The keystore is "
        "asked which data keys were destroyed: files of these are unreadable.",
    )
    parser.add_argument("place", metavar="BACKING|MOUNTPOINT", type=Path)
    add_keystore_place(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    volume = volume_at(args.place)
    document = _document(args, volume)
    destroyed = {} if document is None else document.destroyed_rounds()
    found = describe_all(volume, destroyed, shown(volume, document))
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


def _document(args: argparse.Namespace, volume: Volume) -> Document | None:
    """Return what the keystore contains; one that cannot be read is a warning, unless it was named."""
    try:
        return read_keystore(args, volume).document
    except TdefsError as error:
        if args.keystore is not None:
            raise
        print(
            f"tdefs: warning: {printable(error.message)}\n"
            "DETAIL:  files whose data key was destroyed are listed like all encrypted ones\n"
            "HINT:  name the keystore with --keystore, and list as a user who may read it",
            file=sys.stderr,
        )
    return None


def _as_object(one: Description) -> dict[str, Any]:
    """Return the JSON object of one file; its keys are part of the interface."""
    found = asdict(one)
    error = found.pop("error")
    # also one whose key was destroyed: it is not in the clear
    found["encrypted"] = one.state == ENCRYPTED or (one.state == UNREADABLE and one.algorithm is not None)
    return found if error is None else found | {"error": error}
